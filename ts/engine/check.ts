import { FrugalError, invalid, invalidArgument } from '../errors.js';

export { invalid, invalidArgument } from '../errors.js';

export interface NumberRange {
  readonly min: number;
  readonly max: number;
  readonly integer?: boolean;
  /** The lower bound itself is not allowed. */
  readonly aboveMin?: boolean;
  /** The upper bound itself is not allowed. */
  readonly belowMax?: boolean;
}

/** The range in words, as messages and help texts give it. */
export function describeRange(range: NumberRange): string {
  const kind = range.integer ? 'an integer' : 'a number';
  const low = range.aboveMin ? `above ${range.min}` : `of at least ${range.min}`;
  if (range.max === Number.MAX_SAFE_INTEGER || range.max === Number.POSITIVE_INFINITY)
    return `${kind} ${low}`;
  if (!range.aboveMin && !range.belowMax) return `${kind} from ${range.min} to ${range.max}`;
  return `${kind} ${low} and ${range.belowMax ? 'below' : 'at most'} ${range.max}`;
}

export function inRange(value: unknown, range: NumberRange): value is number {
  if (typeof value !== 'number' || Number.isNaN(value)) return false;
  if (range.integer && !Number.isSafeInteger(value)) return false;
  if (range.aboveMin ? value <= range.min : value < range.min) return false;
  return range.belowMax ? value < range.max : value <= range.max;
}

/** @throws FrugalError `INVALID_ARGUMENT` unless `value` is undefined (then the default) or within the range */
export function checkNumber<T extends number | undefined>(
  field: string,
  value: unknown,
  range: NumberRange,
  fallback: T,
): number | T {
  if (value === undefined) return fallback;
  if (!inRange(value, range)) throw invalid(field, describeRange(range), value);
  return value;
}

export function checkBoolean(field: string, value: unknown, fallback: boolean): boolean {
  if (value === undefined) return fallback;
  if (typeof value !== 'boolean') throw invalid(field, 'true or false', value);
  return value;
}

export function checkChoice<T extends string>(
  field: string,
  value: unknown,
  choices: readonly T[],
  fallback: T,
): T {
  if (value === undefined) return fallback;
  const found = choices.find((choice) => choice === value);
  if (found === undefined) throw invalid(field, `one of ${choices.join(', ')}`, value);
  return found;
}

/**
 * Whether it holds named fields: what an array or a Map holds would be ignored in silence, and a Date, a Promise or a signal in
 * the place of options is a slip.
 */
export function isRecord(value: unknown): value is object {
  if (typeof value !== 'object' || value === null || Symbol.iterator in value) return false;
  return ['[object Object]', '[object Module]'].includes(Object.prototype.toString.call(value));
}

/**
 * The fields of an object as reading them by name finds them: its own, and those that classes and prototypes give it, but for
 * their methods.
 */
export function fieldsOf(record: object): Record<string, unknown> {
  const fields: Record<string, unknown> = { ...record };
  for (let from = Object.getPrototypeOf(record); from !== null; from = Object.getPrototypeOf(from)) {
    for (const name of Object.getOwnPropertyNames(from)) {
      if (name in fields) continue;
      const value = Reflect.get(record, name);
      if (typeof value !== 'function') fields[name] = value;
    }
  }
  return fields;
}

/** @throws FrugalError `INVALID_ARGUMENT` unless `options` is an object of named fields */
export function checkRecord(call: string, options: unknown): asserts options is object {
  if (isRecord(options)) return;
  const cure = `Pass an object as the options of ${call}, or leave them out.`;
  throw invalid(`The options of ${call}`, 'an object', options, cure);
}

/** Misspelt options are refused: they would otherwise be ignored in silence. */
export function checkKnown(call: string, options: unknown, known: readonly string[]): void {
  checkRecord(call, options);
  for (const name of Object.keys(fieldsOf(options))) {
    if (!known.includes(name)) {
      throw new FrugalError('INVALID_ARGUMENT', `${call} has no option "${name}"`, {
        cure: `Its options are ${known.join(', ')}.`,
        data: { field: name, allowed: known },
      });
    }
  }
}

export function checkSignal(signal: unknown): AbortSignal | undefined {
  if (signal === undefined || signal instanceof AbortSignal) return signal;
  throw invalid('signal', 'an AbortSignal', signal);
}

/**
 * Token ids as given by a caller, copied.
 * @throws FrugalError `INVALID_ARGUMENT` naming the first id outside 0..vocabSize-1, or an empty list
 */
export function checkTokens(field: string, tokens: ArrayLike<number>, vocabSize: number): Uint32Array {
  checkList(field, tokens);
  const range = { min: 0, max: vocabSize - 1, integer: true };
  for (let i = 0; i < tokens.length; i++) {
    if (!inRange(tokens[i], range)) throw invalidArgument(`${field}[${i}]`, describeRange(range), tokens[i]);
  }
  if (tokens.length === 0) {
    throw new FrugalError('INVALID_ARGUMENT', `${field} holds no tokens: expected at least one`, {
      cure: 'Pass text or token ids. A model without a beginning-of-text token cannot start from nothing.',
      data: { field },
    });
  }
  return Uint32Array.from(tokens);
}

/** @throws FrugalError `INVALID_ARGUMENT` unless `tokens` is an object with a length */
export function checkList(field: string, tokens: unknown): void {
  const { length } = Object(tokens);
  if (typeof tokens !== 'object' || !Number.isSafeInteger(length) || length < 0)
    throw invalidArgument(field, 'an array of token ids', tokens);
}

export function isTokenList(value: unknown): value is ArrayLike<number> {
  return Array.isArray(value) || value instanceof Uint32Array || value instanceof Int32Array;
}
