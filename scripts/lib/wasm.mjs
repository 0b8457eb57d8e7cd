// Builds the WebAssembly modules: one for each instruction set, with threads and without.

import { execFileSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { crossCargo, debianPackages } from './cross.mjs';
import { need, ROOT, SetupError } from './steps.mjs';

/** The targets by the width of their addresses. */
const TARGETS = { 32: 'wasm32-unknown-unknown', 64: 'wasm64-unknown-unknown' };
const CRATE = 'frugal-wasm';
export const WASM_FOLDER = 'dist/wasm';

/** Instruction sets by the name of their module, as `-Ctarget-feature` takes them. */
const FEATURES = { simd128: '+simd128', 'relaxed-simd': '+simd128,+relaxed-simd' };

/** Engines that have 64-bit memory have relaxed SIMD, too. */
const KINDS = [
  { name: 'simd128', isa: 'simd128', bits: 32 },
  { name: 'relaxed-simd', isa: 'relaxed-simd', bits: 32 },
  { name: 'relaxed-simd-memory64', isa: 'relaxed-simd', bits: 64 },
];

export const WASM_VARIANTS = KINDS.flatMap((kind) => [
  { ...kind, threads: false },
  { ...kind, name: `${kind.name}-threads`, threads: true },
]);

/** The most memory that engines give, in bytes, by the width of addresses. */
const MOST_MEMORY = { 32: 2 ** 32, 64: 2 ** 34 };

/**
 * What one memory for several threads needs. The compiler no longer passes the linker's part of it by itself:
 * without it each thread would silently have a memory of its own.
 */
const SHARED_FEATURES = '+atomics,+bulk-memory,+mutable-globals';
const sharedLink = (bits) => [
  '--shared-memory',
  '--import-memory',
  `--max-memory=${MOST_MEMORY[bits]}`,
  ...['__heap_base', '__wasm_init_tls', '__tls_size', '__tls_align', '__tls_base'].map(
    (name) => `--export=${name}`,
  ),
];

function rustFlags({ isa, threads, bits }) {
  const features = threads ? `${FEATURES[isa]},${SHARED_FEATURES}` : FEATURES[isa];
  const link = threads ? sharedLink(bits).map((argument) => `-Clink-arg=${argument}`) : [];
  // With threads the compiler always warns: they are not a stable feature.
  const strict = threads ? [] : ['-Dwarnings'];
  return [`-Ctarget-feature=${features}`, ...link, ...strict].join(' ');
}

/** The program that writes the modules' glue: wasm-bindgen, as a library of its own. */
async function buildBindgen() {
  const folder = join(ROOT, 'scripts', 'bindgen');
  await need('wasm-bindgen', [
    'cargo',
    'build',
    '--locked',
    '--manifest-path',
    join(folder, 'Cargo.toml'),
    '--target-dir',
    join(ROOT, 'target', 'bindgen'),
  ]);
  return join(ROOT, 'target', 'bindgen', 'debug', process.platform === 'win32' ? 'bindgen.exe' : 'bindgen');
}

/** Debian's compiler comes without the linker for WebAssembly, whose LLVM must be the compiler's own. */
async function withLinker(cargo) {
  if (cargo.route !== 'debian') return cargo;
  const version = execFileSync(cargo.env.RUSTC, ['-vV'], { encoding: 'utf8' });
  const llvm = /^LLVM version: (\d+)/m.exec(version)?.[1];
  await debianPackages([`lld-${llvm}`]);
  const linker = `/usr/lib/llvm-${llvm}/bin/wasm-ld`;
  const linkers = Object.values(TARGETS).map((target) => [
    `CARGO_TARGET_${target.toUpperCase().replaceAll('-', '_')}_LINKER`,
    linker,
  ]);
  return { ...cargo, env: { ...cargo.env, ...Object.fromEntries(linkers) } };
}

/** Builds all modules, and the glue of those with threads and those without, into `dist/wasm`. */
export async function buildWasm() {
  const cargo = await withLinker(await crossCargo(TARGETS[32], 'std,panic_abort', { anew: true }));
  const out = join(ROOT, WASM_FOLDER);
  rmSync(out, { recursive: true, force: true });
  mkdirSync(out, { recursive: true });
  // Of one module the compiler works on one core most of the time, and its glue is not needed before it.
  const bindgen = buildBindgen();
  const builds = [bindgen, ...[false, true].map((threads) => buildModules(cargo, bindgen, threads, out))];
  // Where one fails, the other must not go on beside what comes next.
  const failed = (await Promise.allSettled(builds)).find(({ status }) => status === 'rejected');
  if (failed !== undefined) throw failed.reason;
}

async function buildModules(cargo, bindgen, threads, out) {
  const target = join(ROOT, 'target', `wasm-${cargo.route}${threads ? '-threads' : ''}`);
  for (const variant of WASM_VARIANTS.filter((variant) => variant.threads === threads)) {
    await buildModule(cargo, variant, target);
    const built = join(target, TARGETS[variant.bits], 'release', 'frugal_wasm.wasm');
    const made = join(ROOT, 'target', 'wasm-glue', variant.name);
    await need(`glue of ${variant.name}`, [await bindgen, built, made, 'frugal']);
    copyFileSync(join(made, 'frugal_bg.wasm'), join(out, `${variant.name}.wasm`));
    writeGlue(join(made, 'frugal.js'), join(out, glueName(variant)), variant);
  }
}

const glueName = ({ bits, threads }) =>
  `glue${bits === 64 ? '-memory64' : ''}${threads ? '-threads' : ''}.js`;

async function buildModule({ route, cargo, args, env }, variant, target) {
  await need(
    `${variant.name}.wasm (cargo, ${route})`,
    [cargo, 'build', '--release', '-p', CRATE, '--target', TARGETS[variant.bits], ...args],
    { env: { ...env, RUSTFLAGS: rustFlags(variant), CARGO_TARGET_DIR: target } },
  );
}

/**
 * The glue keeps its instance in variables of its module; as a function it can be had once for each model.
 * It is the same for every instruction set.
 */
function writeGlue(from, to, { name }) {
  const script = readFileSync(from, 'utf8');
  if (!script.startsWith('let wasm_bindgen = ')) throw new SetupError(`the glue of ${name} has another form`);
  const module = `export function createGlue() {\n${script}\nreturn wasm_bindgen;\n}\n`;
  if (!existsSync(to)) writeFileSync(to, module);
  else if (readFileSync(to, 'utf8') !== module) throw new SetupError(`the glue of ${name} is one of its own`);
}
