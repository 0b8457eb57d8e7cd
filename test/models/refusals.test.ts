import { describe, expect, it } from 'vitest';
import { type ErrorCode, isFrugalError } from '../../ts/errors.js';
import { buildPlan } from '../../ts/models/index.js';
import {
  BIASES,
  modelFile,
  type Shapes,
  TENSOR_TYPES,
  tinyShapes,
  tinyValues,
  type Values,
} from './fixture.js';

function refusal(
  values: Values,
  shapes: Shapes,
  contextLength?: number,
): { code: ErrorCode; message: string } {
  try {
    const options = contextLength === undefined ? {} : { contextLength };
    buildPlan(modelFile(values, shapes), { tensorTypes: TENSOR_TYPES, ...options });
  } catch (error) {
    if (!isFrugalError(error)) throw error;
    expect(error.cure).not.toBe('');
    return { code: error.code, message: error.message };
  }
  return expect.fail('a plan was built');
}

function without(record: Shapes, name: string): Shapes;
function without(record: Values, name: string): Values;
function without(record: Shapes | Values, name: string): Shapes | Values {
  return Object.fromEntries(Object.entries(record).filter(([key]) => key !== name)) as Shapes | Values;
}

describe('architectures', () => {
  it('refuses an unknown one with the list of those known', () => {
    const { code, message } = refusal(tinyValues('gpt2'), tinyShapes());
    expect(code).toBe('UNKNOWN_ARCHITECTURE');
    expect(message).toBe(
      "the architecture 'gpt2' is not known; known are llama, qwen2, qwen3, qwen3moe, olmoe, qwen2moe, " +
        'deepseek2, gpt-oss, gemma2, gemma3',
    );
  });

  it('is not fooled by names of object properties', () => {
    for (const name of ['constructor', '__proto__', 'toString', '']) {
      expect(refusal(tinyValues(name), tinyShapes()).code).toBe('UNKNOWN_ARCHITECTURE');
    }
  });
});

describe('metadata', () => {
  const needed = [
    'block_count',
    'context_length',
    'embedding_length',
    'feed_forward_length',
    'attention.head_count',
    'attention.layer_norm_rms_epsilon',
    'vocab_size',
  ];
  it.each(needed)('needs %s', (key) => {
    const { code, message } = refusal(without(tinyValues('llama'), `llama.${key}`), tinyShapes());
    expect(code).toBe('METADATA_MISSING');
    expect(message).toContain(`llama.${key}`);
  });

  const wrong: [string, number | string][] = [
    ['block_count', 0],
    ['block_count', 4e9],
    ['block_count', 1000],
    ['block_count', 1.5],
    ['block_count', -1],
    ['block_count', 'two'],
    ['embedding_length', 2 ** 40],
    ['embedding_length', Number.NaN],
    ['feed_forward_length', 0],
    ['attention.head_count', 3],
    ['attention.head_count', 0],
    ['attention.head_count', 8],
    ['attention.head_count_kv', 3],
    ['attention.head_count_kv', 4],
    ['attention.key_length', 5],
    ['attention.key_length', 1e9],
    ['attention.layer_norm_rms_epsilon', 0],
    ['attention.layer_norm_rms_epsilon', -1],
    ['attention.layer_norm_rms_epsilon', Number.NaN],
    ['attention.layer_norm_rms_epsilon', 1],
    ['attention.sliding_window', -1],
    ['rope.dimension_count', 3],
    ['rope.dimension_count', 6],
    ['rope.freq_base', 0],
    ['rope.freq_base', Number.POSITIVE_INFINITY],
    ['rope.scaling.factor', -2],
    ['context_length', 0],
    ['vocab_size', 1e12],
  ];
  it.each(wrong)('refuses %s = %s', (key, value) => {
    const started = performance.now();
    const { code, message } = refusal(tinyValues('llama', { [key]: value }), tinyShapes());
    expect(code).toBe('METADATA_INVALID');
    expect(message).toMatch(/llama\.[a-z_.]+/);
    expect(performance.now() - started).toBeLessThan(100);
  });

  const lists: [string, number[]][] = [
    ['attention.head_count', [2, 4]],
    ['attention.head_count_kv', [1, 2]],
    ['attention.head_count_kv', []],
    ['feed_forward_length', [12, 0]],
    ['embedding_length', [8, 8]],
  ];
  it.each(lists)('refuses %s = %j', (key, value) => {
    const { code, message } = refusal(tinyValues('llama', { [key]: value }), tinyShapes());
    expect(code).toBe('METADATA_INVALID');
    expect(message).toContain(`"llama.${key}" should be a number, got array[uint8]`);
  });

  it.each([[[1]], [[1, 0, 1]], [[1, 2]], [[]]])(
    'refuses %j for which of two layers have a window',
    (list) => {
      const values = { 'attention.sliding_window': 16, 'attention.sliding_window_pattern': list };
      expect(refusal(tinyValues('gemma3', values), tinyShapes())).toEqual({
        code: 'METADATA_INVALID',
        message:
          'the metadata key gemma3.attention.sliding_window_pattern must be a number or a list of 2 booleans, ' +
          `got [${list}]`,
      });
    },
  );

  it('refuses a context that is not a sane number', () => {
    for (const context of [0, -1, 1.5, Number.NaN, 1e12]) {
      expect(refusal(tinyValues('llama'), tinyShapes(), context).code).toBe('INVALID_ARGUMENT');
    }
  });
});

describe('arithmetic that no plan describes', () => {
  const features: [string, number | string | boolean][] = [
    ['attention.causal', false],
    ['use_parallel_residual', true],
    ['attention.scale', 1],
    ['logit_scale', 0.5],
    ['residual_scale', 0.22],
    ['embedding_scale', 12],
    ['final_logit_softcapping', 30],
    ['attn_logit_softcapping', 1],
    ['attention.temperature_scale', 1],
    ['rope.dimension_count_swa', 2],
    ['attention.key_length_swa', 8],
    ['rope.scaling.type', 'dynamic'],
  ];
  it.each(features)('refuses %s = %s', (key, value) => {
    const { code, message } = refusal(tinyValues('llama', { [key]: value }), tinyShapes());
    expect(code).toBe('UNSUPPORTED_FEATURE');
    expect(message).toContain(`llama.${key}`);
  });

  it('names the experts of an architecture that has none', () => {
    const { code, message } = refusal(tinyValues('qwen2', { expert_count: 8 }), tinyShapes());
    expect(code).toBe('UNSUPPORTED_FEATURE');
    expect(message).toContain('8 experts');
  });

  it('refuses more chosen experts than there are, and files without the number', () => {
    const count = (more: Values) => refusal(tinyValues('llama', { expert_count: 8, ...more }), tinyShapes());
    expect(count({ expert_used_count: 9 })).toMatchObject({ code: 'METADATA_INVALID' });
    expect(count({})).toMatchObject({ code: 'METADATA_MISSING' });
    expect(refusal(tinyValues('qwen3moe'), tinyShapes())).toMatchObject({ code: 'METADATA_MISSING' });
  });

  it('accepts the same keys when they change nothing', () => {
    const values = tinyValues('llama', {
      expert_count: 0,
      logit_scale: 1,
      'attention.temperature_scale': 0,
      'attention.key_length_swa': 4,
      'attention.causal': true,
      'attention.scale': 0.5,
      'attention.value_length': 4,
    });
    expect(() => buildPlan(modelFile(values, tinyShapes()), { tensorTypes: TENSOR_TYPES })).not.toThrow();
  });

  it('refuses long factors where the architecture does not use them', () => {
    const values = tinyValues('qwen2', { 'rope.scaling.type': 'longrope' });
    expect(refusal(values, tinyShapes({}, BIASES)).code).toBe('UNSUPPORTED_FEATURE');
  });
});

describe('tensors', () => {
  it.each(Object.keys(tinyShapes()))('needs %s', (name) => {
    const { code, message } = refusal(tinyValues('llama'), without(tinyShapes(), name));
    expect(code).toBe('MISSING_TENSOR');
    expect(message).toContain(`${name} is missing; every llama model has it`);
  });

  it('needs head norms in qwen3, and of biases in qwen2 all or none', () => {
    const shapes = without(tinyShapes({}, BIASES), 'blk.1.attn_v.bias');
    expect(refusal(tinyValues('qwen2'), shapes)).toEqual({
      code: 'MISSING_TENSOR',
      message: 'the tensor blk.1.attn_v.bias is missing; the file has blk.1.attn_q.bias, which goes with it',
    });
    expect(refusal(tinyValues('qwen3'), tinyShapes()).message).toContain('blk.0.attn_q_norm.weight');
  });

  it('needs the factors that long-factor scaling speaks of', () => {
    const values = tinyValues('llama', { 'rope.scaling.type': 'longrope' });
    const { code, message } = refusal(values, tinyShapes());
    expect([code, message.includes('rope_factors_short.weight')]).toEqual(['MISSING_TENSOR', true]);
  });

  it('refuses a shape, with what was expected', () => {
    const shapes = tinyShapes({ 'blk.1.ffn_down.weight': ['Q8_0', 8, 12] });
    expect(refusal(tinyValues('llama'), shapes)).toEqual({
      code: 'TENSOR_SHAPE',
      message: 'the tensor blk.1.ffn_down.weight has the shape [8, 12], expected [12, 8]',
    });
    const threeDimensions = tinyShapes({ 'blk.0.attn_q.weight': ['Q8_0', 8, 8, 2] });
    expect(refusal(tinyValues('llama'), threeDimensions).code).toBe('TENSOR_SHAPE');
  });

  it('refuses embeddings of another size than the vocabulary', () => {
    const { code, message } = refusal(tinyValues('llama', { vocab_size: 17 }), tinyShapes());
    expect([code, message]).toEqual([
      'TENSOR_SHAPE',
      'the tensor token_embd.weight has the shape [8, 16], expected [8, 17]',
    ]);
  });

  it('refuses a type the backend lacks, with those it has', () => {
    const shapes = tinyShapes({ 'blk.0.ffn_up.weight': ['Q6_K', 8, 12] });
    expect(refusal(tinyValues('llama'), shapes)).toEqual({
      code: 'UNSUPPORTED_TENSOR_TYPE',
      message:
        'the tensor blk.0.ffn_up.weight has the type Q6_K; supported for it are F32, F16, BF16, Q8_0, Q4_0',
    });
  });

  it('refuses quantised norms and rotary factors that are not F32', () => {
    const norm = refusal(tinyValues('llama'), tinyShapes({ 'output_norm.weight': ['Q8_0', 8] }));
    expect(norm.code).toBe('UNSUPPORTED_TENSOR_TYPE');
    const factors = refusal(tinyValues('llama'), tinyShapes({ 'rope_freqs.weight': ['F16', 2] }));
    expect(factors.code).toBe('UNSUPPORTED_TENSOR_TYPE');
  });

  it('refuses Q, K and V as one tensor of another shape, or beside one of them', () => {
    const fused = { 'blk.0.attn_qkv.weight': ['Q8_0', 8, 16] } as const;
    expect(refusal(tinyValues('llama'), tinyShapes(fused))).toMatchObject({
      code: 'UNSUPPORTED_FEATURE',
      message: expect.stringContaining('blk.0.attn_qkv.weight'),
    });
    const shapes = Object.entries(tinyShapes(fused)).filter(([name]) => !/blk\.0\.attn_[qkv]\./.test(name));
    const wrong = { ...Object.fromEntries(shapes), 'blk.0.attn_qkv.weight': ['Q8_0', 8, 12] } as const;
    expect(refusal(tinyValues('llama'), wrong)).toEqual({
      code: 'TENSOR_SHAPE',
      message: 'the tensor blk.0.attn_qkv.weight has the shape [8, 12], expected [8, 16]',
    });
  });

  const extra = [
    'blk.0.attn_sub_norm.weight',
    'blk.1.ffn_sub_norm.weight',
    'blk.0.ffn_norm.bias',
    'blk.0.attn_q_norm.weight',
    'blk.0.attn_q.scale',
    'blk.2.attn_norm.weight',
    'cls.output.weight',
    'rope_factors_long.weight',
  ];
  it.each(extra)('refuses %s, which the plan would leave out', (name) => {
    const { code, message } = refusal(tinyValues('llama'), tinyShapes({ [name]: ['F32', 8] }));
    expect([code, message.includes(name)]).toEqual(['UNSUPPORTED_FEATURE', true]);
  });

  it('lets stored rotary frequencies be', () => {
    const shapes = tinyShapes({ 'blk.0.attn_rot_embd.weight': ['F32', 2] });
    expect(() =>
      buildPlan(modelFile(tinyValues('llama'), shapes), { tensorTypes: TENSOR_TYPES }),
    ).not.toThrow();
  });
});
