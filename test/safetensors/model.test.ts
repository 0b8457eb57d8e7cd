import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { createTokenizer, load, quantize } from '../../ts/index.js';
import { writeGguf } from '../gguf/writer.js';
import { decode } from '../quantize/decode.js';
import { bytesOf, randomFloats, temporaryFolder, tensorData, withGguf } from '../quantize/files.js';
import { CONFIG, GGUF, type ModelFiles, storedTensors, tokenizerJson, writeModel } from './model.js';
import type { StoredTensor } from './writer.js';

const folder = temporaryFolder();
let count = 0;

function newModel(files: ModelFiles = {}): string {
  count += 1;
  return writeModel(join(folder, `model-${count}`), files);
}

/** Converts a model and gives the path of the file. */
async function convert(files: ModelFiles = {}, type: 'F16' | 'BF16' | 'Q8_0' = 'BF16'): Promise<string> {
  const from = newModel(files);
  const out = `${from}.gguf`;
  await quantize(from, out, { type });
  return out;
}

describe('a Llama model', () => {
  const path = join(folder, 'reference.gguf');
  writeFileSync(path, writeGguf(GGUF).bytes);

  it('has the tensors and the text of the GGUF file of the same weights', async () => {
    const reference = join(folder, 'reference-q8_0.gguf');
    await quantize(path, reference, { type: 'Q8_0' });
    const out = await convert({}, 'Q8_0');
    expect(await tensorData(out)).toEqual(await tensorData(reference));
    const texts = [];
    for (const file of [reference, out]) {
      await using model = await load(file);
      let text = '';
      for await (const piece of model.generate('the once and', { temperature: 0, maxTokens: 24 }))
        text += piece;
      texts.push(text);
    }
    expect(texts[1]).toBe(texts[0]);
  });

  it('has the metadata that config.json describes', async () => {
    await withGguf(await convert(), ({ metadata }) => {
      expect(metadata.string('general.architecture')).toBe('llama');
      expect(metadata.string('general.name')).toBe(`model-${count}`);
      for (const [key, value] of [
        ['context_length', 256],
        ['embedding_length', 64],
        ['block_count', 2],
        ['feed_forward_length', 96],
        ['attention.head_count', 4],
        ['attention.head_count_kv', 2],
        ['attention.key_length', 16],
        ['rope.dimension_count', 16],
        ['rope.freq_base', 10_000],
      ] as const)
        expect(metadata.number(`llama.${key}`), key).toBe(value);
      expect(metadata.number('llama.attention.layer_norm_rms_epsilon')).toBeCloseTo(1e-5, 10);
      expect(metadata.string('tokenizer.chat_template')).toBe('{{ messages[0].content }}');
    });
  });

  it('has the vocabulary of tokenizer.json', async () => {
    const encoded: unknown[] = [];
    for (const file of [path, await convert()]) {
      await withGguf(file, async ({ metadata }) => {
        const tokenizer = await createTokenizer(metadata);
        const ids = [];
        for (const text of ['once to the end and inside', 'Größe: 5 €', '  two  spaces ', ''])
          ids.push([...(await tokenizer.encode(text))]);
        encoded.push({ ids, bos: tokenizer.bos, eos: tokenizer.eos, end: [...tokenizer.endTokens] });
        await tokenizer.dispose();
      });
    }
    expect(encoded[1]).toEqual(encoded[0]);
  });

  it('may lie in parts, which are found by the folder, the index or the first part', async () => {
    const whole = await convert();
    const from = newModel({ parts: 3 });
    for (const name of ['', 'model.safetensors.index.json', 'model-00001-of-00003.safetensors']) {
      await quantize(join(from, name), `${from}.gguf`, { type: 'BF16' });
      expect(await tensorData(`${from}.gguf`)).toEqual(await tensorData(whole));
    }
  });

  it('reads F16 and BF16 weights, and ties the output where the configuration says so', async () => {
    const tensors = storedTensors();
    const values = randomFloats(9, 300 * 64);
    const brain = new Uint8Array(2 * values.length);
    const wide = bytesOf(values);
    for (let i = 0; i < values.length; i += 1) brain.set(wide.subarray(4 * i + 2, 4 * i + 4), 2 * i);
    tensors.set('model.embed_tokens.weight', { dtype: 'BF16', shape: [300, 64], data: brain });
    const out = await convert({ tensors, config: { ...CONFIG, tie_word_embeddings: true } });
    const data = await tensorData(out);
    expect(data.has('output.weight')).toBe(false);
    expect(data.get('token_embd.weight')?.bytes).toEqual(brain);
  });
});

describe('rotary scaling', () => {
  it('of Llama 3 becomes a tensor of factors', async () => {
    const scaling = {
      rope_type: 'llama3',
      factor: 8,
      low_freq_factor: 1,
      high_freq_factor: 4,
      original_max_position_embeddings: 64,
    };
    const out = await convert({ config: { ...CONFIG, rope_scaling: scaling } });
    const factors = (await tensorData(out)).get('rope_freqs.weight');
    const values = decode('F32', factors?.bytes ?? new Uint8Array());
    expect(values).toHaveLength(8);
    // Pair i turns 64 / (2 pi 10000^(i/8)) times in the original context: 10.2, 3.22, 1.02, 0.32, ...
    const turns = (i: number) => 64 / (2 * Math.PI * 10_000 ** (i / 8));
    const ramp = (i: number) => 1 / ((1 - (turns(i) - 1) / 3) / 8 + (turns(i) - 1) / 3);
    const wanted = [1, ramp(1), ramp(2), 8, 8, 8, 8, 8];
    for (const [i, value] of values.entries()) expect(value).toBeCloseTo(wanted[i] ?? 0, 5);
    await (await load(out)).dispose();
  });

  it('of the linear and YaRN kinds becomes metadata', async () => {
    for (const [scaling, keys] of [
      [{ type: 'linear', factor: 4 }, { 'scaling.factor': 4 }],
      [
        { rope_type: 'yarn', factor: 2, original_max_position_embeddings: 128, beta_fast: 24 },
        { 'scaling.factor': 2, 'scaling.original_context_length': 128, 'scaling.yarn_beta_fast': 24 },
      ],
    ] as const) {
      await withGguf(await convert({ config: { ...CONFIG, rope_scaling: scaling } }), ({ metadata }) => {
        expect(metadata.string('llama.rope.scaling.type')).toBe(
          'type' in scaling ? scaling.type : scaling.rope_type,
        );
        for (const [key, value] of Object.entries(keys))
          expect(metadata.number(`llama.rope.${key}`)).toBe(value);
      });
    }
  });
});

describe('other architectures', () => {
  it('Qwen 2 has biases and keeps the order of rows; Qwen 3 has norms of heads', async () => {
    const random = (seed: number, ...shape: number[]): StoredTensor => {
      const data = bytesOf(
        randomFloats(
          seed,
          shape.reduce((a, b) => a * b, 1),
        ),
      );
      return { dtype: 'F32', shape, data };
    };
    for (const type of ['qwen2', 'qwen3']) {
      const tensors = storedTensors();
      for (const layer of [0, 1]) {
        const attention = `model.layers.${layer}.self_attn`;
        if (type === 'qwen2') {
          tensors.set(`${attention}.q_proj.bias`, random(1, 64));
          tensors.set(`${attention}.k_proj.bias`, random(2, 32));
          tensors.set(`${attention}.v_proj.bias`, random(3, 32));
        } else {
          tensors.set(`${attention}.q_norm.weight`, random(4, 16));
          tensors.set(`${attention}.k_norm.weight`, random(5, 16));
        }
      }
      const out = await convert({ tensors, config: { ...CONFIG, model_type: type } }, 'F16');
      const data = await tensorData(out);
      const stored = tensors.get('model.layers.1.self_attn.q_proj.weight')?.data ?? new Uint8Array();
      const before = decode('F32', stored);
      const after = decode('F16', data.get('blk.1.attn_q.weight')?.bytes ?? new Uint8Array());
      for (const [i, value] of after.entries()) expect(Math.abs(value - (before[i] ?? 0))).toBeLessThan(1e-3);
      const vector = type === 'qwen2' ? 'attn_q.bias' : 'attn_q_norm.weight';
      expect(data.get(`blk.0.${vector}`)?.type).toBe('F32');
      await (await load(out)).dispose();
    }
  });

  it('Mixtral has its experts stacked in order', async () => {
    const tensors = storedTensors();
    const experts: Float32Array[] = [];
    for (const layer of [0, 1]) {
      for (const name of ['gate', 'up', 'down'])
        tensors.delete(`model.layers.${layer}.mlp.${name}_proj.weight`);
      const moe = `model.layers.${layer}.block_sparse_moe`;
      tensors.set(`${moe}.gate.weight`, {
        dtype: 'F32',
        shape: [4, 64],
        data: bytesOf(randomFloats(1, 256)),
      });
      for (let e = 0; e < 4; e += 1) {
        for (const [name, shape] of [
          ['w1', [96, 64]],
          ['w2', [64, 96]],
          ['w3', [96, 64]],
        ] as const) {
          const values = randomFloats(100 + e, 96 * 64);
          if (name === 'w2' && layer === 1) experts.push(values);
          tensors.set(`${moe}.experts.${e}.${name}.weight`, { dtype: 'F32', shape, data: bytesOf(values) });
        }
      }
    }
    const config = { ...CONFIG, model_type: 'mixtral', num_local_experts: 4, num_experts_per_tok: 2 };
    const out = await convert({ tensors, config });
    await withGguf(out, ({ metadata, tensors: written }) => {
      expect(metadata.number('llama.expert_count')).toBe(4);
      expect(metadata.number('llama.expert_used_count')).toBe(2);
      expect(written.get('blk.1.ffn_down_exps.weight')).toMatchObject({ shape: [96, 64, 4], type: 'BF16' });
      expect(written.get('blk.1.ffn_gate_inp.weight')).toMatchObject({ shape: [64, 4], type: 'F32' });
    });
    const down = (await tensorData(out)).get('blk.1.ffn_down_exps.weight');
    const values = decode('BF16', down?.bytes ?? new Uint8Array());
    const wanted = experts.flatMap((each) => [...each]);
    for (const [i, value] of values.entries()) expect(Math.abs(value - (wanted[i] ?? 0))).toBeLessThan(0.02);
    await (await load(out)).dispose();
  });
});

describe('a byte-level vocabulary', () => {
  const splits = (digits: string) => ({
    type: 'Split',
    pattern: {
      Regex: `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`,
    },
    behavior: 'Isolated',
    invert: false,
  });
  const bytes = (useRegex: boolean) => ({ type: 'ByteLevel', add_prefix_space: false, use_regex: useRegex });

  function tokenizer(preTokenizer: unknown, ignoreMerges = false): object {
    const letters = Array.from({ length: 94 }, (_, i) => String.fromCharCode(33 + i));
    const tokens = [...letters, 'Ġ', 'he', 'Ġt', 'Ġthe', '12'];
    const merges = [
      ['h', 'e'],
      ['Ġ', 't'],
      ['Ġt', 'he'],
      ['1', '2'],
    ];
    const vocab = Object.fromEntries(tokens.map((token, id) => [token, id]));
    return {
      added_tokens: [
        { id: 150, content: '<|end|>', special: true },
        { id: 151, content: '<tool>', special: false },
      ],
      normalizer: { type: 'NFC' },
      pre_tokenizer: preTokenizer,
      post_processor: null,
      model: { type: 'BPE', byte_fallback: false, ignore_merges: ignoreMerges, vocab, merges },
    };
  }

  it('is recognised by how it cuts words', async () => {
    const sequence = (...pretokenizers: object[]) => ({ type: 'Sequence', pretokenizers });
    for (const [preTokenizer, ignoreMerges, pre] of [
      [bytes(true), false, 'gpt-2'],
      [sequence({ type: 'Digits', individual_digits: true }, bytes(true)), false, 'starcoder'],
      [sequence(splits('\\p{N}'), bytes(false)), false, 'qwen2'],
      [sequence(splits('\\p{N}{1,3}'), bytes(false)), true, 'llama-bpe'],
      [sequence(splits('\\p{N}{1,3}'), bytes(false)), false, 'smaug-bpe'],
    ] as const) {
      await withGguf(
        await convert({ tokenizer: tokenizer(preTokenizer, ignoreMerges) }),
        async ({ metadata }) => {
          expect(metadata.string('tokenizer.ggml.pre')).toBe(pre);
          expect(metadata.strings('tokenizer.ggml.tokens').at(151)).toBe('<tool>');
          expect(metadata.numbers('tokenizer.ggml.token_type').slice(149, 153)).toEqual(
            Int32Array.of(5, 3, 4, 5),
          );
          const vocabulary = await createTokenizer(metadata);
          const digits = pre === 'qwen2' || pre === 'starcoder' ? [16, 17] : [98];
          expect([...(await vocabulary.encode('he the<tool>12'))]).toEqual([95, 97, 151, ...digits]);
          await vocabulary.dispose();
        },
      );
    }
  });

  it('is refused when it cuts words in a way that has no name', async () => {
    for (const preTokenizer of [
      null,
      splits('\\p{N}'),
      { type: 'Whitespace' },
      { ...bytes(true), add_prefix_space: true },
    ])
      await expect(convert({ tokenizer: tokenizer(preTokenizer) })).rejects.toMatchObject({
        code: 'TOKENIZER_UNSUPPORTED',
      });
  });
});

describe('a model that cannot be converted', () => {
  const refusals: [string, string, () => ModelFiles][] = [
    ['an unknown type', 'UNKNOWN_ARCHITECTURE', () => ({ config: { ...CONFIG, model_type: 'gemma' } })],
    ['a missing key', 'METADATA_MISSING', () => ({ config: { ...CONFIG, hidden_size: undefined } })],
    ['a wrong value', 'METADATA_INVALID', () => ({ config: { ...CONFIG, num_attention_heads: 'four' } })],
    [
      'absurd layers',
      'METADATA_INVALID',
      () => ({ config: { ...CONFIG, num_hidden_layers: 4_000_000_000 } }),
    ],
    ['a wrong shape', 'TENSOR_SHAPE', () => ({ config: { ...CONFIG, intermediate_size: 95 } })],
    ['another activation', 'UNSUPPORTED_FEATURE', () => ({ config: { ...CONFIG, hidden_act: 'gelu' } })],
    [
      'unknown rotary scaling',
      'UNSUPPORTED_FEATURE',
      () => ({ config: { ...CONFIG, rope_scaling: { type: 'dynamic', factor: 2 } } }),
    ],
    ['a missing tensor', 'MISSING_TENSOR', () => ({ tensors: without('model.norm.weight') })],
    [
      'an unknown tensor',
      'UNSUPPORTED_FEATURE',
      () => ({ tensors: withTensor('model.extra.weight', 'F32') }),
    ],
    [
      'a quantised tensor',
      'UNSUPPORTED_TENSOR_TYPE',
      () => ({ tensors: withTensor('model.norm.weight', 'I32') }),
    ],
    ['a tokenizer that is no BPE', 'TOKENIZER_UNSUPPORTED', () => tokenizerWith({ type: 'Unigram' })],
    ['merges that join nothing', 'TOKENIZER_INVALID', () => tokenizerWith({ merges: ['q z'] })],
    ['ids beyond the model', 'TOKENIZER_INVALID', () => tokenizerWith({ vocab: { a: 300 } })],
    ['two tokens of one id', 'TOKENIZER_INVALID', () => tokenizerWith({ vocab: { a: 7, b: 7 } })],
  ];

  function without(name: string): Map<string, StoredTensor> {
    const tensors = storedTensors();
    tensors.delete(name);
    return tensors;
  }

  function withTensor(name: string, dtype: string): Map<string, StoredTensor> {
    return storedTensors().set(name, { dtype, shape: [64], data: new Uint8Array(256) });
  }

  function tokenizerWith(change: object): ModelFiles {
    const whole = tokenizerJson();
    return { tokenizer: { ...whole, model: { ...(whole.model as object), ...change } } };
  }

  for (const [what, code, files] of refusals) {
    it(`is refused for ${what}`, async () => {
      await expect(convert(files())).rejects.toMatchObject({ code });
    });
  }

  it('is refused when its files lead elsewhere or are missing', async () => {
    const from = newModel({ parts: 2 });
    const index = join(from, 'model.safetensors.index.json');
    const names = JSON.parse(readFileSync(index, 'utf8'));
    for (const name of ['../model.safetensors', '/etc/passwd', 'a/b.safetensors', 7]) {
      names.weight_map['model.norm.weight'] = name;
      writeFileSync(index, JSON.stringify(names));
      await expect(quantize(from, `${from}.gguf`, { type: 'F16' })).rejects.toMatchObject({
        code: 'METADATA_INVALID',
      });
    }
    await expect(quantize(folder, `${from}.gguf`, { type: 'F16' })).rejects.toMatchObject({
      code: 'SOURCE_READ',
    });
  });
});
