import type { SamplerSettings } from '../backend/types.js';
import {
  checkBoolean,
  checkKnown,
  checkNumber,
  checkSignal,
  describeRange,
  fieldsOf,
  inRange,
  invalid,
  isRecord,
  type NumberRange,
} from './check.js';
import { type ContextOptions, type ContextWindow, checkContext } from './window.js';

/** How a token is drawn from the logits. The same seed and settings give the same text on every machine. */
export interface SamplingOptions {
  /** From 0, which always takes the most likely token, to 100. @default 0.8 */
  readonly temperature?: number;
  /** Draws only from the k most likely tokens; 0: from all. @default 40 */
  readonly topK?: number;
  /** Draws only from the most likely tokens whose probabilities sum up to this; 1: from all. @default 0.95 */
  readonly topP?: number;
  /** Leaves out tokens less likely than this share of the most likely one; 0: none. @default 0.05 */
  readonly minP?: number;
  /** Divides the logits of tokens seen before (multiplies negative ones): from 0.01 to 100; 1: off. @default 1 */
  readonly repetitionPenalty?: number;
  /** Subtracted from a token's logit once per time it was seen: from -100 to 100; 0: off. @default 0 */
  readonly frequencyPenalty?: number;
  /** Subtracted from a token's logit if it was seen at all: from -100 to 100; 0: off. @default 0 */
  readonly presencePenalty?: number;
  /** How many of the last tokens the penalties look at; -1: all. @default 64 */
  readonly penaltyWindow?: number;
  /** A number from 0 to 2^53 - 1 or a bigint up to 2^64 - 1. @default random; the result reports the one used */
  readonly seed?: number | bigint;
  /** Added to single tokens' logits, by token id: from -1e6 to 1e6; -Infinity bans a token. */
  readonly logitBias?: Readonly<Record<number, number>>;
}

export interface GenerateOptions extends SamplingOptions {
  /**
   * Goes on in constant memory where the context would be full, and takes prompts of any length; it then never ends
   * with `context`. Without `maxTokens` only an end token, a stop string, leaving the loop or an abort ends it.
   * @default off: all tokens are kept, and the text ends where the context does
   */
  readonly context?: ContextOptions;
  /** @default until an end token, a stop string or the end of the context */
  readonly maxTokens?: number;
  /** The text ends before the first of these strings. */
  readonly stop?: string | readonly string[];
  /** Adds the beginning-of-text token where the model wants one; for text prompts. @default true */
  readonly addSpecial?: boolean;
  /** Reads the names of special tokens in the prompt as these tokens. @default false */
  readonly parseSpecial?: boolean;
  /** Goes on after end tokens. @default false */
  readonly ignoreEnd?: boolean;
  /** Reports in `usage.experts` which experts the tokens were routed to. @default false */
  readonly expertUsage?: boolean;
  /** Aborts the call, which then rejects with the signal's reason. */
  readonly signal?: AbortSignal;
}

/** `GenerateOptions`, checked and with every default applied. */
export interface GenerateSettings {
  readonly sampler: SamplerSettings;
  readonly context: ContextWindow | undefined;
  readonly maxTokens: number;
  readonly stop: readonly string[];
  readonly addSpecial: boolean;
  readonly parseSpecial: boolean;
  readonly ignoreEnd: boolean;
  readonly expertUsage: boolean;
  readonly signal: AbortSignal | undefined;
}

const MAX_BIAS = 1e6;

/** What each number may be; the command line takes its checks from here as well. */
export const SAMPLING_RANGES = {
  temperature: { min: 0, max: 100 },
  topK: { min: 0, max: 2 ** 31 - 1, integer: true },
  topP: { min: 0, max: 1, aboveMin: true },
  minP: { min: 0, max: 1, belowMax: true },
  repetitionPenalty: { min: 0.01, max: 100 },
  frequencyPenalty: { min: -100, max: 100 },
  presencePenalty: { min: -100, max: 100 },
  penaltyWindow: { min: -1, max: 2 ** 31 - 1, integer: true },
} as const satisfies Partial<Record<keyof SamplingOptions, NumberRange>>;

export const MAX_TOKENS_RANGE: NumberRange = { min: 0, max: Number.MAX_SAFE_INTEGER, integer: true };

export const SAMPLING_DEFAULTS = {
  temperature: 0.8,
  topK: 40,
  topP: 0.95,
  minP: 0.05,
  repetitionPenalty: 1,
  frequencyPenalty: 0,
  presencePenalty: 0,
  penaltyWindow: 64,
} as const;

const SAMPLING_NAMES = [...Object.keys(SAMPLING_RANGES), 'seed', 'logitBias'];
export const GENERATE_NAMES: readonly string[] = [
  ...SAMPLING_NAMES,
  'context',
  'maxTokens',
  'stop',
  'addSpecial',
  'parseSpecial',
  'ignoreEnd',
  'expertUsage',
  'signal',
];

/** @throws FrugalError `INVALID_ARGUMENT` naming the first wrong option */
export function checkGenerate(
  call: string,
  options: GenerateOptions,
  { vocabSize, contextLength }: { readonly vocabSize: number; readonly contextLength: number },
): GenerateSettings {
  checkKnown(call, options, GENERATE_NAMES);
  return {
    sampler: checkSampling(options, vocabSize),
    context: checkContext(options.context, contextLength),
    maxTokens: checkNumber('maxTokens', options.maxTokens, MAX_TOKENS_RANGE, Number.MAX_SAFE_INTEGER),
    stop: checkStop(options.stop),
    addSpecial: checkBoolean('addSpecial', options.addSpecial, true),
    parseSpecial: checkBoolean('parseSpecial', options.parseSpecial, false),
    ignoreEnd: checkBoolean('ignoreEnd', options.ignoreEnd, false),
    expertUsage: checkBoolean('expertUsage', options.expertUsage, false),
    signal: checkSignal(options.signal),
  };
}

function checkSampling(options: SamplingOptions, vocabSize: number): SamplerSettings {
  const number = (field: keyof typeof SAMPLING_RANGES): number =>
    checkNumber(field, options[field], SAMPLING_RANGES[field], SAMPLING_DEFAULTS[field]);
  return {
    temperature: number('temperature'),
    topK: number('topK'),
    topP: number('topP'),
    minP: number('minP'),
    repetitionPenalty: number('repetitionPenalty'),
    frequencyPenalty: number('frequencyPenalty'),
    presencePenalty: number('presencePenalty'),
    penaltyWindow: number('penaltyWindow'),
    seed: checkSeed(options.seed),
    logitBias: checkLogitBias(options.logitBias, vocabSize),
  };
}

function checkSeed(seed: unknown): bigint {
  if (seed === undefined) return randomSeed();
  if (typeof seed === 'bigint' && seed >= 0n && seed < 1n << 64n) return seed;
  if (typeof seed === 'number' && Number.isSafeInteger(seed) && seed >= 0) return BigInt(seed);
  throw invalid('seed', 'an integer from 0 to 2^53 - 1, or a bigint from 0 to 2^64 - 1', seed);
}

/** 32 random bits: short enough to be typed again. */
function randomSeed(): bigint {
  return BigInt(crypto.getRandomValues(new Uint32Array(1))[0] ?? 0);
}

/** A seed as results report it: a number where that is exact. */
export function reportSeed(seed: bigint): number | bigint {
  return seed <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(seed) : seed;
}

function checkLogitBias(bias: unknown, vocabSize: number): ReadonlyArray<readonly [number, number]> {
  if (bias === undefined) return [];
  if (!isRecord(bias))
    throw invalid('logitBias', 'an object from token ids to numbers', bias, cureOfBias(bias));
  const ids = { min: 0, max: vocabSize - 1, integer: true };
  const values = { min: -MAX_BIAS, max: MAX_BIAS };
  return Object.entries(fieldsOf(bias)).map(([key, value]: [string, unknown]) => {
    const token = Number(key);
    if (String(token) !== key || !inRange(token, ids))
      throw invalid('A token of logitBias', describeRange(ids), key, `Name tokens by ${describeRange(ids)}.`);
    if (value === Number.NEGATIVE_INFINITY || inRange(value, values)) return [token, value] as const;
    throw invalid(`logitBias[${token}]`, `${describeRange(values)}, or -Infinity`, value);
  });
}

function cureOfBias(bias: unknown): string | undefined {
  return bias instanceof Map ? 'Pass Object.fromEntries(map) as logitBias, or leave it out.' : undefined;
}

function checkStop(stop: unknown): readonly string[] {
  if (stop === undefined) return [];
  const list: readonly unknown[] = Array.isArray(stop) ? stop : [stop];
  // Holes in it, too.
  return Array.from(list, (item) => {
    if (typeof item !== 'string' || item === '')
      throw invalid('stop', 'a non-empty string or a list of them', item);
    return item;
  });
}
