import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { loadNative } from '../../ts/backend/native.js';
import { lacking, type WasmVariant } from '../../ts/backend/wasm/variant.js';
import { type LoadOptions, load, quantize } from '../../ts/index.js';
import { createRandom } from '../gguf/random.js';
import { withFolder } from '../gguf/sources.js';
import { type GgufSpec, type TensorSpec, writeGguf } from '../gguf/writer.js';
import { type Mixture, mixtureModelSpec } from '../reference/mixture-models.js';
import { digestOf, tokens } from './golden.js';
import { type MixtureOptions, mergedSpec, mixtureSpec } from './mixture-model.js';
import { type MatrixType, randomModelSpec, weights } from './random-model.js';

const { isas } = await loadNative();
const [best] = isas;

const OPTIONS: MixtureOptions = {
  seed: 70,
  blocks: 2,
  width: 64,
  heads: 2,
  kvHeads: 2,
  headDim: 32,
  // Rows that do not fill tiles.
  feedForward: 40,
  contextLength: 256,
  types: ['F16'],
  experts: 5,
  topK: 2,
};
const PROMPT = tokens(71, 24, 299);

const blobOf = (spec: GgufSpec) => new Blob([writeGguf(spec).bytes]);

async function digest(source: string | Blob, options: LoadOptions): Promise<string> {
  await using model = await load(source, { contextLength: 256, ...options });
  return await digestOf(model, PROMPT);
}

/** What `spec` gives in scalar code, in one thread with all experts in memory. */
const scalar = (spec: GgufSpec) => digest(blobOf(spec), { isa: 'scalar', threads: 1 });

const relaxed: WasmVariant[] = lacking(undefined).relaxed === undefined ? ['relaxed-simd-threads'] : [];
const ENGINES: readonly LoadOptions[] = [
  { isa: 'scalar', threads: 2, chunk: 7 },
  { isa: best ?? 'scalar', threads: 3, chunk: 7 },
  { isa: best ?? 'scalar', threads: 1, chunk: 1 },
  ...(['simd128', 'simd128-threads', ...relaxed] as const).map(
    (variant): LoadOptions => ({ backend: 'wasm', variant, chunk: 7 }),
  ),
];

/** Every engine's digest, from a file and from a Blob, with all experts in memory and with a part. */
async function expectEverywhere(spec: GgufSpec, wanted: string): Promise<void> {
  const blob = blobOf(spec);
  await using whole = await load(blob, { contextLength: 256 });
  const expertMemory = Math.ceil(whole.info.expertBytes * 0.45);
  await withFolder(async (folder) => {
    const path = join(folder, 'model.gguf');
    writeFileSync(path, writeGguf(spec).bytes);
    for (const engine of ENGINES) {
      for (const source of [blob, path]) {
        for (const part of [{}, { expertMemory }]) {
          const options = { ...engine, ...part };
          const text = JSON.stringify({ ...options, file: source === path });
          expect([text, await digest(source, options)]).toEqual([text, wanted]);
        }
      }
    }
  });
}

const random = (kind: Mixture, types: Parameters<typeof mixtureModelSpec>[2]) =>
  mixtureModelSpec(kind, 72, types);

describe('gate and up of experts in one tensor', () => {
  it.each([
    ['llama, F16', () => mixtureSpec(OPTIONS)],
    ['qwen2moe, Q4_0', () => random('qwen2moe', { matrices: ['Q8_0'], experts: 'Q4_0' })],
    ['deepseek2, BF16', () => random('deepseek2, grouped sigmoids', { matrices: ['BF16'] })],
    ['gpt-oss, MXFP4, biases', () => random('gpt-oss', { matrices: ['Q8_0'], experts: 'MXFP4' })],
  ] as const)('%s: the same bits as in two, on every engine', async (_, spec) => {
    await expectEverywhere(mergedSpec(spec()), await scalar(spec()));
  });

  it('may stand in one layer and not in another', async () => {
    const spec = mixtureSpec(OPTIONS);
    const first = ({ name }: TensorSpec) => String(name).startsWith('blk.0.');
    const mixed = [...mergedSpec(spec).tensors.filter(first), ...spec.tensors.filter((each) => !first(each))];
    await expectEverywhere({ ...spec, tensors: mixed }, await scalar(spec));
  });

  it('are quantised as they are in two, and say the same of themselves', async () => {
    await withFolder(async (folder) => {
      const spec = mixtureSpec({ ...OPTIONS, feedForward: 64, types: ['F32'] });
      const infos = [];
      for (const [name, of] of [
        ['two', spec],
        ['one', mergedSpec(spec)],
      ] as const) {
        const [path, out] = [join(folder, `${name}.gguf`), join(folder, `${name}-q8.gguf`)];
        writeFileSync(path, writeGguf(of).bytes);
        await quantize(path, out, { type: 'Q8_0' });
        await using model = await load(out, { contextLength: 256 });
        const { expertLayers, expertBytes, bytesPerToken, weightBytes, parameters, packedBytes } = model.info;
        const facts = { expertLayers, expertBytes, bytesPerToken, weightBytes, parameters, packedBytes };
        infos.push({ ...facts, digest: await digestOf(model, PROMPT) });
      }
      expect(infos[1]).toEqual(infos[0]);
    });
  });
});

/** The same with up stacks of another type, of other weights. */
function withUps(spec: GgufSpec, type: MatrixType): GgufSpec {
  const of = createRandom(73);
  const change = (tensor: TensorSpec): TensorSpec => {
    const [cols = 1, rows = 1, experts = 1] = tensor.shape;
    if (!/ffn_up_exps.weight/.test(String(tensor.name))) return tensor;
    return { ...tensor, type, data: weights(of, type, cols, rows * experts) };
  };
  return { ...spec, tensors: spec.tensors.map(change) };
}

/** The dense model that a mixture of a single expert is. */
function denseOf(spec: GgufSpec, options: MixtureOptions): GgufSpec {
  const { experts: _, topK: __, ...dense } = options;
  const rename = (tensor: TensorSpec): TensorSpec => ({
    ...tensor,
    name: String(tensor.name).replace('_exps', ''),
    shape: tensor.shape.slice(0, 2),
  });
  return {
    ...randomModelSpec({ ...dense, architecture: 'llama' }),
    tensors: spec.tensors.filter(({ name }) => !String(name).includes('gate_inp')).map(rename),
  };
}

describe('gates and ups of experts that take different activations', () => {
  const MIXED = [
    ['F16', 'Q8_0'],
    ['Q8_0', 'BF16'],
    ['F32', 'Q4_0'],
  ] as const;

  it.each(MIXED)('%s and %s: the same bits on every engine', async (gate, up) => {
    const spec = withUps(mixtureSpec({ ...OPTIONS, feedForward: 96, types: [gate] }), up);
    await expectEverywhere(spec, await scalar(spec));
  });

  it('MXFP4 and F16, with biases and a clamp: the same bits on every engine', async () => {
    const spec = random('gpt-oss', { matrices: ['Q8_0'], experts: 'MXFP4', ups: 'F16' });
    await expectEverywhere(spec, await scalar(spec));
  });

  it.each(MIXED)('%s and %s: a mixture of one expert is the dense layer', async (gate, up) => {
    const options = { ...OPTIONS, feedForward: 96, types: [gate], experts: 1, topK: 1 };
    const spec = withUps(mixtureSpec(options), up);
    await expect(scalar(spec)).resolves.toBe(await scalar(denseOf(spec, options)));
  });
});
