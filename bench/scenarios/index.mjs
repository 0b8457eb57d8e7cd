// Situations that a benchmark of one model does not show. Each: { name, text, run(context) } where `run` gives
// { table, values, note? }: rows for people, numbers for bench/lib/targets.mjs (undefined where they could not be had).

import { attention } from './attention.mjs';
import { busy, idle, sequences } from './beside.mjs';
import { deep } from './deep.mjs';
import { experts } from './experts.mjs';
import { avx2, formats } from './formats.mjs';
import { long, longer } from './long.mjs';
import { stopwatch } from './stopwatch.mjs';
import { wasm } from './wasm.mjs';

/** The quick ones first: what the time is not enough for is said, and can be run by itself. */
export const SCENARIOS = [
  idle,
  busy,
  sequences,
  stopwatch,
  experts,
  formats,
  avx2,
  deep,
  wasm,
  attention,
  long,
  longer,
];
