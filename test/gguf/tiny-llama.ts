import type { GgmlType } from '../../ts/gguf/types.js';
import { createRandom, type Random } from './random.js';
import {
  type Entry,
  type GgufSpec,
  type TensorSpec,
  tensorBytes,
  type Written,
  writeGguf,
} from './writer.js';

export interface TinyLlamaOptions {
  /** For the weights. @default 1 */
  seed?: number;
  /** @default 3 */
  version?: number;
  /** Written to the metadata when given. @default 32 */
  alignment?: number;
  /** One type for every matrix instead of the mixture of F32, F16, Q8_0 and Q4_0. */
  matrixType?: 'F32' | 'F16' | 'Q8_0' | 'Q4_0';
  /** Adds metadata of every kind, nested arrays included, which no model needs. @default true */
  everyKind?: boolean;
  /** Added to the metadata. */
  metadata?: readonly Entry[];
}

export const TINY_LLAMA = {
  vocabSize: 300,
  blocks: 2,
  width: 64,
  heads: 4,
  kvHeads: 2,
  headDim: 16,
  feedForward: 96,
  contextLength: 256,
} as const;

const KV_WIDTH = TINY_LLAMA.kvHeads * TINY_LLAMA.headDim;

/** A whole Llama model with random weights, about 130 kB: 2 layers, a SentencePiece vocabulary of 300. */
export function tinyLlama(options: TinyLlamaOptions = {}): Written {
  return writeGguf(tinyLlamaSpec(options));
}

/** What `tinyLlama` writes, to be changed first. */
export function tinyLlamaSpec(options: TinyLlamaOptions = {}): GgufSpec {
  const alignment: Entry[] =
    options.alignment === undefined
      ? []
      : [{ key: 'general.alignment', kind: 'uint32', value: options.alignment }];
  return {
    version: options.version ?? 3,
    alignment: options.alignment ?? 32,
    metadata: [
      ...alignment,
      ...hyperParameters(),
      ...vocabulary(),
      ...(options.everyKind === false ? [] : everyKind()),
      ...(options.metadata ?? []),
    ],
    tensors: tensors(createRandom(options.seed ?? 1), options.matrixType),
  };
}

function hyperParameters(): Entry[] {
  const llama = (name: string, value: number): Entry => ({ key: `llama.${name}`, kind: 'uint32', value });
  return [
    { key: 'general.architecture', kind: 'string', value: 'llama' },
    { key: 'general.name', kind: 'string', value: 'Tiny Llama of random weights' },
    llama('vocab_size', TINY_LLAMA.vocabSize),
    llama('context_length', TINY_LLAMA.contextLength),
    llama('embedding_length', TINY_LLAMA.width),
    llama('block_count', TINY_LLAMA.blocks),
    llama('feed_forward_length', TINY_LLAMA.feedForward),
    llama('attention.head_count', TINY_LLAMA.heads),
    llama('attention.head_count_kv', TINY_LLAMA.kvHeads),
    llama('rope.dimension_count', TINY_LLAMA.headDim),
    { key: 'llama.rope.freq_base', kind: 'float32', value: 10000 },
    { key: 'llama.attention.layer_norm_rms_epsilon', kind: 'float32', value: 1e-5 },
  ];
}

/** Token types of SentencePiece vocabularies. */
const NORMAL = 1;
const UNKNOWN = 2;
const CONTROL = 3;
const BYTE = 6;

const PIECES = [
  ...'▁etaoinshrdlcumwfgypbvk',
  '▁t',
  'he',
  '▁a',
  '▁the',
  'in',
  'er',
  'nd',
  '▁and',
  '▁s',
  'on',
  '▁to',
  'ed',
  'is',
  '▁o',
  're',
  '▁once',
  '▁w',
  '.',
];

function vocabulary(): Entry[] {
  const bytes = Array.from({ length: 256 }, (_, byte) => `<0x${hex(byte)}>`);
  const tokens = ['<unk>', '<s>', '</s>', ...bytes, ...PIECES];
  if (tokens.length !== TINY_LLAMA.vocabSize) throw new Error(`the vocabulary has ${tokens.length} tokens`);
  const types = tokens.map((_, i) => (i === 0 ? UNKNOWN : i < 3 ? CONTROL : i < 259 ? BYTE : NORMAL));
  const scores = tokens.map((_, i) => (i < 259 ? 0 : 259 - i));
  return [
    { key: 'tokenizer.ggml.model', kind: 'string', value: 'llama' },
    { key: 'tokenizer.ggml.tokens', kind: 'array', of: 'string', values: tokens },
    { key: 'tokenizer.ggml.scores', kind: 'array', of: 'float32', values: scores },
    { key: 'tokenizer.ggml.token_type', kind: 'array', of: 'int32', values: types },
    { key: 'tokenizer.ggml.bos_token_id', kind: 'uint32', value: 1 },
    { key: 'tokenizer.ggml.eos_token_id', kind: 'uint32', value: 2 },
    { key: 'tokenizer.ggml.unknown_token_id', kind: 'uint32', value: 0 },
    { key: 'tokenizer.ggml.add_bos_token', kind: 'bool', value: true },
    { key: 'tokenizer.ggml.add_eos_token', kind: 'bool', value: false },
  ];
}

function hex(byte: number): string {
  return byte.toString(16).toUpperCase().padStart(2, '0');
}

function everyKind(): Entry[] {
  return [
    { key: 'test.uint8', kind: 'uint8', value: 200 },
    { key: 'test.int8', kind: 'int8', value: -100 },
    { key: 'test.uint16', kind: 'uint16', value: 60_000 },
    { key: 'test.int16', kind: 'int16', value: -30_000 },
    { key: 'test.int32', kind: 'int32', value: -2_000_000_000 },
    { key: 'test.uint64', kind: 'uint64', value: 2n ** 63n },
    { key: 'test.int64', kind: 'int64', value: -5 },
    { key: 'test.float64', kind: 'float64', value: Math.PI },
    { key: 'test.bools', kind: 'array', of: 'bool', values: [true, false, true] },
    { key: 'test.uint64s', kind: 'array', of: 'uint64', values: [1, 2 ** 40] },
    { key: 'test.bytes', kind: 'array', of: 'uint8', values: [1, 2, 3] },
    {
      key: 'test.nested',
      kind: 'array',
      of: 'array',
      values: [
        { of: 'uint16', values: [1, 2] },
        { of: 'string', values: ['a', ''] },
        { of: 'array', values: [{ of: 'bool', values: [true] }] },
      ],
    },
  ];
}

function tensors(random: Random, matrixType: TinyLlamaOptions['matrixType']): TensorSpec[] {
  const { width, feedForward, vocabSize, blocks } = TINY_LLAMA;
  const matrix = (name: string, type: GgmlType, cols: number, rows: number): TensorSpec => {
    const used = matrixType ?? type;
    return {
      name: `${name}.weight`,
      type: used,
      shape: [cols, rows],
      data: weights(random, used, cols, rows),
    };
  };
  const norm = (name: string): TensorSpec => {
    const data = new Float32Array(width).map(() => 0.9 + 0.2 * random());
    return { name: `${name}.weight`, type: 'F32', shape: [width], data: new Uint8Array(data.buffer) };
  };
  const block = (i: number): TensorSpec[] => [
    norm(`blk.${i}.attn_norm`),
    matrix(`blk.${i}.attn_q`, 'Q4_0', width, width),
    matrix(`blk.${i}.attn_k`, 'F16', width, KV_WIDTH),
    matrix(`blk.${i}.attn_v`, 'Q8_0', width, KV_WIDTH),
    matrix(`blk.${i}.attn_output`, 'F32', width, width),
    norm(`blk.${i}.ffn_norm`),
    matrix(`blk.${i}.ffn_gate`, 'Q8_0', width, feedForward),
    matrix(`blk.${i}.ffn_up`, 'Q4_0', width, feedForward),
    matrix(`blk.${i}.ffn_down`, 'F16', feedForward, width),
  ];
  return [
    matrix('token_embd', 'Q8_0', width, vocabSize),
    ...Array.from({ length: blocks }, (_, i) => block(i)).flat(),
    norm('output_norm'),
    matrix('output', 'F16', width, vocabSize),
  ];
}

/** Random weights of a standard deviation of about 1/sqrt(cols), made as blocks rather than quantised. */
function weights(random: Random, type: GgmlType, cols: number, rows: number): Uint8Array {
  const bytes = new Uint8Array(tensorBytes(type, [cols, rows]));
  const view = new DataView(bytes.buffer);
  const spread = Math.sqrt(12 / cols);
  const uniform = () => (random() - 0.5) * spread;
  if (type === 'F32') for (let at = 0; at < bytes.length; at += 4) view.setFloat32(at, uniform(), true);
  else if (type === 'F16')
    for (let at = 0; at < bytes.length; at += 2) view.setUint16(at, half(uniform()), true);
  else fillBlocks(random, type, bytes, spread);
  return bytes;
}

/** Q8_0 and Q4_0 blocks: an F16 scale, then 32 integers of 8 or 4 bits. */
function fillBlocks(random: Random, type: GgmlType, bytes: Uint8Array, spread: number): void {
  const size = tensorBytes(type, [32]);
  const steps = type === 'Q8_0' ? 255 : 15;
  const view = new DataView(bytes.buffer);
  for (let at = 0; at < bytes.length; at += size) {
    view.setUint16(at, half((spread / steps) * (0.8 + 0.4 * random())), true);
    // -128 is never written by a quantiser, so Q8_0 avoids it here as well.
    for (let i = 2; i < size; i += 1) {
      view.setUint8(at + i, type === 'Q8_0' ? Math.floor(random() * 255) - 127 : Math.floor(random() * 256));
    }
  }
}

/** The F16 bits of a small number, rounded towards zero; below 2^-14 it becomes zero. */
function half(value: number): number {
  const sign = value < 0 ? 0x8000 : 0;
  const magnitude = Math.abs(value);
  if (magnitude < 2 ** -14) return sign;
  const exponent = Math.floor(Math.log2(magnitude));
  const fraction = Math.floor((magnitude / 2 ** exponent - 1) * 1024);
  return sign | ((exponent + 15) << 10) | fraction;
}
