// Watches the event loop while a model loads and runs: the longest time that a task held the thread, as processor time
// and, where the task gave the processor up to wait for something, by the clock. That other programs, or other machines
// on the same processor, had it meanwhile is nobody's fault and not counted.
import { readFileSync } from 'node:fs';
import { load } from '../../../dist/index.js';
import { args, report, sleep } from './process.mjs';

/** Milliseconds that this thread has run, and that it was kept waiting for a processor. */
function schedule() {
  const [ran, waited] = readFileSync('/proc/thread-self/schedstat', 'latin1').split(' ');
  return { ran: Number(ran) / 1e6, waited: Number(waited) / 1e6 };
}

/** How often this thread gave the processor up by itself. */
const waits = () =>
  Number(/^voluntary_ctxt_switches:\s+(\d+)$/m.exec(readFileSync('/proc/thread-self/status', 'latin1'))[1]);

function times() {
  const { ran, waited } = schedule();
  return { ran, clock: performance.now() - waited, waits: waits() };
}

async function watch(work) {
  const longest = { held: 0, away: 0 };
  let running = true;
  let last = times();
  const turn = () => {
    const now = times();
    longest.held = Math.max(longest.held, now.ran - last.ran);
    if (now.waits > last.waits) longest.away = Math.max(longest.away, now.clock - last.clock);
    last = now;
    if (running) setImmediate(turn);
  };
  setImmediate(turn);
  await work();
  running = false;
  return longest;
}

/** Holds the thread for so much of its own time. */
const block = (ms) => {
  const end = schedule().ran + ms;
  while (schedule().ran < end);
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

/** What one kind of work does to the thread, several times. */
async function tries(work) {
  const seen = [];
  for (let i = 0; i < args.tries; i += 1) seen.push(await watch(work));
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
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 40);
  await sleep(10);
}

await loadAndDispose();
report({ load: await tries(loadAndDispose), run: await runTries(), blocked: await tries(blocked) });
