import { FrugalError } from '../errors.js';
import { MAX_TENSORS } from '../gguf/index.js';
import { readExactly } from '../gguf/read-exactly.js';
import type { ByteSource } from '../gguf/source.js';
import { isObject } from './fields.js';

/** Bits of one value, by the name that the format gives its type. */
const DTYPE_BITS: Readonly<Record<string, number>> = {
  ...{ BOOL: 8, U8: 8, I8: 8, F8_E4M3: 8, F8_E5M2: 8, F8_E8M0: 8 },
  ...{ U16: 16, I16: 16, F16: 16, BF16: 16 },
  ...{ U32: 32, I32: 32, F32: 32, U64: 64, I64: 64, F64: 64, C64: 64 },
  ...{ F4: 4, F6_E2M3: 6, F6_E3M2: 6 },
};

/** A tensor of a safetensors file. */
export interface SafeTensor {
  readonly name: string;
  readonly dtype: string;
  /** Rows first: the last is the length of a row. */
  readonly shape: readonly number[];
  readonly elements: number;
  readonly source: ByteSource;
  /** Where its bytes begin in the source, and how many there are. */
  readonly offset: number;
  readonly bytes: number;
}

const LENGTH_BYTES = 8;
/** The format allows 100 MB; the largest models there are need less than 10. */
const MAX_HEADER = 32 << 20;
const MAX_DIMENSIONS = 8;
const CURE = 'The file is damaged or incomplete: fetch it again.';

/**
 * Reads the table of a safetensors file and checks all of it against the size of the source: types,
 * shapes, that tensors lie within the file, do not overlap and leave nothing over. Reads no tensor.
 * @throws FrugalError `SAFETENSORS_INVALID`, `SOURCE_READ`
 */
export async function readSafetensors(source: ByteSource, signal?: AbortSignal): Promise<SafeTensor[]> {
  const length = await headerLength(source, signal);
  const header = parseHeader(source, await readExactly(source, LENGTH_BYTES, length, signal));
  const start = LENGTH_BYTES + length;
  const entries = Object.entries(header).filter(([name]) => name !== '__metadata__');
  if (entries.length > MAX_TENSORS)
    throw refuse(source, `the header lists ${entries.length} tensors; at most ${MAX_TENSORS} are allowed`);
  const tensors = entries.map(([name, entry]) => readEntry(source, start, name, entry));
  checkPlaces(source, start, tensors);
  return tensors;
}

function refuse(source: ByteSource, problem: string, data: Record<string, unknown> = {}, cause?: unknown) {
  const all = { source: source.name, ...data };
  return new FrugalError('SAFETENSORS_INVALID', `${source.name}: ${problem}`, {
    cure: CURE,
    data: all,
    cause,
  });
}

async function headerLength(source: ByteSource, signal?: AbortSignal): Promise<number> {
  if (source.size < LENGTH_BYTES)
    throw refuse(source, `a file of ${source.size} bytes is no safetensors file`);
  const bytes = await readExactly(source, 0, LENGTH_BYTES, signal);
  const length = new DataView(bytes.buffer, bytes.byteOffset, LENGTH_BYTES).getBigUint64(0, true);
  const most = BigInt(Math.min(MAX_HEADER, source.size - LENGTH_BYTES));
  if (length >= 2n && length <= most) return Number(length);
  throw refuse(
    source,
    `its first 8 bytes give a header of ${length} bytes; in a file of ${source.size} bytes it can have 2 to ${most}`,
    { length: String(length), size: source.size },
  );
}

function parseHeader(source: ByteSource, bytes: Uint8Array): Record<string, unknown> {
  let header: unknown;
  try {
    header = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw refuse(source, `the header is not JSON: ${reason.slice(0, 200)}`, {}, cause);
  }
  if (!isObject(header)) throw refuse(source, 'the header should be a JSON object');
  return header;
}

function readEntry(source: ByteSource, start: number, name: string, entry: unknown): SafeTensor {
  const what = `the tensor ${JSON.stringify(name.slice(0, 120))}`;
  if (!isObject(entry)) throw refuse(source, `${what} should be described by an object`, { tensor: name });
  const { dtype } = entry;
  const bits = typeof dtype === 'string' && Object.hasOwn(DTYPE_BITS, dtype) ? DTYPE_BITS[dtype] : undefined;
  if (typeof dtype !== 'string' || bits === undefined) {
    const got = (JSON.stringify(dtype) ?? 'nothing').slice(0, 40);
    const known = Object.keys(DTYPE_BITS).join(', ');
    throw refuse(source, `${what} has the type ${got}; known are ${known}`, { tensor: name });
  }
  const { shape, elements } = readShape(source, what, entry.shape);
  const [begin, end] = readOffsets(source, what, entry.data_offsets);
  if (start + end > source.size) {
    const problem = `${what} ends at byte ${start + end} of a file of ${source.size} bytes`;
    throw refuse(source, problem, { tensor: name, end: start + end, size: source.size });
  }
  if (end - begin !== (elements * bits) / 8) {
    const needed = (elements * bits) / 8;
    const problem = `${what} has ${end - begin} bytes; ${dtype} [${shape.join(', ')}] needs ${needed}`;
    throw refuse(source, problem, { tensor: name, bytes: end - begin, needed });
  }
  return { name, dtype, shape, elements, source, offset: start + begin, bytes: end - begin };
}

function readShape(source: ByteSource, what: string, shape: unknown): { shape: number[]; elements: number } {
  const valid =
    Array.isArray(shape) &&
    shape.length <= MAX_DIMENSIONS &&
    shape.every((dimension) => Number.isSafeInteger(dimension) && dimension >= 0);
  const got = (JSON.stringify(shape) ?? 'nothing').slice(0, 80);
  if (!valid)
    throw refuse(source, `${what} should have up to ${MAX_DIMENSIONS} whole dimensions, got ${got}`);
  const elements = shape.reduce((product: number, dimension: number) => product * dimension, 1);
  if (!Number.isSafeInteger(elements * 64)) throw refuse(source, `${what} has too many elements: ${got}`);
  return { shape, elements };
}

function readOffsets(source: ByteSource, what: string, offsets: unknown): [number, number] {
  if (Array.isArray(offsets) && offsets.length === 2) {
    const [begin, end] = offsets;
    if (Number.isSafeInteger(begin) && Number.isSafeInteger(end) && begin >= 0 && begin <= end)
      return [begin, end];
  }
  const got = (JSON.stringify(offsets) ?? 'nothing').slice(0, 80);
  throw refuse(source, `${what} should have data_offsets [begin, end] with begin up to end, got ${got}`);
}

/** Tensors follow each other without gaps up to the end of the file. */
function checkPlaces(source: ByteSource, start: number, tensors: readonly SafeTensor[]): void {
  let at = start;
  let before = 'the header';
  for (const { name, offset, bytes } of tensors.toSorted(
    (a, b) => a.offset - b.offset || a.bytes - b.bytes,
  )) {
    if (offset !== at) {
      const problem = offset < at ? 'overlaps' : `begins ${offset - at} bytes after`;
      throw refuse(source, `the tensor ${JSON.stringify(name.slice(0, 120))} ${problem} ${before}`, {
        tensor: name,
        offset,
        expected: at,
      });
    }
    at += bytes;
    before = `the tensor ${JSON.stringify(name.slice(0, 120))}`;
  }
  if (at !== source.size) {
    const problem = `its tensors end at byte ${at}, but it has ${source.size} bytes`;
    throw refuse(source, problem, { end: at, size: source.size });
  }
}
