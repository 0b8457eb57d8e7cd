import { FrugalError } from '../errors.js';

// A token may be part of a character, so invalid bytes become U+FFFD instead of an error.
const decoder = new TextDecoder('utf-8', { ignoreBOM: true });

/** Decodes bytes that should be UTF-8; what is not becomes U+FFFD. */
export function decodeLossy(bytes: Uint8Array): string {
  return decoder.decode(bytes);
}

/**
 * The strings of a metadata array, as the bytes of the file: nothing is decoded before it is asked for.
 * `buffer` and `offsets` can be sent to a worker as they are and joined again by the constructor.
 */
export class StringArray implements Iterable<string> {
  /** The strings' bytes, one after another. */
  readonly buffer: Uint8Array;
  /** length + 1 positions in `buffer`: string i is from offsets[i] to offsets[i + 1]. */
  readonly offsets: Uint32Array;

  constructor(buffer: Uint8Array, offsets: Uint32Array) {
    this.buffer = buffer;
    this.offsets = offsets;
  }

  get length(): number {
    return this.offsets.length - 1;
  }

  /**
   * String i; bytes that are not UTF-8 become U+FFFD.
   * @throws FrugalError `INVALID_ARGUMENT` when there is no string i
   */
  at(i: number): string {
    return decodeLossy(this.bytes(i));
  }

  /**
   * The bytes of string i, a view.
   * @throws FrugalError `INVALID_ARGUMENT` when there is no string i
   */
  bytes(i: number): Uint8Array {
    const start = this.offsets[i];
    const end = this.offsets[i + 1];
    if (start === undefined || end === undefined) {
      throw new FrugalError('INVALID_ARGUMENT', `There is no string ${i} in an array of ${this.length}`, {
        cure: 'Give an index from 0 to length - 1.',
        data: { index: i, length: this.length },
      });
    }
    return this.buffer.subarray(start, end);
  }

  *[Symbol.iterator](): Iterator<string> {
    for (let i = 0; i < this.length; i += 1) yield this.at(i);
  }
}
