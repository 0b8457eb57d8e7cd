import { describe, expect, it } from 'vitest';
import { tokenWork } from '../../ts/bench/work.js';
import { blobSource } from '../../ts/gguf/blob-source.js';
import { openGguf } from '../../ts/gguf/index.js';
import { buildPlan, type ModelPlan } from '../../ts/models/index.js';
import { printPlan } from '../../ts/plan/print.js';
import type { Plan } from '../../ts/plan/types.js';
import { mergedSpec } from '../contract/mixture-model.js';
import { type GgufSpec, writeGguf } from '../gguf/writer.js';
import { MIXTURES, type Mixture, mixtureModel, mixtureModelSpec } from '../reference/mixture-models.js';
import { checkPlan } from './check-plan.js';
import { modelFile, type Shapes, TENSOR_TYPES, tinyShapes, tinyValues, type Values } from './fixture.js';

async function built(kind: Mixture) {
  const file = await openGguf(blobSource(new Blob([mixtureModel(kind, 1, { matrices: ['Q8_0'] })])));
  return buildPlan(file, { tensorTypes: TENSOR_TYPES });
}

const experts = (plan: Plan) => plan.ops.flatMap((op) => (op.op === 'experts' ? [op] : []));
const attention = (plan: Plan) => plan.ops.flatMap((op) => (op.op === 'attention' ? [op] : []));

describe('plans of models with experts', () => {
  it.each(MIXTURES)('%s: shapes fit and every tensor is used', async (kind) => {
    checkPlan((await built(kind)).plan);
  });

  it('deepseek2: sigmoids where the file states no scoring but has a bias for the choice', async () => {
    const unstated = ({ metadata, tensors, ...rest }: GgufSpec, biased: boolean): GgufSpec => ({
      ...rest,
      metadata: metadata.filter(({ key }) => key !== 'deepseek2.expert_gating_func'),
      tensors: tensors.filter(({ name }) => biased || !`${name}`.endsWith('exp_probs_b.bias')),
    });
    for (const biased of [true, false]) {
      const spec = unstated(
        mixtureModelSpec('deepseek2, grouped sigmoids', 1, { matrices: ['Q8_0'] }),
        biased,
      );
      const file = await openGguf(blobSource(new Blob([writeGguf(spec).bytes])));
      const { plan } = buildPlan(file, { tensorTypes: TENSOR_TYPES });
      const [op] = experts(plan);
      expect(op?.scoring ?? 'softmax').toBe(biased ? 'sigmoid' : 'softmax');
      expect(op?.groups?.best).toBe(biased ? 2 : 1);
      expect(op?.selectionBias !== undefined).toBe(biased);
    }
  });

  it('qwen2moe: a shared expert behind a gate', async () => {
    const text = printPlan((await built('qwen2moe')).plan);
    const at = text.indexOf('shared_gate = linear(normed, blk.0.ffn_gate_inp_shexp.weight, precise)');
    const ops = text.slice(at).split('\n').slice(1, 4);
    expect(ops.map((line) => line.replace(/^\d+ /, ''))).toEqual([
      'shared = glu(normed, blk.0.ffn_gate_shexp.weight, blk.0.ffn_up_shexp.weight, silu)',
      'shared *= sigmoid(shared_gate)',
      'x += linear(shared, blk.0.ffn_down_shexp.weight)',
    ]);
  });

  it('deepseek2: a dense layer first, groups by their best, YaRN in the scores', async () => {
    const { plan, facts } = await built('deepseek2, one matrix for keys and values');
    expect(experts(plan)).toHaveLength(1);
    expect(experts(plan)[0]).toMatchObject({
      groups: { count: 4, used: 2, best: 1 },
      normalise: false,
      scale: 2,
    });
    expect(plan.kvLayers[0]).toEqual({ kvHeads: 4, headDim: 48, valueDim: 32 });
    expect(facts.kvBytesPerToken).toBe(2 * 4 * (48 + 32) * 2);
    expect(attention(plan)[0]).toMatchObject({ rope: 0, scale: 1 / Math.sqrt(48) });
    expect(plan.ropes[0]?.logMultiplier).toBeCloseTo(0.0707);
  });

  it('deepseek2: experts without one that all tokens share', async () => {
    const spec = mixtureModelSpec('deepseek2, grouped sigmoids', 1, { matrices: ['Q8_0'] });
    const file = {
      metadata: spec.metadata.map((entry) =>
        entry.key === 'deepseek2.expert_shared_count'
          ? ({ ...entry, kind: 'uint32', value: 0 } as const)
          : entry,
      ),
      tensors: spec.tensors.filter(({ name }) => !`${name}`.includes('_shexp')),
    };
    const opened = await openGguf(blobSource(new Blob([writeGguf(file).bytes])));
    const { plan } = buildPlan(opened, { tensorTypes: TENSOR_TYPES });
    checkPlan(plan);
    expect(experts(plan)).toHaveLength(2);
    expect(printPlan(plan)).not.toContain('shared');
  });

  it('deepseek2: one latent key for all heads where the file splits its matrices', async () => {
    const { plan, facts } = await built('deepseek2, grouped sigmoids');
    expect(plan.kvLayers[0]).toEqual({ kvHeads: 1, headDim: 80, valueDim: 64 });
    expect(facts.kvBytesPerToken).toBe(2 * (80 + 64) * 2);
    expect(experts(plan)[0]).toMatchObject({
      scoring: 'sigmoid',
      selectionBias: 'blk.0.exp_probs_b.bias',
      groups: { count: 4, used: 2, best: 2 },
      normalise: true,
      scale: 2.5,
    });
    expect(plan.tensors.find(({ name }) => name === 'blk.0.attn_k_b.weight')).toMatchObject({ experts: 4 });
    // Matrices of heads are not experts: every token reads them all.
    const stacks = plan.tensors.filter(({ name }) => name.includes('_exps.weight')).length;
    expect(stacks).toBe(6);
    expect(facts.weightBytes - facts.bytesPerToken).toBeGreaterThan(0);
    const unread = (2 * 3 * 128 * 64 * (8 - 3) * 34) / 32;
    const embedding = (128 * 299 * 34) / 32;
    expect(facts.weightBytes - facts.bytesPerToken).toBeCloseTo(unread + embedding);
  });

  it('gate and up in one tensor: the plan of two, its matrices in turn', async () => {
    const spec = mixtureModelSpec('gpt-oss', 1, { matrices: ['Q8_0'] });
    const of = async (each: GgufSpec) =>
      buildPlan(await openGguf(blobSource(new Blob([writeGguf(each).bytes]))), { tensorTypes: TENSOR_TYPES });
    const [two, one] = [await of(spec), await of(mergedSpec(spec))];
    checkPlan(one.plan);
    const merged = 'blk.0.ffn_gate_up_exps';
    const names = { gate: `${merged}.weight`, up: `${merged}.weight` };
    expect(experts(one.plan)[0]).toMatchObject({
      ...names,
      gateBias: `${merged}.bias`,
      upBias: `${merged}.bias`,
    });
    expect(one.plan.tensors.find(({ name }) => name === names.gate)).toMatchObject({ rows: 64, experts: 16 });
    expect(one.facts).toEqual(two.facts);
    const work = ({ plan, placements }: ModelPlan) => tokenWork(plan, (i) => placements[i]?.bytes ?? 0);
    expect(work(one)).toEqual(work(two));
  });

  it('gpt-oss: sinks, every other layer with a window, and biases', async () => {
    const { plan } = await built('gpt-oss');
    expect(attention(plan)).toMatchObject([
      { sinks: 'blk.0.attn_sinks.weight', window: 7 },
      { sinks: 'blk.1.attn_sinks.weight' },
    ]);
    expect(attention(plan)[1]).not.toHaveProperty('window');
    expect(experts(plan)[0]).toMatchObject({
      scoring: 'chosen',
      activation: 'clamped_swiglu',
      downBias: 'blk.0.ffn_down_exps.bias',
    });
    expect(plan.tensors.find(({ name }) => name === 'blk.0.ffn_up_exps.bias')).toMatchObject({
      rows: 1,
      cols: 64 * 8,
    });
  });
});

describe('routers that cannot be built are refused', () => {
  const refusal = (values: Values, shapes: Shapes = tinyShapes()) => {
    try {
      buildPlan(modelFile(values, shapes), { tensorTypes: TENSOR_TYPES });
    } catch (error) {
      return error;
    }
    return expect.fail('a plan was built');
  };
  const latent = {
    expert_count: 8,
    expert_used_count: 4,
    expert_shared_count: 1,
    'attention.key_length': 6,
    'attention.value_length': 4,
    'attention.kv_lora_rank': 8,
    'rope.dimension_count': 2,
  };
  const cases: [string, Values, string, RegExp][] = [
    ['an unknown scoring', { expert_gating_func: 9 }, 'UNSUPPORTED_FEATURE', /expert_gating_func to 9/],
    [
      'groups that do not divide the experts',
      { expert_group_count: 3, expert_group_used_count: 1 },
      'METADATA_INVALID',
      /expert_group_count/,
    ],
    [
      'groups too small to choose from',
      { expert_group_count: 4, expert_group_used_count: 1 },
      'METADATA_INVALID',
      /choose 4 experts/,
    ],
    ['groups without how many are used', { expert_group_count: 4 }, 'METADATA_MISSING', /group_used_count/],
    ['a broken number of dense layers', { leading_dense_block_count: -1 }, 'METADATA_INVALID', /dense/],
    [
      'scores stretched without YaRN',
      { 'rope.scaling.yarn_log_multiplier': 0.1 },
      'UNSUPPORTED_FEATURE',
      /without YaRN/,
    ],
    ['rotations of whole heads', { 'rope.dimension_count': 6 }, 'METADATA_INVALID', /below 6/],
  ];
  it.each(cases)('%s', (_, values, code, message) => {
    expect(refusal(tinyValues('deepseek2', { ...latent, ...values }))).toMatchObject({
      code,
      message: expect.stringMatching(message),
    });
  });

  const counted = { expert_count: 8, expert_used_count: 2 };
  it.each([
    ['llama', { expert_gating_func: 2 }, /expert_gating_func to 2/],
    ['qwen3moe', { expert_gating_func: 3 }, /expert_gating_func to 3/],
    ['gpt-oss', { expert_gating_func: 2 }, /expert_gating_func to 2/],
  ] as const)('%s with %o, which its router does not do', (architecture, values, message) => {
    expect(refusal(tinyValues(architecture, { ...counted, ...values }))).toMatchObject({
      code: 'UNSUPPORTED_FEATURE',
      message: expect.stringMatching(message),
    });
  });

  it.each([
    ['qwen3moe', { expert_gating_func: 1 }],
    ['olmoe', { expert_gating_func: 0 }],
    ['gpt-oss', { expert_gating_func: 3 }],
  ] as const)('%s may state what it does anyway: %o', (architecture, values) => {
    // What is missing is a tensor, not a router.
    expect(refusal(tinyValues(architecture, { ...counted, ...values }))).toMatchObject({
      code: 'MISSING_TENSOR',
    });
  });

  const router: Shapes = { 'ffn_gate_inp.weight': ['F32', 8, 8] };

  it('each expert of a layer by itself', () => {
    const shapes = tinyShapes({}, { ...router, 'ffn_gate.0.weight': ['Q8_0', 8, 12] });
    expect(refusal(tinyValues('llama', counted), shapes)).toMatchObject({
      code: 'UNSUPPORTED_FEATURE',
      message: expect.stringContaining('(blk.0.ffn_gate.0.weight)'),
      cure: expect.stringContaining('another conversion'),
    });
  });

  it.each([
    ['ffn_gate_up_exps.weight', [8, 12, 8], [8, 24, 8]],
    ['ffn_gate_up_exps.weight', [8, 24, 7], [8, 24, 8]],
    ['ffn_gate_up_exps.weight', [8, 24], [8, 24, 8]],
    ['ffn_gate_up_exps.weight', [24, 8, 8], [8, 24, 8]],
    ['ffn_gate_up_exps.weight', [8, 25, 8], [8, 24, 8]],
    ['ffn_gate_up_exps.bias', [12, 8], [24, 8]],
    ['ffn_gate_up_exps.bias', [192], [24, 8]],
  ] as const)('%s of the shape %j', (name, got, expected) => {
    const shapes = tinyShapes(
      {},
      { ...router, 'ffn_gate_up_exps.weight': ['Q8_0', 8, 24, 8], [name]: ['F32', ...got] },
    );
    expect(refusal(tinyValues('llama', counted), shapes)).toMatchObject({
      code: 'TENSOR_SHAPE',
      data: { tensor: `blk.0.${name}`, expected, got },
    });
  });

  it.each(
    ['ffn_gate_up_exps.weight', 'ffn_gate_up_exps.bias'].flatMap((merged) =>
      ['ffn_gate_exps.weight', 'ffn_up_exps.weight', 'ffn_gate_exps.bias', 'ffn_up_exps.bias'].map(
        (apart) => [merged, apart] as const,
      ),
    ),
  )('%s beside %s', (merged, apart) => {
    const shapes = tinyShapes({}, { ...router, [merged]: ['F32', 8, 24, 8], [apart]: ['F32', 8, 12, 8] });
    expect(refusal(tinyValues('llama', counted), shapes)).toMatchObject({
      code: 'UNSUPPORTED_FEATURE',
      data: { tensor: `blk.0.${merged}`, other: `blk.0.${apart}` },
      message: expect.stringContaining(`(blk.0.${merged}) and apart (blk.0.${apart})`),
    });
  });

  it('a file of latent attention without its rank', () => {
    const { 'attention.kv_lora_rank': _, ...rest } = latent;
    expect(refusal(tinyValues('deepseek2', rest))).toMatchObject({ code: 'METADATA_MISSING' });
  });
});
