// Makes the kernels' tests run as WebAssembly, with simd128 and with relaxed SIMD: built for WASI, then
// run by a JavaScript engine. Run by itself it installs what is missing and says so.

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { crossCargo } from './lib/cross.mjs';
import { ROOT, SetupError, say } from './lib/steps.mjs';

const TARGET = 'wasm32-wasip1';
const RUN = join(ROOT, 'scripts', 'lib', 'run-wasi.mjs');
/** A function that returns i8x16.relaxed_swizzle of zeros. */
const RELAXED = Uint8Array.of(
  ...[0, 0x61, 0x73, 0x6d, 1, 0, 0, 0, 1, 5, 1, 0x60, 0, 1, 0x7b, 3, 2, 1, 0, 10, 15, 1, 13, 0],
  ...[0x41, 0, 0xfd, 0x0f, 0x41, 0, 0xfd, 0x0f, 0xfd, 0x80, 0x02, 0x0b],
);

/** What runs programs with relaxed SIMD: this Node where its engine has it, else the package deno; both with a flag of V8. */
function relaxedRunner(flag) {
  if (WebAssembly.validate(RELAXED)) return `node --no-warnings ${flag} ${RUN}`;
  const deno = join(ROOT, 'node_modules', 'deno', 'deno');
  if (existsSync(deno)) return `${deno} run --quiet --allow-all --v8-flags=${flag} ${RUN}`;
  throw new SetupError('neither this Node nor an installed package deno has relaxed SIMD');
}

/**
 * The command that tests the kernels as WebAssembly.
 * @param {boolean} relaxed with relaxed SIMD
 * @param {boolean} whole as the engine multiplies bytes; otherwise without the CPU's products of whole ones
 * @throws SetupError when this cannot be had, with the reason
 */
export async function wasmTest(relaxed, whole = true) {
  const runner = relaxed
    ? relaxedRunner(`--${whole ? '' : 'no-'}enable-avx-vnni`)
    : `node --no-warnings ${RUN}`;
  const { route, cargo } = await crossCargo(TARGET, 'std,panic_abort');
  if (route !== 'rustup') throw new SetupError(`only rustup has a ready build of ${TARGET}`);
  const tests = relaxed ? ['--test', 'twins'] : ['--tests'];
  return {
    command: [cargo, 'test', '-p', 'kernels', ...tests, '--no-fail-fast', '--target', TARGET],
    env: {
      // Assembly for WebAssembly is a feature that may still change, and is read without knowing which others there are
      // where parts of a program are optimised together.
      ...(relaxed && { RUSTC_BOOTSTRAP: '1', CARGO_PROFILE_TEST_LTO: 'off' }),
      RUSTFLAGS: `-Ctarget-feature=+simd128${relaxed ? ',+relaxed-simd' : ''}`,
      CARGO_TARGET_DIR: `target/wasm-tests${relaxed ? '-relaxed' : ''}`,
      CARGO_TARGET_WASM32_WASIP1_RUNNER: runner,
    },
  };
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  try {
    for (const relaxed of [false, true]) {
      const { command, env } = await wasmTest(relaxed);
      const settings = Object.entries(env).map(([name, value]) => `${name}='${value}'`);
      say(`ready: ${[...settings, ...command].join(' ')}`);
    }
  } catch (error) {
    say(`frugal: ${error.message}`);
    process.exitCode = 1;
  }
}
