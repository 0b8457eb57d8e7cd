// Makes `cargo build` for WebAssembly possible. Run by itself it installs what is missing and says so.

import { pathToFileURL } from 'node:url';
import { crossCargo } from './lib/cross.mjs';
import { say } from './lib/steps.mjs';

const TARGET = 'wasm32-unknown-unknown';

/**
 * The command that builds the kernels bare (no bindings) for WebAssembly with 128-bit SIMD.
 * @throws SetupError when no toolchain can be had
 */
export async function wasmBuild() {
  const { route, cargo, args, env } = await crossCargo(TARGET, 'std,panic_abort');
  return {
    command: [cargo, 'build', '--release', '-p', 'kernels', '--target', TARGET, ...args],
    // The two routes' compilers cannot read each other's results.
    env: {
      ...env,
      RUSTFLAGS: '-Ctarget-feature=+simd128 -Dwarnings',
      CARGO_TARGET_DIR: `target/wasm-${route}`,
    },
  };
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  try {
    const { command, env } = await wasmBuild();
    const settings = Object.entries(env).map(([name, value]) => `${name}='${value}'`);
    say(`ready: ${[...settings, ...command].join(' ')}`);
  } catch (error) {
    say(`frugal: ${error.message}`);
    process.exitCode = 1;
  }
}
