// Experts on demand: half of them in memory, and all, each in a process of its own, so that peaks of memory are its own.

import { join } from 'node:path';
import { formatNumber, formatShare } from '../../dist/bench/table.js';
import { ROOT } from '../../scripts/lib/steps.mjs';
import { lastJson, run } from '../lib/child.mjs';
import { compared, eachInTurn, ratioOf } from '../lib/turns.mjs';

const CHILD = join(ROOT, 'bench', 'scenarios', 'experts-child.mjs');
const MAIN = join(ROOT, 'dist', 'cli', 'main.js');

export const experts = {
  name: 'experts',
  text: 'decode with half of the experts in memory against all (expertMemory), the file in the page cache',
  async run(context) {
    const file = await context.model('qwen3-moe-small', 'Q4_0', 4);
    const { expertBytes } = JSON.parse(await run(process.execPath, [MAIN, 'inspect', file, '--json']));
    const limit = Math.floor(expertBytes / 2);
    const measure = async (bytes) =>
      lastJson(
        await run(process.execPath, [CHILD, file, context.threads, bytes], { limitMs: context.leftMs() }),
      );
    // Reads the file into the cache.
    await measure('all');
    const turns = await eachInTurn(context, {
      'all experts': () => measure('all'),
      'half of them': () => measure(limit),
    });
    const [all, half] = turns.results;
    // What everything but the experts takes is what it takes when all of them are in memory.
    const taken = half.peakBytes.median - (all.peakBytes.median - expertBytes);
    const { table } = compared(turns, ['decode', 'hits'], ['hits']);
    table[0].push('peak memory, MiB');
    for (const [i, { peakBytes }] of turns.results.entries())
      table[i + 1].push(formatNumber(peakBytes.median / 2 ** 20));
    return {
      table,
      note: `Half is ${formatNumber(limit / 2 ** 20)} MiB; of that, experts took ${formatShare(taken / limit)} at the peak.`,
      values: {
        halfOfExperts: ratioOf(half, all, 'decode'),
        expertPeak: taken / limit,
        hits: half.hits.median,
      },
    };
  },
};
