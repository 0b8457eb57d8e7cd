import {
  breathe,
  type Cursor,
  checkFits,
  copyInto,
  keep,
  need,
  readU64,
  ready,
  remaining,
  skip,
} from './cursor.js';
import { refuse } from './refuse.js';
import { StringArray } from './string-array.js';

const strict = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
const SEGMENT = 1024 * 1024;
/** Four bytes for a string's offset, and as many again to bound the time that empty strings can take. */
const STRING_COST = 8;
/** How many short strings are read between two looks at the clock. */
const BATCH = 256;

/**
 * Reads a key or a tensor's name: 1 to `limit` bytes of UTF-8.
 * @throws FrugalError `GGUF_STRING` when it is empty or not UTF-8, `GGUF_LIMIT`, `GGUF_TRUNCATED`
 */
export async function readName(cursor: Cursor, limit: number, what: string): Promise<string> {
  const start = cursor.position;
  const length = await readLength(cursor, what);
  const source = cursor.source.name;
  if (length > limit) {
    throw refuse(
      'GGUF_LIMIT',
      `${source}: ${what} at offset ${start} has ${length} bytes; at most ${limit} are allowed`,
      { source, what, offset: start, length, limit },
    );
  }
  if (length === 0) {
    throw refuse('GGUF_STRING', `${source}: ${what} at offset ${start} is empty`, {
      source,
      what,
      offset: start,
    });
  }
  keep(cursor, 2 * length, what);
  const bytes = new Uint8Array(length);
  await copyInto(cursor, bytes, what);
  try {
    return strict.decode(bytes);
  } catch (cause) {
    throw refuse(
      'GGUF_STRING',
      `${source}: ${what} at offset ${start} is not valid UTF-8`,
      { source, what, offset: start },
      { cause },
    );
  }
}

/** Reads a string value as its bytes. */
export async function readString(cursor: Cursor, what: string): Promise<Uint8Array> {
  const length = await readLength(cursor, what);
  keep(cursor, length, what);
  const bytes = new Uint8Array(length);
  await copyInto(cursor, bytes, what);
  return bytes;
}

async function readLength(cursor: Cursor, what: string): Promise<number> {
  await need(cursor, 8, `the length of ${what}`);
  const length = readU64(cursor);
  checkFits(cursor, length, what);
  return length;
}

/** Passes over `count` strings, checking each length. */
export async function skipStrings(cursor: Cursor, count: number, what: string): Promise<void> {
  for (let i = 0; i < count; i += 1) {
    if (ready(cursor) < 8) await need(cursor, 8, `${what}[${i}]`);
    const length = readU64(cursor);
    if (length > remaining(cursor)) checkFits(cursor, length, `${what}[${i}]`);
    skip(cursor, length);
    if (i % BATCH === 0) await breathe(cursor);
  }
}

/**
 * Reads `count` strings, whose length fields are known to fit in the source. The bytes gather in
 * segments and are joined once at the end, so that no copy grows with the array. The loop makes no
 * garbage (an element's name is written only for an error): collecting it would hold the thread.
 */
export async function readStrings(cursor: Cursor, count: number, what: string): Promise<StringArray> {
  keep(cursor, STRING_COST * (count + 1), what);
  const offsets = new Uint32Array(count + 1);
  const gathered = createGathered(Math.min(SEGMENT, remaining(cursor) - 8 * count));
  for (let i = 0; i < count; i += 1) {
    if (ready(cursor) < 8) await need(cursor, 8, `${what}[${i}]`);
    const length = readU64(cursor);
    if (length > remaining(cursor)) checkFits(cursor, length, `${what}[${i}]`);
    if (length > cursor.keepLeft) keep(cursor, length, `${what}[${i}]`);
    cursor.keepLeft -= length;
    if (length <= ready(cursor) && length <= gathered.segment.length - gathered.used) {
      copyShort(cursor, gathered, length);
    } else {
      await copyLong(cursor, gathered, length, `${what}[${i}]`);
    }
    offsets[i + 1] = gathered.total;
    if (i % BATCH === 0) await breathe(cursor);
  }
  return new StringArray(await join(cursor, gathered), offsets);
}

/** Bytes of unknown length: full segments, and the one that is being filled. */
interface Gathered {
  readonly full: Uint8Array[];
  segment: Uint8Array;
  used: number;
  total: number;
}

function createGathered(firstSegment: number): Gathered {
  return { full: [], segment: new Uint8Array(firstSegment), used: 0, total: 0 };
}

/** Copies a string that is in the window into the room that is left in the segment. */
function copyShort(cursor: Cursor, gathered: Gathered, length: number): void {
  const from = cursor.position - cursor.windowStart;
  const { window } = cursor;
  const { segment, used } = gathered;
  if (length > 32) {
    segment.set(window.subarray(from, from + length), used);
  } else {
    // Most tokens are a few bytes: a loop is faster than making a view of them.
    for (let k = 0; k < length; k += 1) segment[used + k] = window[from + k] ?? 0;
  }
  skip(cursor, length);
  gathered.used += length;
  gathered.total += length;
}

async function copyLong(cursor: Cursor, gathered: Gathered, length: number, what: string): Promise<void> {
  let left = length;
  while (left > 0) {
    if (gathered.used === gathered.segment.length) {
      gathered.full.push(gathered.segment);
      gathered.segment = new Uint8Array(SEGMENT);
      gathered.used = 0;
    }
    const part = Math.min(left, gathered.segment.length - gathered.used);
    await copyInto(cursor, gathered.segment.subarray(gathered.used, gathered.used + part), what);
    gathered.used += part;
    gathered.total += part;
    left -= part;
  }
}

async function join(cursor: Cursor, gathered: Gathered): Promise<Uint8Array> {
  const joined = new Uint8Array(gathered.total);
  let at = 0;
  for (const segment of gathered.full) {
    joined.set(segment, at);
    at += segment.length;
    await breathe(cursor);
  }
  joined.set(gathered.segment.subarray(0, gathered.used), at);
  return joined;
}
