import { expect, it } from 'vitest';
import { withFolder } from '../gguf/sources.js';
import { runChild } from './child.js';

const MIB = 1024 * 1024;
const SEED = 77;
const COUNT = 2600;
const LIMIT_MS = 1000;

interface Report {
  readonly files: number;
  readonly outcomes: Readonly<Record<string, number>>;
  readonly failures: readonly string[];
  readonly slowest: { readonly name?: string; readonly ms: number };
  readonly largestGrowth: { readonly name?: string; readonly bytes: number };
  readonly peakGrowth: number;
  /** Each file's outcome, with `list`. */
  readonly list?: readonly string[];
}

interface Way {
  /** Where the files are written; by default they are Blobs. */
  readonly folder?: string;
  /** The module of WebAssembly; by default native code. */
  readonly variant?: string;
  readonly list?: boolean;
}

function loadAll(every: number, way: Way = {}): Promise<Report> {
  const args = { seed: SEED, count: COUNT, every, limitMs: LIMIT_MS, ...way };
  return runChild<Report>('hostile', args, { execArgv: ['--expose-gc'], limitMs: 150_000 });
}

function check(report: Report): void {
  console.log(`peak of resident memory above the level before: ${(report.peakGrowth / MIB).toFixed(1)} MiB`);
  console.log(
    Object.entries(report.outcomes)
      .map(([outcome, count]) => `${outcome} ${count}`)
      .join(', '),
  );
  expect(report.failures).toEqual([]);
  expect(report.slowest).toSatisfy(({ ms }: Report['slowest']) => ms < LIMIT_MS);
  expect(report.largestGrowth).toSatisfy(({ bytes }: Report['largestGrowth']) => bytes < 64 * MIB);
}

it(`${COUNT} hostile files (seed ${SEED}) end in a typed error or a model that generates`, {
  timeout: 180_000,
}, async () => {
  const report = await loadAll(1);
  check(report);
  expect(report.files).toBeGreaterThanOrEqual(2000);
  // All of them together, the files themselves and garbage that waits for the collector included.
  expect(report.peakGrowth).toBeLessThan(128 * MIB);
  // Without these the files would have reached neither the checks behind the reader's nor the kernels.
  const reached = [
    'METADATA_MISSING',
    'METADATA_INVALID',
    'MISSING_TENSOR',
    'TENSOR_SHAPE',
    'TOKENIZER_INVALID',
    'loaded',
  ];
  for (const code of reached) expect([code, report.outcomes[code] ?? 0]).not.toEqual([code, 0]);
});

it('a sample of them as real files', { timeout: 180_000 }, async () => {
  const report = await withFolder((folder) => loadAll(10, { folder }));
  check(report);
  expect(report.files).toBeGreaterThanOrEqual(200);
});

it('WebAssembly ends as native code does with a sample of them, each a Blob', {
  timeout: 180_000,
}, async () => {
  const native = await loadAll(8, { list: true });
  const wasm = await loadAll(8, { list: true, variant: 'simd128' });
  check(wasm);
  expect(wasm.list).toEqual(native.list);
  expect(wasm.files).toBeGreaterThanOrEqual(250);
});
