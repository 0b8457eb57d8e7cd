import { createPace } from '../yield.js';
import { checkBoolean, checkChoice, checkKnown, checkSignal, checkTokens } from './check.js';
import { checkFits, type Engine } from './context.js';
import { logProbabilities } from './probability.js';
import { busy, disposed } from './scheduler.js';

export interface SessionOptions {
  /** Rows for all tokens, or for the last one only. @default 'all' */
  readonly rows?: 'all' | 'last';
  readonly signal?: AbortSignal;
}

export interface ScoreOptions {
  /** Natural logarithms of the probabilities instead of the logits. @default false */
  readonly logProbabilities?: boolean;
  readonly signal?: AbortSignal;
}

/** A sequence of one's own, for reading logits: for measuring, or for choosing tokens outside this package. */
export interface Session {
  /** Tokens in the sequence. */
  readonly length: number;
  /**
   * Appends tokens and yields one row of logits [vocabSize] for each of them (or for the last one), in order.
   * Rows are computed as they are asked for, a step at a time; leaving the loop before the last step frees the session.
   * @throws FrugalError `INVALID_ARGUMENT`, `CONTEXT_OVERFLOW`, `DISPOSED`
   */
  logits(tokens: ArrayLike<number>, options?: SessionOptions): AsyncGenerator<Float32Array, void, undefined>;
  dispose(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

/** @throws FrugalError `DISPOSED` */
export function createSession(engine: Engine): Session {
  const { scheduler, facts } = engine;
  const sequence = scheduler.open();
  let length = 0;
  let stepping = false;

  async function* logits(
    tokens: ArrayLike<number>,
    options: SessionOptions = {},
  ): AsyncGenerator<Float32Array, void, undefined> {
    checkKnown('logits', options, ['rows', 'signal']);
    const signal = checkSignal(options.signal);
    let rest = checkTokens('tokens', tokens, facts.vocabSize);
    checkFits(engine, length + rest.length, 'The sequence');
    const rows = checkChoice('rows', options.rows, ['all', 'last'], 'all');
    const output = rows === 'last' ? 'last-logits' : 'all-logits';
    scheduler.assertLive();
    if (!scheduler.isOpen(sequence)) throw sessionDisposed();
    // Refused here, where the sequence stays as it is for the earlier call.
    if (stepping) throw busy();
    try {
      while (rest.length > 0) {
        stepping = true;
        const outcome = await scheduler.run(sequence, rest, output, signal).finally(() => {
          stepping = false;
        });
        length += outcome.consumed;
        rest = rest.subarray(outcome.consumed);
        if (outcome.values) yield* rowsOf(outcome.values, facts.vocabSize);
      }
    } finally {
      if (rest.length > 0) scheduler.close(sequence);
    }
  }

  const session: Session = {
    get length() {
      return length;
    },
    logits,
    async dispose() {
      scheduler.close(sequence, sessionDisposed());
    },
    [Symbol.asyncDispose]: () => session.dispose(),
  };
  return session;
}

function sessionDisposed() {
  return disposed('The session', 'Open another session with model.session');
}

function* rowsOf(values: Float32Array, width: number): Generator<Float32Array, void, undefined> {
  for (let start = 0; start < values.length; start += width) yield values.subarray(start, start + width);
}

/** See `Model.score`. */
export async function* score(
  engine: Engine,
  tokens: ArrayLike<number>,
  options: ScoreOptions,
): AsyncGenerator<Float32Array, void, undefined> {
  checkKnown('score', options, ['logProbabilities', 'signal']);
  const convert = checkBoolean('logProbabilities', options.logProbabilities, false);
  const signal = checkSignal(options.signal);
  signal?.throwIfAborted();
  const session = createSession(engine);
  const pace = createPace();
  try {
    for await (const row of session.logits(tokens, signal ? { signal } : {})) {
      yield convert ? await logProbabilities(row, pace) : row;
    }
  } finally {
    await session.dispose();
  }
}
