// npm run bench:peers [-- --model FILE] [-p 512] [-n 64] [-t 2] [-r 2] [--only NAME,...] [--json FILE]
//   [--llama-bench PATH] [--transformers FOLDER] [--chromium PATH] [--limit SECONDS]
//
// The same file, number of threads and length of prompt in frugal and in other engines, which take turns; default and best
// settings of each. Packages are installed into .cache/peers when they are first wanted. llama.cpp's own bench is run
// where --llama-bench (or LLAMA_BENCH) names the binary, transformers.js where --transformers names a folder with a
// model in its format. Without --model, one of Qwen3-0.6B's shape with random weights is made (Q4_0, 341 MB).

import { spawn } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { setUp } from '../scripts/lib/setup.mjs';
import { ROOT, say } from '../scripts/lib/steps.mjs';

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
    chromium: { type: 'string', default: process.env.CHROMIUM },
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
/** WebAssembly peers are slow: they get a shorter prompt, and say so. */
const SHORT = { prompt: 32, generate: 8 };
const [prompt, generate, threads, repetitions] = ['prompt', 'generate', 'threads', 'repetitions'].map(
  (name) => Number(flags[name]),
);
const deadline = performance.now() + Number(flags.limit) * 1000;

/** Runs a program to its end; gives what it printed. */
function run(command, args, options = {}) {
  return new Promise((done, fail) => {
    const left = Math.max(1000, Math.min(options.limitMs ?? 240_000, deadline - performance.now()));
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], ...options });
    const timer = setTimeout(() => child.kill('SIGKILL'), left);
    let [stdout, stderr] = ['', ''];
    child.stdout.on('data', (text) => (stdout += text));
    child.stderr.on('data', (text) => (stderr += text));
    child.on('error', fail);
    child.on('close', (code, signal) => {
      clearTimeout(timer);
      if (code === 0) return done(stdout);
      const why = signal ? `stopped after ${(left / 1000).toFixed(0)} s` : stderr.trim().split('\n').at(-1);
      fail(new Error(why || `exit code ${code}`));
    });
  });
}

const lastJson = (text) => JSON.parse(text.trim().split('\n').at(-1));

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
    prepare: async () => JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')).version,
    async run() {
      const sizes = ['-p', prompt, '-n', generate, '-t', threads, '-r', 1].map(String);
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
      const args = [join(PEERS, 'node-llama-cpp.mjs'), model, prompt, generate, threads, setting].map(String);
      return lastJson(await run(process.execPath, args, { cwd: PEERS }));
    },
  },
  {
    name: 'llama.cpp',
    settings: Object.keys(LLAMA_SETTINGS),
    async prepare() {
      const binary = flags['llama-bench'];
      if (!binary) throw new Error('no binary: name llama-bench with --llama-bench or LLAMA_BENCH');
      if (!existsSync(binary)) throw new Error(`${binary} is not there`);
      return 'see build';
    },
    run: (setting) => llamaBench(LLAMA_SETTINGS[setting]),
  },
  {
    name: 'wllama',
    settings: ['default'],
    short: true,
    async prepare() {
      if (!chromium()) throw new Error('no Chromium: install it, or name it with --chromium');
      const version = await install('@wllama/wllama');
      runner('wllama.mjs');
      return version;
    },
    async run() {
      const playwright = join(ROOT, 'node_modules', 'playwright-core');
      const sizes = [SHORT.prompt, SHORT.generate, threads].map(String);
      const args = [join(PEERS, 'wllama.mjs'), model, ...sizes, chromium(), playwright];
      return lastJson(await run(process.execPath, args, { cwd: PEERS }));
    },
  },
  {
    name: 'transformers.js',
    settings: ['default'],
    async prepare() {
      if (!flags.transformers) throw new Error('no model in its format: name a folder with --transformers');
      const version = await install('@huggingface/transformers');
      runner('transformers.mjs');
      return version;
    },
    async run() {
      const sizes = [prompt, generate, threads].map(String);
      const args = [join(PEERS, 'transformers.mjs'), resolve(flags.transformers), ...sizes];
      return lastJson(await run(process.execPath, args, { cwd: PEERS }));
    },
  },
];

async function llamaBench(extra) {
  const sizes = ['-p', prompt, '-n', generate, '-t', threads, '-r', 1, '-ngl', 0].map(String);
  const text = await run(flags['llama-bench'], ['-m', model, ...sizes, '-o', 'json', ...extra]);
  const tests = JSON.parse(text);
  const rate = (pick) => tests.find(pick)?.avg_ts;
  return {
    prefill: rate(({ n_prompt }) => n_prompt > 0),
    decode: rate(({ n_gen }) => n_gen > 0),
    version: `build ${tests[0].build_commit} (${tests[0].build_number})`,
  };
}

function chromium() {
  const places = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];
  return [flags.chromium, ...places].find((path) => path && existsSync(path));
}

await setUp();
const { machineFacts } = await import('../dist/bench/machine.js');
const { summarise } = await import('../dist/bench/stats.js');
const { formatNumber, formatTable } = await import('../dist/bench/table.js');

async function findModel() {
  if (flags.model) return resolve(flags.model);
  const path = join(ROOT, '.cache', 'bench', 'qwen3-0.6b-Q4_0.gguf');
  if (existsSync(path)) return path;
  mkdirSync(join(ROOT, '.cache', 'bench'), { recursive: true });
  say('making a model of random weights');
  await run(process.execPath, [join(ROOT, 'bench', 'models.mjs'), 'qwen3-0.6b', 'Q4_0', path]);
  return path;
}

const model = await findModel();
const machine = await machineFacts();
const wanted = flags.only?.split(',');
const [entries, missing] = [[], []];
for (const peer of PEER_LIST) {
  if (wanted && !wanted.includes(peer.name)) continue;
  try {
    const version = await peer.prepare();
    for (const setting of peer.settings) entries.push({ peer, setting, version, runs: [] });
  } catch (error) {
    missing.push(`${peer.name} was not run: ${error.message}`);
  }
}
for (let i = 0; i < repetitions; i++) {
  for (const entry of entries) {
    const { peer, setting, runs } = entry;
    // Slow ones once.
    if (entry.failed || (peer.short && i > 0)) continue;
    if (performance.now() > deadline) {
      entry.failed = 'no time was left';
      continue;
    }
    say(`repetition ${i + 1} of ${repetitions}: ${peer.name}, ${setting}`);
    try {
      runs.push(await peer.run(setting));
    } catch (error) {
      entry.failed = error.message;
      missing.push(`${peer.name} (${setting}) failed: ${error.message}`);
    }
  }
}

const results = entries
  .filter(({ runs }) => runs.length > 0)
  .map(({ peer, setting, version, runs }) => ({
    name: peer.name,
    setting,
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
const own = results.find(({ name }) => name === 'frugal');
const ratio = (mine, theirs) => (mine ? `${(mine.median / theirs.median).toFixed(2)}x` : '-');
const rows = results.map(({ name, setting, version, prefill, decode, prompt: p, generate: n }) => [
  `${name} ${version}`,
  setting,
  `${p}/${n}`,
  formatNumber(prefill.median),
  ratio(own?.prefill, prefill),
  formatNumber(decode.median),
  ratio(own?.decode, decode),
]);
console.log(
  `${machine.cpu}, ${threads} threads; ${report.model}; medians of ${repetitions} runs that took turns; load ${machine.load.toFixed(1)}`,
);
const head = ['engine', 'setting', 'tokens', 'prefill tok/s', 'frugal is', 'decode tok/s', 'frugal is'];
process.stdout.write(formatTable([head, ...rows]));
for (const text of [...missing, ...report.notes]) console.log(text);
if (flags.json) writeFileSync(flags.json, `${JSON.stringify(report)}\n`);
