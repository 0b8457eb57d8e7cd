import { type ErrorCode, FrugalError } from '../errors.js';
import { decodeLossy, type StringArray } from './string-array.js';
import type { NumberKind, ValueKind } from './types.js';

/** An array of numbers in the width of the file. */
export type NumberArray =
  | Uint8Array
  | Int8Array
  | Uint16Array
  | Int16Array
  | Uint32Array
  | Int32Array
  | Float32Array
  | Float64Array;

type SmallNumberKind = Exclude<NumberKind, 'uint64' | 'int64'>;

/** The kind of a metadata value, as shown in messages: `uint32`, `array[string]`, ... */
export type GgufKind = Exclude<ValueKind, 'array'> | `array[${ValueKind}]`;

/** A metadata value as it is in the file. */
export type GgufValue =
  | { readonly kind: SmallNumberKind; readonly value: number }
  | { readonly kind: 'uint64' | 'int64'; readonly value: bigint }
  | { readonly kind: 'bool'; readonly value: boolean }
  /** The bytes of a string, which should be UTF-8. */
  | { readonly kind: 'string'; readonly value: Uint8Array }
  | { readonly kind: 'array[string]'; readonly value: StringArray }
  | { readonly kind: `array[${SmallNumberKind}]`; readonly value: NumberArray }
  | { readonly kind: 'array[uint64]' | 'array[int64]'; readonly value: BigUint64Array | BigInt64Array }
  /** One byte per value, 0 or 1. */
  | { readonly kind: 'array[bool]'; readonly value: Uint8Array }
  /** Arrays of arrays are checked but not kept: no model uses them. */
  | { readonly kind: 'array[array]'; readonly value: undefined };

const MAX_SAFE = BigInt(Number.MAX_SAFE_INTEGER);

/** Typed access to a file's metadata. Every message names the key. */
export class GgufMetadata {
  readonly #source: string;
  readonly #values: ReadonlyMap<string, GgufValue>;

  /** @param source the file's name, for messages */
  constructor(source: string, values: ReadonlyMap<string, GgufValue>) {
    this.#source = source;
    this.#values = values;
  }

  has(key: string): boolean {
    return this.#values.has(key);
  }

  /** The keys in the order of the file. */
  keys(): IterableIterator<string> {
    return this.#values.keys();
  }

  /** The value as it is in the file, or undefined when the key is absent. */
  get(key: string): GgufValue | undefined {
    return this.#values.get(key);
  }

  /** @throws FrugalError `METADATA_MISSING` */
  kind(key: string): GgufKind {
    return this.#present(key).kind;
  }

  /**
   * A string; bytes that are not UTF-8 become U+FFFD.
   * @throws FrugalError `METADATA_MISSING` or `METADATA_INVALID`
   */
  string(key: string): string {
    const found = this.#present(key);
    if (found.kind !== 'string') throw this.#invalid(key, found.kind, 'a string');
    return decodeLossy(found.value);
  }

  /**
   * A number of any width; a 64-bit one must be at most 2^53 - 1 in magnitude.
   * @throws FrugalError `METADATA_MISSING` or `METADATA_INVALID`
   */
  number(key: string): number {
    const found = this.#present(key);
    if (typeof found.value === 'number') return found.value;
    if (typeof found.value !== 'bigint') throw this.#invalid(key, found.kind, 'a number');
    return this.#safe(key, found.kind, found.value);
  }

  /**
   * An integer of any width.
   * @throws FrugalError `METADATA_MISSING` or `METADATA_INVALID`
   */
  bigint(key: string): bigint {
    const found = this.#present(key);
    if (typeof found.value === 'bigint') return found.value;
    const integer = typeof found.value === 'number' && !found.kind.startsWith('float');
    if (!integer) throw this.#invalid(key, found.kind, 'an integer');
    return BigInt(found.value);
  }

  /** @throws FrugalError `METADATA_MISSING` or `METADATA_INVALID` */
  boolean(key: string): boolean {
    const found = this.#present(key);
    if (found.kind !== 'bool') throw this.#invalid(key, found.kind, 'a boolean');
    return found.value;
  }

  /** @throws FrugalError `METADATA_MISSING` or `METADATA_INVALID` */
  strings(key: string): StringArray {
    const found = this.#present(key);
    if (found.kind !== 'array[string]') throw this.#invalid(key, found.kind, 'an array of strings');
    return found.value;
  }

  /**
   * An array of numbers in the width of the file; 64-bit integers become a Float64Array and must be
   * at most 2^53 - 1 in magnitude.
   * @throws FrugalError `METADATA_MISSING` or `METADATA_INVALID`
   */
  numbers(key: string): NumberArray {
    const { kind, value } = this.#present(key);
    if (value instanceof BigUint64Array || value instanceof BigInt64Array) {
      return Float64Array.from(value, (each) => this.#safe(key, kind, each));
    }
    if (kind === 'array[bool]' || kind === 'string' || !isNumberArray(value)) {
      throw this.#invalid(key, kind, 'an array of numbers');
    }
    return value;
  }

  /**
   * An array of booleans, one byte (0 or 1) each.
   * @throws FrugalError `METADATA_MISSING` or `METADATA_INVALID`
   */
  booleans(key: string): Uint8Array {
    const found = this.#present(key);
    if (found.kind !== 'array[bool]') throw this.#invalid(key, found.kind, 'an array of booleans');
    return found.value;
  }

  /** As `string`, but undefined when the key is absent. */
  optionalString(key: string): string | undefined {
    return this.has(key) ? this.string(key) : undefined;
  }

  /** As `number`, but undefined when the key is absent. */
  optionalNumber(key: string): number | undefined {
    return this.has(key) ? this.number(key) : undefined;
  }

  /** As `boolean`, but undefined when the key is absent. */
  optionalBoolean(key: string): boolean | undefined {
    return this.has(key) ? this.boolean(key) : undefined;
  }

  /** As `strings`, but undefined when the key is absent. */
  optionalStrings(key: string): StringArray | undefined {
    return this.has(key) ? this.strings(key) : undefined;
  }

  /** As `numbers`, but undefined when the key is absent. */
  optionalNumbers(key: string): NumberArray | undefined {
    return this.has(key) ? this.numbers(key) : undefined;
  }

  /** The numbers of an array, booleans as 0 or 1; undefined when the key is absent or holds a single value. */
  optionalList(key: string): ArrayLike<number> | undefined {
    const kind = this.#values.get(key)?.kind;
    if (!kind?.startsWith('array[')) return undefined;
    return kind === 'array[bool]' ? this.booleans(key) : this.numbers(key);
  }

  #present(key: string): GgufValue {
    const found = this.#values.get(key);
    if (found !== undefined) return found;
    throw this.#error('METADATA_MISSING', `metadata "${key}" is missing`, { key });
  }

  #safe(key: string, kind: GgufKind, value: bigint): number {
    if (value <= MAX_SAFE && value >= -MAX_SAFE) return Number(value);
    throw this.#invalid(key, `${kind} holding ${value}`, 'a number of at most 2^53 - 1');
  }

  #invalid(key: string, got: string, expected: string): FrugalError {
    return this.#error('METADATA_INVALID', `metadata "${key}" should be ${expected}, got ${got}`, {
      key,
      expected,
      got,
    });
  }

  #error(code: ErrorCode, message: string, data: Record<string, unknown>): FrugalError {
    return new FrugalError(code, `${this.#source}: ${message}`, {
      cure: 'Convert the model again with a current tool, or download another release of it.',
      data: { source: this.#source, ...data },
    });
  }
}

function isNumberArray(value: GgufValue['value']): value is NumberArray {
  return ArrayBuffer.isView(value) && !(value instanceof BigUint64Array) && !(value instanceof BigInt64Array);
}
