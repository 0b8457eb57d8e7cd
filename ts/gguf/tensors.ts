import { breathe, type Cursor, checkFits, keep, need, readU32, readU64 } from './cursor.js';
import { refuse } from './refuse.js';
import { readName } from './strings.js';
import { GGML_TYPES, type GgmlType, ggmlTypeOf } from './types.js';

/** Where a tensor lies and how it is stored. */
export interface GgufTensor {
  readonly name: string;
  readonly type: GgmlType;
  /** One to four dimensions in the order of the file: shape[0] is the length of a row (inputs). */
  readonly shape: readonly number[];
  /** The product of the shape. */
  readonly elements: number;
  /** Which of the model's parts holds the tensor. */
  readonly part: number;
  /** Where its bytes begin in that part. */
  readonly offset: number;
  /** How many bytes it takes there. */
  readonly bytes: number;
}

export const MAX_TENSORS = 65_536;
const MAX_NAME_BYTES = 255;
const MAX_DIMENSIONS = 4;
/** An empty name's length, one dimension with its count, type and offset. */
const MIN_ENTRY_BYTES = 8 + 4 + 8 + 4 + 8;
/** What a tensor's entry takes in memory beside its name. */
const ENTRY_COST = 320;

/** A row of the tensor table; `offset` counts from the start of the tensor data. */
interface Entry extends Omit<GgufTensor, 'part'> {
  /** Where the row itself begins in the file, for messages. */
  readonly at: number;
}

/** Refuses a tensor count that cannot be true. The cursor is past the file's two counts. */
export function checkTensorCount(cursor: Cursor, count: number): void {
  checkFits(cursor, count * MIN_ENTRY_BYTES, `the table of ${count} tensors`);
  if (count <= MAX_TENSORS) return;
  throw refuse(
    'GGUF_LIMIT',
    `${cursor.source.name}: the header announces ${count} tensors; at most ${MAX_TENSORS} are allowed`,
    { source: cursor.source.name, count, limit: MAX_TENSORS },
  );
}

/**
 * Reads the tensor table and checks every tensor's place against the size of the source and the
 * places of the others.
 */
export async function readTensors(
  cursor: Cursor,
  count: number,
  alignment: number,
  part: number,
): Promise<Map<string, GgufTensor>> {
  checkFits(cursor, count * MIN_ENTRY_BYTES, `the table of ${count} tensors`);
  const entries = new Map<string, Entry>();
  for (let i = 0; i < count; i += 1) {
    const entry = await readEntry(cursor, i, alignment);
    if (entries.has(entry.name)) {
      throw refuse(
        'GGUF_DUPLICATE',
        `${cursor.source.name}: tensor "${entry.name}" appears a second time at offset ${entry.at}`,
        { source: cursor.source.name, tensor: entry.name, offset: entry.at },
      );
    }
    entries.set(entry.name, entry);
    await breathe(cursor);
  }
  return place(cursor, entries, alignment, part);
}

async function readEntry(cursor: Cursor, index: number, alignment: number): Promise<Entry> {
  const at = cursor.position;
  keep(cursor, ENTRY_COST, `tensor ${index}`);
  const name = await readName(cursor, MAX_NAME_BYTES, `the name of tensor ${index}`);
  const what = `tensor "${name}"`;
  const shape = await readShape(cursor, what);
  await need(cursor, 12, what);
  const type = checkType(cursor, what, readU32(cursor));
  const { elements, bytes } = measure(cursor, what, type, shape);
  const offset = readU64(cursor);
  if (offset % alignment !== 0) {
    throw refuse(
      'GGUF_ALIGNMENT',
      `${cursor.source.name}: ${what} begins at offset ${offset} of the tensor data, ` +
        `which is not a multiple of the alignment ${alignment}`,
      { source: cursor.source.name, tensor: name, offset, alignment },
    );
  }
  return { name, type, shape, elements, offset, bytes, at };
}

async function readShape(cursor: Cursor, what: string): Promise<number[]> {
  await need(cursor, 4, what);
  const at = cursor.position;
  const dimensions = readU32(cursor);
  if (dimensions < 1 || dimensions > MAX_DIMENSIONS) {
    throw shapeError(cursor, what, at, `has ${dimensions} dimensions; 1 to ${MAX_DIMENSIONS} are allowed`);
  }
  await need(cursor, dimensions * 8, what);
  return Array.from({ length: dimensions }, () => readU64(cursor));
}

function checkType(cursor: Cursor, what: string, id: number): GgmlType {
  const type = ggmlTypeOf(id);
  if (type !== undefined) return type;
  const offset = cursor.position - 4;
  throw refuse(
    'GGUF_TENSOR_TYPE',
    `${cursor.source.name}: ${what} has the unknown type ${id} at offset ${offset}; known types: ` +
      Object.entries(GGML_TYPES)
        .map(([name, info]) => `${info.id} (${name})`)
        .join(', '),
    { source: cursor.source.name, what, offset, type: id },
  );
}

function measure(
  cursor: Cursor,
  what: string,
  type: GgmlType,
  shape: readonly number[],
): { elements: number; bytes: number } {
  const at = cursor.position;
  const text = `[${shape.join(', ')}]`;
  if (shape.includes(0)) throw shapeError(cursor, what, at, `has an empty dimension: ${text}`);
  const elements = shape.reduce((product, dimension) => product * dimension, 1);
  if (!Number.isSafeInteger(elements)) {
    throw shapeError(cursor, what, at, `has 2^53 elements or more: ${text}`);
  }
  const { block, bytes } = GGML_TYPES[type];
  const row = shape[0] ?? 0;
  if (row % block !== 0) {
    throw shapeError(
      cursor,
      what,
      at,
      `has rows of ${row} elements, which is not a multiple of ${type}'s block of ${block}`,
    );
  }
  return { elements, bytes: (elements / block) * bytes };
}

function shapeError(cursor: Cursor, what: string, offset: number, problem: string): Error {
  return refuse('GGUF_SHAPE', `${cursor.source.name}: ${what} at offset ${offset} ${problem}`, {
    source: cursor.source.name,
    what,
    offset,
  });
}

/** Turns offsets within the tensor data into offsets within the source. */
async function place(
  cursor: Cursor,
  entries: ReadonlyMap<string, Entry>,
  alignment: number,
  part: number,
): Promise<Map<string, GgufTensor>> {
  const dataStart = Math.ceil(cursor.position / alignment) * alignment;
  const { name: source, size } = cursor.source;
  const tensors = new Map<string, GgufTensor>();
  for (const { at, ...entry } of entries.values()) {
    const offset = dataStart + entry.offset;
    if (offset + entry.bytes > size) {
      throw refuse(
        'GGUF_TRUNCATED',
        `${source}: tensor "${entry.name}" takes ${entry.bytes} bytes at offset ${offset}, ` +
          `beyond the end of the file at ${size}`,
        { source, tensor: entry.name, offset, bytes: entry.bytes, size, entry: at },
      );
    }
    tensors.set(entry.name, { ...entry, part, offset });
    await breathe(cursor);
  }
  await checkOverlap(cursor, tensors);
  return tensors;
}

async function checkOverlap(cursor: Cursor, tensors: ReadonlyMap<string, GgufTensor>): Promise<void> {
  const byOffset = new Map<number, GgufTensor>();
  for (const tensor of tensors.values()) {
    const other = byOffset.get(tensor.offset);
    if (other !== undefined) throw overlap(cursor, other, tensor);
    byOffset.set(tensor.offset, tensor);
    await breathe(cursor);
  }
  let last: GgufTensor | undefined;
  // Sorting plain numbers takes a few milliseconds for the largest table allowed.
  for (const offset of Float64Array.from(byOffset.keys()).sort()) {
    const tensor = byOffset.get(offset);
    if (tensor === undefined) continue;
    if (last !== undefined && last.offset + last.bytes > offset) throw overlap(cursor, last, tensor);
    last = tensor;
    await breathe(cursor);
  }
}

function overlap(cursor: Cursor, first: GgufTensor, second: GgufTensor): Error {
  const source = cursor.source.name;
  return refuse(
    'GGUF_OVERLAP',
    `${source}: tensor "${second.name}" at offset ${second.offset} overlaps tensor "${first.name}", ` +
      `which takes ${first.bytes} bytes at offset ${first.offset}`,
    { source, tensor: second.name, other: first.name, offset: second.offset },
  );
}
