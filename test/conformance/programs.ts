import { execFile } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { resolve } from 'node:path';
import { promisify } from 'node:util';

const ROOT = resolve(import.meta.dirname, '../..');
const SUFFIX = process.platform === 'win32' ? '.exe' : '';

/** A runtime beside Node, from its npm package. */
export interface Program {
  readonly path: string;
  readonly flags: readonly string[];
}

/** Each is undefined where its package has none for this machine. */
export const deno = find('@deno', `deno${SUFFIX}`, `deno/deno${SUFFIX}`, [
  'run',
  '--allow-all',
  '--no-prompt',
  '--unstable-sloppy-imports',
  '--quiet',
]);
export const bun = find('@oven', `bin/bun${SUFFIX}`, 'bun/bin/bun.exe', ['run']);

/**
 * @param file where the scope's package for this machine has it
 * @param moved where the main package's script may have moved it to
 */
function find(scope: string, file: string, moved: string, flags: readonly string[]): Program | undefined {
  const packages = resolve(ROOT, 'node_modules');
  const folder = resolve(packages, scope);
  if (!existsSync(folder)) return undefined;
  const found = readdirSync(folder).map((name) => resolve(folder, name, file));
  const path = [...found, resolve(packages, moved)].find((each) => existsSync(each));
  return path === undefined ? undefined : { path, flags };
}

/** Runs a script of this folder, whose argument is JSON, and gives what it wrote: lines of JSON. */
export async function runScript<T>(
  program: Program | undefined,
  script: string,
  argument: unknown,
  limitMs: number,
): Promise<T[]> {
  if (program === undefined) throw new Error(`nothing here runs ${script}`);
  const args = [...program.flags, resolve(import.meta.dirname, script), JSON.stringify(argument)];
  const { stdout } = await promisify(execFile)(program.path, args, {
    cwd: ROOT,
    maxBuffer: 64 << 20,
    timeout: limitMs,
  });
  return stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as T);
}
