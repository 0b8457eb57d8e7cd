import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { TINY_LLAMA, tinyLlamaSpec } from '../gguf/tiny-llama.js';
import type { GgufSpec } from '../gguf/writer.js';
import { type StoredTensor, writeSafetensors } from './writer.js';

/** The tiny Llama with F32 weights, as a GGUF file has it. */
export const GGUF: GgufSpec = tinyLlamaSpec({ matrixType: 'F32', everyKind: false });

const { width, heads, kvHeads, headDim, blocks, feedForward, vocabSize, contextLength } = TINY_LLAMA;

export const CONFIG = {
  model_type: 'llama',
  architectures: ['LlamaForCausalLM'],
  hidden_size: width,
  intermediate_size: feedForward,
  num_hidden_layers: blocks,
  num_attention_heads: heads,
  num_key_value_heads: kvHeads,
  max_position_embeddings: contextLength,
  rms_norm_eps: 1e-5,
  rope_theta: 10_000,
  rope_scaling: null,
  hidden_act: 'silu',
  vocab_size: vocabSize,
  tie_word_embeddings: false,
};

const NAMES: readonly (readonly [RegExp, string])[] = [
  [/^token_embd\.weight$/, 'model.embed_tokens.weight'],
  [/^output_norm\.weight$/, 'model.norm.weight'],
  [/^output\.weight$/, 'lm_head.weight'],
  [/^blk\.(\d+)\.attn_norm\.weight$/, 'model.layers.$1.input_layernorm.weight'],
  [/^blk\.(\d+)\.ffn_norm\.weight$/, 'model.layers.$1.post_attention_layernorm.weight'],
  [/^blk\.(\d+)\.attn_output\.weight$/, 'model.layers.$1.self_attn.o_proj.weight'],
  [/^blk\.(\d+)\.attn_([qkv])\.weight$/, 'model.layers.$1.self_attn.$2_proj.weight'],
  [/^blk\.(\d+)\.ffn_(\w+)\.weight$/, 'model.layers.$1.mlp.$2_proj.weight'],
];

/** The weights of the tiny Llama under the names and in the order of its original. */
export function storedTensors(): Map<string, StoredTensor> {
  return new Map(
    GGUF.tensors.map(({ name, shape, data = new Uint8Array() }) => {
      const found = NAMES.find(([pattern]) => pattern.test(String(name)));
      if (found === undefined) throw new Error(`no name for ${name}`);
      const stored = String(name).replace(found[0], found[1]);
      const rows = /\.(q|k)_proj\./.test(stored) ? halves(data, 4 * (shape[0] ?? 1)) : data;
      return [stored, { dtype: 'F32', shape: [...shape].reverse(), data: rows }];
    }),
  );
}

/** Takes interleaved pairs of rows apart: first the first of all pairs of a head, then the second. */
function halves(data: Uint8Array, rowBytes: number): Uint8Array {
  const out = new Uint8Array(data.length);
  for (let row = 0; row * rowBytes < data.length; row += 1) {
    const pair = (row % headDim) >> 1;
    const to = row - (row % headDim) + pair + (row % 2) * (headDim / 2);
    out.set(data.subarray(row * rowBytes, (row + 1) * rowBytes), to * rowBytes);
  }
  return out;
}

function ggufStrings(key: string): string[] {
  const entry = GGUF.metadata.find((each) => each.key === key);
  if (entry?.kind !== 'array') throw new Error(`no array ${key}`);
  return entry.values.map(String);
}

/** The tiny Llama's vocabulary: byte fallback, and merges for the pieces of several letters. */
export function tokenizerJson(): Record<string, unknown> {
  const tokens = ggufStrings('tokenizer.ggml.tokens');
  const ids = new Map(tokens.map((token, id) => [token, id]));
  // The scores of the vocabulary fall with the ids.
  const merges = tokens.slice(259).flatMap((token) =>
    Array.from({ length: token.length - 1 }, (_, cut) => [token.slice(0, cut + 1), token.slice(cut + 1)])
      .filter(([left = '', right = '']) => ids.has(left) && ids.has(right))
      .map((pair) => pair.join(' ')),
  );
  return {
    version: '1.0',
    added_tokens: ['<unk>', '<s>', '</s>'].map((content, id) => ({ id, content, special: true })),
    normalizer: {
      type: 'Sequence',
      normalizers: [
        { type: 'Prepend', prepend: '▁' },
        { type: 'Replace', pattern: { String: ' ' }, content: '▁' },
      ],
    },
    pre_tokenizer: null,
    post_processor: {
      type: 'TemplateProcessing',
      single: [{ SpecialToken: { id: '<s>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
      pair: [],
      special_tokens: {},
    },
    model: { type: 'BPE', byte_fallback: true, unk_token: '<unk>', vocab: Object.fromEntries(ids), merges },
  };
}

export const TOKENIZER_CONFIG = {
  bos_token: '<s>',
  eos_token: { content: '</s>', special: true },
  unk_token: '<unk>',
  chat_template: '{{ messages[0].content }}',
};

export interface ModelFiles {
  readonly config?: object;
  readonly tokenizer?: object;
  readonly tensors?: ReadonlyMap<string, StoredTensor>;
  /** Writes the tensors in so many parts, with an index. @default 1 */
  readonly parts?: number;
}

/** Writes the model's files into a new folder. */
export function writeModel(folder: string, files: ModelFiles = {}): string {
  mkdirSync(folder);
  const json = (name: string, value: unknown) => writeFileSync(join(folder, name), JSON.stringify(value));
  json('config.json', files.config ?? CONFIG);
  json('tokenizer.json', files.tokenizer ?? tokenizerJson());
  json('tokenizer_config.json', TOKENIZER_CONFIG);
  const tensors = [...(files.tensors ?? storedTensors())];
  const count = files.parts ?? 1;
  if (count === 1) {
    writeFileSync(join(folder, 'model.safetensors'), writeSafetensors(new Map(tensors)));
    return folder;
  }
  const weightMap: Record<string, string> = {};
  const digits = (value: number) => String(value).padStart(5, '0');
  for (let part = 0; part < count; part += 1) {
    const name = `model-${digits(part + 1)}-of-${digits(count)}.safetensors`;
    const own = tensors.filter((_, i) => i % count === part);
    for (const [tensor] of own) weightMap[tensor] = name;
    writeFileSync(join(folder, name), writeSafetensors(new Map(own)));
  }
  json('model.safetensors.index.json', { metadata: {}, weight_map: weightMap });
  return folder;
}
