/**
 * Random models of every architecture with mixtures of experts, small enough for the float reference. Weights follow
 * from a seed by exact arithmetic.
 */
import { createRandom } from '../gguf/random.js';
import { tinyLlamaSpec } from '../gguf/tiny-llama.js';
import { type Entry, type GgufSpec, type TensorSpec, writeGguf } from '../gguf/writer.js';
import { encode, type StoredType } from './numbers.js';

export const MIXTURES = [
  'llama',
  'qwen3moe',
  'olmoe',
  'qwen2moe',
  'deepseek2, one matrix for keys and values',
  'deepseek2, grouped sigmoids',
  'gpt-oss',
] as const;
export type Mixture = (typeof MIXTURES)[number];

export interface MixtureTypes {
  /** Types of the matrices, in turn. */
  readonly matrices: readonly StoredType[];
  /** @default the matrices' */
  readonly experts?: StoredType;
  /** Of the experts' up matrices. @default the experts' */
  readonly ups?: StoredType;
}

const WIDTH = 128;
const FEED_FORWARD = 96;
const HEADS = 4;
const KV_HEADS = 2;
const HEAD_DIM = 32;
const EXPERTS = 8;
const EXPERT_WIDTH = 64;
const SHARED_WIDTH = 96;
const CONTEXT = 512;
/** Of latent attention. */
const TURNED = 16;
const KEPT = 32;
const RANK = 64;
const QUERY_RANK = 96;

/** The bytes of a GGUF file. */
export function mixtureModel(kind: Mixture, seed: number, types: MixtureTypes): Uint8Array<ArrayBuffer> {
  return writeGguf(mixtureModelSpec(kind, seed, types)).bytes;
}

export function mixtureModelSpec(kind: Mixture, seed: number, types: MixtureTypes): GgufSpec {
  const make = createMaker(seed, types);
  const tensors = [
    make.matrix('token_embd', WIDTH, VOCABULARY, 2),
    ...Array.from({ length: BLOCKS }, (_, i) => block(make, kind, i)).flat(),
    make.vector('output_norm.weight', WIDTH),
    make.matrix('output', WIDTH, VOCABULARY, 2),
  ];
  return { metadata: metadata(kind), tensors };
}

const VOCABULARY = 300;
const BLOCKS = 2;

type Numbers = Readonly<Record<string, number>>;

/** Numbers that every architecture's file has, and then those of each. */
function numbersOf(kind: Mixture): Numbers {
  const heads = {
    'attention.head_count_kv': KV_HEADS,
    'attention.key_length': HEAD_DIM,
    'attention.value_length': HEAD_DIM,
    'rope.dimension_count': HEAD_DIM,
  };
  const latent = { 'attention.kv_lora_rank': RANK, 'rope.dimension_count': TURNED, expert_shared_count: 2 };
  const yarn = { 'rope.scaling.factor': 4, 'rope.scaling.original_context_length': CONTEXT / 4 };
  switch (kind) {
    case 'llama':
    case 'qwen3moe':
    case 'olmoe':
      return heads;
    case 'qwen2moe':
      return { ...heads, expert_shared_feed_forward_length: SHARED_WIDTH };
    case 'deepseek2, one matrix for keys and values':
      return {
        ...latent,
        ...yarn,
        'rope.scaling.yarn_log_multiplier': 0.0707,
        'attention.head_count_kv': HEADS,
        'attention.key_length': KEPT + TURNED,
        'attention.value_length': HEAD_DIM,
        leading_dense_block_count: 1,
        expert_weights_scale: 2,
        expert_group_count: 4,
        expert_group_used_count: 2,
      };
    case 'deepseek2, grouped sigmoids':
      return {
        ...latent,
        ...yarn,
        'rope.scaling.yarn_log_multiplier': 0.1,
        'attention.q_lora_rank': QUERY_RANK,
        'attention.head_count_kv': 1,
        'attention.key_length': RANK + TURNED,
        'attention.value_length': RANK,
        'attention.key_length_mla': KEPT + TURNED,
        'attention.value_length_mla': HEAD_DIM,
        expert_weights_scale: 2.5,
        expert_gating_func: 2,
        expert_group_count: 4,
        expert_group_used_count: 2,
      };
    case 'gpt-oss':
      return { ...heads, ...yarn, 'attention.sliding_window': 7 };
  }
}

const architectureOf = (kind: Mixture) => kind.split(',')[0] ?? kind;

function metadata(kind: Mixture): Entry[] {
  const architecture = architectureOf(kind);
  const numbers: Numbers = {
    vocab_size: VOCABULARY,
    context_length: CONTEXT,
    embedding_length: WIDTH,
    block_count: BLOCKS,
    feed_forward_length: FEED_FORWARD,
    'attention.head_count': HEADS,
    'rope.freq_base': 10_000,
    'attention.layer_norm_rms_epsilon': 1e-5,
    expert_count: EXPERTS,
    expert_used_count: 3,
    expert_feed_forward_length: EXPERT_WIDTH,
    ...numbersOf(kind),
  };
  const entries = Object.entries(numbers).map(([name, value]): Entry => {
    const float = !Number.isInteger(value) || /(base|scale|factor)$/.test(name);
    return { key: `${architecture}.${name}`, kind: float ? 'float32' : 'uint32', value };
  });
  return [
    { key: 'general.architecture', kind: 'string', value: architecture },
    ...entries,
    ...('rope.scaling.factor' in numbers
      ? [{ key: `${architecture}.rope.scaling.type`, kind: 'string', value: 'yarn' } as const]
      : []),
    ...(kind === 'deepseek2, grouped sigmoids'
      ? [{ key: `${architecture}.expert_weights_norm`, kind: 'bool', value: true } as const]
      : []),
    ...tinyLlamaSpec({ everyKind: false }).metadata.filter(({ key }) => String(key).startsWith('tokenizer.')),
  ];
}

interface Maker {
  /** Of the next type, entries of a deviation of `gain` / sqrt(inputs). */
  matrix(name: string, inputs: number, outputs: number, gain?: number): TensorSpec;
  /** Of the last matrix's type. */
  twin(name: string, inputs: number, outputs: number): TensorSpec;
  stack(name: string, inputs: number, outputs: number, gain?: number): TensorSpec;
  /** A stack of one matrix for each head. */
  heads(name: string, inputs: number, outputs: number, gain?: number): TensorSpec;
  vector(name: string, length: number, mean?: number, deviation?: number): TensorSpec;
  /** F32 whatever the types. */
  floats(name: string, shape: readonly number[], mean: number, deviation: number): TensorSpec;
}

function createMaker(
  seed: number,
  { matrices, experts = matrices[0] ?? 'F32', ups = experts }: MixtureTypes,
): Maker {
  const random = createRandom(seed);
  const values = (count: number, mean: number, deviation: number) =>
    Float64Array.from({ length: count }, () => mean + (random() - 0.5) * Math.sqrt(12) * deviation);
  const tensor = (
    name: string,
    type: StoredType,
    shape: readonly number[],
    mean: number,
    deviation: number,
  ): TensorSpec => {
    const count = shape.reduce((a, b) => a * b, 1);
    return { name, type, shape, data: encode(type, values(count, mean, deviation)) };
  };
  let made = 0;
  const last = (): StoredType => matrices[made % matrices.length] ?? 'F32';
  const next = (): StoredType => {
    made += 1;
    return last();
  };
  const of = (name: string, type: StoredType, shape: readonly number[], gain: number) =>
    tensor(`${name}.weight`, type, shape, 0, gain / Math.sqrt(shape[0] ?? 1));
  return {
    matrix: (name, inputs, outputs, gain = 1) => of(name, next(), [inputs, outputs], gain),
    twin: (name, inputs, outputs) => of(name, last(), [inputs, outputs], 1),
    stack: (name, inputs, outputs, gain = 1) =>
      of(name, name.endsWith('ffn_up_exps') ? ups : experts, [inputs, outputs, EXPERTS], gain),
    heads: (name, inputs, outputs, gain = 1) => of(name, next(), [inputs, outputs, HEADS], gain),
    vector: (name, length, mean = 1, deviation = 0.1) => tensor(name, 'F32', [length], mean, deviation),
    floats: (name, shape, mean, deviation) => tensor(name, 'F32', shape, mean, deviation),
  };
}

function block(make: Maker, kind: Mixture, index: number): TensorSpec[] {
  const at = `blk.${index}.`;
  const dense = kind === 'deepseek2, one matrix for keys and values' && index === 0;
  const latent = architectureOf(kind) === 'deepseek2';
  return [
    make.vector(`${at}attn_norm.weight`, WIDTH),
    ...(latent ? latentTensors(make, kind, at) : headTensors(make, kind, at)),
    make.matrix(`${at}attn_output`, HEADS * HEAD_DIM, WIDTH, 0.3),
    make.vector(`${at}${kind === 'gpt-oss' ? 'post_attention_norm' : 'ffn_norm'}.weight`, WIDTH),
    ...(dense
      ? [
          make.matrix(`${at}ffn_gate`, WIDTH, FEED_FORWARD),
          make.twin(`${at}ffn_up`, WIDTH, FEED_FORWARD),
          make.matrix(`${at}ffn_down`, FEED_FORWARD, WIDTH, 0.3),
        ]
      : expertTensors(make, kind, at)),
  ];
}

/** Queries and keys large enough that attention has favourites. */
function headTensors(make: Maker, kind: Mixture, at: string): TensorSpec[] {
  const [q, kv] = [HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM];
  const norms = { llama: undefined, qwen3moe: [HEAD_DIM, HEAD_DIM], olmoe: [q, kv] }[kind as string];
  const biased = kind === 'qwen2moe' || kind === 'gpt-oss';
  return [
    make.matrix(`${at}attn_q`, WIDTH, q, 1.4),
    make.matrix(`${at}attn_k`, WIDTH, kv, 1.4),
    make.matrix(`${at}attn_v`, WIDTH, kv),
    ...(norms
      ? [
          make.vector(`${at}attn_q_norm.weight`, norms[0] ?? 0),
          make.vector(`${at}attn_k_norm.weight`, norms[1] ?? 0),
        ]
      : []),
    ...(biased
      ? [
          make.vector(`${at}attn_q.bias`, q, 0, 0.5),
          make.vector(`${at}attn_k.bias`, kv, 0, 0.5),
          make.vector(`${at}attn_v.bias`, kv, 0, 0.2),
        ]
      : []),
    ...(kind === 'gpt-oss'
      ? [
          make.vector(`${at}attn_output.bias`, WIDTH, 0, 0.2),
          make.vector(`${at}attn_sinks.weight`, HEADS, 1, 1),
        ]
      : []),
  ];
}

function latentTensors(make: Maker, kind: Mixture, at: string): TensorSpec[] {
  const queries = HEADS * (KEPT + TURNED);
  const common = [
    make.matrix(`${at}attn_kv_a_mqa`, WIDTH, RANK + TURNED, 1.4),
    make.vector(`${at}attn_kv_a_norm.weight`, RANK),
  ];
  if (kind !== 'deepseek2, grouped sigmoids') {
    return [
      make.matrix(`${at}attn_q`, WIDTH, queries, 1.4),
      ...common,
      make.matrix(`${at}attn_kv_b`, RANK, HEADS * (KEPT + HEAD_DIM), 1.4),
    ];
  }
  return [
    make.matrix(`${at}attn_q_a`, WIDTH, QUERY_RANK),
    make.vector(`${at}attn_q_a_norm.weight`, QUERY_RANK),
    make.matrix(`${at}attn_q_b`, QUERY_RANK, queries, 1.4),
    ...common,
    // Applied to queries, it is the transposed of what makes keys: a deviation for the rank it then sums over.
    make.heads(`${at}attn_k_b`, KEPT, RANK, 1.4 * Math.sqrt(KEPT / RANK)),
    make.heads(`${at}attn_v_b`, RANK, HEAD_DIM),
  ];
}

function expertTensors(make: Maker, kind: Mixture, at: string): TensorSpec[] {
  const shared = { qwen2moe: SHARED_WIDTH, deepseek2: 2 * EXPERT_WIDTH }[architectureOf(kind)];
  const biases = (name: string, length: number) =>
    make.floats(`${at}ffn_${name}_exps.bias`, [length, EXPERTS], 0, 0.5);
  return [
    make.floats(`${at}ffn_gate_inp.weight`, [WIDTH, EXPERTS], 0, 2 / Math.sqrt(WIDTH)),
    // Gates far enough apart that some values are clamped.
    make.stack(`${at}ffn_gate_exps`, WIDTH, EXPERT_WIDTH, kind === 'gpt-oss' ? 4 : 1),
    make.stack(`${at}ffn_up_exps`, WIDTH, EXPERT_WIDTH, kind === 'gpt-oss' ? 4 : 1),
    make.stack(`${at}ffn_down_exps`, EXPERT_WIDTH, WIDTH, kind === 'gpt-oss' ? 0.05 : 0.5),
    ...(shared === undefined
      ? []
      : [
          make.matrix(`${at}ffn_gate_shexp`, WIDTH, shared),
          make.twin(`${at}ffn_up_shexp`, WIDTH, shared),
          make.matrix(`${at}ffn_down_shexp`, shared, WIDTH, 0.5),
        ]),
    ...(kind === 'qwen2moe' ? [make.floats(`${at}ffn_gate_inp_shexp.weight`, [WIDTH], 0, 0.1)] : []),
    ...(kind === 'deepseek2, grouped sigmoids'
      ? [make.vector(`${at}exp_probs_b.bias`, EXPERTS, 0, 0.3)]
      : []),
    ...(kind === 'gpt-oss'
      ? [
          make.vector(`${at}ffn_gate_inp.bias`, EXPERTS, 0, 0.5),
          biases('gate', EXPERT_WIDTH),
          biases('up', EXPERT_WIDTH),
          biases('down', WIDTH),
        ]
      : []),
  ];
}
