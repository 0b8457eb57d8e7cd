import { describe, expect, it } from 'vitest';
import { architectures, buildPlan } from '../../ts/models/index.js';
import { printPlan } from '../../ts/plan/print.js';
import { checkPlan } from './check-plan.js';
import {
  BIASES,
  modelFile,
  NORMS,
  type Shapes,
  TENSOR_TYPES,
  tinyShapes,
  tinyValues,
  type Values,
} from './fixture.js';

const plan = (values: Values, shapes: Shapes, contextLength?: number) =>
  buildPlan(modelFile(values, shapes), {
    tensorTypes: TENSOR_TYPES,
    ...(contextLength === undefined ? {} : { contextLength }),
  });

/** The ops of one layer and of the end, as text. */
const opsOf = (text: string): string[] => text.split('\n').filter((line) => /^\d+ /.test(line));

describe('the plan of the smallest model of each architecture', () => {
  it('is this text for llama', () => {
    const built = plan(tinyValues('llama'), tinyShapes()).plan;
    checkPlan(built);
    expect(printPlan(built)).toBe(`plan 1 llama tiny: vocabulary 16, context 64
kv 0..1: 1 heads of 4
buffer x [tokens, 8]
buffer normed [tokens, 8]
buffer q [tokens, 8]
buffer k [tokens, 4]
buffer v [tokens, 4]
buffer attended [tokens, 8]
buffer gated [tokens, 12]
buffer selected [outputs, 8]
buffer hidden [outputs, 8]
rope 0 interleaved dims 4 base 10000
tensor token_embd.weight Q8_0 [16, 8]
tensor blk.0.attn_norm.weight F32 [1, 8]
tensor blk.0.attn_k.weight Q8_0 [4, 8]
tensor blk.0.attn_v.weight Q8_0 [4, 8]
tensor blk.0.attn_q.weight Q8_0 [8, 8]
tensor blk.0.attn_output.weight Q8_0 [8, 8]
tensor blk.0.ffn_norm.weight F32 [1, 8]
tensor blk.0.ffn_gate.weight Q8_0 [12, 8]
tensor blk.0.ffn_up.weight Q8_0 [12, 8]
tensor blk.0.ffn_down.weight Q8_0 [8, 12]
tensor blk.1.attn_norm.weight F32 [1, 8]
tensor blk.1.attn_k.weight Q8_0 [4, 8]
tensor blk.1.attn_v.weight Q8_0 [4, 8]
tensor blk.1.attn_q.weight Q8_0 [8, 8]
tensor blk.1.attn_output.weight Q8_0 [8, 8]
tensor blk.1.ffn_norm.weight F32 [1, 8]
tensor blk.1.ffn_gate.weight Q8_0 [12, 8]
tensor blk.1.ffn_up.weight Q8_0 [12, 8]
tensor blk.1.ffn_down.weight Q8_0 [8, 12]
tensor output_norm.weight F32 [1, 8]
0 x = embed(token_embd.weight)
1 normed = rms_norm(x, blk.0.attn_norm.weight, eps 0.00001)
2 k = linear(normed, blk.0.attn_k.weight, precise)
3 v = linear(normed, blk.0.attn_v.weight, precise)
4 q = linear(normed, blk.0.attn_q.weight)
5 q = rope(q, rope 0, head 4)
6 k = rope(k, rope 0, head 4)
7 attended = attention(q, k, v, layer 0, heads 2)
8 x += linear(attended, blk.0.attn_output.weight)
9 normed = rms_norm(x, blk.0.ffn_norm.weight, eps 0.00001)
10 gated = glu(normed, blk.0.ffn_gate.weight, blk.0.ffn_up.weight, silu)
11 x += linear(gated, blk.0.ffn_down.weight)
12 normed = rms_norm(x, blk.1.attn_norm.weight, eps 0.00001)
13 k = linear(normed, blk.1.attn_k.weight, precise)
14 v = linear(normed, blk.1.attn_v.weight, precise)
15 q = linear(normed, blk.1.attn_q.weight)
16 q = rope(q, rope 0, head 4)
17 k = rope(k, rope 0, head 4)
18 attended = attention(q, k, v, layer 1, heads 2)
19 x += linear(attended, blk.1.attn_output.weight)
20 normed = rms_norm(x, blk.1.ffn_norm.weight, eps 0.00001)
21 gated = glu(normed, blk.1.ffn_gate.weight, blk.1.ffn_up.weight, silu)
22 x += linear(gated, blk.1.ffn_down.weight)
23 selected = select_outputs(x)
24 hidden = rms_norm(selected, output_norm.weight, eps 0.00001)
25 logits(hidden, token_embd.weight)
hidden hidden
`);
  });

  it('has biases and half-split rotation for qwen2', () => {
    const built = plan(tinyValues('qwen2'), tinyShapes({}, BIASES)).plan;
    checkPlan(built);
    const text = printPlan(built);
    expect(text).toContain('rope 0 neox dims 4 base 10000\n');
    expect(opsOf(text).slice(2, 7)).toEqual([
      '2 k = linear(normed, blk.0.attn_k.weight, bias blk.0.attn_k.bias, precise)',
      '3 v = linear(normed, blk.0.attn_v.weight, bias blk.0.attn_v.bias, precise)',
      '4 q = linear(normed, blk.0.attn_q.weight, bias blk.0.attn_q.bias)',
      '5 q = rope(q, rope 0, head 4)',
      '6 k = rope(k, rope 0, head 4)',
    ]);
  });

  it('has no biases for a qwen2 file without them', () => {
    const built = plan(tinyValues('qwen2'), tinyShapes()).plan;
    checkPlan(built);
    expect(printPlan(built)).not.toContain('bias');
  });

  it('normalises heads before rotation for qwen3, with a head size of its own', () => {
    const values = tinyValues('qwen3', {
      'attention.key_length': 6,
      'attention.value_length': 6,
      'rope.freq_base': 1e6,
    });
    const shapes = tinyShapes(
      { 'output.weight': ['Q4_0', 8, 16] },
      {
        'attn_q.weight': ['Q8_0', 8, 12],
        'attn_k.weight': ['Q8_0', 8, 6],
        'attn_v.weight': ['Q8_0', 8, 6],
        'attn_output.weight': ['Q8_0', 12, 8],
        'attn_q_norm.weight': ['F32', 6],
        'attn_k_norm.weight': ['F32', 6],
      },
    );
    const built = plan(values, shapes).plan;
    checkPlan(built);
    const text = printPlan(built);
    expect(text).toContain('rope 0 neox dims 6 base 1000000\n');
    expect(text).toContain('buffer q [tokens, 12]\n');
    expect(opsOf(text).slice(4, 10)).toEqual([
      '4 q = linear(normed, blk.0.attn_q.weight)',
      '5 q = rms_norm(q, blk.0.attn_q_norm.weight, eps 0.00001)',
      '6 k = rms_norm(k, blk.0.attn_k_norm.weight, eps 0.00001)',
      '7 q = rope(q, rope 0, head 6)',
      '8 k = rope(k, rope 0, head 6)',
      '9 attended = attention(q, k, v, layer 0, heads 2)',
    ]);
    expect(opsOf(text).at(-1)).toBe('29 logits(hidden, output.weight)');
  });
});

describe('Gemma', () => {
  const POST = { 'post_attention_norm.weight': ['F32', 8], 'post_ffw_norm.weight': ['F32', 8] } as const;
  const build = (architecture: string, values: Values, perLayer: Shapes, blocks = 2) =>
    plan(
      tinyValues(architecture, { block_count: blocks, 'attention.sliding_window': 16, ...values }),
      tinyShapes({}, { ...POST, ...perLayer }, blocks),
    ).plan;

  it('2: scaled embeddings, norms after each branch, caps, and a window in every other layer', () => {
    const built = build('gemma2', {}, {});
    checkPlan(built);
    const stated = build('gemma2', { attn_logit_softcapping: 50, final_logit_softcapping: 30 }, {});
    expect(printPlan(stated)).toBe(printPlan(built));
    const none = printPlan(build('gemma2', { attn_logit_softcapping: 0, final_logit_softcapping: 0 }, {}));
    expect(none).not.toContain('softcap');
    const other = printPlan(build('gemma2', { 'rope.freq_base_swa': 500 }, {}));
    expect(other).toContain('rope 1 neox dims 4 base 500\n');
    const text = printPlan(built);
    expect(text).toContain(`x = embed(token_embd.weight, scale ${Math.sqrt(8)})`);
    expect(text).toContain('attended = attention(q, k, v, layer 0, heads 2, window 16, softcap 50)');
    expect(text).toContain('attended = attention(q, k, v, layer 1, heads 2, softcap 50)');
    expect(text).toContain('glu(normed, blk.0.ffn_gate.weight, blk.0.ffn_up.weight, gelu)');
    expect(text).toContain('logits(hidden, token_embd.weight, softcap 30)');
    const ops = opsOf(text).map((line) => line.replace(/^\d+ /, ''));
    const at = ops.indexOf('branch = linear(attended, blk.0.attn_output.weight)');
    expect(ops.slice(at + 1, at + 3)).toEqual([
      'branch = rms_norm(branch, blk.0.post_attention_norm.weight, eps 0.00001)',
      'x += branch',
    ]);
  });

  it('3: five layers with a window and a rotation of their own, then one without', () => {
    const values = { 'rope.freq_base': 1e6, 'rope.scaling.type': 'linear', 'rope.scaling.factor': 8 };
    const built = build('gemma3', values, NORMS, 7);
    checkPlan(built);
    const windows = built.ops.flatMap((op) => (op.op === 'attention' ? [op.window] : []));
    expect(windows).toEqual([16, 16, 16, 16, 16, undefined, 16]);
    const turns = built.ops.flatMap((op) => (op.op === 'rope' && op.x === 'k' ? [op.rope] : []));
    expect(turns).toEqual([1, 1, 1, 1, 1, 0, 1]);
    expect(built.ropes).toMatchObject([
      { base: 1e6, factor: 8 },
      { base: 10_000, factor: 1 },
    ]);
  });

  it("3: Ollama's names of keys are others' for the same", () => {
    const scaling = { 'rope.scaling.type': 'yarn', 'rope.scaling.factor': 4 };
    const ours = {
      ...scaling,
      'attention.sliding_window_pattern': 2,
      'rope.freq_base': 1e6,
      'rope.freq_base_swa': 500,
      'rope.scaling.yarn_ext_factor': 0.5,
      'rope.scaling.yarn_beta_fast': 64,
      'rope.scaling.yarn_beta_slow': 2,
    };
    const ollamas = {
      ...scaling,
      'attention.sliding_window_pattern': [true, false, true],
      'rope.global.freq_base': 1e6,
      'rope.local.freq_base': 500,
      'rope.scaling.extrapolation_factor': 0.5,
      'rope.scaling.beta_fast': 64,
      'rope.scaling.beta_slow': 2,
    };
    const built = build('gemma3', ollamas, NORMS, 3);
    expect(built).toEqual(build('gemma3', ours, NORMS, 3));
    expect(built.ropes).toMatchObject([
      { base: 1e6, factor: 4, extFactor: 0.5, betaFast: 64, betaSlow: 2 },
      { base: 500, factor: 1 },
    ]);
  });

  it('3: layers with a window are those that the file lists', () => {
    const pattern = { 'attention.sliding_window_pattern': [true, false, false, true] };
    const windows = (values: Values) =>
      build('gemma3', values, NORMS, 4).ops.flatMap((op) => (op.op === 'attention' ? [op.window] : []));
    expect(windows(pattern)).toEqual([16, undefined, undefined, 16]);
    expect(windows({ 'attention.sliding_window_pattern': [1, 0, 0, 1] })).toEqual(windows(pattern));
  });

  it('3: without a window all layers are alike', () => {
    const built = build('gemma3', { 'attention.sliding_window': 0, 'rope.freq_base': 1e6 }, NORMS);
    expect(built.ropes).toHaveLength(1);
    expect(built.ops.flatMap((op) => (op.op === 'attention' ? [op.window] : []))).toEqual([
      undefined,
      undefined,
    ]);
  });

  it('of 46 blocks scales scores by the embedding', () => {
    const shape = { 'attention.key_length': 6, 'attention.value_length': 6 };
    const heads = {
      'attn_q.weight': ['Q8_0', 8, 12],
      'attn_k.weight': ['Q8_0', 8, 6],
      'attn_v.weight': ['Q8_0', 8, 6],
      'attn_output.weight': ['Q8_0', 12, 8],
    } as const;
    const scale = (blocks: number) =>
      build('gemma2', shape, heads, blocks).ops.flatMap((op) => (op.op === 'attention' ? [op.scale] : []))[0];
    expect(scale(46)).toBe(1 / Math.sqrt(8 / 2));
    expect(scale(45)).toBeUndefined();
  });
});

/** The tensors of a small file whose feed-forward layers are mixtures of four experts of width 6. */
function expertShapes(perLayer: Shapes): Shapes {
  const dense = /\.ffn_(gate|up|down)\.weight$/;
  const shapes = Object.entries(
    tinyShapes(
      {},
      {
        'ffn_gate_inp.weight': ['F32', 8, 4],
        'ffn_gate_exps.weight': ['Q8_0', 8, 6, 4],
        'ffn_up_exps.weight': ['Q8_0', 8, 6, 4],
        'ffn_down_exps.weight': ['Q8_0', 6, 8, 4],
        ...perLayer,
      },
    ),
  );
  return Object.fromEntries(shapes.filter(([name]) => !dense.test(name)));
}

describe('mixtures of experts', () => {
  const counts = { expert_count: 4, expert_used_count: 2, expert_feed_forward_length: 6 };
  const plans: [string, Shapes, string[]][] = [
    ['llama', {}, [', normalised']],
    ['qwen3moe', NORMS, [', normalised', 'rms_norm(q, blk.0.attn_q_norm.weight']],
    ['olmoe', { 'attn_q_norm.weight': ['F32', 8], 'attn_k_norm.weight': ['F32', 4] }, ['top 2)']],
  ];
  it.each(plans)('of %s', (architecture, perLayer, parts) => {
    const built = plan(tinyValues(architecture, counts), expertShapes(perLayer)).plan;
    checkPlan(built);
    const text = printPlan(built);
    expect(text).toContain('gates = linear(normed, blk.0.ffn_gate_inp.weight, precise)');
    expect(text).toContain(
      'x += experts(normed, gates gates, blk.0.ffn_gate_exps.weight, blk.0.ffn_up_exps.weight, ' +
        'blk.0.ffn_down_exps.weight, silu, top 2',
    );
    for (const part of parts) expect(text).toContain(part);
    const stack = built.tensors.find(({ name }) => name === 'blk.0.ffn_down_exps.weight');
    expect(stack).toMatchObject({ rows: 8, cols: 6, experts: 4 });
  });
});

it.each([
  ['qwen3moe', {}, true],
  ['qwen3moe', { norm_top_k_prob: false }, false],
  ['qwen3moe', { expert_weights_norm: false, norm_top_k_prob: true }, false],
  ['olmoe', {}, false],
  ['olmoe', { norm_top_k_prob: true }, true],
] as const)(
  '%s with %o divides the weights of experts by their sum: %s',
  (architecture, stated, expected) => {
    const counts = { expert_count: 4, expert_used_count: 2, expert_feed_forward_length: 6 };
    const norms: Shapes =
      architecture === 'qwen3moe'
        ? NORMS
        : { 'attn_q_norm.weight': ['F32', 8], 'attn_k_norm.weight': ['F32', 4] };
    const built = plan(tinyValues(architecture, { ...counts, ...stated }), expertShapes(norms)).plan;
    expect(built.ops.flatMap((op) => (op.op === 'experts' ? [op.normalise] : []))).toEqual([
      expected,
      expected,
    ]);
  },
);

describe('features a file may have', () => {
  it('takes numbers of layers that are all the same for the number', () => {
    const perLayer = {
      'attention.head_count': [2, 2],
      'attention.head_count_kv': [1, 1],
      feed_forward_length: [12, 12],
    };
    const built = plan(tinyValues('llama', perLayer), tinyShapes());
    expect(built).toEqual(plan(tinyValues('llama'), tinyShapes()));
  });

  it('takes biases where they are', () => {
    const shapes = tinyShapes(
      { 'output.bias': ['F32', 16] },
      {
        ...BIASES,
        'attn_output.bias': ['F32', 8],
        'ffn_gate.bias': ['F32', 12],
        'ffn_up.bias': ['BF16', 12],
        'ffn_down.bias': ['F16', 8],
      },
    );
    const built = plan(tinyValues('llama'), shapes).plan;
    checkPlan(built);
    const text = printPlan(built);
    expect(text).toContain('x += linear(attended, blk.1.attn_output.weight, bias blk.1.attn_output.bias)');
    expect(text).toContain(
      'gated = glu(normed, blk.1.ffn_gate.weight, blk.1.ffn_up.weight, silu, ' +
        'biases blk.1.ffn_gate.bias blk.1.ffn_up.bias)',
    );
    expect(text).toContain('x += linear(gated, blk.0.ffn_down.weight, bias blk.0.ffn_down.bias)');
    expect(text).toContain('logits(hidden, token_embd.weight, bias output.bias)');
  });

  it('reads Q, K and V from the tensor that holds the three', () => {
    const apart = plan(tinyValues('qwen2'), tinyShapes({}, BIASES));
    const fused = { 'attn_qkv.weight': ['Q8_0', 8, 16], 'attn_qkv.bias': ['F32', 16] } as const;
    const shapes = Object.entries(tinyShapes({}, fused)).filter(([name]) => !/attn_[qkv]\./.test(name));
    const built = plan(tinyValues('qwen2'), Object.fromEntries(shapes));
    checkPlan(built.plan);
    expect(built.plan).toEqual(apart.plan);
    expect(built.facts).toEqual(apart.facts);
    const placeOf = (name: string) => {
      const { offset = 0, bytes } =
        built.placements[built.plan.tensors.findIndex((each) => each.name === name)] ?? {};
      return { offset, bytes };
    };
    // The fixture counts two bytes for each number.
    for (const [kind, row] of [
      ['weight', 16],
      ['bias', 2],
    ] as const) {
      const q = placeOf(`blk.1.attn_q.${kind}`);
      expect(q.bytes).toBe(8 * row);
      expect(placeOf(`blk.1.attn_k.${kind}`)).toEqual({ offset: q.offset + 8 * row, bytes: 4 * row });
      expect(placeOf(`blk.1.attn_v.${kind}`)).toEqual({ offset: q.offset + 12 * row, bytes: 4 * row });
    }
  });

  it('slides a window only where it is shorter than the context', () => {
    const values = tinyValues('llama', { 'attention.sliding_window': 32 });
    const windows = (context: number) =>
      plan(values, tinyShapes(), context).plan.ops.flatMap((op) =>
        op.op === 'attention' ? [op.window] : [],
      );
    expect(windows(64)).toEqual([32, 32]);
    expect(windows(32)).toEqual([undefined, undefined]);
    const off = plan(tinyValues('llama', { 'attention.sliding_window': 0 }), tinyShapes());
    expect(printPlan(off.plan)).not.toContain('window');
  });

  it('has the window in layers that the file says, with a rotation of their own', () => {
    const built = (more: Values) =>
      plan(tinyValues('llama', { 'attention.sliding_window': 32, ...more }), tinyShapes()).plan;
    for (const pattern of [2, [true, false]]) {
      const { ops, ropes } = built({
        'attention.sliding_window_pattern': pattern,
        'rope.freq_base_swa': 500,
      });
      expect(ops.flatMap((op) => (op.op === 'attention' ? [op.window] : []))).toEqual([32, undefined]);
      expect(ops.flatMap((op) => (op.op === 'rope' && op.x === 'k' ? [op.rope] : []))).toEqual([1, 0]);
      expect(ropes).toMatchObject([{ base: 10_000 }, { base: 500 }]);
    }
    expect(printPlan(built({ 'attention.sliding_window_pattern': 1 }))).not.toContain('window');
  });

  it('divides frequencies by rope_freqs', () => {
    const built = plan(tinyValues('llama'), tinyShapes({ 'rope_freqs.weight': ['F32', 2] })).plan;
    checkPlan(built);
    expect(built.ropes[0]?.factors).toBe('rope_freqs.weight');
  });

  it('reads linear scaling by its new and its old key', () => {
    const factor = (more: Values) => plan(tinyValues('llama', more), tinyShapes()).plan.ropes[0];
    expect(factor({ 'rope.scaling.factor': 4 })).toMatchObject({ factor: 4, extFactor: 0 });
    expect(factor({ 'rope.scale_linear': 2 })).toMatchObject({ factor: 2, extFactor: 0 });
    expect(factor({ 'rope.scaling.type': 'none', 'rope.scaling.factor': 4 })).toMatchObject({ factor: 1 });
  });

  it('reads YaRN scaling with its defaults', () => {
    const values = tinyValues('qwen2', {
      'rope.scaling.type': 'yarn',
      'rope.scaling.factor': 4,
      'rope.scaling.original_context_length': 16,
    });
    const [rope] = plan(values, tinyShapes({}, BIASES)).plan.ropes;
    expect(rope).toEqual({
      dims: 4,
      base: 10_000,
      layout: 'neox',
      factor: 4,
      extFactor: 1,
      attnFactor: 1,
      betaFast: 32,
      betaSlow: 1,
      originalContext: 16,
    });
  });

  it('takes the usual length of YaRN for what it is, and another for a factor', () => {
    const attnFactor = (stated: number, type = 'yarn') =>
      plan(
        tinyValues('qwen2', {
          'rope.scaling.type': type,
          'rope.scaling.factor': 4,
          'rope.scaling.original_context_length': 16,
          'rope.scaling.yarn_attn_factor': stated,
        }),
        tinyShapes({}, BIASES),
      ).plan.ropes[0]?.attnFactor;
    expect(attnFactor(Math.fround(1 + 0.1 * Math.log(4)))).toBe(1);
    expect(attnFactor(1)).toBe(1);
    expect(attnFactor(1.5)).toBe(1.5);
    expect(attnFactor(Math.fround(1 + 0.1 * Math.log(4)), 'linear')).toBeCloseTo(1.1386);
  });

  it('leaves out blocks that predict further tokens', () => {
    const values = tinyValues('llama', { block_count: 2, nextn_predict_layers: 1 });
    const { plan: built, facts } = plan(
      values,
      tinyShapes({ 'blk.1.nextn.eh_proj.weight': ['F32', 8, 8] }, {}, 1),
    );
    checkPlan(built);
    expect(facts.blockCount).toBe(1);
    expect(() =>
      plan(tinyValues('llama', { block_count: 1, nextn_predict_layers: 1 }), tinyShapes()),
    ).toThrow('llama.nextn_predict_layers must be a whole number below the 1 blocks');
  });

  it('chooses long factors beyond the original context and short ones within', () => {
    const values = tinyValues('llama', {
      'rope.scaling.type': 'longrope',
      'rope.scaling.original_context_length': 32,
      'rope.scaling.attn_factor': 1.25,
    });
    const shapes = tinyShapes({
      'rope_factors_long.weight': ['F32', 2],
      'rope_factors_short.weight': ['F32', 2],
    });
    for (const [context, name] of [
      [32, 'rope_factors_short.weight'],
      [33, 'rope_factors_long.weight'],
    ] as const) {
      const built = plan(values, shapes, context).plan;
      checkPlan(built);
      expect(built.ropes[0]).toMatchObject({ factors: name, attnFactor: 1.25, extFactor: 0 });
    }
  });

  it('takes as many KV heads as heads, and the embedding split over heads, when the keys are absent', () => {
    const { 'llama.attention.head_count_kv': _, ...values } = tinyValues('llama');
    const shapes = tinyShapes({}, { 'attn_k.weight': ['Q8_0', 8, 8], 'attn_v.weight': ['Q8_0', 8, 8] });
    const built = plan(values, shapes);
    checkPlan(built.plan);
    expect(built.plan.kvLayers[0]).toEqual({ kvHeads: 2, headDim: 4 });
  });
});

describe('facts', () => {
  it('count parameters, bytes and caches', () => {
    const shapes = tinyShapes({ 'output.weight': ['Q8_0', 8, 16] });
    const { facts, placements, plan: built } = plan(tinyValues('llama'), shapes);
    const layer = 8 + 64 + 32 + 32 + 64 + 8 + 96 + 96 + 96;
    const parameters = 128 + 128 + 8 + 2 * layer;
    expect(facts).toEqual({
      architecture: 'llama',
      name: 'tiny',
      parameters,
      trainedContext: 64,
      contextLength: 64,
      vocabSize: 16,
      embeddingLength: 8,
      blockCount: 2,
      heads: 2,
      kvHeads: 1,
      weightBytes: parameters * 2,
      bytesPerToken: parameters * 2 - 256 + 16,
      expertLayers: [],
      expertBytes: 0,
      kvBytesPerToken: 2 * (4 + 4) * 2,
      kvCache: 'f16',
      notes: [],
    });
    expect(placements.map((placement) => placement.tensor)).toEqual(built.tensors.map((_, index) => index));
  });

  it('read the whole table for logits when it serves as the output', () => {
    const { facts } = plan(tinyValues('llama'), tinyShapes());
    expect(facts.bytesPerToken).toBe(facts.weightBytes);
  });

  it('cap the default context and note one that is longer than trained', () => {
    const long = tinyValues('llama', { context_length: 131_072 });
    expect(plan(long, tinyShapes()).facts).toMatchObject({ contextLength: 4096, notes: [] });
    expect(plan(long, tinyShapes(), 131_072).facts).toMatchObject({ contextLength: 131_072, notes: [] });
    const beyond = plan(tinyValues('llama'), tinyShapes(), 100);
    expect(beyond.plan.contextLength).toBe(100);
    expect(beyond.facts.notes).toEqual([
      'the context of 100 is longer than the 64 that the model was trained for',
    ]);
  });

  it('list every architecture that has a plan', () => {
    expect(architectures).toEqual([
      'llama',
      'qwen2',
      'qwen3',
      'qwen3moe',
      'olmoe',
      'qwen2moe',
      'deepseek2',
      'gpt-oss',
      'gemma2',
      'gemma3',
    ]);
    expect(() => plan(tinyValues('qwen3'), tinyShapes({}, NORMS))).not.toThrow();
  });
});
