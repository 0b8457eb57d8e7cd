import { describe, expect, it } from 'vitest';
import { load } from '../../ts/engine/index.js';
import { blobSource } from '../../ts/gguf/blob-source.js';
import { openGguf } from '../../ts/gguf/index.js';
import { writeGguf } from '../gguf/writer.js';
import { forward, readFloatModel } from './forward.js';
import { MIXTURES, type MixtureTypes, mixtureModel, mixtureModelSpec } from './mixture-models.js';

const TOKENS = [1, ...Array.from({ length: 31 }, (_, i) => 3 + ((i * 7919) % 297))];
const SEED = 11;

function distance(a: ArrayLike<number>, b: ArrayLike<number>): number {
  expect(a).toHaveLength(b.length);
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += ((a[i] ?? 0) - (b[i] ?? 0)) ** 2;
  return Math.sqrt(sum / a.length);
}

/** The distance of each position's logits from the reference's, in standard deviations of these. */
async function distances(bytes: Uint8Array<ArrayBuffer>): Promise<number[]> {
  const reference = forward(await readFloatModel(await openGguf(blobSource(new Blob([bytes])))), TOKENS);
  await using model = await load(new Blob([bytes]), { backend: 'native' });
  const found: number[] = [];
  for await (const row of model.score(TOKENS)) {
    const wanted = reference[found.length] ?? new Float64Array();
    found.push(distance(row, wanted) / distance(wanted, new Float64Array(wanted.length)));
  }
  return found;
}

const median = (values: readonly number[]) =>
  values.toSorted((a, b) => a - b)[values.length >> 1] ?? Number.NaN;

/**
 * The most that logits may lie from the reference's: at any position of unquantised models, where no choice of experts
 * is in doubt; of others at the median position, since a near-tie of two experts moves single positions far in any
 * engine. One and a half times the most that was measured.
 */
const BOUNDS = { F32: 0.002, F16: 0.0027, Q8_0: 0.03, MXFP4: 0.03 } as const;

const TYPES: Readonly<Record<keyof typeof BOUNDS, MixtureTypes>> = {
  F32: { matrices: ['F32'] },
  F16: { matrices: ['F16'] },
  Q8_0: { matrices: ['Q8_0'] },
  MXFP4: { matrices: ['Q8_0'], experts: 'MXFP4' },
};

describe.each(MIXTURES)('%s, random weights', (kind) => {
  it.each(['F32', 'F16'] as const)(
    '%s: the logits of every position agree with the reference',
    async (type) => {
      const found = await distances(mixtureModel(kind, SEED, TYPES[type]));
      expect(Math.max(...found)).toBeLessThan(BOUNDS[type]);
    },
  );

  it.each(['Q8_0', 'MXFP4'] as const)('%s: the logits agree with the reference', async (type) => {
    const found = await distances(mixtureModel(kind, SEED, TYPES[type]));
    expect(median(found)).toBeLessThan(BOUNDS[type]);
  });
});

it.each([0, undefined])('deepseek2 without experts (expert_count %s): the logits agree', async (count) => {
  const { metadata, tensors } = mixtureModelSpec(
    'deepseek2, one matrix for keys and values',
    SEED,
    TYPES.F16,
  );
  const stated = {
    block_count: 1,
    expert_shared_count: 0,
    ...(count === undefined ? {} : { expert_count: count }),
  };
  // Its first block is dense.
  const spec = {
    metadata: [
      ...metadata.filter(
        ({ key }) => !/^deepseek2\.(block_count|expert_(used_|shared_|group_)?count)$/.test(`${key}`),
      ),
      ...Object.entries(stated).map(
        ([name, value]) => ({ key: `deepseek2.${name}`, kind: 'uint32', value }) as const,
      ),
    ],
    tensors: tensors.filter(({ name }) => !`${name}`.startsWith('blk.1.')),
  };
  expect(Math.max(...(await distances(writeGguf(spec).bytes)))).toBeLessThan(BOUNDS.F16);
});

it("qwen3moe that does not divide shares by their sum, in Ollama's word: the logits agree", async () => {
  const spec = mixtureModelSpec('qwen3moe', SEED, TYPES.F16);
  const entry = { key: 'qwen3moe.norm_top_k_prob', kind: 'bool', value: false } as const;
  const { bytes } = writeGguf({ ...spec, metadata: [...spec.metadata, entry] });
  expect(Math.max(...(await distances(bytes)))).toBeLessThan(BOUNDS.F16);
});

it.each([
  ['gpt-oss', { matrices: ['Q8_0'], experts: 'MXFP4', ups: 'F16' }],
  ['qwen2moe', { matrices: ['Q8_0'], experts: 'F16', ups: 'Q8_0' }],
] as const)('%s, gates and ups that take different activations: the logits agree', async (kind, types) => {
  expect(median(await distances(mixtureModel(kind, SEED, types)))).toBeLessThan(BOUNDS.Q8_0);
});
