// Watches the event loop while a model loads and runs: the longest time that a task held the thread (processor time of
// the thread), and the longest delay of a 1 ms timer (the clock) beside that of the idle process.
import { readFileSync } from 'node:fs';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { load } from '../../../dist/index.js';
import { args, report, sleep } from './process.mjs';

const processorTime = () => Number(readFileSync('/proc/thread-self/schedstat', 'latin1').split(' ')[0]) / 1e6;

async function watch(work) {
  const delays = monitorEventLoopDelay({ resolution: 1 });
  delays.enable();
  let held = 0;
  let running = true;
  let last = processorTime();
  const turn = () => {
    const now = processorTime();
    held = Math.max(held, now - last);
    last = now;
    if (running) setImmediate(turn);
  };
  setImmediate(turn);
  await work();
  running = false;
  delays.disable();
  return { held, delay: delays.max / 1e6 };
}

/** Holds the thread for so much of its own time, and thus at least as much by the clock. */
const block = (ms) => {
  const end = processorTime() + ms;
  while (processorTime() < end);
};

async function loadAndDispose() {
  const model = await load(args.path, { threads: 2 });
  await model.dispose();
}

async function run(model) {
  const prompt = Array.from({ length: 40 }, (_, i) => i % model.info.vocabSize);
  const options = { maxTokens: 4, ignoreEnd: true, seed: 1 };
  const scored = async () => {
    for await (const _ of model.score(prompt));
  };
  await Promise.all([model.complete(prompt, options), model.complete([1], options), scored()]);
}

/** What each kind of work adds, over several tries. */
async function tries(work) {
  const seen = [];
  for (let i = 0; i < args.tries; i += 1) {
    const idle = await watch(() => sleep(300));
    seen.push({ ...(await watch(work)), idle: idle.delay });
  }
  return seen;
}

async function runTries() {
  const model = await load(args.path, { threads: 2 });
  await run(model);
  const seen = await tries(() => run(model));
  await model.dispose();
  return seen;
}

async function blocked() {
  await sleep(10);
  block(40);
  await sleep(10);
}

await loadAndDispose();
report({ load: await tries(loadAndDispose), run: await runTries(), blocked: await tries(blocked) });
