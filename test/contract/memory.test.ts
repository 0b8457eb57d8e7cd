import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { withFolder } from '../gguf/sources.js';
import { type BigModel, writeBigModel } from './big-model.js';
import { runChild } from './child.js';

const MIB = 1024 * 1024;
const linux = process.platform === 'linux';
if (!linux) console.log('not run, for want of /proc: peak memory at load');

/** Peaks of resident memory in bytes, as the system counts them (VmHWM). */
interface Report {
  readonly loaded: number;
  readonly ran: number;
  readonly kvBytes: number;
  readonly packedBytes: number;
}

/** With what a process took that had loaded and run a small model before. */
interface Warmed extends Report {
  readonly baseline: number;
  /** Of the largest instance of WebAssembly, in bytes. */
  readonly memory: number;
}

const EMBEDDED = fileURLToPath(new URL('../../models/stories-moe-q8_0.gguf', import.meta.url));

async function peaks(model: BigModel, blob: boolean): Promise<Report & { readonly baseline: number }> {
  const limits = { limitMs: 50_000 };
  const { peak: baseline } = await runChild<{ peak: number }>('memory', {}, limits);
  const report = await runChild<Report>('memory', { path: model.path, blob }, limits);
  const share = (peak: number) => ((peak - baseline) / model.weightBytes).toFixed(3);
  const mib = (bytes: number) => `${(bytes / MIB).toFixed(0)} MiB`;
  console.log(
    `weights ${mib(model.weightBytes)}, packed ${mib(report.packedBytes)}, cache ${mib(report.kvBytes)}; ` +
      `peak above the ${mib(baseline)} of the process: ${share(report.loaded)} of the weights when loaded, ` +
      `${share(report.ran)} after 300 tokens of prompt`,
  );
  return { ...report, baseline };
}

it.runIf(linux).each([
  ['a file', false, 0],
  // Pieces on their way, however large the model is.
  ['a Blob', true, 8 * MIB],
] as const)('peaks within 1.15 times the weights when loading them from %s', async (_name, blob, garbage) => {
  await withFolder(async (folder) => {
    const model = await writeBigModel(join(folder, 'big.gguf'), 9);
    const { baseline, loaded, ran, kvBytes } = await peaks(model, blob);
    expect(loaded).toBeLessThan(1.15 * model.weightBytes + baseline + garbage);
    // A step of 256 tokens needs room of its own, which does not grow with the weights either.
    expect(ran).toBeLessThan(1.15 * model.weightBytes + kvBytes + baseline + garbage + 32 * MIB);
    // Weights that were only mapped or never touched would make the bounds above say nothing.
    expect(loaded - baseline).toBeGreaterThan(0.9 * model.weightBytes);
  });
});

it.runIf(linux).each(['simd128', 'simd128-threads'] as const)(
  'peaks within 1.1 times the weights when loading them from a Blob into the memory of %s',
  async (variant) => {
    await withFolder(async (folder) => {
      const { path, weightBytes } = await writeBigModel(join(folder, 'big.gguf'), 24);
      const way = { path, variant, blob: true, after: EMBEDDED };
      const { baseline, loaded, memory } = await runChild<Warmed>('memory', way, { limitMs: 50_000 });
      const share = (bytes: number) => bytes / weightBytes;
      console.log(
        `of the weights: peak above what the process took before ${share(loaded - baseline).toFixed(3)}, ` +
          `memory of the instance after 300 tokens of prompt ${share(memory).toFixed(3)}`,
      );
      expect(share(loaded - baseline)).toBeLessThan(1.1);
      expect(share(memory)).toBeLessThan(1.1);
      expect(share(loaded - baseline)).toBeGreaterThan(0.9);
    });
  },
);

it.runIf(linux).each([
  ['native code', undefined, [0.5, 0.25], 0],
  // Code is compiled anew as it runs, at one time or another.
  ['WebAssembly', 'simd128', [0.25], 32 * MIB],
  ['WebAssembly with threads', 'simd128-threads', [0.25], 32 * MIB],
] as const)(
  'by %s, keeps experts that are read on demand within their limit and a tenth',
  async (_name, variant, shares, code) => {
    await withFolder(async (folder) => {
      const { path } = await writeBigModel(join(folder, 'big.gguf'), 3, { experts: 8 });
      const expertBytes = 3 * 8 * 3 * 1024 * 4096 * (34 / 32);
      const peak = async (expertMemory?: number) =>
        (await runChild<Report>('memory', { path, expertMemory, variant }, { limitMs: 120_000 })).ran;
      // What everything else takes is what it takes when all experts are in memory.
      const rest = (await peak()) - expertBytes;
      for (const share of shares) {
        const experts = (await peak(share * expertBytes)) - rest;
        console.log(`limit ${share} of the experts, peak ${(experts / expertBytes).toFixed(3)} of them`);
        expect(experts).toBeLessThan(1.1 * share * expertBytes + code);
        expect(experts).toBeGreaterThan(0.85 * share * expertBytes - code);
      }
    });
  },
  300_000,
);

it.runIf(linux).each(['simd128', 'simd128-threads'] as const)(
  'is back soon after a model on %s is disposed of, though who loaded it keeps it and asks for no collection',
  async (variant) => {
    await withFolder(async (folder) => {
      const { path, weightBytes } = await writeBigModel(join(folder, 'big.gguf'), 9);
      const { levels } = await runChild<{ levels: number[] }>(
        'released',
        { path, variant },
        { limitMs: 60_000 },
      );
      const [before = 0, ...after] = levels;
      const shares = after.map((level) => (level - before) / weightBytes);
      console.log(
        `of the weights after each disposal: ${shares.map((share) => share.toFixed(2)).join(', ')}`,
      );
      // Compiled code is some of it; a model that stayed would be one and more.
      for (const share of shares) expect(share).toBeLessThan(0.8);
    });
  },
);
