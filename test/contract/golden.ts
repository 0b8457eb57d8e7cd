/**
 * The models and prompts whose logits are pinned, and how their digest is computed. `golden.json` holds the
 * digests that the scalar reference gives. After a wanted change of the arithmetic make it anew with
 *
 *   npm run build && node test/contract/remake-golden.mjs
 *
 * and say in the commit why the numbers moved.
 */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import type { KvCacheType, LoadOptions, Model } from '../../ts/index.js';
import { createRandom } from '../gguf/random.js';
import { tinyLlama } from '../gguf/tiny-llama.js';
import { type TensorSpec, writeGguf } from '../gguf/writer.js';
import { type Mixture, mixtureModel } from '../reference/mixture-models.js';
import { type RandomModelOptions, randomModelSpec, VOCABULARY } from './random-model.js';

export const SHARED = resolve(import.meta.dirname, '../..', process.env.FRUGAL_SHARED ?? '../shared');
export const GOLDEN_FILE = resolve(import.meta.dirname, 'golden.json');

export interface GoldenModel {
  readonly name: string;
  /** A file of the reference data; the others are made in memory. */
  readonly path?: string;
  /** The file's bytes; only where there is no path. */
  readonly bytes?: () => Uint8Array<ArrayBuffer>;
  readonly contextLength: number;
  /** @default 'f16' */
  readonly kvCache?: KvCacheType;
  /** Token ids by name. The first of them are run at the same time. */
  readonly prompts: Readonly<Record<string, readonly number[]>>;
  /** The scalar reference takes seconds, so it is run with few settings. */
  readonly large?: boolean;
}

/** Token ids that follow from a seed. */
export function tokens(seed: number, count: number, vocabSize: number): number[] {
  const random = createRandom(seed);
  return Array.from({ length: count }, () => Math.floor(random() * vocabSize));
}

/** Keys are walked 64 at a time: 150 positions cross two such borders and end within a block. */
const PROMPTS = { long: tokens(1, 150, VOCABULARY), short: tokens(2, 41, VOCABULARY) };
const MIXED = ['Q8_0', 'Q4_0', 'F16', 'BF16', 'F32'] as const;

const BASE = {
  architecture: 'llama',
  blocks: 2,
  width: 64,
  heads: 4,
  kvHeads: 2,
  headDim: 32,
  feedForward: 96,
  contextLength: 512,
  types: MIXED,
} as const satisfies Omit<RandomModelOptions, 'seed'>;

const VARIANTS: Readonly<Record<string, Partial<RandomModelOptions>>> = {
  'llama, 3 heads of 64, no groups': { heads: 3, kvHeads: 3, headDim: 64, width: 192, feedForward: 224 },
  'llama, 8 heads on 1': { heads: 8, kvHeads: 1, width: 96 },
  'llama, linear rope': { keys: { 'rope.scaling.type': 'linear', 'rope.scaling.factor': 4 } },
  'llama, yarn': {
    keys: {
      'rope.scaling.type': 'yarn',
      'rope.scaling.factor': 4,
      'rope.scaling.original_context_length': 64,
      'rope.scaling.attn_factor': 1.1,
    },
  },
  'llama, rope_freqs': { factors: { 'rope_freqs.weight': (pair) => 1 + pair / 2 } },
  'llama, long factors': {
    keys: { 'rope.scaling.type': 'longrope', 'rope.scaling.original_context_length': 64 },
    factors: {
      'rope_factors_long.weight': (pair) => 1 + pair,
      'rope_factors_short.weight': () => 1,
    },
  },
  'llama, sliding window': { keys: { 'attention.sliding_window': 70 } },
  'qwen2, heads of 64': { architecture: 'qwen2', headDim: 64, keys: { 'rope.freq_base': 1e6 } },
  'qwen2, tied': { architecture: 'qwen2', tied: true, types: ['Q4_0', 'Q8_0'] },
  'qwen3, heads of 128': { architecture: 'qwen3', headDim: 128, heads: 4, kvHeads: 1 },
  'qwen3, tied': { architecture: 'qwen3', tied: true, types: ['BF16', 'Q8_0', 'F16'], width: 96 },
  gemma2: {
    architecture: 'gemma2',
    tied: true,
    keys: { 'attention.sliding_window': 70, attn_logit_softcapping: 5, final_logit_softcapping: 3 },
  },
  gemma3: {
    architecture: 'gemma3',
    tied: true,
    headDim: 64,
    keys: { 'attention.sliding_window': 70, 'attention.sliding_window_pattern': 2, 'rope.freq_base': 1e6 },
  },
};

function variants(): GoldenModel[] {
  return Object.entries(VARIANTS).map(([name, options], i) => ({
    name,
    bytes: () => writeGguf(randomModelSpec({ ...BASE, ...options, seed: 100 + i })).bytes,
    contextLength: 256,
    prompts: PROMPTS,
  }));
}

function tinyLlamas(): GoldenModel[] {
  const kinds = [undefined, 'F32', 'F16', 'Q8_0', 'Q4_0'] as const;
  return kinds.map((matrixType) => ({
    name: `tiny llama ${matrixType ?? 'of all types'}`,
    bytes: () => tinyLlama(matrixType === undefined ? {} : { matrixType }).bytes,
    contextLength: 256,
    prompts: PROMPTS,
  }));
}

/** Architectures with experts, types of every kind among their matrices. */
function mixtures(): GoldenModel[] {
  const kinds: Mixture[] = [
    'qwen2moe',
    'deepseek2, one matrix for keys and values',
    'deepseek2, grouped sigmoids',
    'gpt-oss',
  ];
  return kinds.map((kind, i) => ({
    name: `${kind}, with experts`,
    bytes: () =>
      mixtureModel(kind, 400 + i, {
        matrices: ['Q8_0', 'Q4_0', 'F16', 'BF16'],
        experts: EXPERT_TYPES[i] ?? 'F32',
      }),
    contextLength: 256,
    prompts: PROMPTS,
  }));
}

const EXPERT_TYPES = ['Q4_0', 'Q8_0', 'BF16', 'MXFP4'] as const;

/** Past 1,024 positions, where attention begins its second chunk. */
const FAR: GoldenModel = {
  name: 'qwen3 over 1,100 positions',
  bytes: () =>
    writeGguf(randomModelSpec({ ...BASE, architecture: 'qwen3', seed: 200, contextLength: 2048 })).bytes,
  contextLength: 1200,
  prompts: { far: tokens(3, 1100, VOCABULARY), short: PROMPTS.short },
};

/** With a Q8_0 cache: past a chunk, heads whose last run of dimensions is short, latent attention, and sinks with a window. */
function smallCaches(): GoldenModel[] {
  const short = { ...BASE, headDim: 80, heads: 2, kvHeads: 1, seed: 500 } as const;
  const mixed = mixtures().filter(({ name }) => /one matrix|gpt-oss/.test(name));
  const models: GoldenModel[] = [
    FAR,
    {
      name: 'llama, heads of 80',
      bytes: () => writeGguf(randomModelSpec({ ...short, architecture: 'llama' })).bytes,
      contextLength: 256,
      prompts: PROMPTS,
    },
    ...mixed,
  ];
  return models.map((model) => ({ ...model, name: `${model.name}, Q8_0 cache`, kvCache: 'q8_0' }));
}

function files(): GoldenModel[] {
  const path = (name: string) => resolve(SHARED, 'models', `${name}.gguf`);
  const large = (name: string): GoldenModel => ({
    name,
    path: path(name),
    contextLength: 128,
    prompts: { long: tokens(4, 70, 32_000), short: tokens(5, 9, 32_000) },
    large: true,
  });
  return [
    {
      name: 'stories260K',
      path: path('stories260K'),
      contextLength: 512,
      prompts: { long: tokens(6, 200, 512), short: tokens(7, 64, 512) },
    },
    {
      name: 'stories-moe',
      path: resolve(import.meta.dirname, '../../models/stories-moe-q8_0.gguf'),
      contextLength: 512,
      prompts: { long: tokens(8, 200, 2048), short: tokens(9, 12, 2048) },
    },
    large('tiny-llama-q8_0'),
    large('tiny-llama-q4_0'),
    large('tiny-moe-q4_0'),
    large('tiny-llama-q4_k_m'),
    large('tiny-qwen3-q4_k_m'),
  ];
}

export const BAD_TOKEN = 7;

/** A model one of whose tokens is not a number; its prompts do without that token. */
export const WOUNDED: GoldenModel = {
  name: 'llama with a token that is not a number',
  bytes() {
    const spec = randomModelSpec({ ...BASE, types: ['Q4_0', 'F32', 'Q8_0'], seed: 300 });
    return writeGguf({ ...spec, tensors: spec.tensors.map(wound) }).bytes;
  },
  contextLength: 256,
  prompts: Object.fromEntries(
    Object.entries(PROMPTS).map(([name, ids]) => [name, ids.map((id) => (id === BAD_TOKEN ? 8 : id))]),
  ),
};

function wound(tensor: TensorSpec): TensorSpec {
  if (tensor.name !== 'token_embd.weight' || tensor.data === undefined) return tensor;
  const data = tensor.data.slice();
  const [width = 0] = tensor.shape;
  new DataView(data.buffer).setFloat32(4 * BAD_TOKEN * width, Number.NaN, true);
  return { ...tensor, data };
}

export const GOLDEN_MODELS: readonly GoldenModel[] = [
  ...files(),
  ...tinyLlamas(),
  ...variants(),
  ...mixtures(),
  FAR,
  WOUNDED,
  ...smallCaches(),
];

/** What a model is loaded with, beside what changes no result. */
export function optionsOf({ contextLength, kvCache = 'f16' }: GoldenModel): LoadOptions {
  return { contextLength, kvCache };
}

/** What `load` takes. */
export function sourceOf(model: GoldenModel): string | Blob {
  return model.path ?? new Blob(model.bytes ? [model.bytes()] : []);
}

/** SHA-256 over the raw bits (float32, little-endian) of all rows of logits, in order. */
export async function digestOf(model: Model, prompt: readonly number[]): Promise<string> {
  const hash = createHash('sha256');
  for await (const row of model.score(prompt)) {
    hash.update(new Uint8Array(row.buffer, row.byteOffset, row.byteLength));
  }
  return hash.digest('hex');
}

export type Digests = Record<string, Record<string, string>>;

export function readGolden(): Digests {
  return JSON.parse(readFileSync(GOLDEN_FILE, 'utf8')) as Digests;
}

/** What a model's prompts give, run one after the other. */
export async function digestsOf(
  model: Model,
  prompts: GoldenModel['prompts'],
): Promise<Record<string, string>> {
  const digests: Record<string, string> = {};
  for (const [name, prompt] of Object.entries(prompts)) digests[name] = await digestOf(model, prompt);
  return digests;
}
