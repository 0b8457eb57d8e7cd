// npm run bench:scenarios [-- --only NAME,...] [-t 2] [-r 2] [--json FILE] [--llama-bench PATH] [--llama-bench-avx2 PATH]
//   [--chromium PATH] [--limit SECONDS] [--list]
//
// Situations that a benchmark of one model does not show: long prompts against llama.cpp, sparse attention, a busy core,
// sequences that decode together, experts on demand, WebAssembly against native, and a stopwatch outside. Models of real
// shapes with random weights are made when they are first wanted (2.3 GB in all): whole ones for WebAssembly and for
// sequences that decode together, else slices that have the proportions of the whole, so that each scenario takes a few
// minutes at most. llama.cpp takes part where --llama-bench (or LLAMA_BENCH) names its bench, a build for AVX2 alone
// where --llama-bench-avx2 (or LLAMA_BENCH_AVX2) does, and Chromium where there is one. --json adds to what an earlier
// run left in the file.

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { checkTools, ensureBrowser, ensureWasm, setUp } from '../scripts/lib/setup.mjs';
import { say } from '../scripts/lib/steps.mjs';
import { findChromium } from './lib/chromium.mjs';
import { modelFile } from './lib/files.mjs';
import { checkLlamaBench } from './lib/llama-bench.mjs';

const { values: flags } = parseArgs({
  options: {
    only: { type: 'string' },
    threads: { type: 'string', short: 't', default: String(Math.min(2, availableParallelism())) },
    repetitions: { type: 'string', short: 'r', default: '2' },
    json: { type: 'string' },
    'llama-bench': { type: 'string', default: process.env.LLAMA_BENCH },
    'llama-bench-avx2': { type: 'string', default: process.env.LLAMA_BENCH_AVX2 },
    chromium: { type: 'string' },
    limit: { type: 'string', default: '540' },
    list: { type: 'boolean', default: false },
  },
});

await setUp();
const { SCENARIOS } = await import('./scenarios/index.mjs');
const names = SCENARIOS.map(({ name }) => name);
if (flags.list) {
  for (const { name, text } of SCENARIOS) console.log(`${name}: ${text}`);
  process.exit(0);
}
const wanted = flags.only?.split(',') ?? names;
const unknown = wanted.find((name) => !names.includes(name));
if (unknown !== undefined) {
  console.error(`no scenario is called "${unknown}": there are ${names.join(', ')}`);
  process.exit(2);
}
if (wanted.includes('wasm')) {
  await ensureWasm(checkTools());
  await ensureBrowser();
}

const { machineFacts } = await import('../dist/bench/machine.js');
const { formatTable } = await import('../dist/bench/table.js');
const notes = [];

/** @param flag the option that names the binary */
function findLlamaBench(flag) {
  try {
    checkLlamaBench(flags[flag], flag);
    return resolve(flags[flag]);
  } catch (error) {
    notes.push(`llama.cpp was not run: ${error.message}`);
    return undefined;
  }
}

const began = performance.now();
const deadline = began + Number(flags.limit) * 1000;
const leftMs = () => Math.max(1000, deadline - performance.now());
const context = {
  threads: Number(flags.threads),
  repetitions: Number(flags.repetitions),
  llamaBinary: findLlamaBench('llama-bench'),
  ...(wanted.includes('avx2') && { avx2Binary: findLlamaBench('llama-bench-avx2') }),
  chromium: findChromium(flags.chromium),
  model: modelFile,
  leftMs,
};
if (wanted.includes('wasm') && !context.chromium)
  notes.push('Chromium was not run: install it, or name it with --chromium');

const machine = await machineFacts();
const results = [];
for (const scenario of SCENARIOS) {
  const { name, text } = scenario;
  if (!wanted.includes(name)) continue;
  if (performance.now() > deadline) {
    notes.push(`${name} was not run: no time was left; npm run bench:scenarios -- --only ${name}`);
    continue;
  }
  const start = performance.now();
  const elapsed = () => `${((performance.now() - began) / 1000).toFixed(0)} s`;
  try {
    const result = await scenario.run({ ...context, say: (what) => say(`${elapsed()}: ${name}: ${what}`) });
    const seconds = (performance.now() - start) / 1000;
    results.push({ name, text, seconds, ...result });
  } catch (error) {
    notes.push(`${name} failed: ${error.message}`);
  }
}

console.log(
  `${machine.cpu}, ${context.threads} threads; Node ${machine.node}; frugal ${machine.frugal}; load ${machine.load.toFixed(1)}`,
);
for (const { name, text, seconds, table, note } of results) {
  console.log(`\n${name} (${seconds.toFixed(0)} s): ${text}${note ? `. ${note}` : ''}\n`);
  process.stdout.write(formatTable(table));
}
for (const note of notes) console.log(`\n${note}`);
if (flags.json) save(flags.json);

/** Adds to what an earlier run left there, so that scenarios can be run one by one. */
function save(path) {
  mkdirSync(dirname(resolve(path)), { recursive: true });
  const known = earlier(path).filter(({ name }) => !results.some((each) => each.name === name));
  const order = ({ name }) => names.indexOf(name);
  const scenarios = [...known, ...results].sort((a, b) => order(a) - order(b));
  writeFileSync(path, `${JSON.stringify({ machine, scenarios, notes })}\n`);
}

function earlier(path) {
  try {
    return JSON.parse(readFileSync(path, 'utf8')).scenarios ?? [];
  } catch {
    return [];
  }
}
process.exit(0);
