import { FrugalError } from '../errors.js';
import type { Metadata } from './types.js';

/** Reads `ARCHITECTURE.key` values and checks their ranges. */
export interface Keys {
  readonly architecture: string;
  readonly metadata: Metadata;
  /** A whole number in 1..max. */
  count(key: string, max: number): number;
  optionalCount(key: string, max: number): number | undefined;
  /** A finite number above 0. Of several names of one thing, the first that the file has. */
  optionalPositive(...names: readonly string[]): number | undefined;
  /** Any finite number, by its names likewise. */
  optionalFinite(...names: readonly string[]): number | undefined;
  /** The key's full name, for messages. */
  full(key: string): string;
}

/** What files may state for each layer by itself. Layers are built alike, so it has to be the same for all. */
const PER_LAYER = ['attention.head_count', 'attention.head_count_kv', 'feed_forward_length'];

export function createKeys(metadata: Metadata, architecture: string): Keys {
  const full = (key: string): string => `${architecture}.${key}`;
  const optionalNumber = (key: string): number | undefined => {
    const layers = PER_LAYER.includes(key) ? metadata.optionalList(full(key)) : undefined;
    const [first, ...others] = new Set(Array.from(layers ?? []));
    return first !== undefined && others.length === 0 ? first : metadata.optionalNumber(full(key));
  };
  const optionalCount = (key: string, max: number): number | undefined => {
    const value = optionalNumber(key);
    if (value === undefined) return undefined;
    if (Number.isInteger(value) && value >= 1 && value <= max) return value;
    throw invalid(full(key), `a whole number from 1 to ${max}`, value);
  };
  const optionalChecked = (
    names: readonly string[],
    expected: string,
    check: (value: number) => boolean,
  ): number | undefined => {
    for (const key of names) {
      const value = metadata.optionalNumber(full(key));
      if (value === undefined) continue;
      if (check(value)) return value;
      throw invalid(full(key), expected, value);
    }
    return undefined;
  };
  return {
    architecture,
    metadata,
    full,
    optionalCount,
    optionalFinite: (...names) => optionalChecked(names, 'a finite number', Number.isFinite),
    optionalPositive: (...names) =>
      optionalChecked(names, 'a finite number above 0', (value) => value > 0 && Number.isFinite(value)),
    // `number` is what throws METADATA_MISSING.
    count: (key, max) => optionalCount(key, max) ?? metadata.number(full(key)),
  };
}

export function invalid(key: string, expected: string, got: unknown): FrugalError {
  return new FrugalError('METADATA_INVALID', `the metadata key ${key} must be ${expected}, got ${got}`, {
    cure: 'the file is damaged or was converted wrongly; fetch it again or use another conversion',
    data: { key, expected, got },
  });
}

/** The file asks for arithmetic that no plan describes yet. */
export function unsupported(what: string, data: Record<string, unknown>): FrugalError {
  return new FrugalError('UNSUPPORTED_FEATURE', `${what}, which is not supported`, {
    cure: 'use a model without it; running this one without it would give wrong results',
    data,
  });
}
