import { join } from 'node:path';
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

async function peaks(
  model: BigModel,
  blob: boolean,
  variant?: string,
): Promise<Report & { readonly baseline: number }> {
  const limits = { limitMs: 50_000 };
  const way = variant === undefined ? {} : { variant };
  const { peak: baseline } = await runChild<{ peak: number }>('memory', way, limits);
  const report = await runChild<Report>('memory', { path: model.path, blob, ...way }, limits);
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

it.runIf(linux)('peaks within 1.1 times the weights in the memory of WebAssembly', async () => {
  await withFolder(async (folder) => {
    const model = await writeBigModel(join(folder, 'big.gguf'), 9);
    const { baseline, loaded } = await peaks(model, true, 'simd128');
    // Pieces on their way, and code that is compiled anew as it runs.
    expect(loaded).toBeLessThan(1.1 * model.weightBytes + baseline + 32 * MIB);
    expect(loaded - baseline).toBeGreaterThan(0.9 * model.weightBytes);
  });
});

it.runIf(linux).each([
  ['native code', undefined, [0.5, 0.25], 0],
  // Code is compiled anew as it runs, at one time or another.
  ['WebAssembly', 'simd128', [0.25], 32 * MIB],
  ['WebAssembly with threads', 'simd128-threads', [0.25], 32 * MIB],
] as const)(
  'by %s, keeps experts that are read on demand within their limit and a tenth',
  async (_name, variant, shares, code) => {
    await withFolder(async (folder) => {
      const { path } = await writeBigModel(join(folder, 'big.gguf'), 3, 8);
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
