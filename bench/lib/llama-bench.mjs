// llama.cpp's own bench, where somebody has built it.

import { existsSync } from 'node:fs';
import { SetupError } from '../../scripts/lib/steps.mjs';
import { run } from './child.mjs';

/**
 * @param flag the option that names it, as the variable of that name does
 * @throws SetupError where there is none
 */
export function checkLlamaBench(binary, flag = 'llama-bench') {
  const variable = flag.toUpperCase().replaceAll('-', '_');
  if (!binary) throw new SetupError(`no binary: name llama-bench with --${flag} or ${variable}`);
  if (!existsSync(binary)) throw new SetupError(`${binary} is not there`);
}

/**
 * One measurement of each: a prompt, and tokens generated, at a depth.
 * @param extra further arguments, such as ['-fa', '1']
 * @returns tokens per second of each that was asked for, and the version
 */
export async function llamaBench(
  binary,
  { model, prompt, generate, threads, depth = 0, limitMs },
  extra = [],
) {
  const sizes = ['-p', prompt, '-n', generate, '-t', threads, '-r', 1, '-ngl', 0];
  const deep = depth > 0 ? ['-d', depth] : [];
  const text = await run(binary, ['-m', model, ...sizes, ...deep, '-o', 'json', ...extra], { limitMs });
  const tests = JSON.parse(text);
  const rate = (pick) => tests.find(pick)?.avg_ts;
  return {
    prefill: rate(({ n_prompt }) => n_prompt > 0),
    decode: rate(({ n_gen }) => n_gen > 0),
    version: `build ${tests[0].build_commit} (${tests[0].build_number})`,
  };
}
