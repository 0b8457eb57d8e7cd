import { FrugalError } from '../errors.js';
import { readExactly } from '../gguf/read-exactly.js';
import type { ByteSource } from '../gguf/source.js';

/** A JSON object with typed access; `null` counts as absent. Every message names the file and the key. */
export interface Fields {
  keys(): readonly string[];
  raw(key: string): unknown;
  string(key: string): string | undefined;
  boolean(key: string): boolean | undefined;
  /** A finite number above 0. */
  positive(key: string): number | undefined;
  /** A whole number from 1 to 2^32 - 1. */
  count(key: string): number | undefined;
  object(key: string): Fields | undefined;
  /** The error METADATA_INVALID for a key. */
  invalid(key: string, expected: string): FrugalError;
  /** `value`, which a model cannot be converted without. @throws FrugalError `METADATA_MISSING` */
  need<T>(key: string, value: T | undefined): T;
}

const CURE = 'Fetch the file again, with the other files of the same release of the model.';

/** @param name the file and the place in it, for messages */
export function fieldsOf(name: string, value: unknown): Fields {
  if (!isObject(value)) {
    throw new FrugalError('METADATA_INVALID', `${name} should be a JSON object`, {
      cure: CURE,
      data: { file: name },
    });
  }
  const raw = (key: string): unknown => (Object.hasOwn(value, key) ? (value[key] ?? undefined) : undefined);
  const invalid = (key: string, expected: string): FrugalError =>
    new FrugalError('METADATA_INVALID', `${name}: "${key}" should be ${expected}, got ${show(raw(key))}`, {
      cure: CURE,
      data: { file: name, key, expected },
    });
  const typed = <T>(key: string, expected: string, check: (found: unknown) => found is T): T | undefined => {
    const found = raw(key);
    if (found === undefined || check(found)) return found;
    throw invalid(key, expected);
  };
  return {
    keys: () => Object.keys(value),
    raw,
    string: (key) => typed(key, 'a string', (found) => typeof found === 'string'),
    boolean: (key) => typed(key, 'true or false', (found) => typeof found === 'boolean'),
    positive: (key) => typed(key, 'a number above 0', isPositive),
    count: (key) => typed(key, 'a whole number from 1 to 2^32 - 1', isCount),
    object(key) {
      const found = typed(key, 'an object', isObject);
      return found === undefined ? undefined : fieldsOf(`${name}: "${key}"`, found);
    },
    invalid,
    need(key, found) {
      if (found !== undefined) return found;
      throw new FrugalError('METADATA_MISSING', `${name}: "${key}" is missing`, {
        cure: CURE,
        data: { file: name, key },
      });
    },
  };
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isPositive(value: unknown): value is number {
  return typeof value === 'number' && Number.isFinite(value) && value > 0;
}

function isCount(value: unknown): value is number {
  return isPositive(value) && Number.isInteger(value) && value < 2 ** 32;
}

function show(value: unknown): string {
  return (JSON.stringify(value) ?? 'nothing').slice(0, 80);
}

/**
 * Reads a whole JSON file and closes it.
 * @throws FrugalError `METADATA_INVALID`, `SOURCE_READ`
 */
export async function readJson(source: ByteSource, limit: number, signal?: AbortSignal): Promise<Fields> {
  try {
    if (source.size > limit)
      throw badJson(source.name, `it has ${source.size} bytes; at most ${limit} are read`);
    const bytes = await readExactly(source, 0, source.size, signal);
    return fieldsOf(source.name, parseJson(source.name, bytes));
  } finally {
    await source.close();
  }
}

/** @throws FrugalError `METADATA_INVALID` */
function parseJson(name: string, bytes: Uint8Array): unknown {
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (cause) {
    throw badJson(name, cause instanceof Error ? cause.message : String(cause), cause);
  }
}

function badJson(name: string, reason: string, cause?: unknown): FrugalError {
  const message = `${name} is not the JSON file that it should be: ${reason.slice(0, 200)}`;
  return new FrugalError('METADATA_INVALID', message, { cure: CURE, data: { file: name }, cause });
}
