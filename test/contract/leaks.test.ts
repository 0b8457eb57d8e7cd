import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { describe, expect, it } from 'vitest';
import { runChild } from './child.js';
import { SHARED } from './golden.js';

const MIB = 1024 * 1024;
const STORIES = resolve(SHARED, 'models/stories260K.gguf');
const LARGE = resolve(SHARED, 'models/tiny-llama-q4_0.gguf');
const linux = process.platform === 'linux';
const present = existsSync(STORIES);
if (!present) console.log(`not run, for want of ${STORIES} (set FRUGAL_SHARED): leaks`);
if (!linux) console.log('not run, for want of /proc: leaks');

interface Level {
  readonly rss: number;
  readonly threads: number;
  readonly descriptors: number;
}

interface Report {
  /** Before anything was loaded. */
  readonly before: Level;
  /** After the first repetitions, when pools and caches of the process have their size. */
  readonly warm: Level;
  /** After the last repetition. */
  readonly end: Level;
  /** When everything is disposed. */
  readonly after: Level;
  readonly kvBefore?: number;
  readonly kvAfter?: number;
}

/**
 * What may come on top after the warm-up: compiled code and the allocator's slack, a few MiB that do not grow with
 * the count, so a twentieth of a MiB lost in each of many loads shows; caches are counted exactly.
 */
const GROWTH = 8 * MIB;
/** V8 lets its young generation grow with use, by 30 MiB here; held small, what the engine keeps shows. */
const EXEC_ARGV = ['--expose-gc', '--max-semi-space-size=1'];

async function repeated(
  scenario: string,
  warm: number,
  count: number,
  more: { readonly variant?: string; readonly path?: string } = {},
): Promise<Report> {
  const args = { scenario, path: STORIES, warm, count, ...more };
  const report = await runChild<Report>('leaks', args, { execArgv: EXEC_ARGV, limitMs: 100_000 });
  const { before, warm: first, end } = report;
  const mib = [before, first, end].map(({ rss }) => (rss / MIB).toFixed(1)).join(', ');
  console.log(
    `${scenario}: resident MiB before, after ${warm}, after ${count}: ${mib}; threads ${end.threads}`,
  );
  expect(end.rss - first.rss).toBeLessThan(GROWTH);
  expect(end).toMatchObject({ threads: first.threads, descriptors: first.descriptors });
  return report;
}

describe.runIf(present && linux)('memory, threads and descriptors are where they were after', () => {
  it('200 loads and disposes', { timeout: 120_000 }, async () => {
    const { end, after } = await repeated('loads', 50, 250);
    expect(after.threads).toBe(end.threads);
  });

  it('200 generations aborted or left at various points', { timeout: 120_000 }, async () => {
    const { kvBefore, kvAfter, warm, after } = await repeated('aborts', 100, 300);
    expect(kvAfter).toBe(kvBefore);
    // The threads of the model are gone with it.
    expect(after.threads).toBeLessThan(warm.threads);
  });

  it('60 models disposed while they generate', { timeout: 120_000 }, () => repeated('disposals', 20, 80));

  it('60 loads aborted in every phase', { timeout: 120_000 }, () => repeated('brokenLoads', 40, 100));

  it('40 loads whose listener throws, with a vocabulary that has a thread', { timeout: 120_000 }, () =>
    repeated('refusedLoads', 24, 64, { path: LARGE }),
  );

  it.each(['simd128', 'simd128-threads'])(
    '50 loads and disposes on WebAssembly, %s',
    { timeout: 120_000 },
    async (variant) => {
      const { end, after } = await repeated('loads', 60, 110, { variant });
      expect(after.threads).toBe(end.threads);
    },
  );
});
