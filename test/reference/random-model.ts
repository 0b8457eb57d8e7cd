import { createRandom } from '../gguf/random.js';
import { tinyLlamaSpec } from '../gguf/tiny-llama.js';
import { type Entry, type TensorSpec, writeGguf } from '../gguf/writer.js';
import { encode, type WeightType } from './numbers.js';

export interface Shape {
  readonly architecture: 'llama' | 'qwen2' | 'qwen3' | 'gemma2' | 'gemma3';
  readonly headDim: number;
  readonly heads: number;
  readonly kvHeads: number;
  /** Dimensions of values. @default headDim */
  readonly valueDim?: number;
  /** Without an output matrix: the token embeddings serve for it. @default false */
  readonly tied?: boolean;
  /** Q, K and V have biases. @default those of qwen2 */
  readonly biased?: boolean;
  /** So have the other products of layers. @default false */
  readonly allBiased?: boolean;
  /** Q, K and V are one tensor. @default false */
  readonly fused?: boolean;
  /** Of the file, beside what the shape says or in its place. */
  readonly metadata?: readonly Entry[];
}

/** What changes the angles or the reach of attention. */
export const VARIANTS = ['plain', 'factors', 'linear', 'yarn', 'window'] as const;
export type Variant = (typeof VARIANTS)[number];

export const VOCAB_SIZE = 300;
const WIDTH = 128;
const FEED_FORWARD = 192;
const BLOCKS = 2;
const CONTEXT = 256;
const FACTOR = 4;
const WINDOW = 9;

/**
 * Draws a model whose logits have a deviation of about 2, as those of real models, and returns what
 * writes it as a GGUF file with the matrices in one type, but for `others`, by their names in a block.
 */
export function randomModel(
  shape: Shape,
  variant: Variant,
  seed: number,
): (type: WeightType, others?: Readonly<Record<string, WeightType>>) => Uint8Array<ArrayBuffer> {
  const vocabulary = tinyLlamaSpec({ everyKind: false }).metadata.filter((entry) =>
    String(entry.key).startsWith('tokenizer.'),
  );
  const { metadata: more = [] } = shape;
  const metadata = [
    ...[...hyperParameters(shape), ...variantKeys(shape, variant)].filter(
      (entry) => !more.some(({ key }) => key === entry.key),
    ),
    ...more,
    ...vocabulary,
  ];
  const apart = drawTensors(shape, variant, seed);
  const drawn = shape.fused ? fuse(apart) : apart;
  return (type, others = {}) => {
    const typeOf = ({ name }: Drawn) => others[name.split('.').at(-2) ?? ''] ?? type;
    return writeGguf({ metadata, tensors: drawn.map((tensor) => store(tensor, typeOf(tensor))) }).bytes;
  };
}

interface Drawn {
  readonly name: string;
  readonly shape: readonly number[];
  readonly values: Float64Array;
}

/** Vectors are F32 in every file. */
function store({ name, shape, values }: Drawn, matrixType: WeightType): TensorSpec {
  const type = shape.length === 1 ? 'F32' : matrixType;
  return { name, type, shape, data: encode(type, values) };
}

function hyperParameters(shape: Shape): Entry[] {
  const { architecture, heads, kvHeads, headDim, valueDim = headDim } = shape;
  const count = (name: string, value: number): Entry => ({
    key: `${architecture}.${name}`,
    kind: 'uint32',
    value,
  });
  // Small enough to bend scores and logits.
  const caps: Entry[] = [
    { key: 'gemma2.attn_logit_softcapping', kind: 'float32', value: 2 },
    { key: 'gemma2.final_logit_softcapping', kind: 'float32', value: 5 },
  ];
  return [
    { key: 'general.architecture', kind: 'string', value: architecture },
    count('vocab_size', VOCAB_SIZE),
    count('context_length', CONTEXT),
    count('embedding_length', WIDTH),
    count('block_count', BLOCKS),
    count('feed_forward_length', FEED_FORWARD),
    count('attention.head_count', heads),
    count('attention.head_count_kv', kvHeads),
    count('attention.key_length', headDim),
    count('attention.value_length', valueDim),
    count('rope.dimension_count', headDim),
    { key: `${architecture}.rope.freq_base`, kind: 'float32', value: 10_000 },
    { key: `${architecture}.attention.layer_norm_rms_epsilon`, kind: 'float32', value: 1e-5 },
    ...(architecture === 'gemma2' ? caps : []),
    ...(architecture === 'gemma3' ? [count('attention.sliding_window_pattern', 2)] : []),
  ];
}

function variantKeys({ architecture }: Shape, variant: Variant): Entry[] {
  const window = (value: number): Entry[] => [
    { key: `${architecture}.attention.sliding_window`, kind: 'uint32', value },
  ];
  if (variant === 'window') return window(WINDOW);
  // Every Gemma has a window; this one reaches over all of the test's tokens.
  const wide = architecture.startsWith('gemma') ? window(CONTEXT / 2) : [];
  if (variant !== 'linear' && variant !== 'yarn') return wide;
  const scaling = `${architecture}.rope.scaling`;
  return [
    ...wide,
    { key: `${scaling}.type`, kind: 'string', value: variant },
    { key: `${scaling}.factor`, kind: 'float32', value: FACTOR },
    { key: `${scaling}.original_context_length`, kind: 'uint32', value: CONTEXT / FACTOR },
  ];
}

function drawTensors(shape: Shape, variant: Variant, seed: number): Drawn[] {
  const { architecture, heads, kvHeads, headDim, valueDim = headDim } = shape;
  const { biased = architecture === 'qwen2', allBiased = false } = shape;
  const normal = createNormal(seed);
  const numbers = (count: number, mean: number, deviation: number) =>
    Float64Array.from({ length: count }, () => mean + deviation * normal());
  const vector = (name: string, length: number, mean = 1, deviation = 0.1): Drawn => ({
    name,
    shape: [length],
    values: numbers(length, mean, deviation),
  });
  const matrix = (name: string, inputs: number, outputs: number, deviation: number): Drawn => ({
    name: `${name}.weight`,
    shape: [inputs, outputs],
    values: numbers(inputs * outputs, 0, deviation),
  });
  const unit = 1 / Math.sqrt(WIDTH);
  const gemma = architecture.startsWith('gemma');
  const otherBiases = (prefix: string): Drawn[] => [
    vector(`${prefix}attn_output.bias`, WIDTH, 0, 0.2),
    vector(`${prefix}ffn_gate.bias`, FEED_FORWARD, 0, 0.5),
    vector(`${prefix}ffn_up.bias`, FEED_FORWARD, 0, 0.5),
    vector(`${prefix}ffn_down.bias`, WIDTH, 0, 0.2),
  ];
  const block = (prefix: string): Drawn[] => [
    vector(`${prefix}attn_norm.weight`, WIDTH),
    // Queries and keys large enough that attention has favourites.
    matrix(`${prefix}attn_q`, WIDTH, heads * headDim, 1.4 * unit),
    matrix(`${prefix}attn_k`, WIDTH, kvHeads * headDim, 1.4 * unit),
    matrix(`${prefix}attn_v`, WIDTH, kvHeads * valueDim, unit),
    ...(biased
      ? [
          vector(`${prefix}attn_q.bias`, heads * headDim, 0, 0.5),
          vector(`${prefix}attn_k.bias`, kvHeads * headDim, 0, 0.5),
          vector(`${prefix}attn_v.bias`, kvHeads * valueDim, 0, 0.2),
        ]
      : []),
    ...(architecture === 'qwen3' || architecture === 'gemma3'
      ? [vector(`${prefix}attn_q_norm.weight`, headDim), vector(`${prefix}attn_k_norm.weight`, headDim)]
      : []),
    matrix(`${prefix}attn_output`, heads * valueDim, WIDTH, 0.3 / Math.sqrt(heads * valueDim)),
    ...(gemma
      ? [
          vector(`${prefix}post_attention_norm.weight`, WIDTH, 0.3, 0.03),
          vector(`${prefix}post_ffw_norm.weight`, WIDTH, 0.3, 0.03),
        ]
      : []),
    vector(`${prefix}ffn_norm.weight`, WIDTH),
    matrix(`${prefix}ffn_gate`, WIDTH, FEED_FORWARD, unit),
    matrix(`${prefix}ffn_up`, WIDTH, FEED_FORWARD, unit),
    matrix(`${prefix}ffn_down`, FEED_FORWARD, WIDTH, 0.3 / Math.sqrt(FEED_FORWARD)),
    ...(allBiased ? otherBiases(prefix) : []),
  ];
  return [
    matrix('token_embd', WIDTH, VOCAB_SIZE, 2 * unit),
    ...(variant === 'factors' ? [factors(headDim)] : []),
    ...Array.from({ length: BLOCKS }, (_, i) => block(`blk.${i}.`)).flat(),
    vector('output_norm.weight', WIDTH),
    ...(shape.tied ? [] : [matrix('output', WIDTH, VOCAB_SIZE, 2 * unit)]),
  ];
}

/** Rows of Q, then those of K and of V, in the place of Q. */
function fuse(drawn: readonly Drawn[]): Drawn[] {
  const find = (name: string) => drawn.find((each) => each.name === name) ?? { shape: [], values: [] };
  return drawn.flatMap((tensor) => {
    if (/\.attn_[kv]\./.test(tensor.name)) return [];
    if (!/\.attn_q\./.test(tensor.name)) return [tensor];
    const parts = ['q', 'k', 'v'].map((part) => find(tensor.name.replace('attn_q', `attn_${part}`)));
    const rows = parts.reduce((sum, { shape }) => sum + (shape.at(-1) ?? 0), 0);
    return {
      name: tensor.name.replace('attn_q', 'attn_qkv'),
      shape: [...tensor.shape.slice(0, -1), rows],
      values: Float64Array.from(parts.flatMap(({ values }) => [...values])),
    };
  });
}

/** As in Llama 3.1 files: the fastest pair stays, slow pairs turn eight times as slowly, a ramp between them. */
function factors(headDim: number): Drawn {
  const length = headDim / 2;
  const values = Float64Array.from({ length }, (_, i) => 1 + 7 * Math.min(1, (3 * i) / length));
  return { name: 'rope_freqs.weight', shape: [length], values };
}

/** Standard normal numbers by Box and Muller (1958). */
function createNormal(seed: number): () => number {
  const random = createRandom(seed);
  return () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}
