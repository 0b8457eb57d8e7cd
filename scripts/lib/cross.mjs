// Finds a way to compile Rust for another target: a target of the rustup toolchain, else Debian's
// packages of a recent Rust, which bring the standard library's source instead of ready builds.

import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { ROOT, SetupError, step } from './steps.mjs';

const DOWNLOAD_LIMIT = 120;
const DEBIAN_RUST = ['rustc-web', 'cargo-web', 'rust-web-src', 'gcc', 'libc6-dev'];

/** Output of a short command, or undefined when it is missing or fails. */
function output(program, args) {
  try {
    return execFileSync(program, args, {
      cwd: ROOT,
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    }).trim();
  } catch {
    return undefined;
  }
}

const installed = (name) => /^Status: .* installed$/m.test(output('dpkg', ['-s', name]) ?? '');

/**
 * Installs Debian packages that are missing. Only root does this unasked, or CI where sudo asks
 * for no password.
 * @throws SetupError with the command that would help
 */
export async function debianPackages(names) {
  if (output('apt-get', ['--version']) === undefined) throw new SetupError('this system has no apt-get');
  const missing = names.filter((name) => !installed(name));
  if (missing.length === 0) return;
  const root = process.getuid?.() === 0;
  const sudo = !root && process.env.CI !== undefined && output('sudo', ['-n', 'true']) !== undefined;
  if (!root && !sudo) throw new SetupError(`packages are missing: sudo apt-get install ${missing.join(' ')}`);
  const apt = [
    ...(sudo ? ['sudo', '-n'] : []),
    'env',
    'DEBIAN_FRONTEND=noninteractive',
    'apt-get',
    '-q',
    '-y',
  ];
  const install = [...apt, 'install', '--no-install-recommends', ...missing];
  // The lists may be absent or old; one dead source among them must not stop the rest.
  await step('apt-get update', [...apt, 'update'], { limit: DOWNLOAD_LIMIT, optional: true });
  const result = await step(`apt-get install ${missing.join(' ')}`, install, {
    limit: DOWNLOAD_LIMIT,
    optional: true,
  });
  if (!result.ok)
    throw new SetupError(`apt-get install ${missing.join(' ')}: ${result.lines.at(-1) ?? result.reason}`);
}

/** Whether rustc's own folder holds a path. */
function inRustlib(...path) {
  const sysroot = output('rustc', ['--print', 'sysroot']);
  return sysroot !== undefined && existsSync(join(sysroot, 'lib', 'rustlib', ...path));
}

const hasTarget = (target) => inRustlib(target, 'lib');
const RUST_LLD = `rust-lld${process.platform === 'win32' ? '.exe' : ''}`;
/** Whether there is a linker for any target, too: Debian's Rust has the same folders without it. */
const hasSource = () =>
  inRustlib('src', 'rust', 'library', 'std') &&
  existsSync(join(output('rustc', ['--print', 'target-libdir']) ?? '', '..', 'bin', RUST_LLD));

/** The route by rustup: the target's ready build, or the source of the standard library. Gives what was in the way. */
async function byRustup(target, anew) {
  const [has, kind, name] = anew ? [hasSource, 'component', 'rust-src'] : [hasTarget, 'target', target];
  if (has(name)) return undefined;
  const added = await step(`rustup ${kind} add ${name}`, ['rustup', kind, 'add', name], {
    limit: DOWNLOAD_LIMIT,
    optional: true,
  });
  return added.ok && has(name) ? undefined : (added.lines.at(-1) ?? added.reason);
}

/**
 * A cargo that compiles for `target`.
 *
 * @param {string} target a target triple
 * @param {string} std the crates of the standard library to build where no ready build is used
 * @param {{ anew?: boolean }} [options] `anew`: the standard library is built with one's own flags, for any target
 * @returns {Promise<{ route: string, cargo: string, args: string[], env: Record<string, string> }>} `args` go behind
 *   cargo's subcommand
 * @throws SetupError naming what each route failed on
 */
export async function crossCargo(target, std, { anew = false } = {}) {
  // Without what reads debug information for back traces, too.
  const args = [`-Zbuild-std=${std}`, '-Zbuild-std-features=optimize_for_size'];
  // Building the standard library is not a stable option; this lets a stable compiler take it.
  const env = { RUSTC_BOOTSTRAP: '1' };
  const refused = await byRustup(target, anew);
  if (refused === undefined)
    return { route: 'rustup', cargo: 'cargo', ...(anew ? { args, env } : { args: [], env: {} }) };
  try {
    await debianPackages(DEBIAN_RUST);
  } catch (error) {
    throw new SetupError(`no Rust for ${target}. rustup: ${refused}. Debian: ${error.message}`);
  }
  return {
    route: 'debian',
    cargo: '/usr/bin/cargo',
    args,
    env: { ...env, RUSTC: '/usr/bin/rustc', RUSTDOC: '/usr/bin/rustdoc' },
  };
}
