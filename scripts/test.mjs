// npm test: sets up, checks and tests everything, and closes with the totals.

import { existsSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import {
  checkTools,
  ensureBrowser,
  ensureDist,
  ensureNative,
  ensureNodeModules,
  ensureWasm,
} from './lib/setup.mjs';
import { ROOT, SetupError, say, step } from './lib/steps.mjs';
import { addCargo, addCheck, addFailure, addNotRun, addVitest, createTally } from './lib/tally.mjs';
import { ensureBrowsers } from './setup-browsers.mjs';
import { neonTest } from './setup-neon.mjs';
import { wasmTest } from './setup-wasm-tests.mjs';

/** Seconds that each may take, with the others beside it. */
const FOREIGN_LIMIT = 1200;
const VITEST_REPORT = join(ROOT, '.cache', 'vitest.json');

// A haystack of millions of keys takes minutes in another machine's code; that all instruction sets choose alike is
// tested apart.
const QUICK = ['--', '--show-output', '--skip', 'needles_are_found'];

// vitest reports failures with Map.groupBy, which Node 20 lacks.
const NODE_20 = `--import ${new URL('./lib/group-by.mjs', import.meta.url)}`;

const tally = createTally();
const bin = (...parts) => [process.execPath, join(ROOT, 'node_modules', ...parts)];

async function check(title, command, options) {
  addCheck(tally, title, await step(title, command, options));
}

/** A part of the set-up that counts as a check; says whether what depends on it can go on. */
async function prepared(title, action) {
  try {
    await action();
    tally.passed += 1;
    return true;
  } catch (error) {
    if (!(error instanceof SetupError)) throw error;
    addFailure(tally, title, error.message);
    return false;
  }
}

async function rustTests() {
  await check('cargo fmt', ['cargo', 'fmt', '--all', '--check']);
  await check('cargo clippy', ['cargo', 'clippy', '--workspace', '--all-targets', '--', '-D', 'warnings']);
  // The output of passed tests is shown too: it may say what they did not run.
  const command = ['cargo', 'test', '--workspace', '--no-fail-fast', '--', '--show-output'];
  addCargo(tally, 'cargo test', await step('cargo test', command));
}

/** The kernels' tests as other machines' code: their titles, and what makes each one's command. */
const FOREIGN = [
  ['kernels on NEON (QEMU)', neonTest],
  ['kernels as WebAssembly with simd128', () => wasmTest(false)],
  ['kernels as WebAssembly with relaxed SIMD', () => wasmTest(true)],
  ['kernels as WebAssembly with relaxed SIMD, bytes in pairs', () => wasmTest(true, false)],
];

async function foreignTests() {
  const ready = [];
  // One after the other, as they install what is missing.
  for (const [title, prepare] of FOREIGN) {
    try {
      ready.push({ title, ...(await prepare()) });
    } catch (error) {
      if (!(error instanceof SetupError)) throw error;
      addNotRun(tally, title, error.message);
    }
  }
  // Compilers and emulators work on one core much of the time.
  await Promise.all(
    ready.map(async ({ title, command, env }) =>
      addCargo(tally, title, await step(title, [...command, ...QUICK], { env, limit: FOREIGN_LIMIT })),
    ),
  );
}

async function typescriptTests() {
  await check('biome', [...bin('@biomejs', 'biome', 'bin', 'biome'), 'ci', '--colors=off', '.']);
  await check('types of the tests and the page', [
    ...bin('typescript', 'bin', 'tsc'),
    '-p',
    'tsconfig.check.json',
  ]);
  // Tests that want it and have it not say so themselves.
  await ensureBrowsers();
  rmSync(VITEST_REPORT, { force: true });
  const reporters = ['--reporter=default', '--reporter=json', `--outputFile.json=${VITEST_REPORT}`];
  const command = [...bin('vitest', 'vitest.mjs'), 'run', '--no-color', ...reporters];
  const result = await step('vitest', command, { env: { NODE_OPTIONS: NODE_20 } });
  const report = existsSync(VITEST_REPORT) ? JSON.parse(readFileSync(VITEST_REPORT, 'utf8')) : undefined;
  addVitest(tally, 'vitest', result, report);
}

function close() {
  if (tally.notRun.length > 0) {
    console.log('\nnot run:');
    for (const text of tally.notRun) console.log(`  ${text}`);
  }
  if (tally.failures.length > 0) {
    console.log('\nfailed:');
    for (const text of tally.failures) console.log(`  ${text}`);
  }
  console.log(`\n${tally.passed} passed, ${tally.failed} failed`);
  process.exitCode = tally.failed === 0 && tally.passed > 0 ? 0 : 1;
}

try {
  const rustc = checkTools();
  const [packages] = await Promise.all([prepared('npm packages', ensureNodeModules), rustTests()]);
  // Portable kernels are a promise, so not being able to build them is a failure.
  const wasm = await prepared('WebAssembly modules', () => ensureWasm(rustc));
  // Emulators and the addon's compiler leave each other cores.
  const [native] = await Promise.all([
    packages && prepared('native addon', () => ensureNative(rustc)),
    foreignTests(),
  ]);
  if (packages) {
    const dist = await prepared('tsc', ensureDist);
    if (wasm && dist) await prepared('package for browsers', ensureBrowser);
    if (!native || !dist) say('vitest runs all the same; what needs the missing part will fail');
    await typescriptTests();
  } else {
    addNotRun(tally, 'native addon, tsc, biome, vitest', 'the npm packages are missing');
  }
} catch (error) {
  if (!(error instanceof SetupError)) throw error;
  addFailure(tally, 'set-up', error.message);
}
close();
