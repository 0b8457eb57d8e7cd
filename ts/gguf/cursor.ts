import { FrugalError } from '../errors.js';
import { createPace, type Pace } from '../yield.js';
import { readExactly } from './read-exactly.js';
import { refuse } from './refuse.js';
import type { ByteSource } from './source.js';

const FIRST_WINDOW = 256 * 1024;
const WINDOW = 1024 * 1024;

/** The header (metadata and tensor table) must end before this offset. Real ones take up to 20 MiB. */
const MAX_HEADER_BYTES = 48 * 1024 * 1024;
/** What may be kept of a header. An array is held twice while it is joined, hence half of 56 MiB. */
const MAX_KEPT_BYTES = 28 * 1024 * 1024;

/**
 * Walks a source from its start through a bounded window. The reading methods `u8` to `f64` are
 * synchronous and need the bytes in the window: ask `has`, else await `need` first.
 */
export interface Cursor {
  readonly source: ByteSource;
  readonly signal: AbortSignal | undefined;
  readonly pace: Pace;
  /** The offset in the source of the next byte. */
  position: number;
  /** How many more bytes of the header may be kept in memory. */
  keepLeft: number;
  window: Uint8Array;
  view: DataView;
  windowStart: number;
}

export function createCursor(source: ByteSource, signal?: AbortSignal): Cursor {
  if (!Number.isSafeInteger(source.size) || source.size < 0) {
    throw new FrugalError('SOURCE_READ', `${source.name}: the source gives its size as ${source.size}`, {
      cure: 'Give a source whose size is a whole number of bytes.',
      data: { source: source.name, size: source.size },
    });
  }
  const window = new Uint8Array(0);
  return {
    source,
    signal,
    pace: createPace(),
    position: 0,
    keepLeft: MAX_KEPT_BYTES,
    window,
    view: new DataView(window.buffer),
    windowStart: 0,
  };
}

/** Bytes from here to the end of the source. */
export function remaining(cursor: Cursor): number {
  return cursor.source.size - cursor.position;
}

/** Bytes from here to the end of the window: what can be read without waiting. */
export function ready(cursor: Cursor): number {
  return cursor.windowStart + cursor.window.length - cursor.position;
}

/** Refuses a file in which `bytes` bytes of `what` do not fit before its end. */
export function checkFits(cursor: Cursor, bytes: number, what: string): void {
  if (bytes <= remaining(cursor)) return;
  throw refuse(
    'GGUF_TRUNCATED',
    `${cursor.source.name}: ${what} at offset ${cursor.position} needs at least ${bytes} bytes, ` +
      `but only ${remaining(cursor)} are left of ${cursor.source.size}`,
    { source: cursor.source.name, what, offset: cursor.position, needed: bytes, size: cursor.source.size },
  );
}

/** Counts `bytes` towards what is kept of the header; called before they are allocated. */
export function keep(cursor: Cursor, bytes: number, what: string): void {
  cursor.keepLeft -= bytes;
  if (cursor.keepLeft >= 0) return;
  throw refuse(
    'GGUF_LIMIT',
    `${cursor.source.name}: with ${what} at offset ${cursor.position} the header takes more than ` +
      `${MAX_KEPT_BYTES} bytes of memory`,
    { source: cursor.source.name, what, offset: cursor.position, limit: MAX_KEPT_BYTES },
  );
}

/** Waits until at least `bytes` bytes (a few fields, never a whole array) are in the window. */
export async function need(cursor: Cursor, bytes: number, what: string): Promise<void> {
  cursor.signal?.throwIfAborted();
  if (ready(cursor) >= bytes) return;
  checkFits(cursor, bytes, what);
  if (cursor.position + bytes > MAX_HEADER_BYTES) {
    throw refuse(
      'GGUF_LIMIT',
      `${cursor.source.name}: the header goes on at offset ${cursor.position} with ${what}; it may take ` +
        `${MAX_HEADER_BYTES} bytes`,
      { source: cursor.source.name, what, offset: cursor.position, limit: MAX_HEADER_BYTES },
    );
  }
  const length = Math.min(remaining(cursor), cursor.position === 0 ? FIRST_WINDOW : WINDOW);
  const window = await readExactly(cursor.source, cursor.position, length, cursor.signal);
  cursor.signal?.throwIfAborted();
  cursor.window = window;
  cursor.view = new DataView(window.buffer, window.byteOffset, window.length);
  cursor.windowStart = cursor.position;
}

/** Lets other tasks run when the walk has held the thread long enough. */
export async function breathe(cursor: Cursor): Promise<void> {
  if (!cursor.pace.due()) return;
  await cursor.pace.rest();
  cursor.signal?.throwIfAborted();
}

/** Takes `bytes` bytes of the window: their offset in `cursor.view`. */
function take(cursor: Cursor, bytes: number): number {
  const at = cursor.position - cursor.windowStart;
  cursor.position += bytes;
  return at;
}

export function readU32(cursor: Cursor): number {
  return cursor.view.getUint32(take(cursor, 4), true);
}

/**
 * An unsigned 64-bit number. Above 2^53 it is rounded, which does no harm to a comparison with the
 * size of a source, the only use such a number has before it is refused.
 */
export function readU64(cursor: Cursor): number {
  const at = take(cursor, 8);
  return cursor.view.getUint32(at + 4, true) * 0x1_0000_0000 + cursor.view.getUint32(at, true);
}

/** Reads one value of `width` bytes with the DataView of the window. */
export function readScalar<T>(cursor: Cursor, width: number, read: (view: DataView, at: number) => T): T {
  return read(cursor.view, take(cursor, width));
}

/**
 * Copies the next target.length bytes into `target`, window by window. The caller has checked that
 * they fit in the source and counted them.
 */
export async function copyInto(cursor: Cursor, target: Uint8Array, what: string): Promise<void> {
  let filled = 0;
  while (filled < target.length) {
    if (ready(cursor) <= 0) await need(cursor, 1, what);
    const length = Math.min(ready(cursor), target.length - filled);
    const at = take(cursor, length);
    target.set(cursor.window.subarray(at, at + length), filled);
    filled += length;
    await breathe(cursor);
  }
}

/** Passes over `bytes` bytes, checked by the caller to be in the source, without reading them. */
export function skip(cursor: Cursor, bytes: number): void {
  cursor.position += bytes;
}
