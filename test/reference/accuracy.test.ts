import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it, onTestFinished } from 'vitest';
import { loadNative } from '../../ts/backend/native.js';
import { type LoadOptions, load, type ModelSource } from '../../ts/engine/index.js';
import { FrugalError } from '../../ts/errors.js';
import { blobSource } from '../../ts/gguf/blob-source.js';
import { openFile } from '../../ts/gguf/file-source.js';
import { openGguf } from '../../ts/gguf/index.js';
import { buildPlan } from '../../ts/models/index.js';
import type { Entry } from '../gguf/writer.js';
import { forward, readFloatModel } from './forward.js';
import { readRows } from './npy.js';
import { WEIGHT_TYPES, type WeightType } from './numbers.js';
import { randomModel, type Shape, VARIANTS, type Variant, VOCAB_SIZE } from './random-model.js';

type Row = ArrayLike<number>;

/**
 * The most that the logits may lie from those of the float reference: root mean square over all of them,
 * in standard deviations of the logits. One and a half times the most that was measured, 6.2e-4, 7.6e-4,
 * 3.5e-3, 1.25e-2 and 1.25e-2. What is lost: F16 keys, values, queries and probabilities in all; activations
 * rounded to F16 and to BF16 for these weights, and to blocks of integers for quantised ones.
 */
const BOUNDS: Record<WeightType, number> = {
  F32: 0.00093,
  F16: 0.00115,
  BF16: 0.0053,
  Q8_0: 0.019,
  Q4_0: 0.019,
};

/** The same for a Q8_0 cache against an F16 one, with F32 weights; 1.2e-3 to 1.05e-2 were measured. */
const Q8_CACHE_BOUND = 0.016;

// Heads of 32 and 64 dimensions, groups of one to three heads, heads together as wide as the stream and wider.
const SHAPES: readonly Shape[] = [
  { architecture: 'llama', headDim: 32, heads: 4, kvHeads: 2 },
  { architecture: 'qwen2', headDim: 64, heads: 3, kvHeads: 1 },
  { architecture: 'qwen3', headDim: 64, heads: 4, kvHeads: 4, tied: true },
  { architecture: 'gemma2', headDim: 32, heads: 6, kvHeads: 2, tied: true },
  { architecture: 'gemma3', headDim: 64, heads: 2, kvHeads: 1, tied: true },
];

const TOKENS = [1, ...Array.from({ length: 23 }, (_, i) => 3 + ((i * 7919) % (VOCAB_SIZE - 3)))];
const SEED = 7;

/** Only Llama files have per-frequency divisors. */
function variantsOf({ architecture }: Shape): readonly Variant[] {
  return VARIANTS.filter((variant) => variant !== 'factors' || architecture === 'llama');
}

async function referenceLogits(bytes: Uint8Array<ArrayBuffer>): Promise<Float64Array[]> {
  const file = await openGguf(blobSource(new Blob([bytes])));
  return forward(await readFloatModel(file), TOKENS);
}

async function engineLogits(
  source: ModelSource,
  tokens: readonly number[],
  options: LoadOptions = {},
): Promise<Float32Array[]> {
  const model = await load(source, { backend: 'native', ...options });
  try {
    const rows: Float32Array[] = [];
    for await (const row of model.score(tokens)) rows.push(row);
    return rows;
  } finally {
    await model.dispose();
  }
}

function rootMeanSquare(numbers: Float64Array): number {
  return Math.sqrt(numbers.reduce((sum, value) => sum + value * value, 0) / numbers.length);
}

/** The root mean square difference of two rows. */
function distance(a: Row, b: Row): number {
  expect(a).toHaveLength(b.length);
  return rootMeanSquare(Float64Array.from(a, (value, i) => value - (b[i] ?? 0)));
}

/** Over all rows, in standard deviations of `to`. */
function relativeDistance(from: readonly Row[], to: readonly Row[]): number {
  expect(from).toHaveLength(to.length);
  const all = Float64Array.from(to.flatMap((row) => Array.from(row)));
  const mean = all.reduce((a, b) => a + b, 0) / all.length;
  const deviation = rootMeanSquare(all.map((value) => value - mean));
  return rootMeanSquare(Float64Array.from(from, (row, i) => distance(row, to[i] ?? []))) / deviation;
}

describe.each(SHAPES)('$architecture, random weights', (shape) => {
  const models = new Map(variantsOf(shape).map((variant) => [variant, randomModel(shape, variant, SEED)]));

  describe.each([...models])('%s', (_, write) => {
    it.each(WEIGHT_TYPES)('%s: logits agree with the float reference', async (type) => {
      const bytes = write(type);
      const logits = await engineLogits(new Blob([bytes]), TOKENS);
      expect(relativeDistance(logits, await referenceLogits(bytes))).toBeLessThan(BOUNDS[type]);
    });
  });

  const MIXED = [
    ['F16', 'Q4_0'],
    ['Q8_0', 'F32'],
    ['BF16', 'F16'],
  ] as const;

  it.each(MIXED)(
    'a gate of %s and an up matrix of %s: logits agree, the same everywhere',
    async (...types) => {
      const [gate, up] = types;
      const bytes = models.get('plain')?.('F32', { ffn_gate: gate, ffn_up: up });
      if (bytes === undefined) throw new Error('no model');
      const logits = await engineLogits(new Blob([bytes]), TOKENS);
      const bound = Math.max(BOUNDS[gate], BOUNDS[up]);
      expect(relativeDistance(logits, await referenceLogits(bytes))).toBeLessThan(bound);
      for (const options of [{ backend: 'wasm' }, { isa: 'scalar', chunk: 5, threads: 1 }] as const)
        expect(await engineLogits(new Blob([bytes]), TOKENS, options)).toEqual(logits);
    },
  );

  it('a Q8_0 cache changes the logits a little', async () => {
    for (const write of models.values()) {
      const source = new Blob([write('F32')]);
      const logits = await engineLogits(source, TOKENS, { kvCache: 'q8_0' });
      const distance = relativeDistance(logits, await engineLogits(source, TOKENS));
      expect(distance).toBeGreaterThan(0.0005);
      expect(distance).toBeLessThan(Q8_CACHE_BOUND);
    }
  });

  it('is asked for something else by each variant', async () => {
    const [plain, ...others] = await Promise.all(
      [...models.values()].map((write) => referenceLogits(write('F32'))),
    );
    for (const other of others) expect(relativeDistance(other, plain ?? [])).toBeGreaterThan(0.03);
  });
});

describe('files that differ from most of their architecture', () => {
  const FILES: readonly [string, Shape][] = [
    ['qwen2 without biases', { architecture: 'qwen2', headDim: 64, heads: 3, kvHeads: 1, biased: false }],
    [
      'llama with a window in every other layer',
      {
        architecture: 'llama',
        headDim: 32,
        heads: 4,
        kvHeads: 2,
        metadata: [
          { key: 'llama.attention.sliding_window', kind: 'uint32', value: 9 },
          { key: 'llama.attention.sliding_window_pattern', kind: 'uint32', value: 2 },
        ],
      },
    ],
  ];

  it.each(FILES)('%s: logits agree', async (_, shape) => {
    const bytes = randomModel(shape, 'plain', SEED)('F16');
    const logits = await engineLogits(new Blob([bytes]), TOKENS);
    expect(relativeDistance(logits, await referenceLogits(bytes))).toBeLessThan(BOUNDS.F16);
  });
});

it.each([
  ['F16', 'F16'],
  ['Q4_0', 'Q4_0'],
  // They take different activations.
  ['F16', 'Q4_0'],
] as const)(
  'biases of all products, a gate of %s and an up matrix of %s: logits agree, the same everywhere',
  async (gate, up) => {
    const llama: Shape = { architecture: 'llama', headDim: 32, heads: 4, kvHeads: 2 };
    const write = randomModel({ ...llama, biased: true, allBiased: true }, 'plain', SEED);
    const bytes = write('F32', { ffn_gate: gate, ffn_up: up });
    const logits = await engineLogits(new Blob([bytes]), TOKENS);
    const bound = Math.max(BOUNDS[gate], BOUNDS[up]);
    expect(relativeDistance(logits, await referenceLogits(bytes))).toBeLessThan(bound);
    for (const options of [{ backend: 'wasm' }, { isa: 'scalar', chunk: 5, threads: 1 }] as const)
      expect(await engineLogits(new Blob([bytes]), TOKENS, options)).toEqual(logits);
  },
);

it.each(['Q4_0', 'Q8_0', 'F16'] as const)(
  '%s: Q, K and V as one tensor give the logits of three',
  async (type) => {
    const qwen: Shape = { architecture: 'qwen2', headDim: 64, heads: 3, kvHeads: 1, valueDim: 32 };
    const apart = await engineLogits(new Blob([randomModel(qwen, 'plain', SEED)(type)]), TOKENS);
    const bytes = randomModel({ ...qwen, fused: true }, 'plain', SEED)(type);
    const path = join(await mkdtemp(join(tmpdir(), 'frugal-fused-')), 'fused.gguf');
    onTestFinished(() => rm(dirname(path), { recursive: true }));
    await writeFile(path, bytes);
    expect(await engineLogits(path, TOKENS)).toEqual(apart);
    for (const backend of ['native', 'wasm'] as const)
      expect(await engineLogits(new Blob([bytes]), TOKENS, { backend })).toEqual(apart);
  },
);

it("gemma3 with Ollama's names of keys: logits agree, and are others than without", async () => {
  const gemma: Shape = { architecture: 'gemma3', headDim: 64, heads: 2, kvHeads: 1, tied: true };
  const metadata: Entry[] = [
    { key: 'gemma3.attention.sliding_window', kind: 'uint32', value: 9 },
    { key: 'gemma3.attention.sliding_window_pattern', kind: 'array', of: 'bool', values: [false, true] },
    { key: 'gemma3.rope.local.freq_base', kind: 'float32', value: 50 },
    { key: 'gemma3.rope.scaling.beta_fast', kind: 'float32', value: 3 },
    { key: 'gemma3.rope.scaling.beta_slow', kind: 'float32', value: 2 },
  ];
  const fileOf = (entries: readonly Entry[]) =>
    randomModel({ ...gemma, metadata: entries }, 'yarn', SEED)('F16');
  const bytes = fileOf(metadata);
  const reference = await referenceLogits(bytes);
  const logits = await engineLogits(new Blob([bytes]), TOKENS);
  expect(relativeDistance(logits, reference)).toBeLessThan(BOUNDS.F16);
  for (const [i, entry] of metadata.entries()) {
    const others = await referenceLogits(fileOf(metadata.toSpliced(i, 1)));
    expect(relativeDistance(others, reference), `${entry.key}`).toBeGreaterThan(10 * BOUNDS.F16);
  }
});

describe('heads whose values have another size than their keys', () => {
  const OTHER_SIZES: readonly Shape[] = [
    { architecture: 'llama', headDim: 32, heads: 4, kvHeads: 2, valueDim: 64 },
    { architecture: 'qwen2', headDim: 64, heads: 3, kvHeads: 1, valueDim: 32 },
    { architecture: 'gemma3', headDim: 64, heads: 2, kvHeads: 1, valueDim: 48, tied: true },
  ];

  it.each(OTHER_SIZES)(
    '$architecture, $headDim and $valueDim: logits agree, the same everywhere',
    async (shape) => {
      const write = randomModel(shape, 'plain', SEED);
      for (const type of ['F16', 'Q8_0'] as const) {
        const bytes = write(type);
        const logits = await engineLogits(new Blob([bytes]), TOKENS);
        const reference = await referenceLogits(bytes);
        expect(relativeDistance(logits, reference)).toBeLessThan(BOUNDS[type]);
        for (const options of [{ backend: 'wasm' }, { isa: 'scalar', chunk: 5, threads: 1 }] as const)
          expect(await engineLogits(new Blob([bytes]), TOKENS, options)).toEqual(logits);
      }
      const source = new Blob([write('F32')]);
      const small = await engineLogits(source, TOKENS, { kvCache: 'q8_0' });
      expect(relativeDistance(small, await engineLogits(source, TOKENS))).toBeLessThan(Q8_CACHE_BOUND);
    },
  );
});

const root = fileURLToPath(new URL('../..', import.meta.url));
const folder = join(process.env.FRUGAL_SHARED ?? join(root, '../shared'), 'models');

/** What lies beside a file of known logits. */
interface Known {
  readonly path: string;
  readonly tokens: readonly number[];
  readonly positions: readonly number[];
  readonly logits: readonly Float32Array[];
  /** How far another engine that quantises activations lies from these logits: the median over the positions. */
  readonly peerMedian: number;
}

function readKnown(name: string): Known {
  const path = join(folder, `${name}.gguf`);
  const facts = JSON.parse(readFileSync(join(folder, `${name}.json`), 'utf8'));
  const logits = readRows(readFileSync(join(folder, `${name}.logits.npy`)));
  return {
    path,
    tokens: facts.tokens,
    positions: facts.positions,
    logits,
    peerMedian: facts.peer_median_rms,
  };
}

/** The error of the engine about a file it has no kernels or no architecture for yet, else undefined. */
async function refusal(name: string): Promise<string | undefined> {
  const { tensorTypes } = await loadNative();
  const file = await openGguf(await openFile(join(folder, `${name}.gguf`)));
  try {
    buildPlan(file, { tensorTypes });
    return undefined;
  } catch (error) {
    if (error instanceof FrugalError && error.code.startsWith('UNSUPPORTED_')) return error.message;
    throw error;
  } finally {
    await file.close();
  }
}

/** Files that run; says which do not and why. */
async function knownNames(): Promise<string[]> {
  if (!existsSync(folder)) {
    console.log(`logits of reference files: not run, ${folder} is absent`);
    return [];
  }
  const found: string[] = [];
  for (const file of readdirSync(folder).filter((each) => /^tiny-.*\.gguf$/.test(each))) {
    const name = file.slice(0, -'.gguf'.length);
    const reason = await refusal(name);
    if (reason === undefined) found.push(name);
    else console.log(`logits of ${file}: not run, ${reason}`);
  }
  return found;
}

function median(numbers: readonly number[]): number {
  return numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)] ?? Number.NaN;
}

const known = await knownNames();

describe.runIf(existsSync(folder))('reference files', () => {
  it('include those that must run', () => {
    expect(known).toEqual(
      expect.arrayContaining([
        'tiny-llama-q4_0',
        'tiny-llama-q4_k_m',
        'tiny-llama-q8_0',
        'tiny-qwen3-q4_k_m',
      ]),
    );
  });

  it.each(known)('%s: no less accurate than the peer', async (name) => {
    const { path, tokens, positions, logits, peerMedian } = readKnown(name);
    const rows = await engineLogits(path, tokens);
    const distances = positions.map((position, i) => distance(rows[position] ?? [], logits[i] ?? []));
    // With experts, a near-tie of two of them moves single positions far in any engine.
    expect(median(distances)).toBeLessThanOrEqual((name.includes('moe') ? 1.5 : 1.1) * peerMedian);
  });

  it('are what the float reference computes', async () => {
    const { path, tokens, positions, logits } = readKnown('tiny-llama-q4_0');
    const file = await openGguf(await openFile(path));
    const rows = forward(await readFloatModel(file), tokens, positions);
    await file.close();
    for (const [i, row] of rows.entries()) expect(distance(row, logits[i] ?? [])).toBeLessThan(1e-4);
  });
});
