// Long prompts, dense and sparse, and tokens after them, against llama.cpp with flash attention.

import { llamaBench } from '../lib/llama-bench.mjs';
import { measureModel } from '../lib/measure.mjs';
import { withModel } from '../lib/models.mjs';
import { compared, eachInTurn, ratioOf } from '../lib/turns.mjs';

const SHAPE = ['llama-1b', 'Q4_0', 8];
const LENGTHS = [8192, 16384];
const GENERATE = 32;
/** A tenth of the keys. */
export const SPARSE = { prefill: { policy: 'antidiagonal', keep: 0.1, minTokens: 0 } };

async function frugal(file, { threads }, attention, lengths) {
  const contextLength = Math.max(...lengths) + GENERATE + 1;
  return withModel(file, { threads, contextLength, ...(attention && { attention }) }, async (model) => {
    const figures = {};
    for (const length of lengths) {
      const last = length === lengths.at(-1);
      const sizes = { prompt: length, generate: last && !attention ? GENERATE : 0 };
      const { prefill, decode, kept } = await measureModel(model, sizes);
      figures[`prefill of ${length}`] = prefill[0];
      if (decode.length > 0) figures[`decode at ${length}`] = decode[0];
      if (kept !== undefined) figures.kept = kept;
    }
    return figures;
  });
}

async function llama(file, { threads, llamaBinary, leftMs }, lengths, generate) {
  const figures = {};
  // A warm-up would be a whole prompt more.
  const extra = ['-fa', '1', '--no-warmup'];
  const call = (of) => llamaBench(llamaBinary, { model: file, threads, limitMs: leftMs(), ...of }, extra);
  for (const length of lengths)
    figures[`prefill of ${length}`] = (await call({ prompt: length, generate: 0 })).prefill;
  if (generate === 0) return figures;
  const deepest = lengths.at(-1);
  figures[`decode at ${deepest}`] = (await call({ prompt: 0, generate, depth: deepest })).decode;
  return figures;
}

const engines = (file, context, lengths, generate) => ({
  ...(generate > 0 && { frugal: () => frugal(file, context, undefined, lengths) }),
  'frugal, a tenth of the keys': () => frugal(file, context, SPARSE, lengths.slice(-1)),
  ...(context.llamaBinary && {
    'llama.cpp, flash attention': () => llama(file, context, lengths, generate),
  }),
});

export const long = {
  name: 'long',
  text: 'prompts of 8,192 and 16,384 tokens, and the tokens after them, against llama.cpp with flash attention',
  async run(context) {
    const file = await context.model(...SHAPE);
    const turns = await eachInTurn(context, engines(file, context, LENGTHS, GENERATE));
    const [dense, sparse, peer] = turns.results;
    return {
      ...compared(turns, [...LENGTHS.map((n) => `prefill of ${n}`), `decode at ${LENGTHS[1]}`, 'kept']),
      values: {
        prefill8192: ratioOf(dense, peer, 'prefill of 8192'),
        prefill16384: ratioOf(dense, peer, 'prefill of 16384'),
        decode16384: ratioOf(dense, peer, 'decode at 16384'),
        sparsePrefill16384: ratioOf(sparse, peer, 'prefill of 16384'),
      },
    };
  },
};

export const longer = {
  name: 'longer',
  text: 'a prompt of 32,768 tokens, a tenth of the keys kept, against llama.cpp dense with flash attention',
  async run(context) {
    const file = await context.model(...SHAPE);
    const once = { ...context, repetitions: 1 };
    const turns = await eachInTurn(once, engines(file, context, [32768], 0));
    const [sparse, peer] = turns.results;
    return {
      ...compared(turns, ['prefill of 32768', 'kept']),
      values: { sparsePrefill32768: ratioOf(sparse, peer, 'prefill of 32768') },
    };
  },
};
