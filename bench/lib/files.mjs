// Files to measure with, made when they are first wanted.

import { existsSync, mkdirSync, renameSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { ROOT, say } from '../../scripts/lib/steps.mjs';
import { run } from './child.mjs';

export const CACHE = join(ROOT, '.cache', 'bench');

/** Where files of random weights lie: FRUGAL_BENCH_MODELS, or the ignored folder of results. */
const FOLDER = resolve(process.env.FRUGAL_BENCH_MODELS ?? CACHE);

/**
 * A file of a real shape with random weights.
 * @param slice so many times fewer layers and words; see bench/models.mjs
 * @returns its path
 */
export async function modelFile(shape, type, slice = 1) {
  const path = join(FOLDER, `${shape}${slice === 1 ? '' : `-slice${slice}`}-${type}.gguf`);
  if (existsSync(path)) return path;
  mkdirSync(FOLDER, { recursive: true });
  say(`making ${path}: random weights`);
  const part = `${path}.${process.pid}.part`;
  await run(process.execPath, [join(ROOT, 'bench', 'models.mjs'), shape, type, part, slice]);
  renameSync(part, path);
  return path;
}
