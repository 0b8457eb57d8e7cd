// Brings a fresh checkout to the point where the package runs: npm packages, native addon, dist/.
// Each part is done only when what it is made from has changed. Uses Node's own modules only,
// because nothing else is installed when it starts.

import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { need, ROOT, SetupError } from './steps.mjs';
import { buildWasm, WASM_FOLDER, WASM_VARIANTS } from './wasm.mjs';

const MINIMUM_NODE = [20, 17];
const ADDON_FOLDER = 'bindings/napi';

/** The path of a file of the project. */
const at = (...parts) => join(ROOT, ...parts);

/** Checks the two things that must be there before anything can be set up. */
export function checkTools() {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number);
  const [wantMajor, wantMinor] = MINIMUM_NODE;
  if (major < wantMajor || (major === wantMajor && minor < wantMinor)) {
    throw new SetupError(
      `Node ${process.versions.node} is too old: install Node ${MINIMUM_NODE.join('.')} or later`,
    );
  }
  try {
    return execFileSync('rustc', ['-vV'], { cwd: ROOT, encoding: 'utf8' });
  } catch {
    throw new SetupError(
      'Rust is missing (no rustc in PATH): install it from https://rustup.rs, then run this again',
    );
  }
}

const readJson = (path) => JSON.parse(readFileSync(path, 'utf8'));

/**
 * Whether node_modules holds what package-lock.json asks for. npm keeps a lock of what it has
 * installed; packages for other platforms are rightly absent from it.
 */
function nodeModulesFresh() {
  const installedLock = at('node_modules', '.package-lock.json');
  if (!existsSync(installedLock)) return false;
  const installed = readJson(installedLock).packages;
  return Object.entries(readJson(at('package-lock.json')).packages).every(([path, wanted]) => {
    if (path === '') return true;
    const found = installed[path];
    if (found === undefined) return wanted.optional === true || wanted.devOptional === true;
    return found.version === wanted.version && found.integrity === wanted.integrity;
  });
}

/** Whether the lock names every optional package that others ask for. */
function lockComplete() {
  const packages = readJson(at('package-lock.json')).packages;
  const known = new Set(Object.keys(packages).map((path) => path.split('node_modules/').at(-1)));
  return Object.values(packages).every((entry) =>
    Object.keys(entry.optionalDependencies ?? {}).every((name) => known.has(name)),
  );
}

/** Installs the npm packages at their locked versions. */
export async function ensureNodeModules() {
  if (nodeModulesFresh()) return;
  const npm = process.env.npm_execpath;
  const command = npm === undefined ? ['npm'] : [process.execPath, npm];
  // A lock made where the packages for other platforms cannot be had lacks these, and `npm ci`
  // refuses it. `npm install` takes the locked versions of all the others and changes no file.
  const action = lockComplete() ? ['ci'] : ['install', '--no-save'];
  await need(`npm ${action[0]}`, [...command, ...action, '--include=dev', '--no-audit', '--no-fund']);
  if (!nodeModulesFresh()) throw new SetupError('npm did not install what package-lock.json asks for');
}

/** Adds the names and contents of all files under `path` to a hash, in a fixed order. */
function hashTree(hash, path) {
  if (!existsSync(at(path))) return;
  if (statSync(at(path)).isFile()) {
    hash
      .update(`${path}\0`)
      .update(readFileSync(at(path)))
      .update('\0');
    return;
  }
  for (const name of readdirSync(at(path)).sort()) {
    if (name !== 'node_modules' && name !== 'target' && !name.endsWith('.node'))
      hashTree(hash, `${path}/${name}`);
  }
}

function hashOf(paths, extra) {
  const hash = createHash('sha256').update(extra).update('\0');
  for (const path of paths) hashTree(hash, path);
  return hash.digest('hex');
}

/** Runs `build` unless it has already been run on the same inputs and its result is still there. */
async function whenChanged(name, inputs, extra, present, build) {
  const stamp = at('.cache', `${name}.sha256`);
  const recorded = existsSync(stamp) ? readFileSync(stamp, 'utf8') : '';
  if (present() && recorded === hashOf(inputs, extra)) return;
  await build();
  mkdirSync(at('.cache'), { recursive: true });
  // Hashed again, as a build may complete Cargo.lock.
  writeFileSync(stamp, hashOf(inputs, extra));
}

/** Builds the native addon, `bindings/napi/*.node`. `rustc`: the compiler's description of itself. */
export async function ensureNative(rustc) {
  const inputs = ['crates', ADDON_FOLDER, 'Cargo.toml', 'Cargo.lock', '.cargo/config.toml'];
  const present = () => readdirSync(at(ADDON_FOLDER)).some((name) => name.endsWith('.node'));
  await whenChanged('native', inputs, `${rustc}${process.env.RUSTFLAGS ?? ''}`, present, async () => {
    await need('native addon (cargo, release)', [
      process.execPath,
      at('node_modules', '@napi-rs', 'cli', 'dist', 'cli.js'),
      'build',
      '--platform',
      '--release',
      '--no-js',
      '--manifest-path',
      `${ADDON_FOLDER}/Cargo.toml`,
      '--output-dir',
      ADDON_FOLDER,
    ]);
  });
}

/** Compiles ts/ to dist/. */
export async function ensureDist() {
  const inputs = ['ts', 'tsconfig.json', 'package-lock.json'];
  await whenChanged(
    'dist',
    inputs,
    '',
    () => existsSync(at('dist', 'index.js')),
    async () => {
      // Files whose source is gone must not be packed.
      const old = existsSync(at('dist')) ? readdirSync(at('dist')) : [];
      const keep = basename(WASM_FOLDER);
      for (const name of old) if (name !== keep) rmSync(at('dist', name), { recursive: true });
      await need('TypeScript (tsc)', [process.execPath, at('node_modules', 'typescript', 'bin', 'tsc')]);
    },
  );
}

/** Builds the WebAssembly modules, `dist/wasm`. `rustc`: the compiler's description of itself. */
export async function ensureWasm(rustc) {
  const inputs = [
    'crates',
    'bindings/wasm',
    'Cargo.toml',
    'Cargo.lock',
    'scripts/bindgen/Cargo.lock',
    'scripts/bindgen/src',
    'scripts/lib/cross.mjs',
    'scripts/lib/wasm.mjs',
  ];
  const files = WASM_VARIANTS.map(({ name }) => at(WASM_FOLDER, `${name}.wasm`));
  await whenChanged('wasm', inputs, rustc, () => files.every(existsSync), buildWasm);
}

/** Bundles what browsers take, `dist/browser`, of the two builds above. */
export async function ensureBrowser() {
  const inputs = [
    'ts',
    'tsconfig.json',
    'package.json',
    'package-lock.json',
    WASM_FOLDER,
    'scripts/lib/browser.mjs',
  ];
  const present = () => existsSync(at('dist', 'browser', 'index.js'));
  await whenChanged('browser', inputs, '', present, async () =>
    (await import('./browser.mjs')).buildBrowser(),
  );
}

/** Everything that the command line program needs with the native backend. */
export async function setUp() {
  const rustc = checkTools();
  await ensureNodeModules();
  await ensureNative(rustc);
  await ensureDist();
  return rustc;
}
