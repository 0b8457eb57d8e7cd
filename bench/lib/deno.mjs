// Deno, from its npm package.

import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { ROOT } from '../../scripts/lib/steps.mjs';

/** Deno's program; undefined where its package for this machine is missing. */
export function findDeno() {
  const scope = join(ROOT, 'node_modules', '@deno');
  if (!existsSync(scope)) return undefined;
  const file = process.platform === 'win32' ? 'deno.exe' : 'deno';
  return readdirSync(scope)
    .map((name) => join(scope, name, file))
    .find((path) => existsSync(path));
}

export const DENO_FLAGS = ['run', '--allow-all', '--no-prompt', '--quiet'];
