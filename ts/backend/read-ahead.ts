import { onAbort } from '../abort.js';
import { readExactly } from '../gguf/read-exactly.js';
import type { ByteSource } from '../gguf/source.js';
import type { Plan } from '../plan/types.js';
import type { TensorPlacement } from './types.js';

/** Bytes that are read at a time, unless a tile of rows is larger. */
const READ_BYTES = 1 << 20;
/** Reads under way at once: they hide the latency of a network, and bound the memory that the bytes take. */
const AT_ONCE = 4;
/** Rows that are packed side by side: pushed bytes are a multiple of so many rows. */
const TILE_ROWS = 16;

/** A stretch of a tensor's bytes. */
export interface Part {
  readonly tensor: number;
  readonly source: ByteSource;
  readonly offset: number;
  readonly length: number;
}

/**
 * Reads tensors as whole tiles of rows, in order, the next ones while the consumer is busy with one.
 * The bytes given are valid until the next are asked for: their memory is used again.
 * @throws FrugalError `SOURCE_READ`; the reason of `signal` once it is aborted
 */
export async function* readTiles(
  plan: Plan,
  placements: readonly TensorPlacement[],
  signal?: AbortSignal,
): AsyncGenerator<readonly [tensor: number, bytes: Uint8Array], void, undefined> {
  signal?.throwIfAborted();
  const stop = new AbortController();
  const release = onAbort(signal, () => stop.abort(signal?.reason));
  const parts = partsOf(plan, placements);
  const idle: ArrayBuffer[] = [];
  const reading: Array<{ part: Part; bytes: Promise<Uint8Array<ArrayBuffer>> }> = [];
  const startNext = () => {
    const next = parts.next();
    if (next.done) return;
    const bytes = readPart(next.value, idle, stop.signal);
    // It is awaited in its turn; until then a failure is no unhandled one.
    bytes.catch(() => {});
    reading.push({ part: next.value, bytes });
  };
  try {
    for (let i = 0; i < AT_ONCE; i++) startNext();
    for (let head = reading.shift(); head !== undefined; head = reading.shift()) {
      const bytes = await head.bytes;
      signal?.throwIfAborted();
      yield [head.part.tensor, bytes];
      // What a source of one's own gives may be a view of what it keeps.
      if (head.part.source.readInto !== undefined) idle.push(bytes.buffer);
      startNext();
    }
  } finally {
    release();
    stop.abort();
    await Promise.allSettled(reading.map(({ bytes }) => bytes));
  }
}

function* partsOf(plan: Plan, placements: readonly TensorPlacement[]): Generator<Part, void, undefined> {
  for (const { tensor, source, offset, bytes } of placements) {
    const { rows = 1, experts = 1 } = plan.tensors[tensor] ?? {};
    // Experts whose rows do not fill tiles are packed whole.
    const unit = experts > 1 && rows % TILE_ROWS !== 0 ? rows : TILE_ROWS;
    const tileBytes = (bytes / (rows * experts)) * unit;
    const chunk = Math.max(1, Math.floor(READ_BYTES / tileBytes)) * tileBytes;
    for (let at = 0; at < bytes; at += chunk) {
      yield { tensor, source, offset: offset + at, length: Math.min(chunk, bytes - at) };
    }
  }
}

/**
 * @param idle buffers that may be used again
 * @throws FrugalError `SOURCE_READ`
 */
export async function readPart(
  { source, offset, length }: Part,
  idle: ArrayBuffer[],
  signal?: AbortSignal,
): Promise<Uint8Array<ArrayBuffer>> {
  if (source.readInto !== undefined) {
    const used = idle.pop();
    const room = used !== undefined && used.byteLength >= length ? used : new ArrayBuffer(length);
    const bytes = new Uint8Array(room, 0, length);
    await source.readInto(bytes, offset, signal);
    return bytes;
  }
  return (await readExactly(source, offset, length, signal)) as Uint8Array<ArrayBuffer>;
}
