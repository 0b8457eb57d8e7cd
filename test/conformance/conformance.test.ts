import { beforeAll, describe, expect, it } from 'vitest';
import { lacking, WASM_VARIANTS, whyNot } from '../../ts/backend/wasm/variant.js';
import { type LoadOptions, load } from '../../ts/index.js';
import { load as loadWasm } from '../../ts/wasm.js';
import { GOLDEN_MODELS } from '../contract/golden.js';
import { fixtures, goldenOf, isThere } from './fixtures.js';
import { bun, deno, runScript } from './programs.js';
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

const nameOf = ({ options }: Run) => `${options.variant ?? 'native'} on ${options.threads}`;

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

function compare(outcomes: Record<string, Outcome> | undefined, { large }: Run): void {
  const value = goldenOf(large);
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

interface Line {
  readonly lacks?: ReturnType<typeof lacking>;
  readonly options?: LoadOptions;
  readonly outcomes?: Record<string, Outcome>;
}

const NATIVE: Run = { options: { threads: 2, chunk: 7 }, large: true };
/** What each runs of the suite, and what it lacks. */
const RUNTIMES = [
  { name: 'Deno', program: deno, script: 'deno.ts', runs: RUNS, lacks: {} },
  {
    name: 'Bun',
    program: bun,
    script: 'bun.ts',
    // Its engine is not V8, but what differs between numbers of threads is not the engine's.
    runs: [NATIVE, ...RUNS.filter(({ large, options }) => large && !options.variant?.includes('memory64'))],
    lacks: { memory64: expect.any(String) },
  },
];

for (const { name, program } of RUNTIMES)
  if (program === undefined) console.log(`not run: ${name}, for want of its npm package for this machine`);

describe.each(RUNTIMES.filter(({ program }) => program !== undefined))(
  '$name',
  ({ program, script, runs, lacks }) => {
    let lines: Line[];
    beforeAll(async () => {
      lines = await runScript<Line>(program, script, runs, 500_000);
    }, 520_000);

    it('has what is expected of it', () => {
      expect(lines[0]?.lacks).toEqual(lacks);
    });

    it.each(runs.map((run, i) => [nameOf(run), run, i] as const))('%s, as native code', (_name, run, i) => {
      const line = lines[i + 1];
      expect(line?.options).toEqual(run.options);
      compare(line?.outcomes, run);
    });
  },
);
