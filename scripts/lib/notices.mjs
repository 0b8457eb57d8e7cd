// dist/THIRD-PARTY.txt: the licences of what others wrote and the package has in it, compiled or bundled.

import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { ROOT } from './steps.mjs';

const BINDINGS = ['frugal-napi', 'frugal-wasm'];
const LICENCE = /^(licen[cs]e|copying|notice)/i;

/** @returns {{ name: string, version: string, licence: string, folder: string }[]} */
function npmPackages() {
  const { dependencies } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));
  return Object.keys(dependencies).map((name) => {
    const folder = join(ROOT, 'node_modules', name);
    const { version, license: licence } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'));
    return { name, version, licence, folder };
  });
}

/** The crates that end up in this machine's addon or a module; what only runs while they are compiled does not. */
function crates(rustc) {
  const [, host] = /^host: (.+)$/m.exec(rustc);
  const command = ['metadata', '--format-version', '1', '--locked', '--filter-platform', host];
  const { packages, resolve } = JSON.parse(
    execFileSync('cargo', command, { cwd: ROOT, encoding: 'utf8', maxBuffer: 1 << 28 }),
  );
  const byId = new Map(packages.map((each) => [each.id, each]));
  const nodes = new Map(resolve.nodes.map((node) => [node.id, node]));
  const found = new Set(packages.filter(({ name }) => BINDINGS.includes(name)).map(({ id }) => id));
  // A set may grow while it is walked.
  for (const id of found) {
    for (const { pkg, dep_kinds } of nodes.get(id).deps) {
      const linked = dep_kinds.some(({ kind }) => kind === null);
      const runs = byId.get(pkg).targets.some(({ kind }) => kind.includes('proc-macro'));
      if (linked && !runs) found.add(pkg);
    }
  }
  return [...found]
    .map((id) => byId.get(id))
    .filter(({ source }) => source !== null)
    .map(({ name, version, license: licence, manifest_path }) => ({
      ...{ name, version, licence },
      folder: dirname(manifest_path),
    }));
}

function section({ name, version, licence, folder }) {
  const texts = readdirSync(folder).filter((file) => LICENCE.test(file));
  const bodies = texts.sort().map((file) => readFileSync(join(folder, file), 'utf8').trim());
  return [`${name} ${version} (${licence})`, '-'.repeat(72), ...bodies].join('\n\n');
}

/** `rustc`: the compiler's description of itself. */
export function writeNotices(rustc) {
  const all = [...npmPackages(), ...crates(rustc)];
  writeFileSync(join(ROOT, 'dist', 'THIRD-PARTY.txt'), `${all.map(section).join('\n\n\n')}\n`);
}
