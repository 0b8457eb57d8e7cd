/**
 * Models of random weights in the architectures that plans are built for, small enough to be made and run
 * through the scalar reference in a moment. Every weight follows from a seed by integer arithmetic, so the
 * files are the same on every machine.
 */
import type { GgmlType } from '../../ts/gguf/types.js';
import { below, createRandom, type Random } from '../gguf/random.js';
import { tinyLlamaSpec } from '../gguf/tiny-llama.js';
import { type Entry, type GgufSpec, type TensorSpec, tensorBytes } from '../gguf/writer.js';

export type MatrixType = 'F32' | 'F16' | 'BF16' | 'Q8_0' | 'Q4_0';

export interface RandomModelOptions {
  readonly architecture: 'llama' | 'qwen2' | 'qwen3' | 'gemma2' | 'gemma3';
  readonly seed: number;
  readonly blocks: number;
  readonly width: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly feedForward: number;
  readonly contextLength: number;
  /** Types of the matrices, in turn. */
  readonly types: readonly MatrixType[];
  /** Without an output matrix of its own the embeddings serve for it. */
  readonly tied?: boolean;
  /** Keys without the architecture's name; added as float32, uint32 or string by what they are. */
  readonly keys?: Readonly<Record<string, number | string>>;
  /** Frequency factors by tensor name. */
  readonly factors?: Readonly<Record<string, (pair: number) => number>>;
  readonly metadata?: readonly Entry[];
}

/** Tokens of the SentencePiece vocabulary that all of these models have. */
export const VOCABULARY = 300;

export function randomModelSpec(options: RandomModelOptions): GgufSpec {
  const maker = createMaker(options);
  const { blocks, width, tied, factors = {}, headDim } = options;
  return {
    metadata: [...hyperParameters(options), ...vocabulary(), ...(options.metadata ?? [])],
    tensors: [
      maker.matrix('token_embd', width, VOCABULARY),
      ...Object.entries(factors).map(([name, value]) =>
        floats(
          name,
          Array.from({ length: headDim / 2 }, (_, i) => value(i)),
        ),
      ),
      ...Array.from({ length: blocks }, (_, i) => block(maker, options, `blk.${i}`)).flat(),
      maker.norm('output_norm', width),
      ...(tied ? [] : [maker.matrix('output', width, VOCABULARY)]),
    ],
  };
}

function hyperParameters(options: RandomModelOptions): Entry[] {
  const { architecture } = options;
  const count = (name: string, value: number): Entry => ({
    key: `${architecture}.${name}`,
    kind: 'uint32',
    value,
  });
  return [
    { key: 'general.architecture', kind: 'string', value: architecture },
    { key: 'general.name', kind: 'string', value: `Random ${architecture}` },
    count('context_length', options.contextLength),
    count('embedding_length', options.width),
    count('block_count', options.blocks),
    count('feed_forward_length', options.feedForward),
    count('attention.head_count', options.heads),
    count('attention.head_count_kv', options.kvHeads),
    count('attention.key_length', options.headDim),
    count('attention.value_length', options.headDim),
    { key: `${architecture}.attention.layer_norm_rms_epsilon`, kind: 'float32', value: 1e-6 },
    ...Object.entries(options.keys ?? {}).map(([name, value]): Entry => {
      const key = `${architecture}.${name}`;
      if (typeof value === 'string') return { key, kind: 'string', value };
      return name.endsWith('length') ||
        name.endsWith('window') ||
        name.endsWith('count') ||
        name.endsWith('pattern')
        ? { key, kind: 'uint32', value }
        : { key, kind: 'float32', value };
    }),
  ];
}

/** The vocabulary of the tiny Llama model serves all. */
function vocabulary(): Entry[] {
  return tinyLlamaSpec().metadata.filter(({ key }) => String(key).startsWith('tokenizer.'));
}

interface Maker {
  /** Of the next type, or of the type of the last one. */
  matrix(name: string, cols: number, rows: number, sameType?: boolean): TensorSpec;
  norm(name: string, length: number): TensorSpec;
  bias(name: string, length: number): TensorSpec;
}

function createMaker({ seed, types }: RandomModelOptions): Maker {
  const random = createRandom(seed);
  let made = 0;
  return {
    matrix(name, cols, rows, sameType = false) {
      if (!sameType) made += 1;
      const type = types[made % types.length] ?? 'F32';
      return { name: `${name}.weight`, type, shape: [cols, rows], data: weights(random, type, cols, rows) };
    },
    norm: (name, length) =>
      floats(
        `${name}.weight`,
        Array.from({ length }, () => 0.75 + random() / 2),
      ),
    bias: (name, length) =>
      floats(
        `${name}.bias`,
        Array.from({ length }, () => random() - 0.5),
      ),
  };
}

function block(maker: Maker, options: RandomModelOptions, name: string): TensorSpec[] {
  const { architecture, width, heads, kvHeads, headDim, feedForward } = options;
  const biases = architecture === 'qwen2';
  const norms = architecture === 'qwen3' || architecture === 'gemma3';
  const after = architecture.startsWith('gemma');
  const project = (part: string, outputs: number): TensorSpec[] => [
    maker.matrix(`${name}.attn_${part}`, width, outputs),
    ...(biases ? [maker.bias(`${name}.attn_${part}`, outputs)] : []),
  ];
  return [
    maker.norm(`${name}.attn_norm`, width),
    ...project('q', heads * headDim),
    ...project('k', kvHeads * headDim),
    ...project('v', kvHeads * headDim),
    ...(norms
      ? [maker.norm(`${name}.attn_q_norm`, headDim), maker.norm(`${name}.attn_k_norm`, headDim)]
      : []),
    maker.matrix(`${name}.attn_output`, heads * headDim, width),
    ...(after
      ? [maker.norm(`${name}.post_attention_norm`, width), maker.norm(`${name}.post_ffw_norm`, width)]
      : []),
    maker.norm(`${name}.ffn_norm`, width),
    maker.matrix(`${name}.ffn_gate`, width, feedForward),
    maker.matrix(`${name}.ffn_up`, width, feedForward, true),
    maker.matrix(`${name}.ffn_down`, feedForward, width),
  ];
}

function floats(name: string, values: readonly number[]): TensorSpec {
  const data = Float32Array.from(values);
  return { name, type: 'F32', shape: [values.length], data: new Uint8Array(data.buffer) };
}

/** Weights of a standard deviation of about 1/sqrt(cols). */
export function weights(random: Random, type: MatrixType, cols: number, rows: number): Uint8Array {
  const bytes = new Uint8Array(tensorBytes(type satisfies GgmlType, [cols, rows]));
  const view = new DataView(bytes.buffer);
  const spread = Math.sqrt(12 / cols);
  if (type === 'F32' || type === 'BF16') fillFloats(random, type, view, spread);
  else if (type === 'F16') fillHalves(random, view, cols);
  else fillBlocks(random, type, view, spread);
  return bytes;
}

function fillFloats(random: Random, type: 'F32' | 'BF16', view: DataView, spread: number): void {
  const one = new DataView(new ArrayBuffer(4));
  const size = type === 'F32' ? 4 : 2;
  for (let at = 0; at < view.byteLength; at += size) {
    one.setFloat32(0, (random() - 0.5) * spread, true);
    if (type === 'F32') view.setUint32(at, one.getUint32(0, true), true);
    // BF16 is the upper half of F32.
    else view.setUint16(at, one.getUint16(2, true), true);
  }
}

/** Any sign and fraction, and one of four exponents, the largest being about 1.5/sqrt(cols). */
function fillHalves(random: Random, view: DataView, cols: number): void {
  const top = 15 - (Math.ceil(Math.log2(cols)) >> 1);
  for (let at = 0; at < view.byteLength; at += 2) {
    const bits = below(random, 0x800) << 5;
    const exponent = top - below(random, 4);
    view.setUint16(at, (bits & 0x8000) | (exponent << 10) | ((bits >> 5) & 0x3ff), true);
  }
}

/** An F16 scale, then 32 integers of 8 or 4 bits. The scale is any number of one binary order of magnitude. */
function fillBlocks(random: Random, type: 'Q8_0' | 'Q4_0', view: DataView, spread: number): void {
  const size = tensorBytes(type, [32]);
  const exponent = 15 + Math.floor(Math.log2(spread / (type === 'Q8_0' ? 255 : 15)));
  for (let at = 0; at < view.byteLength; at += size) {
    view.setUint16(at, (exponent << 10) | below(random, 0x400), true);
    // Every value, -128 included, which files may hold though no quantiser writes it.
    for (let i = 2; i < size; i += 1) view.setUint8(at + i, below(random, 256));
  }
}
