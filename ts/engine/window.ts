import { checkKnown, checkNumber, invalid, isRecord, type NumberRange } from './check.js';

/**
 * Text without end in constant memory, but for the tokens and characters that its result gives: the first tokens and the last ones stay, those between fall out.
 *
 * As "sliding window with re-computation" with the attention sinks and the positions of StreamingLLM (Xiao et al.,
 * 2023, arXiv:2309.17453), in blocks. A text of n tokens is held by an ordinary sequence, at positions from 0 on: its
 * first `sinks` tokens, and what is left when, after them, as many half windows were dropped as it takes to hold at
 * most `sinks + window` tokens. So that is a function of the text alone, and every token is the one that a context of
 * just these tokens gives. Each time the sequence is full, it is freed, and a new one computes the
 * `sinks + floor(window / 2)` tokens that stay.
 */
export interface ContextOptions {
  /** Tokens kept from the beginning of the text. @default 4 */
  readonly sinks?: number;
  /** The most tokens kept after those, at least 16; with `sinks` at most the model's context length. */
  readonly window: number;
}

/** What fell out of the context of a generation. */
export interface ContextUsage {
  /** Tokens of prompt and text that the context held no longer when the generation ended. */
  readonly droppedTokens: number;
  /** How often the sequence was full and another took over. */
  readonly switches: number;
  /** Tokens that were computed again for that; not in `promptTokens`, nor in `completionTokens`. */
  readonly recomputedTokens: number;
}

/** `ContextOptions`, checked and with every default applied. */
export type ContextWindow = Required<ContextOptions>;

const DEFAULT_SINKS = 4;

/** What each number may be as long as the model is not known. */
export const CONTEXT_RANGES = {
  sinks: { min: 0, max: 2 ** 31 - 1, integer: true },
  window: { min: 16, max: 2 ** 31 - 1, integer: true },
} as const satisfies Record<keyof ContextOptions, NumberRange>;

/** @throws FrugalError `INVALID_ARGUMENT` */
export function checkContext(context: unknown, contextLength: number): ContextWindow | undefined {
  if (context === undefined) return undefined;
  if (!isRecord(context)) throw invalid('context', 'an object with window and sinks', context);
  checkKnown('context', context, Object.keys(CONTEXT_RANGES));
  const given: Partial<Record<keyof ContextOptions, unknown>> = context;
  const sinks = checkNumber('context.sinks', given.sinks, CONTEXT_RANGES.sinks, DEFAULT_SINKS);
  const window = checkNumber('context.window', given.window, CONTEXT_RANGES.window, undefined);
  if (window === undefined) {
    const cure = 'Pass how many tokens to keep as context.window, or leave out context.';
    throw invalid('context.window', 'a number of tokens', window, cure);
  }
  if (sinks + window > contextLength) {
    const allowed = `at most ${contextLength}, the context length`;
    const cure = 'Make the window smaller, or load the model with a larger contextLength.';
    throw invalid('context.sinks + context.window', allowed, sinks + window, cure);
  }
  return { sinks, window };
}

/** How many tokens after the sinks a text of `length` tokens has dropped: whole halves of the window. */
export function droppedAt(context: ContextWindow | undefined, length: number): number {
  if (context === undefined || length <= context.sinks + context.window) return 0;
  const half = Math.ceil(context.window / 2);
  return Math.ceil((length - context.sinks - context.window) / half) * half;
}

/** The tokens of a text, given in two parts, that stay when `dropped` have gone. */
export function keptTokens(
  context: ContextWindow | undefined,
  dropped: number,
  head: Uint32Array,
  tail: Uint32Array = new Uint32Array(0),
): Uint32Array {
  const sinks = dropped === 0 ? 0 : (context?.sinks ?? 0);
  const from = sinks + dropped;
  const slice = (start: number, end: number) => [
    ...head.subarray(start, end),
    ...tail.subarray(Math.max(0, start - head.length), Math.max(0, end - head.length)),
  ];
  return Uint32Array.from([...slice(0, sinks), ...slice(from, head.length + tail.length)]);
}

/**
 * The seed of the sequence that has dropped so many tokens. Random numbers are counted by position, and positions begin
 * again: with one seed the same numbers would come in every window.
 */
export function seedAt(seed: bigint, dropped: number): bigint {
  // An odd factor, 2^64 over the golden ratio, keeps all of them apart and far from what users choose.
  return BigInt.asUintN(64, seed + 0x9e3779b97f4a7c15n * BigInt(dropped));
}
