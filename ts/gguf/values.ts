import {
  breathe,
  type Cursor,
  checkFits,
  copyInto,
  keep,
  need,
  readScalar,
  readU32,
  readU64,
} from './cursor.js';
import type { GgufValue } from './metadata.js';
import { refuse } from './refuse.js';
import { readString, readStrings, skipStrings } from './strings.js';
import { KIND_BYTES, type NumberKind, VALUE_KINDS, type ValueKind } from './types.js';

/** Arrays in arrays in ... : how many levels are followed. */
const MAX_ARRAY_DEPTH = 4;
/** Counted for each array in an array, though none is kept: it bounds the time that they can take. */
const NESTED_ARRAY_COST = 256;
/** How many booleans are checked between two looks at the clock. */
const BOOL_BATCH = 1024 * 1024;

/** Reads one metadata value: its kind, then the value itself. */
export async function readValue(cursor: Cursor, key: string): Promise<GgufValue> {
  const what = `the value of "${key}"`;
  const kind = await readKind(cursor, what);
  if (kind === 'array') return readArray(cursor, what);
  if (kind === 'string') return { kind, value: await readString(cursor, what) };
  await need(cursor, KIND_BYTES[kind], what);
  if (kind === 'bool') return { kind, value: readBool(cursor, what) };
  return readNumber(cursor, kind);
}

async function readKind(cursor: Cursor, what: string): Promise<ValueKind> {
  await need(cursor, 4, `the type of ${what}`);
  const offset = cursor.position;
  const id = readU32(cursor);
  const kind = VALUE_KINDS[id];
  if (kind !== undefined) return kind;
  throw refuse(
    'GGUF_VALUE_TYPE',
    `${cursor.source.name}: ${what} has the unknown type ${id} at offset ${offset}; ` +
      `types are 0 (${VALUE_KINDS[0]}) to ${VALUE_KINDS.length - 1} (${VALUE_KINDS.at(-1)})`,
    { source: cursor.source.name, what, offset, type: id },
  );
}

function readNumber(cursor: Cursor, kind: NumberKind): GgufValue {
  if (kind === 'uint64') return { kind, value: readScalar(cursor, 8, (v, at) => v.getBigUint64(at, true)) };
  if (kind === 'int64') return { kind, value: readScalar(cursor, 8, (v, at) => v.getBigInt64(at, true)) };
  return { kind, value: readScalar(cursor, KIND_BYTES[kind], READERS[kind]) };
}

const READERS: Record<Exclude<NumberKind, 'uint64' | 'int64'>, (view: DataView, at: number) => number> = {
  uint8: (view, at) => view.getUint8(at),
  int8: (view, at) => view.getInt8(at),
  uint16: (view, at) => view.getUint16(at, true),
  int16: (view, at) => view.getInt16(at, true),
  uint32: (view, at) => view.getUint32(at, true),
  int32: (view, at) => view.getInt32(at, true),
  float32: (view, at) => view.getFloat32(at, true),
  float64: (view, at) => view.getFloat64(at, true),
};

function readBool(cursor: Cursor, what: string): boolean {
  const offset = cursor.position;
  const byte = readScalar(cursor, 1, READERS.uint8);
  if (byte > 1) throw badBool(cursor, what, byte, offset);
  return byte === 1;
}

function badBool(cursor: Cursor, what: string, byte: number, offset: number): Error {
  return refuse(
    'GGUF_VALUE_TYPE',
    `${cursor.source.name}: ${what} has a boolean of ${byte} at offset ${offset}; booleans are 0 or 1`,
    { source: cursor.source.name, what, offset, value: byte },
  );
}

interface ArrayHead {
  readonly kind: ValueKind;
  readonly count: number;
}

/** Reads an array's element type and count, and checks that so many elements fit in the source. */
async function readArrayHead(cursor: Cursor, what: string): Promise<ArrayHead> {
  const kind = await readKind(cursor, `the elements of ${what}`);
  await need(cursor, 8, `the length of ${what}`);
  const count = readU64(cursor);
  checkFits(cursor, count * KIND_BYTES[kind], `${what}, an array of ${count} ${kind}`);
  return { kind, count };
}

async function readArray(cursor: Cursor, what: string): Promise<GgufValue> {
  const { kind, count } = await readArrayHead(cursor, what);
  if (kind === 'string') return { kind: 'array[string]', value: await readStrings(cursor, count, what) };
  if (kind === 'array') {
    await skipArrays(cursor, count, what);
    return { kind: 'array[array]', value: undefined };
  }
  const offset = cursor.position;
  keep(cursor, count * KIND_BYTES[kind], what);
  const bytes = new Uint8Array(count * KIND_BYTES[kind]);
  await copyInto(cursor, bytes, what);
  if (kind === 'bool') {
    await checkBools(cursor, bytes, what, offset);
    return { kind: 'array[bool]', value: bytes };
  }
  return typedArray(kind, bytes.buffer);
}

async function checkBools(cursor: Cursor, bytes: Uint8Array, what: string, offset: number): Promise<void> {
  for (let start = 0; start < bytes.length; start += BOOL_BATCH) {
    const wrong = bytes.subarray(start, start + BOOL_BATCH).findIndex((byte) => byte > 1);
    if (wrong >= 0) throw badBool(cursor, what, bytes[start + wrong] ?? 0, offset + start + wrong);
    await breathe(cursor);
  }
}

/** Views the bytes of an array as numbers: every runtime that this package runs on is little-endian. */
function typedArray(kind: NumberKind, buffer: ArrayBuffer): GgufValue {
  switch (kind) {
    case 'uint64':
      return { kind: 'array[uint64]', value: new BigUint64Array(buffer) };
    case 'int64':
      return { kind: 'array[int64]', value: new BigInt64Array(buffer) };
    default:
      return { kind: `array[${kind}]`, value: new TYPED_ARRAYS[kind](buffer) };
  }
}

const TYPED_ARRAYS = {
  uint8: Uint8Array,
  int8: Int8Array,
  uint16: Uint16Array,
  int16: Int16Array,
  uint32: Uint32Array,
  int32: Int32Array,
  float32: Float32Array,
  float64: Float64Array,
} as const;

/**
 * Passes over `count` arrays, checking everything in them. A stack of the counts that are left
 * instead of recursion: the depth is the file's choice.
 */
async function skipArrays(cursor: Cursor, count: number, what: string): Promise<void> {
  const left = [count];
  while (left.length > 0) {
    const top = left.length - 1;
    const here = left[top] ?? 0;
    if (here === 0) {
      left.pop();
      continue;
    }
    left[top] = here - 1;
    keep(cursor, NESTED_ARRAY_COST, what);
    const head = await readArrayHead(cursor, what);
    if (head.kind === 'array') {
      left.push(head.count);
      checkDepth(cursor, left.length + 1, what);
    } else {
      await skipElements(cursor, head, what);
    }
    await breathe(cursor);
  }
}

function checkDepth(cursor: Cursor, depth: number, what: string): void {
  if (depth <= MAX_ARRAY_DEPTH) return;
  throw refuse(
    'GGUF_LIMIT',
    `${cursor.source.name}: ${what} has arrays ${depth} deep at offset ${cursor.position}; ` +
      `at most ${MAX_ARRAY_DEPTH} are allowed`,
    { source: cursor.source.name, what, offset: cursor.position, depth, limit: MAX_ARRAY_DEPTH },
  );
}

async function skipElements(cursor: Cursor, head: ArrayHead, what: string): Promise<void> {
  if (head.kind === 'string') return skipStrings(cursor, head.count, what);
  const offset = cursor.position;
  const bytes = head.count * KIND_BYTES[head.kind];
  if (head.kind !== 'bool') {
    cursor.position += bytes;
    return;
  }
  keep(cursor, bytes, what);
  const flags = new Uint8Array(bytes);
  await copyInto(cursor, flags, what);
  await checkBools(cursor, flags, what, offset);
}
