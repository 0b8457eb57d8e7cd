// Makes the kernels' tests run as 64-bit ARM code, so that NEON is tested on other machines too:
// cross-compiled, then run by QEMU. Run by itself it installs what is missing and says so.

import { pathToFileURL } from 'node:url';
import { crossCargo, debianPackages } from './lib/cross.mjs';
import { SetupError, say } from './lib/steps.mjs';

const TARGET = 'aarch64-unknown-linux-gnu';
const PREFIX = 'CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU';

/**
 * The command that tests the kernels as ARM code.
 * @throws SetupError when this cannot be had or is not wanted, with the reason
 */
export async function neonTest() {
  if (process.arch === 'arm64') throw new SetupError('this machine is ARM: cargo test runs them natively');
  await debianPackages(['qemu-user', 'gcc-aarch64-linux-gnu', 'libc6-dev-arm64-cross']);
  const { route, cargo, args, env } = await crossCargo(TARGET, 'std,panic_unwind,test');
  return {
    command: [cargo, 'test', '-p', 'kernels', '--tests', '--no-fail-fast', '--target', TARGET, ...args],
    env: {
      ...env,
      CARGO_TARGET_DIR: `target/neon-${route}`,
      [`${PREFIX}_LINKER`]: 'aarch64-linux-gnu-gcc',
      [`${PREFIX}_RUNNER`]: 'qemu-aarch64 -L /usr/aarch64-linux-gnu',
    },
  };
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  try {
    const { command, env } = await neonTest();
    const settings = Object.entries(env).map(([name, value]) => `${name}='${value}'`);
    say(`ready: ${[...settings, ...command].join(' ')}`);
  } catch (error) {
    say(`frugal: ${error.message}`);
    process.exitCode = 1;
  }
}
