// Makes GGUF files of real models' shapes with random weights: enough to measure speed.
//
//   node bench/models.mjs SHAPE TYPE OUT.gguf [SLICE]     after npm run build
//
// SHAPE: llama-1b, qwen3-0.6b, mistral-7b or qwen3-moe-small. TYPE: any that the kernels take. SLICE, a whole number that
// divides the layers: so many times fewer layers and words, so that a token costs so many times less, in the same
// proportions of layers to logits and of attention to matrices.
// Norms are 1, block scales are small, and the vocabulary is made up: every byte as a token of its
// own, then numbered ones; a prompt's bytes are its tokens.

import { open } from 'node:fs/promises';
import { StringArray } from '../dist/gguf/string-array.js';
import { layOutGguf } from '../dist/gguf/writer.js';
import { BLOCKS, pattern } from './lib/blocks.mjs';

const SHAPES = {
  'llama-1b': {
    architecture: 'llama',
    blocks: 16,
    width: 2048,
    inner: 8192,
    heads: 32,
    kvHeads: 8,
    headDim: 64,
    vocab: 128256,
    tied: true,
  },
  'qwen3-0.6b': {
    architecture: 'qwen3',
    blocks: 28,
    width: 1024,
    inner: 3072,
    heads: 16,
    kvHeads: 8,
    headDim: 128,
    vocab: 151936,
    tied: true,
  },
  'mistral-7b': {
    architecture: 'llama',
    blocks: 32,
    width: 4096,
    inner: 14336,
    heads: 32,
    kvHeads: 8,
    headDim: 128,
    vocab: 32000,
    tied: false,
  },
  'qwen3-moe-small': {
    architecture: 'qwen3moe',
    blocks: 12,
    width: 2048,
    inner: 768,
    heads: 32,
    kvHeads: 4,
    headDim: 128,
    vocab: 151936,
    tied: false,
    experts: 64,
    used: 8,
  },
};

function tensorsOf(shape, type) {
  const { width, inner, heads, kvHeads, headDim, vocab, experts } = shape;
  const tensors = [{ name: 'token_embd.weight', type, shape: [width, vocab] }];
  for (let i = 0; i < shape.blocks; i++) {
    const add = (name, dims, of = type) =>
      tensors.push({ name: `blk.${i}.${name}.weight`, type: of, shape: dims });
    add('attn_norm', [width], 'F32');
    add('attn_q', [width, heads * headDim]);
    add('attn_k', [width, kvHeads * headDim]);
    add('attn_v', [width, kvHeads * headDim]);
    if (shape.architecture.startsWith('qwen3')) {
      add('attn_q_norm', [headDim], 'F32');
      add('attn_k_norm', [headDim], 'F32');
    }
    add('attn_output', [heads * headDim, width]);
    add('ffn_norm', [width], 'F32');
    if (experts) add('ffn_gate_inp', [width, experts], 'F32');
    const stack = experts ? [experts] : [];
    const suffix = experts ? '_exps' : '';
    add(`ffn_gate${suffix}`, [width, inner, ...stack]);
    add(`ffn_up${suffix}`, [width, inner, ...stack]);
    add(`ffn_down${suffix}`, [inner, width, ...stack]);
  }
  tensors.push({ name: 'output_norm.weight', type: 'F32', shape: [width] });
  if (!shape.tied) tensors.push({ name: 'output.weight', type, shape: [width, vocab] });
  return tensors;
}

/** GPT-2's letters for bytes: printable ones stand for themselves, the others come after 255. */
function byteLetters() {
  const printable = (b) => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  let next = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCodePoint(printable(b) ? b : next++));
}

function strings(values) {
  const parts = values.map((value) => Buffer.from(value));
  const offsets = new Uint32Array(values.length + 1);
  parts.forEach((part, i) => {
    offsets[i + 1] = offsets[i] + part.length;
  });
  return { kind: 'array[string]', value: new StringArray(Buffer.concat(parts), offsets) };
}

function metadataOf(name, shape) {
  const { architecture: of, vocab } = shape;
  const text = (value) => ({ kind: 'string', value: Buffer.from(value) });
  const count = (value) => ({ kind: 'uint32', value });
  const letters = byteLetters();
  const tokens = Array.from(
    { length: vocab },
    (_, i) => letters[i] ?? (i === vocab - 1 ? '<|end|>' : `<${i}>`),
  );
  const kinds = Int32Array.from(tokens, (_, i) => (i === vocab - 1 ? 3 : 1));
  return new Map([
    ['general.architecture', text(of)],
    ['general.name', text(`${name} shape, random weights`)],
    [`${of}.block_count`, count(shape.blocks)],
    [`${of}.context_length`, count(131072)],
    [`${of}.embedding_length`, count(shape.width)],
    [`${of}.feed_forward_length`, count(shape.inner)],
    [`${of}.attention.head_count`, count(shape.heads)],
    [`${of}.attention.head_count_kv`, count(shape.kvHeads)],
    [`${of}.attention.key_length`, count(shape.headDim)],
    [`${of}.attention.value_length`, count(shape.headDim)],
    [`${of}.rope.dimension_count`, count(shape.headDim)],
    [`${of}.rope.freq_base`, { kind: 'float32', value: 500000 }],
    [`${of}.attention.layer_norm_rms_epsilon`, { kind: 'float32', value: 1e-5 }],
    ...(shape.experts
      ? [
          [`${of}.expert_count`, count(shape.experts)],
          [`${of}.expert_used_count`, count(shape.used)],
          [`${of}.expert_feed_forward_length`, count(shape.inner)],
        ]
      : []),
    ['tokenizer.ggml.model', text('gpt2')],
    ['tokenizer.ggml.pre', text('llama-bpe')],
    ['tokenizer.ggml.tokens', strings(tokens)],
    ['tokenizer.ggml.token_type', { kind: 'array[int32]', value: kinds }],
    ['tokenizer.ggml.merges', strings([])],
    ['tokenizer.ggml.eos_token_id', count(vocab - 1)],
    ['tokenizer.ggml.add_bos_token', { kind: 'bool', value: false }],
  ]);
}

/** Embeddings are large beside what the layers add, so that tokens differ and are spread over all experts. */
const EMBEDDING_POWER = 8;

/** @param index the tensor's, which begins the pattern at a place of its own */
async function writeTensor(file, tensor, index, patterns) {
  const ones = tensor.shape.length === 1;
  const pattern = patterns[tensor.name] ?? patterns[tensor.type];
  const start = (index * 7919 * BLOCKS[tensor.type].bytes) % pattern.length;
  const bytes = ones
    ? Buffer.from(new Float32Array(tensor.shape[0]).fill(1).buffer)
    : Buffer.concat([pattern.subarray(start), pattern.subarray(0, start)]);
  for (let at = 0; at < tensor.bytes; at += bytes.length) {
    await file.write(bytes, 0, Math.min(bytes.length, tensor.bytes - at), tensor.offset + at);
  }
}

/** A part of a shape that has the same proportions. */
function sliced(shape, slice) {
  return { ...shape, blocks: shape.blocks / slice, vocab: Math.round(shape.vocab / slice / 32) * 32 };
}

const [name, type, out, part = '1'] = process.argv.slice(2);
const [whole, slice] = [SHAPES[name], Number(part)];
const divides = whole && Number.isInteger(slice) && slice > 0 && whole.blocks % slice === 0;
if (!divides || !BLOCKS[type] || !out) {
  console.error(
    `usage: node bench/models.mjs ${Object.keys(SHAPES).join('|')} ${Object.keys(BLOCKS).join('|')} OUT.gguf [SLICE]`,
  );
  process.exit(2);
}
const shape = slice === 1 ? whole : sliced(whole, slice);
const title = slice === 1 ? name : `1/${slice} of ${name}`;
const layout = layOutGguf(metadataOf(title, shape), tensorsOf(shape, type));
const file = await open(out, 'w');
await file.write(layout.header, 0, layout.header.length, 0);
const patterns = {
  F32: pattern('F32'),
  [type]: pattern(type),
  'token_embd.weight': pattern(type, EMBEDDING_POWER),
};
for (const [i, tensor] of layout.tensors.entries()) {
  await writeTensor(file, tensor, i, patterns);
  if (process.stderr.isTTY) process.stderr.write(`\r${i + 1} of ${layout.tensors.length} tensors`);
}
await file.truncate(layout.bytes);
await file.close();
process.stderr.write(
  `${process.stderr.isTTY ? '\n' : ''}${out}: ${(layout.bytes / 2 ** 20).toFixed(0)} MiB\n`,
);
