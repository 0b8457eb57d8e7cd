// Decoding beside other work: a process that keeps a core busy, other sequences, and nothing at all.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { availableParallelism } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { formatNumber } from '../../dist/bench/table.js';
import { promptIds } from '../lib/measure.mjs';
import { openDecoder, withModel } from '../lib/models.mjs';
import { compared, eachInTurn, ratioOf } from '../lib/turns.mjs';

const SHAPE = ['llama-1b', 'Q4_0', 8];
const SPIN = "process.stdout.write('busy'); for (;;);";

/** Runs `use` while so many processes keep a core busy each. */
async function besideBusy(count, use) {
  const others = Array.from({ length: count }, () => spawn(process.execPath, ['-e', SPIN]));
  try {
    await Promise.all(others.map((child) => once(child.stdout, 'data')));
    return await use();
  } finally {
    for (const child of others) child.kill('SIGKILL');
  }
}

export const busy = {
  name: 'busy',
  text: 'decode beside a process that keeps one of the cores in use busy, against the idle machine',
  async run(context) {
    const { threads } = context;
    // Where there are more cores, those that are not used are taken too.
    const others = Math.max(1, availableParallelism() - threads + 1);
    const file = await context.model(...SHAPE);
    return withModel(file, { threads, contextLength: 4096 }, async (model) => {
      const decoder = await openDecoder(model, 16);
      await decoder.step(32);
      const decode = async () => ({ decode: await decoder.step(300) });
      const turns = await eachInTurn(
        { ...context, repetitions: 5 },
        { 'nothing else': decode, 'a core kept busy': () => besideBusy(others, decode) },
      );
      const [alone, beside] = turns.results;
      return { ...compared(turns, ['decode']), values: { besideBusy: ratioOf(beside, alone, 'decode') } };
    });
  },
};

/** Seconds of CPU that this process takes while it waits for so many seconds. */
async function cpuWhile(seconds) {
  const before = process.cpuUsage();
  await sleep(seconds * 1000);
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1e6;
}

export const idle = {
  name: 'idle',
  text: 'CPU time while generating and in the 3 seconds after, in seconds per second',
  async run(context) {
    const { threads, say } = context;
    const file = await context.model(...SHAPE);
    return withModel(file, { threads }, async (model) => {
      say('generating');
      await model.complete(promptIds(16), { maxTokens: 8, ignoreEnd: true });
      const [cpu, began] = [process.cpuUsage(), performance.now()];
      await model.complete(promptIds(16, 1), { maxTokens: 400, temperature: 0, ignoreEnd: true });
      const seconds = (performance.now() - began) / 1000;
      const used = process.cpuUsage(cpu);
      // Threads may spin briefly before they park.
      await sleep(200);
      say('waiting');
      const rest = (await cpuWhile(3)) / 3;
      const work = (used.user + used.system) / 1e6 / seconds;
      return {
        table: [
          ['', 'CPU-seconds per second'],
          [`generating, ${threads} threads`, formatNumber(work)],
          ['idle afterwards', rest.toFixed(4)],
        ],
        values: { cpuOverThreads: work / threads, idleCpu: rest },
      };
    });
  },
};

export const sequences = {
  name: 'sequences',
  text: 'tokens of 8 sequences that decode together through the public API, against one',
  async run(context) {
    const { threads } = context;
    // A slice would lie in the third-level cache of some CPUs, where one sequence does not wait for memory.
    const [shape, type] = SHAPE;
    const file = await context.model(shape, type);
    return withModel(file, { threads, contextLength: 1024 }, async (model) => {
      const tokens = 48;
      const together = async (count) => {
        const options = { maxTokens: tokens + 1, temperature: 0, ignoreEnd: true };
        const began = Array.from({ length: count }, (_, i) => model.generate(promptIds(16, i), options));
        // From when all have their first token, to the last token of all.
        await Promise.all(began.map((generation) => generation.next()));
        const start = performance.now();
        await Promise.all(began.map(drain));
        return { decode: (count * tokens * 1000) / (performance.now() - start) };
      };
      await together(8);
      const turns = await eachInTurn(
        { ...context, repetitions: 5 },
        { '1 sequence': () => together(1), '8 sequences': () => together(8) },
      );
      const [one, eight] = turns.results;
      return { ...compared(turns, ['decode']), values: { eightSequences: ratioOf(eight, one, 'decode') } };
    });
  },
};

async function drain(generation) {
  for await (const _ of generation);
}
