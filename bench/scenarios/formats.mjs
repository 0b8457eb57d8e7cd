// Prompts in every common format against the better setting of llama.cpp, also with AVX2 alone on both sides.

import { llamaBench } from '../lib/llama-bench.mjs';
import { measureModel } from '../lib/measure.mjs';
import { withModel } from '../lib/models.mjs';
import { compared, eachInTurn } from '../lib/turns.mjs';

const TYPES = ['Q8_0', 'Q4_0', 'Q4_K', 'Q6_K'];
const PROMPT = 512;
const SETTINGS = { repacking: [], 'no repacking': ['--repack', '0'] };

/** What takes turns for one format: ours first, then each setting of llama.cpp. */
function engines(file, type, context, { isa, binary }) {
  const { threads, leftMs } = context;
  const frugal = () =>
    withModel(file, { threads, ...(isa && { isa }) }, async (model) => {
      const { prefill } = await measureModel(model, { prompt: PROMPT, generate: 0 });
      return { prefill: prefill[0] };
    });
  const peers = Object.entries(SETTINGS).map(([setting, extra]) => {
    const sizes = { model: file, prompt: PROMPT, generate: 0, threads };
    const call = async () => {
      const { prefill } = await llamaBench(binary, { ...sizes, limitMs: leftMs() }, extra);
      return { prefill };
    };
    return [`${type}, llama.cpp, ${setting}`, call];
  });
  return Object.fromEntries([[`${type}, frugal`, frugal], ...(binary ? peers : [])]);
}

async function measureFormats(context, way) {
  const [rows, ratios] = [[], []];
  for (const type of TYPES) {
    const file = await context.model('llama-1b', type, 8);
    // Each takes a fraction of a second, so that a single one says little.
    const often = { ...context, repetitions: Math.max(3, context.repetitions) };
    const turns = await eachInTurn(often, engines(file, type, context, way));
    const [own, ...peers] = turns.results.map(({ prefill }) => prefill.median);
    rows.push(...compared(turns, ['prefill']).table.slice(1));
    if (peers.length > 0) ratios.push(own / Math.max(...peers));
  }
  const least = ratios.length > 0 ? Math.min(...ratios) : undefined;
  return { table: [['', 'prefill'], ...rows], least };
}

export const formats = {
  name: 'formats',
  text: `prompts of ${PROMPT} tokens in four formats, against llama.cpp with and without repacking`,
  async run(context) {
    const { table, least } = await measureFormats(context, { binary: context.llamaBinary });
    return { table, values: { prefillFormats: least } };
  },
};

export const avx2 = {
  name: 'avx2',
  text: `the same with AVX2 alone, against a llama.cpp that was built for it (LLAMA_BENCH_AVX2)`,
  async run(context) {
    const { table, least } = await measureFormats(context, { isa: 'avx2', binary: context.avx2Binary });
    return { table, values: { prefillAvx2: least } };
  },
};
