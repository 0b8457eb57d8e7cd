import { onAbort } from '../abort.js';
import { FrugalError } from '../errors.js';
import { checkBoolean, checkChoice, checkKnown, checkSignal, invalidArgument } from './check.js';
import type { Engine } from './context.js';
import { promptTokens } from './generation.js';

export interface EmbedOptions {
  /** The mean of all tokens' hidden states, or the last token's. @default as the file says, or else 'mean' */
  readonly pooling?: 'mean' | 'last';
  /** Scales the vector to length 1. @default true */
  readonly normalize?: boolean;
  readonly signal?: AbortSignal;
}

interface EmbedSettings {
  readonly pooling: 'mean' | 'last';
  readonly normalize: boolean;
  readonly signal: AbortSignal | undefined;
}

/** Texts that are embedded at once: enough to fill steps with short ones, few enough to bound the cache. */
const AT_ONCE = 8;

/** See `Model.embed`. */
export async function embed(
  engine: Engine,
  input: string | readonly string[],
  options: EmbedOptions,
): Promise<Float32Array | Float32Array[]> {
  engine.scheduler.assertLive();
  checkKnown('embed', options, ['pooling', 'normalize', 'signal']);
  const settings: EmbedSettings = {
    pooling: checkChoice('pooling', options.pooling ?? poolingOf(engine), ['mean', 'last'], 'mean'),
    normalize: checkBoolean('normalize', options.normalize, true),
    signal: checkSignal(options.signal),
  };
  if (typeof input === 'string') return embedText(engine, input, settings);
  if (!Array.isArray(input)) throw invalidArgument('input', 'a string or an array of strings', input);
  return embedAll(engine, input, settings);
}

/**
 * As models for embeddings state it, by llama.cpp's numbers; 0 leaves it open.
 * @throws FrugalError `UNSUPPORTED_FEATURE`
 */
function poolingOf({ facts: { poolingType = 0, architecture } }: Engine): 'mean' | 'last' {
  if (poolingType === 0 || poolingType === 1) return 'mean';
  if (poolingType === 3) return 'last';
  const key = `${architecture}.pooling_type`;
  throw new FrugalError(
    'UNSUPPORTED_FEATURE',
    `The file sets ${key} to ${poolingType}; mean (1) and last (3) are known`,
    {
      cure: 'Pass the option pooling, if one of these is meant.',
      data: { key, value: poolingType },
    },
  );
}

/** The first failure ends the others too. */
async function embedAll(
  engine: Engine,
  texts: readonly string[],
  settings: EmbedSettings,
): Promise<Float32Array[]> {
  const vectors = new Array<Float32Array>(texts.length);
  const failure = new AbortController();
  settings.signal?.throwIfAborted();
  const release = onAbort(settings.signal, () => failure.abort(settings.signal?.reason));
  const entries = texts.entries();
  const worker = async () => {
    for (const [i, text] of entries) {
      failure.signal.throwIfAborted();
      vectors[i] = await embedText(engine, text, { ...settings, signal: failure.signal });
    }
  };
  const workers = Array.from({ length: Math.min(AT_ONCE, texts.length) }, () =>
    worker().catch((error: unknown) => {
      failure.abort(error);
      throw error;
    }),
  );
  try {
    await Promise.all(workers);
    return vectors;
  } finally {
    await Promise.allSettled(workers);
    release();
  }
}

async function embedText(engine: Engine, text: unknown, settings: EmbedSettings): Promise<Float32Array> {
  if (typeof text !== 'string') throw invalidArgument('input', 'a string or an array of strings', text);
  const { signal } = settings;
  const tokens = await promptTokens(engine, text, {
    addSpecial: true,
    parseSpecial: false,
    context: undefined,
    signal,
  });
  const { scheduler } = engine;
  const sequence = scheduler.open();
  const sum = new Float64Array(engine.facts.embeddingLength);
  try {
    let rest = tokens;
    while (rest.length > 0) {
      const { consumed, values } = await scheduler.run(sequence, rest, 'all-hidden', signal);
      rest = rest.subarray(consumed);
      pool(sum, requireRows(values, consumed * sum.length), settings.pooling);
    }
  } finally {
    scheduler.close(sequence);
  }
  return finish(sum, settings.pooling === 'mean' ? tokens.length : 1, settings.normalize);
}

/** Adds the rows of a step to the sum, or puts the last row in its place. */
function pool(sum: Float64Array, rows: Float32Array, pooling: 'mean' | 'last'): void {
  const width = sum.length;
  if (pooling === 'last') {
    sum.set(rows.subarray(rows.length - width));
    return;
  }
  for (let start = 0; start < rows.length; start += width) {
    for (let i = 0; i < width; i++) sum[i] = (sum[i] ?? 0) + (rows[start + i] ?? 0);
  }
}

function finish(sum: Float64Array, count: number, normalize: boolean): Float32Array {
  let scale = 1 / count;
  if (normalize) {
    const length = Math.sqrt(sum.reduce((total, value) => total + value * value, 0));
    scale = length > 0 ? 1 / length : 0;
  }
  return Float32Array.from(sum, (value) => value * scale);
}

function requireRows(values: Float32Array | undefined, expected: number): Float32Array {
  if (values?.length === expected) return values;
  throw new FrugalError(
    'INTERNAL',
    `The backend returned ${values?.length ?? 'no'} hidden values where ${expected} were expected`,
    { cure: 'Report this with the model and the call.' },
  );
}
