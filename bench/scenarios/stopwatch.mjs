// Whether what engines say of themselves is what another process measures from outside.

import { join } from 'node:path';
import { summarise } from '../../dist/bench/stats.js';
import { formatNumber } from '../../dist/bench/table.js';
import { ROOT } from '../../scripts/lib/steps.mjs';
import { run } from '../lib/child.mjs';
import { llamaBench } from '../lib/llama-bench.mjs';

const CHILD = join(ROOT, 'bench', 'scenarios', 'stopwatch-child.mjs');
const [PROMPT, GENERATE] = [1024, 256];

/**
 * A child process reports its own times and is timed from here as its messages arrive.
 * @returns for each repetition what it said of prompt and tokens, and what this process saw, in milliseconds
 */
export async function timeFromOutside(file, { threads, prompt, generate, repetitions, limitMs }) {
  const times = [];
  let marks = {};
  const onMessage = ({ at, ...said }) => {
    marks[at] = performance.now();
    if (at !== 'end') return;
    times.push({
      ...said,
      prefillOutside: marks.first - marks.begin,
      decodeOutside: marks.end - marks.first,
    });
    marks = {};
  };
  await run(process.execPath, [CHILD, file, threads, prompt, generate, repetitions], { limitMs, onMessage });
  return times;
}

/** Milliseconds per token of llama-bench, by what it prints and by how much longer it runs for more tokens. */
async function llamaFromOutside(context, file) {
  const [few, many] = [32, 32 + GENERATE * 2];
  const timed = async (generate) => {
    const began = performance.now();
    const of = { model: file, prompt: 0, generate, threads: context.threads, limitMs: context.leftMs() };
    const { decode } = await llamaBench(context.llamaBinary, of, ['--no-warmup']);
    return { ms: performance.now() - began, said: 1000 / decode };
  };
  const [a, b] = [await timed(few), await timed(many)];
  // Of the longer run alone: it said what `many` tokens took, of which the shorter run's are taken off.
  const said = (b.said * many - a.said * few) / (many - few);
  return { said, outside: (b.ms - a.ms) / (many - few) };
}

export const stopwatch = {
  name: 'stopwatch',
  text: 'what the engine says of itself, and llama-bench of itself, against a stopwatch in another process',
  async run(context) {
    const file = await context.model('llama-1b', 'Q4_0', 8);
    const { threads, leftMs, llamaBinary, say } = context;
    const repetitions = Math.max(3, context.repetitions);
    const times = await timeFromOutside(file, {
      ...{ threads, prompt: PROMPT, generate: GENERATE, repetitions, limitMs: leftMs() },
    });
    const median = (pick, of = times) => summarise(of.map(pick)).median;
    const rows = [
      [
        'frugal, prompt',
        PROMPT / median((t) => t.prefillMs / 1000),
        PROMPT / median((t) => t.prefillOutside / 1000),
      ],
      [
        'frugal, tokens',
        GENERATE / median((t) => t.decodeMs / 1000),
        GENERATE / median((t) => t.decodeOutside / 1000),
      ],
    ];
    if (llamaBinary) {
      const runs = [];
      for (let i = 0; i < 3; i++) {
        say(`llama-bench, ${i + 1} of 3`);
        runs.push(await llamaFromOutside(context, file));
      }
      const [said, outside] = [median((t) => t.said, runs), median((t) => t.outside, runs)];
      rows.push(['llama-bench, tokens', 1000 / said, 1000 / outside]);
    }
    const off = rows.map(([, said, outside]) => said / outside - 1);
    return {
      table: [
        ['', 'says tok/s', 'outside tok/s', 'more than outside'],
        ...rows.map(([name, said, outside], i) => [
          ...[name, formatNumber(said), formatNumber(outside), `${(off[i] * 100).toFixed(1)}%`],
        ]),
      ],
      values: { stopwatch: Math.max(...off.slice(0, 2).map(Math.abs)) },
    };
  },
};
