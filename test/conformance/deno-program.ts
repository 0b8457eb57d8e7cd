import { execFile } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { resolve } from 'node:path';
import { promisify } from 'node:util';

const ROOT = resolve(import.meta.dirname, '../..');
const FLAGS = ['run', '--allow-all', '--no-prompt', '--unstable-sloppy-imports', '--quiet'];

/** The program of the npm package for this machine, if there is one. */
export const deno = findDeno();

function findDeno(): string | undefined {
  const scope = resolve(ROOT, 'node_modules/@deno');
  if (!existsSync(scope)) return undefined;
  const found = readdirSync(scope).map((name) =>
    resolve(scope, name, process.platform === 'win32' ? 'deno.exe' : 'deno'),
  );
  return found.find((path) => existsSync(path));
}

/** Runs a script of this folder, whose argument is JSON, and gives what it wrote: lines of JSON. */
export async function runDeno<T>(script: string, argument: unknown, limitMs: number): Promise<T[]> {
  const path = resolve(import.meta.dirname, script);
  const { stdout } = await promisify(execFile)(deno ?? '', [...FLAGS, path, JSON.stringify(argument)], {
    cwd: ROOT,
    maxBuffer: 64 << 20,
    timeout: limitMs,
  });
  return stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as T);
}
