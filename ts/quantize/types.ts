import type { GgmlType, GgufValue } from '../gguf/index.js';

/** A tensor to be converted, wherever it comes from. */
export interface SourceTensor {
  /** The name it has in GGUF files. */
  readonly name: string;
  readonly type: GgmlType;
  /** In GGUF order: shape[0] is the length of a row. */
  readonly shape: readonly number[];
  readonly elements: number;
  /** Reads begin and end at multiples of so many elements. */
  readonly unit: number;
  /** The bytes of elements `start` to `start + count`. */
  read(start: number, count: number, signal?: AbortSignal): Promise<Uint8Array>;
}

/** A model to be written as a GGUF file. */
export interface SourceModel {
  /** For messages. */
  readonly name: string;
  readonly architecture: string;
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly tensors: readonly SourceTensor[];
  /** What the reader of the new file should know, such as what could not be carried over. */
  readonly notices: readonly string[];
  /** Local files that the model is read from. */
  readonly paths: readonly string[];
  close(): Promise<void>;
}
