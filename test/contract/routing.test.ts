import { describe, expect, it } from 'vitest';
import { loadNative } from '../../ts/backend/native.js';
import { type ExpertUsage, load, type Model } from '../../ts/index.js';
import { type TensorSpec, writeGguf } from '../gguf/writer.js';
import { tokens } from './golden.js';
import { type MixtureOptions, mixtureSpec } from './mixture-model.js';
import { randomModelSpec, VOCABULARY } from './random-model.js';

const { isas } = await loadNative();

const OPTIONS: MixtureOptions = {
  seed: 40,
  blocks: 3,
  width: 64,
  heads: 2,
  kvHeads: 2,
  headDim: 32,
  feedForward: 32,
  contextLength: 256,
  types: ['Q8_0', 'Q4_0'],
  experts: 6,
  topK: 2,
};

const PROMPT = tokens(30, 90, VOCABULARY);

const fileOf = (options: MixtureOptions) => new Blob([writeGguf(mixtureSpec(options)).bytes]);
const open = (settings: object) => load(fileOf(OPTIONS), { contextLength: 256, ...settings });

async function usageOf(model: Model, prompt: readonly number[], maxTokens = 1): Promise<ExpertUsage> {
  const options = { maxTokens, temperature: 0, expertUsage: true, ignoreEnd: true };
  const { usage } = await model.complete(prompt, options);
  if (!usage.experts) throw new Error('no usage of experts was reported');
  return usage.experts;
}

const countsOf = ({ layers }: ExpertUsage) => layers.map((layer) => layer.tokens);
const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);

describe('usage.experts', () => {
  it('counts tokens times top-k in every layer, generated tokens too', async () => {
    await using model = await open({});
    for (const maxTokens of [1, 9]) {
      const { layers } = await usageOf(model, PROMPT, maxTokens);
      expect(layers.map(({ block }) => block)).toEqual([0, 1, 2]);
      // The last token is drawn but not computed.
      const computed = PROMPT.length + maxTokens - 1;
      for (const { tokens } of layers) expect(sum(tokens)).toBe(computed * OPTIONS.topK);
    }
  });

  it.each(isas)('is the same on %s with any threads and chunks, beside other sequences', async (isa) => {
    await using reference = await open({ isa: 'scalar', threads: 1, chunk: 256 });
    const wanted = countsOf(await usageOf(reference, PROMPT));
    for (const threads of [1, 3]) {
      for (const chunk of [1, 7, 256]) {
        await using model = await open({ isa, threads, chunk });
        const [usage] = await Promise.all([
          usageOf(model, PROMPT),
          usageOf(model, PROMPT.slice(40)),
          model.complete(PROMPT.slice(20), { maxTokens: 4 }),
        ]);
        expect({ threads, chunk, counts: countsOf(usage) }).toEqual({ threads, chunk, counts: wanted });
      }
    }
  });

  it('is what a plain computation of the router gives', async () => {
    // Without attention the first router sees nothing but the normed embedding.
    const options = { ...OPTIONS, blocks: 1, types: ['F32'] } as const;
    const spec = mixtureSpec(options);
    const mute = (tensor: TensorSpec): TensorSpec =>
      tensor.name === 'blk.0.attn_output.weight' && tensor.data
        ? { ...tensor, data: new Uint8Array(tensor.data.length) }
        : tensor;
    await using model = await load(new Blob([writeGguf({ ...spec, tensors: spec.tensors.map(mute) }).bytes]));
    const values = (name: string) => {
      const { data = new Uint8Array() } = spec.tensors.find((tensor) => tensor.name === name) ?? {};
      return new Float32Array(data.slice().buffer);
    };
    const counts = plainRouting(PROMPT, options, {
      table: values('token_embd.weight'),
      norm: values('blk.0.ffn_norm.weight'),
      router: values('blk.0.ffn_gate_inp.weight'),
    });
    const usage = await usageOf(model, PROMPT);
    expect(countsOf(usage)).toEqual([counts]);
    expect(usage.layers[0]?.peak).toBeCloseTo(Math.max(...counts) / (sum(counts) / counts.length), 12);
    const shares = counts.map((count) => count / sum(counts)).filter((share) => share > 0);
    const entropy = -sum(shares.map((share) => share * Math.log2(share)));
    expect(usage.layers[0]?.balance).toBeCloseTo(entropy / Math.log2(counts.length), 12);
  });

  it('gives the bytes of weights that a token reads: fewer where tokens share a step', async () => {
    const expertBytes = (model: Model) => sum(model.info.expertLayers.map((layer) => layer.expertBytes));
    await using single = await open({ chunk: 1 });
    const alone = await usageOf(single, PROMPT);
    expect(alone.bytesPerToken).toBe(OPTIONS.topK * expertBytes(single));
    expect(alone).toMatchObject({ reads: PROMPT.length * OPTIONS.topK * OPTIONS.blocks, hits: alone.reads });
    await using whole = await open({ chunk: 256 });
    const shared = await usageOf(whole, PROMPT);
    const used = sum(countsOf(shared).map((counts) => counts.filter((count) => count > 0).length));
    expect(shared.reads).toBe(used);
    expect(shared.bytesPerToken).toBeLessThan(alone.bytesPerToken / 4);
  });

  it('counts each turn of a chat by itself, without what the cache holds', async () => {
    await using model = await open({ chatTemplate: '{% for m in messages %}{{ m.content }}{% endfor %}' });
    await using chat = model.chat({ temperature: 0, ignoreEnd: true, maxTokens: 5, expertUsage: true });
    for (const message of ['once upon', ' a time there was']) {
      const answer = chat.send(message);
      for await (const _ of answer);
      const { usage } = await answer.result;
      const computed = usage.promptTokens - usage.cachedTokens + 4;
      for (const { tokens } of usage.experts?.layers ?? []) expect(sum(tokens)).toBe(computed * OPTIONS.topK);
    }
  });

  it('is absent where nobody asked, and for a model without experts', async () => {
    await using model = await open({});
    expect((await model.complete(PROMPT, { maxTokens: 1 })).usage).not.toHaveProperty('experts');
    await using dense = await load(
      new Blob([writeGguf(randomModelSpec({ ...OPTIONS, architecture: 'llama' })).bytes]),
    );
    expect((await dense.complete(PROMPT, { maxTokens: 1, expertUsage: true })).usage).not.toHaveProperty(
      'experts',
    );
  });
});

interface Router {
  /** [tokens][width] */
  readonly table: Float32Array;
  readonly norm: Float32Array;
  /** [experts][width] */
  readonly router: Float32Array;
}

/** How many tokens each expert gets: RMS norm, a product, and the k largest. */
function plainRouting(
  prompt: readonly number[],
  { width, experts, topK }: MixtureOptions,
  { table, norm, router }: Router,
): number[] {
  const counts = new Array<number>(experts).fill(0);
  for (const token of prompt) {
    const x = [...table.subarray(token * width, (token + 1) * width)];
    const root = Math.sqrt(sum(x.map((value) => value * value)) / width + 1e-6);
    const normed = x.map((value, i) => (value / root) * (norm[i] ?? 0));
    const gates = counts.map((_, expert) =>
      sum(normed.map((value, i) => value * (router[expert * width + i] ?? 0))),
    );
    const order = counts.map((_, expert) => expert).sort((a, b) => (gates[b] ?? 0) - (gates[a] ?? 0));
    for (const expert of order.slice(0, topK)) counts[expert] = (counts[expert] ?? 0) + 1;
  }
  return counts;
}
