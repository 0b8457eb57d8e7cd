import { beforeAll, describe, expect, it } from 'vitest';
import { lacking, WASM_VARIANTS, whyNot } from '../../ts/backend/wasm/variant.js';
import { type LoadOptions, load } from '../../ts/index.js';
import { load as loadWasm } from '../../ts/wasm.js';
import { GOLDEN_MODELS } from '../contract/golden.js';
import { deno, runDeno } from './deno-program.js';
import { fixtures, goldenOf, isThere } from './fixtures.js';
import { CASES, type Outcome, runCases } from './suite.js';

const PINNED = 'logits are the pinned ones, bit by bit';

interface Run {
  readonly options: LoadOptions;
  readonly large: boolean;
}

/**
 * Each module, those with threads with several; what takes seconds once for each. With 64-bit memory only addresses
 * differ.
 */
const RUNS: readonly Run[] = WASM_VARIANTS.flatMap((variant): Run[] => {
  const several = variant.includes('memory64') ? [2] : [2, 1, 3];
  const counts = variant.endsWith('-threads') ? several : [1];
  return counts.map((threads, i) => ({ options: { variant, threads, chunk: 7 }, large: i === 0 }));
});

const nameOf = ({ options }: Run) => `${options.variant} on ${options.threads}`;

for (const model of GOLDEN_MODELS.filter((each) => !isThere(each))) {
  console.log(`not run: ${model.name} on WebAssembly, for want of ${model.path} (set FRUGAL_SHARED)`);
}

let expected: Record<string, Outcome>;
beforeAll(async () => {
  expected = await runCases({ load }, { ...fixtures({ threads: 2 }, false), pinned: [] });
});

it('native code holds the suite', () => {
  expect(Object.values(expected).filter((outcome) => 'failure' in outcome)).toEqual([]);
});

function compare(outcomes: Record<string, Outcome> | undefined, { options, large }: Run): void {
  const value = goldenOf(fixtures(options, large));
  expect(outcomes).toEqual({ ...expected, [PINNED]: { value } });
  expect(Object.keys(outcomes ?? {})).toEqual(Object.keys(CASES));
}

describe(`Node ${process.versions.node}`, () => {
  const lacks = lacking(undefined);
  for (const run of RUNS) {
    const { variant = 'simd128' } = run.options;
    const why = whyNot(lacks, variant);
    if (why !== undefined) console.log(`not run: ${variant} in Node, as ${why}`);
    it.runIf(why === undefined)(`${nameOf(run)}, as native code`, { timeout: 300_000 }, async () => {
      compare(await runCases({ load: loadWasm }, fixtures(run.options, run.large)), run);
    });
  }

  it.runIf(lacks.relaxed !== undefined)('refuses modules that would not work, and says why', async () => {
    const loading = loadWasm(fixtures({}, false).model, { variant: 'relaxed-simd' });
    await expect(loading).rejects.toMatchObject({ code: 'BACKEND_UNAVAILABLE' });
  });
});

if (deno === undefined) console.log('not run: Deno, for want of its npm package for this machine');

describe.runIf(deno !== undefined)('Deno', () => {
  const lines: Array<{
    lacks?: ReturnType<typeof lacking>;
    options?: LoadOptions;
    outcomes?: Record<string, Outcome>;
  }> = [];
  beforeAll(async () => {
    lines.push(...(await runDeno<(typeof lines)[number]>('deno.ts', RUNS, 500_000)));
  }, 520_000);

  it('has all that the best module needs', () => {
    expect(lines[0]?.lacks).toEqual({});
  });

  it.each(RUNS.map((run, i) => [nameOf(run), run, i] as const))('%s, as native code', (_name, run, i) => {
    const line = lines[i + 1];
    expect(line?.options).toEqual(run.options);
    compare(line?.outcomes, run);
  });
});
