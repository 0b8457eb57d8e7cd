// npm run bench [-- --filter TEXT] [--isa NAME] [--threads N] [--time MS] [--json FILE] [--compare FILE] [--all]
//
// Times every kernel on every backend and instruction set of this machine, through plans of a few operations. Each result
// is first compared with that of the scalar reference, bit by bit. --filter takes the kernels whose name contains
// the text; --compare prints ratios against an earlier --json FILE; --all times the scalar reference and WebAssembly at large
// batches too, on all modules that work here.

import { createHash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { checkTools, ensureWasm, setUp } from '../scripts/lib/setup.mjs';
import { SetupError } from '../scripts/lib/steps.mjs';
import { allCases, placementsOf } from './lib/cases.mjs';

const { values: flags } = parseArgs({
  options: {
    filter: { type: 'string' },
    isa: { type: 'string' },
    threads: { type: 'string' },
    json: { type: 'string' },
    compare: { type: 'string' },
    all: { type: 'boolean', default: false },
    time: { type: 'string', default: '60' },
  },
});

await setUp();
const { Bench } = await import('tinybench');
const { loadNative } = await import('../dist/backend/native.js');
const { machineFacts, measurePeaks, medianPeaks } = await import('../dist/bench/machine.js');
const { summarise } = await import('../dist/bench/stats.js');
const { formatNumber, formatShare, formatTable } = await import('../dist/bench/table.js');
const { SAMPLING_DEFAULTS } = await import('../dist/engine/options.js');

const MAX_STEP = 512;
/** Tokens whose results are compared: the scalar reference takes its time. Whole models are compared in test/contract. */
const CHECKED = 3;
const threads = flags.threads === undefined ? undefined : Number(flags.threads);

const notes = [];
try {
  await ensureWasm(checkTools());
} catch (error) {
  if (!(error instanceof SetupError)) throw error;
  notes.push(`WebAssembly could not be built: ${error.message}`);
}

/** What computes here: { name, kind, compile }, the scalar reference last. */
async function targets() {
  const native = await loadNative();
  const list = native.isas
    .filter((isa) => flags.isa === undefined || isa === flags.isa || isa === 'scalar')
    .map((isa) => ({ name: `native ${isa}`, kind: 'native', isa, backend: native }));
  return [...list.slice(0, -1), ...(await wasmTargets()), ...list.slice(-1)];
}

/** The best module that works here; all of them with --all. */
async function wasmTargets() {
  const { runtime } = await import('../dist/engine/runtime.js');
  const variants = [
    ...['relaxed-simd-threads', 'relaxed-simd-memory64-threads', 'simd128-threads'],
    ...['relaxed-simd', 'relaxed-simd-memory64', 'simd128'],
  ];
  const found = [];
  for (const variant of variants) {
    try {
      const backend = await runtime.loadWasm({ variant });
      found.push({ name: `wasm ${variant}`, kind: 'wasm', isa: backend.isas[0], backend });
      if (!flags.all) break;
    } catch (error) {
      notes.push(`WebAssembly, ${variant}, was not run: ${error.message}`);
    }
  }
  return found;
}

/** Other tokens for every step: experts in use must not be those of the step before. */
const tokensOf = (count, from = 0) => Uint32Array.from({ length: count }, (_, i) => ((from + i) * 7) % 64);
const greedy = (temperature = 0) => ({ ...SAMPLING_DEFAULTS, temperature, seed: 1n, logitBias: [] });

async function compile({ backend, isa, kind }, plan) {
  const options = { maxStepTokens: MAX_STEP, ...(threads && { threads }), ...(kind === 'native' && { isa }) };
  const model = await backend.compile(plan, options);
  await model.loadTensors(placementsOf(plan), {});
  return model;
}

/** Hash of the hidden states and of the token drawn. */
async function digest(model) {
  const sequence = model.createSequence(greedy());
  const [hidden] = await model.step([{ sequence, tokens: tokensOf(CHECKED), output: 'all-hidden' }]);
  const [drawn] = await model.step([{ sequence, tokens: tokensOf(1), output: 'sample' }]);
  model.freeSequence(sequence);
  return createHash('sha256').update(hidden.values).update(String(drawn.token)).digest('hex');
}

/** One measured call: steps of a case on a fresh sequence, or on one that grows. */
async function prepare(model, { tokens, depth = 0, temperature }) {
  const output = temperature === undefined ? 'none' : 'sample';
  const run = async (sequence, count, wanted) => {
    for (let left = count; left > 0; left -= MAX_STEP)
      await model.step([{ sequence, tokens: tokensOf(Math.min(left, MAX_STEP), steps++), output: wanted }]);
  };
  let steps = 0;
  let sequence;
  let length = 0;
  const renew = async () => {
    if (sequence !== undefined) model.freeSequence(sequence);
    sequence = model.createSequence(greedy(temperature));
    length = depth;
    await run(sequence, depth, 'none');
  };
  await renew();
  return async () => {
    // Decoding may go on for a while before it is noticeably deeper; prompts begin anew.
    if (length - depth + tokens > (depth > 0 ? depth / 16 : 8192) || (depth === 0 && tokens > MAX_STEP))
      await renew();
    length += tokens;
    await run(sequence, tokens, output);
  };
}

/** A call that takes so long is timed twice, so that all kernels take under three minutes. */
const SLOW_MS = 120;

async function time(model, of, isScalar) {
  const call = await prepare(model, of);
  const began = performance.now();
  if (!isScalar) await call();
  const slow = performance.now() - began > SLOW_MS;
  const bench = new Bench({
    time: Number(flags.time),
    iterations: isScalar ? 1 : slow ? 2 : 3,
    warmup: false,
  });
  bench.add(of.name, call);
  const [task] = await bench.run();
  if (task.result.error) throw task.result.error;
  const { p50, p25 = p50, p75 = p50, samplesCount } = task.result.latency;
  return { ms: p50, spread: (p75 - p25) / 2 / p50, samples: samplesCount };
}

/** Loading and packing as such: bytes of weights in memory, per second. */
async function timePacking(target, of) {
  const plan = of.plan();
  const placements = placementsOf(plan);
  const bytes = placements.reduce((sum, placement) => sum + placement.bytes, 0);
  const model = await target.backend.compile(plan, {
    maxStepTokens: 1,
    ...(target.kind === 'native' && { isa: target.isa }),
  });
  const began = performance.now();
  await model.loadTensors(placements, {});
  const ms = performance.now() - began;
  await model.dispose();
  return { ms, bytes };
}

const cases = allCases().filter(({ name }) => flags.filter === undefined || name.includes(flags.filter));
if (cases.length === 0) {
  console.error(`no kernel has "${flags.filter}" in its name`);
  process.exit(2);
}
const groups = Map.groupBy
  ? Map.groupBy(cases, ({ group }) => group)
  : cases.reduce((map, each) => map.set(each.group, [...(map.get(each.group) ?? []), each]), new Map());
const all = await targets();
const machine = await machineFacts();
const used = threads ?? machine.cores;
const limits = new Map(all.map(({ isa }) => [isa, []]));
const results = [];
const began = performance.now();
let said = began;
/** What is going on: always on a terminal, every ten seconds elsewhere. */
const say = (text) => {
  const now = performance.now();
  const line = `${((now - began) / 1000).toFixed(0)} s: ${text}`;
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${line}`);
  else if (now - said > 10_000) {
    process.stderr.write(`${line}\n`);
    said = now;
  }
};

/**
 * What a target is asked to do at most for one figure, so that all take under three minutes. Of the scalar reference more
 * is scaled up from that; WebAssembly is as fast with 128 tokens as with 512.
 */
const MOST_OPS = { scalar: 2e8, wasm: 2e10 };

/** Operations of a measured call, with those that fill the cache before. */
function workOf({ ops, tokens, depth = 0 }) {
  return depth === 0 ? ops : (ops / tokens) * depth;
}

async function runGroup(group, index) {
  const reference = {};
  // The scalar reference comes first: the others are compared with it.
  for (const target of [...all].reverse()) {
    say(`${index + 1} of ${groups.size}: ${target.name}, ${group[0].name}`);
    const isScalar = target.isa === 'scalar';
    const model = await compile(target, group[0].plan());
    try {
      const got = await digest(model);
      reference.digest ??= got;
      if (got !== reference.digest)
        throw new Error(`${target.name} computes ${group[0].name} differently from the scalar reference`);
      for (const of of group) {
        const most = MOST_OPS[isScalar ? 'scalar' : target.kind] ?? Number.POSITIVE_INFINITY;
        if (!flags.all && workOf(of) > most) continue;
        const timed = await time(model, of, isScalar);
        const { name, bytes, ops, arithmetic, unit, cached } = of;
        results.push({
          ...{ name, target: target.name, kind: target.kind, isa: target.isa },
          ...{ ...timed, bytes, ops, arithmetic, unit, cached },
        });
      }
    } finally {
      await model.dispose();
    }
  }
}

for (const [index, group] of [...groups.values()].entries()) {
  if (index % 8 === 0)
    for (const [isa, peaks] of limits) {
      const measured = await measurePeaks(isa, used);
      if (measured) peaks.push(measured);
    }
  await runGroup(group, index);
}
if (flags.filter === undefined || 'pack'.includes(flags.filter)) await runPacking();
if (process.stderr.isTTY) process.stderr.write('\r\x1b[K');

async function runPacking() {
  for (const type of ['F16', 'Q8_0', 'Q4_0', 'Q4_K', 'Q6_K']) {
    const of = allCases().find(({ name }) => name.startsWith(`matmul ${type} `));
    for (const target of all.filter(({ isa }) => isa !== 'scalar')) {
      say(`packing ${type}`);
      const runs = [];
      for (let i = 0; i < 3; i++) runs.push(await timePacking(target, of));
      const { median, spread, count } = summarise(runs.map(({ ms }) => ms));
      results.push({
        ...{ name: `pack ${type} from memory`, target: target.name, kind: target.kind, isa: target.isa },
        ...{ ms: median, spread, samples: count, bytes: runs[0].bytes, ops: 0, unit: 'bytes' },
      });
    }
  }
}

const peaksOf = (isa) => medianPeaks(limits.get(isa) ?? []);

/** What part of the limit that counts a result reaches. */
function shareOf({ isa, ms, bytes, ops, unit, arithmetic, cached }) {
  if (cached) return undefined;
  const peaks = peaksOf(isa === 'scalar' ? (all[0]?.isa ?? isa) : isa);
  if (!peaks) return undefined;
  if (unit === 'bytes') return ((bytes / ms) * 1000) / peaks.readBytesPerSecond;
  const peak = arithmetic === 'float' ? peaks.floatOpsPerSecond : peaks.int8OpsPerSecond;
  return ((ops / ms) * 1000) / peak;
}

/** The scalar reference's time for a case, scaled up from the largest batch that it was timed with. */
function scalarMs(result) {
  const same = results.find(({ isa, name }) => isa === 'scalar' && name === result.name);
  if (same) return same.ms;
  const family = result.name.replace(/(batch|prefill|decode at) \d+.*$/, '');
  const of = results.filter(({ isa, name }) => isa === 'scalar' && name.startsWith(family));
  const largest = of.sort((a, b) => b.ops - a.ops)[0];
  return largest && (largest.ms * result.ops) / largest.ops;
}

function nativeMs({ name }) {
  const of = results.filter((each) => each.name === name && each.kind === 'native' && each.isa !== 'scalar');
  return of.length > 0 ? Math.min(...of.map(({ ms }) => ms)) : undefined;
}

function row(result) {
  const { name, target, ms, spread, bytes, ops, unit, kind } = result;
  const rate =
    unit === 'bytes' ? `${formatNumber(bytes / ms / 1e6)} GB/s` : `${formatNumber(ops / ms / 1e6)} Gop/s`;
  const scalar = scalarMs(result);
  const native = nativeMs(result);
  return [
    name,
    target,
    `${formatNumber(ms * 1000)} ±${(spread * 100).toFixed(0)}%`,
    rate,
    formatShare(shareOf(result)),
    scalar ? `${formatNumber(scalar / ms)}x` : '-',
    kind === 'wasm' && native ? formatShare(native / ms) : '-',
  ];
}

const order = new Map(cases.map(({ name }, i) => [name, i]));
results.sort((a, b) => (order.get(a.name) ?? 1e9) - (order.get(b.name) ?? 1e9) || a.ms - b.ms);
const report = {
  machine,
  threads: used,
  peaks: Object.fromEntries([...limits.keys()].map((isa) => [isa, peaksOf(isa)])),
  results: results.map((result) => ({ ...result, share: shareOf(result) })),
  notes,
};

console.log(
  `${machine.cpu}, ${machine.cores} cores, ${used} threads; Node ${machine.node}; frugal ${machine.frugal}; load ${machine.load.toFixed(1)}`,
);
for (const [isa, peaks] of Object.entries(report.peaks))
  if (peaks)
    console.log(
      `limits with ${isa}: read ${formatNumber(peaks.readBytesPerSecond / 1e9)} GB/s, int8 ${formatNumber(peaks.int8OpsPerSecond / 1e9)} Gop/s, f32 ${formatNumber(peaks.floatOpsPerSecond / 1e9)} Gop/s`,
    );
for (const note of notes) console.log(note);
console.log(
  'every result is bit-identical with the scalar reference; what stays in caches may exceed the limit of memory\n',
);
const head = ['kernel', 'on', 'median µs', 'rate', 'of peak', 'of scalar', 'of native'];
process.stdout.write(formatTable([head, ...results.map(row)]));
if (flags.compare) compareWith(JSON.parse(readFileSync(flags.compare, 'utf8')));
if (flags.json) writeFileSync(flags.json, `${JSON.stringify(report)}\n`);

/** Ratios of time, each beside the noise of its two measurements; what lies within it is no difference. */
function compareWith(earlier) {
  const rows = results.flatMap((result) => {
    const before = earlier.results.find(
      ({ name, target }) => name === result.name && target === result.target,
    );
    if (!before) return [];
    const ratio = before.ms / result.ms;
    const noise = Math.hypot(before.spread, result.spread);
    const verdict = Math.abs(ratio - 1) <= noise ? 'same' : ratio > 1 ? 'faster' : 'slower';
    return [[result.name, result.target, `${ratio.toFixed(2)}x`, `±${(noise * 100).toFixed(0)}%`, verdict]];
  });
  console.log(
    `\nagainst ${flags.compare} (${earlier.machine.date}, ${earlier.machine.cpu}, frugal ${earlier.machine.frugal}):\n`,
  );
  process.stdout.write(formatTable([['kernel', 'on', 'speed', 'noise', ''], ...rows]));
}
