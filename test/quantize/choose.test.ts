import { describe, expect, it } from 'vitest';
import { chooseTypes, type QuantizeType } from '../../ts/quantize/choose.js';
import type { SourceModel, SourceTensor } from '../../ts/quantize/types.js';

function tensor(name: string, ...shape: number[]): SourceTensor {
  const elements = shape.reduce((product, size) => product * size, 1);
  const read = () => Promise.reject(new Error('no tensor is read to choose types'));
  return { name, type: 'F16', shape, elements, unit: 1, read };
}

function model(tensors: readonly SourceTensor[], experts = 0): SourceModel {
  const metadata = new Map([['llama.expert_count', { kind: 'uint32', value: experts } as const]]);
  const rest = { notices: [], paths: [], close: () => Promise.resolve() };
  return { name: 'test', architecture: 'llama', metadata, tensors, ...rest };
}

/** The names that each type was chosen for. */
function chosen(source: SourceModel, type: QuantizeType): Map<string, string> {
  return new Map(chooseTypes(source, type).choices.map((choice) => [choice.tensor.name, choice.type]));
}

function decoder(layers: number, feed = ''): SourceTensor[] {
  const block = (i: number) =>
    ['attn_q', 'attn_k', 'attn_v', 'attn_output', `ffn_gate${feed}`, `ffn_up${feed}`, `ffn_down${feed}`].map(
      (name) => tensor(`blk.${i}.${name}.weight`, 256, 256, ...(name.endsWith('_exps') ? [8] : [])),
    );
  return [
    tensor('token_embd.weight', 256, 1000),
    ...Array.from({ length: layers }, (_, i) => block(i)).flat(),
  ];
}

function layersOf(types: ReadonlyMap<string, string>, name: string, type: string): number[] {
  return [...types].flatMap(([key, value]) => {
    const layer = new RegExp(`^blk\\.(\\d+)\\.${name}\\.weight$`).exec(key)?.[1];
    return layer !== undefined && value === type ? [Number(layer)] : [];
  });
}

describe('the mixture Q4_K_M', () => {
  // As in the published Q4_K_M files of Llama models of 32 layers.
  const SENSITIVE = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31];

  it('gives the logits, and values and feed-forward outputs of some layers, Q6_K', () => {
    const types = chosen(model([...decoder(32), tensor('output.weight', 256, 1000)]), 'Q4_K_M');
    expect(types.get('output.weight')).toBe('Q6_K');
    expect(types.get('token_embd.weight')).toBe('Q4_K');
    expect(layersOf(types, 'attn_v', 'Q6_K')).toEqual(SENSITIVE);
    expect(layersOf(types, 'ffn_down', 'Q6_K')).toEqual(SENSITIVE);
    for (const name of ['attn_q', 'attn_k', 'attn_output', 'ffn_gate', 'ffn_up'])
      expect(layersOf(types, name, 'Q4_K')).toHaveLength(32);
  });

  it('gives Q6_K to token embeddings that make the logits', () => {
    expect(chosen(model(decoder(2)), 'Q4_K_M').get('token_embd.weight')).toBe('Q6_K');
  });

  it('spends more on attention where there are eight experts', () => {
    const types = chosen(model(decoder(8, '_exps'), 8), 'Q4_K_M');
    expect(layersOf(types, 'attn_[kv]', 'Q8_0')).toHaveLength(16);
    expect(layersOf(types, 'attn_output', 'Q6_K')).toHaveLength(8);
    expect(layersOf(types, 'ffn_down_exps', 'Q6_K')).toEqual([0, 3, 6, 7]);
  });
});

describe('any type', () => {
  it('leaves vectors, norms, biases and routers F32', () => {
    const tensors = [
      tensor('blk.0.attn_norm.weight', 256),
      tensor('blk.0.attn_q_norm.weight', 64, 4),
      tensor('blk.0.attn_q.bias', 256),
      tensor('rope_freqs.weight', 32),
      tensor('blk.0.ffn_gate_inp.weight', 256, 8),
      tensor('one.weight', 256, 1, 1),
    ];
    for (const type of ['F16', 'Q4_0', 'Q4_K_M'] as const)
      expect(new Set(chosen(model(tensors), type).values())).toEqual(new Set(['F32']));
  });

  it('falls back, and says so, where rows are no whole blocks', () => {
    const tensors = [tensor('a.weight', 96, 4), tensor('b.weight', 96, 4), tensor('c.weight', 40, 4)];
    const { choices, notices } = chooseTypes(model(tensors), 'Q6_K');
    expect(choices.map(({ type }) => type)).toEqual(['Q8_0', 'Q8_0', 'F16']);
    expect(notices).toEqual([
      '2 tensors: rows of 96 are not whole blocks of Q6_K: written as Q8_0',
      '1 tensor: rows of 40 are not whole blocks of Q6_K: written as F16',
    ]);
    expect(chooseTypes(model(tensors), 'Q4_0').choices.map(({ type }) => type)).toEqual([
      'Q4_0',
      'Q4_0',
      'F16',
    ]);
    expect(chooseTypes(model(tensors), 'BF16').notices).toEqual([]);
  });
});
