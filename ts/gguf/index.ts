import { invalidArgument } from '../errors.js';
import { readHeader } from './header.js';
import type { GgufMetadata } from './metadata.js';
import type { ByteSource } from './source.js';
import { partCount, readParts } from './split.js';
import type { GgufTensor } from './tensors.js';

export { GgufMetadata, type GgufValue } from './metadata.js';
export type { ByteSource } from './source.js';
export { StringArray } from './string-array.js';
export { type GgufTensor, MAX_TENSORS } from './tensors.js';
export { GGML_TYPES, type GgmlType } from './types.js';
export { layOutGguf, tensorBytes } from './writer.js';

/** A GGUF model whose header has been read and checked. No tensor has been read. */
export interface GgufModel {
  readonly version: 2 | 3;
  /** The metadata; of a split model, that of its first part. */
  readonly metadata: GgufMetadata;
  /** The tensors of all parts by name, in the order of the files. */
  readonly tensors: ReadonlyMap<string, GgufTensor>;
  /** The files: one, or the parts of a split model in order. */
  readonly parts: readonly ByteSource[];
  /** Closes all parts. May be called more than once. */
  close(): Promise<void>;
}

/**
 * Reads and checks the header of a GGUF model, versions 2 and 3, little-endian, and of its other parts
 * when it is split. The source belongs to the model from here on: it is closed with the model, or at
 * once when the file is refused.
 *
 * Nothing is allocated before its size has been checked against the size of the source, and at most
 * 64 MiB are allocated in all. The thread is given back to other tasks every few milliseconds.
 *
 * @throws FrugalError with a `GGUF_` code that names what is wrong and where; `SOURCE_READ`, `INVALID_ARGUMENT`
 * @throws the reason of `options.signal` once it is aborted
 */
export async function openGguf(
  source: ByteSource,
  options: { signal?: AbortSignal } = {},
): Promise<GgufModel> {
  const { signal } = options;
  if (typeof source?.read !== 'function' || typeof source.close !== 'function')
    throw invalidArgument('source', 'an object with name, size, read and close', source);
  const parts = [source];
  try {
    signal?.throwIfAborted();
    const header = await readHeader(source, 0, signal);
    const count = partCount(header.metadata, source);
    const tensors = count === 1 ? header.tensors : await readParts(source, header, count, parts, signal);
    let closing: Promise<void> | undefined;
    return {
      version: header.version,
      metadata: header.metadata,
      tensors,
      parts,
      close() {
        closing ??= closeAll(parts);
        return closing;
      },
    };
  } catch (error) {
    // What went wrong first is what the caller must know; a failure to close would hide it.
    await closeAll(parts).catch(() => undefined);
    throw error;
  }
}

async function closeAll(parts: readonly ByteSource[]): Promise<void> {
  const results = await Promise.allSettled(parts.map((part) => part.close()));
  for (const result of results) {
    if (result.status === 'rejected') throw result.reason;
  }
}
