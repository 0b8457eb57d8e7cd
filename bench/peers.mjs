// npm run bench:peers [-- --model FILE] [-p 512] [-n 64] [-t 2] [-r 2] [--only NAME,...] [--json FILE]
//   [--llama-bench PATH] [--transformers FOLDER] [--chromium PATH] [--peers FOLDER] [--limit SECONDS]
//
// The same file, number of threads and length of prompt in frugal and in other engines, which take turns; default and best
// settings of each. Packages are installed into --peers (.cache/peers) when they are first wanted. llama.cpp's own bench is run
// where --llama-bench (or LLAMA_BENCH) names the binary, transformers.js where --transformers names a folder with a
// model in its format. Without --model, one of Qwen3-0.6B's shape with random weights is made (Q4_0, 341 MB).
//
// Each call has an equal share of the time that is left of --limit for its repetition, and is stopped after it; what the
// quick ones leave is for those after them, and the slow ones come last.

import { copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { checkTools, ensureBrowser, ensureWasm, setUp } from '../scripts/lib/setup.mjs';
import { ROOT, SetupError, say } from '../scripts/lib/steps.mjs';
import { lastJson, run as runWithin } from './lib/child.mjs';
import { findChromium, measureInChromium } from './lib/chromium.mjs';
import { modelFile } from './lib/files.mjs';
import { checkLlamaBench, llamaBench } from './lib/llama-bench.mjs';
import { ownOf } from './lib/targets.mjs';

const { values: flags } = parseArgs({
  options: {
    model: { type: 'string' },
    prompt: { type: 'string', short: 'p', default: '512' },
    generate: { type: 'string', short: 'n', default: '64' },
    threads: { type: 'string', short: 't', default: String(Math.min(2, availableParallelism())) },
    repetitions: { type: 'string', short: 'r', default: '2' },
    only: { type: 'string' },
    json: { type: 'string' },
    'llama-bench': { type: 'string', default: process.env.LLAMA_BENCH },
    transformers: { type: 'string', default: process.env.FRUGAL_TRANSFORMERS },
    chromium: { type: 'string' },
    peers: { type: 'string', default: join(ROOT, '.cache', 'peers') },
    limit: { type: 'string', default: '540' },
  },
});

const PEERS = resolve(flags.peers);
const VERSIONS = {
  'node-llama-cpp': '3.22.1',
  '@wllama/wllama': '3.8.1',
  '@huggingface/transformers': '4.3.1',
};
/** In a browser, with a shorter prompt, as others are slow there. */
const SHORT = { prompt: 32, generate: 8 };
const [prompt, generate, threads, repetitions] = ['prompt', 'generate', 'threads', 'repetitions'].map(
  (name) => Number(flags[name]),
);
const deadline = performance.now() + Number(flags.limit) * 1000;

/** What each call may take: set for each from what is left, so that a slow engine does not take it from the next. */
let shareMs = 0;
const run = (command, args, options) => runWithin(command, args, { limitMs: shareMs, ...options });

/** Installs a package at the version that this script was written for. */
async function install(name) {
  mkdirSync(PEERS, { recursive: true });
  const manifest = join(PEERS, 'package.json');
  if (!existsSync(manifest)) writeFileSync(manifest, '{"private":true,"type":"module"}\n');
  const installed = join(PEERS, 'node_modules', name, 'package.json');
  if (!existsSync(installed)) {
    say(`installing ${name} into ${PEERS}`);
    const args = ['install', '--no-audit', '--no-fund', `${name}@${VERSIONS[name]}`];
    await run(process.platform === 'win32' ? 'npm.cmd' : 'npm', args, { cwd: PEERS });
  }
  return JSON.parse(readFileSync(installed, 'utf8')).version;
}

/** Copies a runner beside the packages that it imports. */
function runner(name) {
  const path = join(PEERS, name);
  copyFileSync(join(ROOT, 'bench', 'peers', name), path);
  return path;
}

/** Which is best depends on the weights. */
const LLAMA_SETTINGS = { default: [], 'flash attention': ['-fa', '1'], 'no repacking': ['--repack', '0'] };

/** Each: { name, settings, prepare() -> version, run(setting) -> { prefill, decode } }. */
const PEER_LIST = [
  {
    name: 'frugal',
    settings: ['default'],
    prepare: async () => frugalVersion(),
    async run() {
      const sizes = ['-p', prompt, '-n', generate, '-t', threads, '-r', 1];
      const main = join(ROOT, 'dist', 'cli', 'main.js');
      const result = lastJson(await run(process.execPath, [main, 'bench', model, ...sizes, '--json']));
      const [row] = result.rows;
      const { prefill, decode, stream, peaks, bandwidthShare, computeShare } = row;
      return {
        prefill: prefill.median,
        // What comes out of `generate`, as from the other packages.
        decode: stream.median,
        steps: decode.median,
        loadMs: result.loadMs.median,
        ...{ peaks, bandwidthShare, computeShare },
      };
    },
  },
  {
    name: 'node-llama-cpp',
    settings: ['default', 'best'],
    note: 'best: the whole prompt as one batch, flash attention',
    async prepare() {
      const version = await install('node-llama-cpp');
      runner('node-llama-cpp.mjs');
      return version;
    },
    async run(setting) {
      const args = [join(PEERS, 'node-llama-cpp.mjs'), model, prompt, generate, threads, setting];
      return lastJson(await run(process.execPath, args, { cwd: PEERS }));
    },
  },
  {
    name: 'llama.cpp',
    settings: Object.keys(LLAMA_SETTINGS),
    async prepare() {
      checkLlamaBench(flags['llama-bench']);
      return 'see build';
    },
    run: (setting) =>
      llamaBench(
        resolve(flags['llama-bench']),
        { model, prompt, generate, threads, limitMs: shareMs },
        LLAMA_SETTINGS[setting],
      ),
  },
  {
    name: 'frugal in Chromium',
    settings: ['default'],
    short: true,
    async prepare() {
      needChromium();
      await ensureWasm(checkTools());
      await ensureBrowser();
      return frugalVersion();
    },
    async run() {
      const sizes = { ...SHORT, threads, limitMs: shareMs };
      const { prefill, decode, backend } = await measureInChromium(chromium, model, sizes);
      return { prefill: prefill[0], decode: decode[0], setting: backend.isa };
    },
  },
  {
    name: 'wllama',
    settings: ['default'],
    short: true,
    async prepare() {
      needChromium();
      const version = await install('@wllama/wllama');
      runner('wllama.mjs');
      return version;
    },
    async run() {
      const playwright = join(ROOT, 'node_modules', 'playwright-core');
      const sizes = [SHORT.prompt, SHORT.generate, threads];
      const args = [join(PEERS, 'wllama.mjs'), model, ...sizes, chromium, playwright];
      return lastJson(await run(process.execPath, args, { cwd: PEERS }));
    },
  },
  {
    name: 'transformers.js',
    settings: ['default'],
    async prepare() {
      if (!flags.transformers)
        throw new SetupError('no model in its format: name a folder with --transformers');
      const version = await install('@huggingface/transformers');
      runner('transformers.mjs');
      return version;
    },
    async run() {
      const args = [join(PEERS, 'transformers.mjs'), resolve(flags.transformers), prompt, generate, threads];
      return lastJson(await run(process.execPath, args, { cwd: PEERS }));
    },
  },
];

const frugalVersion = () => JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')).version;
const chromium = findChromium(flags.chromium);

function needChromium() {
  if (!chromium) throw new SetupError('no Chromium: install it, or name it with --chromium');
}

await setUp();
const { machineFacts } = await import('../dist/bench/machine.js');
const { summarise } = await import('../dist/bench/stats.js');
const { formatNumber, formatTable } = await import('../dist/bench/table.js');

const model = flags.model ? resolve(flags.model) : await modelFile('qwen3-0.6b', 'Q4_0');
const machine = await machineFacts();
const wanted = flags.only?.split(',');
const unknown = wanted?.find((name) => !PEER_LIST.some((peer) => peer.name === name));
if (unknown !== undefined) {
  console.error(
    `no engine is called "${unknown}": there are ${PEER_LIST.map(({ name }) => name).join(', ')}`,
  );
  process.exit(2);
}
const [entries, missing] = [[], []];
for (const peer of PEER_LIST) {
  if (wanted && !wanted.includes(peer.name)) continue;
  shareMs = Math.max(1000, deadline - performance.now());
  try {
    const version = await peer.prepare();
    for (const setting of peer.settings) entries.push({ peer, setting, version, runs: [], took: 0 });
  } catch (error) {
    missing.push(`${peer.name} was not run: ${error.message}`);
  }
}
for (let i = 0; i < repetitions; i++) {
  // Slow ones once.
  const turn = entries.filter(({ failed, peer }) => !failed && (i === 0 || !peer.short));
  for (const [at, entry] of turn.entries()) {
    const { peer, setting, runs, took } = entry;
    const began = performance.now();
    shareMs = (deadline - began) / (turn.length - at);
    // What would not end in time is not begun again.
    if (i > 0 && took * 1.2 > shareMs) continue;
    say(
      `repetition ${i + 1} of ${repetitions}: ${peer.name}, ${setting}, at most ${(shareMs / 1000).toFixed(0)} s`,
    );
    try {
      runs.push(await peer.run(setting));
      entry.took = performance.now() - began;
    } catch (error) {
      entry.failed = true;
      missing.push(`${peer.name} (${setting}) failed: ${error.message}`);
    }
  }
}

const results = entries
  .filter(({ runs }) => runs.length > 0)
  .map(({ peer, setting, version, runs }) => ({
    name: peer.name,
    setting: runs[0].setting ?? setting,
    version: runs[0].version ?? version,
    prompt: peer.short ? SHORT.prompt : prompt,
    generate: peer.short ? SHORT.generate : generate,
    prefill: summarise(runs.map((each) => each.prefill)),
    decode: summarise(runs.map((each) => each.decode)),
    ...(runs[0].steps && { steps: summarise(runs.map((each) => each.steps)) }),
    ...(runs[0].peaks && {
      peaks: runs[0].peaks,
      bandwidthShare: summarise(runs.map((each) => each.bandwidthShare)).median,
      computeShare: summarise(runs.map((each) => each.computeShare)).median,
    }),
  }));
const report = {
  machine,
  model: basename(model),
  threads,
  repetitions,
  results,
  missing,
  notes: PEER_LIST.flatMap(({ name, note }) => (note ? [`${name}: ${note}`] : [])),
};
const ratio = (of, what) => {
  const mine = ownOf(results, of)?.[what].median;
  return mine ? `${(mine / of[what].median).toFixed(2)}x` : '-';
};
const rows = results.map((of) => [
  `${of.name} ${of.version}`,
  of.setting,
  `${of.prompt}/${of.generate}`,
  formatNumber(of.prefill.median),
  ratio(of, 'prefill'),
  formatNumber(of.decode.median),
  ratio(of, 'decode'),
]);
console.log(
  `${machine.cpu}, ${threads} threads; ${report.model}; medians of ${repetitions} runs that took turns; load ${machine.load.toFixed(1)}`,
);
const head = ['engine', 'setting', 'tokens', 'prefill tok/s', 'frugal is', 'decode tok/s', 'frugal is'];
process.stdout.write(formatTable([head, ...rows]));
for (const text of [...missing, ...report.notes]) console.log(text);
if (flags.json) writeFileSync(flags.json, `${JSON.stringify(report)}\n`);
