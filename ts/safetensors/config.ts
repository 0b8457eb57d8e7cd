import { FrugalError } from '../errors.js';
import type { GgufValue } from '../gguf/index.js';
import { unsupported } from '../models/keys.js';
import type { Fields } from './fields.js';

/** What config.json says, as far as the conversion needs it. */
export interface ModelConfig {
  /** `general.architecture` of the GGUF file. */
  readonly architecture: string;
  readonly layers: number;
  readonly hidden: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly feedForward: number;
  readonly vocabSize: number;
  /** 0 for none. */
  readonly experts: number;
  /** The output matrix is that of the token embeddings. */
  readonly tied: boolean;
  /** Factors of the rotary frequencies, where the model has its own. */
  readonly ropeFactors: Float32Array | undefined;
  readonly fields: Fields;
  readonly metadata: ReadonlyMap<string, GgufValue>;
}

/** `model_type` of config.json and the architecture of the GGUF file. */
const ARCHITECTURES: ReadonlyMap<string, string> = new Map([
  ['llama', 'llama'],
  ['mistral', 'llama'],
  ['mixtral', 'llama'],
  ['qwen2', 'qwen2'],
  ['qwen3', 'qwen3'],
]);

const text = (value: string): GgufValue => ({ kind: 'string', value: new TextEncoder().encode(value) });
const uint32 = (value: number): GgufValue => ({ kind: 'uint32', value });
const float32 = (value: number): GgufValue => ({ kind: 'float32', value });

/**
 * @param name the model's, for `general.name`
 * @throws FrugalError `UNKNOWN_ARCHITECTURE`, `UNSUPPORTED_FEATURE`, `METADATA_MISSING`, `METADATA_INVALID`
 */
export function readConfig(fields: Fields, name: string): ModelConfig {
  const modelType = fields.need('model_type', fields.string('model_type'));
  const architecture = architectureOf(modelType);
  const need = (key: string) => fields.need(key, fields.count(key));
  const hidden = need('hidden_size');
  const heads = need('num_attention_heads');
  const kvHeads = fields.count('num_key_value_heads') ?? heads;
  const headDim = fields.count('head_dim') ?? hidden / heads;
  if (heads % kvHeads !== 0) throw fields.invalid('num_key_value_heads', `a divisor of ${heads}`);
  if (headDim % 2 !== 0) throw fields.invalid('num_attention_heads', 'such that heads have an even size');
  const activation = fields.string('hidden_act') ?? 'silu';
  if (activation !== 'silu') throw unsupported(`config.json: the activation ${activation}`, { activation });
  const experts = modelType === 'mixtral' ? need('num_local_experts') : 0;
  const shape = {
    architecture,
    layers: need('num_hidden_layers'),
    hidden,
    heads,
    kvHeads,
    headDim,
    feedForward: need('intermediate_size'),
    vocabSize: need('vocab_size'),
    experts,
    tied: fields.boolean('tie_word_embeddings') ?? false,
    fields,
  };
  const metadata = new Map<string, GgufValue>([
    ['general.architecture', text(architecture)],
    ['general.type', text('model')],
    ['general.name', text(name)],
  ]);
  const set = (key: string, value: GgufValue) => void metadata.set(`${architecture}.${key}`, value);
  set('vocab_size', uint32(shape.vocabSize));
  set('context_length', uint32(need('max_position_embeddings')));
  set('embedding_length', uint32(hidden));
  set('block_count', uint32(shape.layers));
  set('feed_forward_length', uint32(shape.feedForward));
  set('attention.head_count', uint32(heads));
  set('attention.head_count_kv', uint32(kvHeads));
  set('attention.key_length', uint32(headDim));
  set('attention.value_length', uint32(headDim));
  set(
    'attention.layer_norm_rms_epsilon',
    float32(fields.need('rms_norm_eps', fields.positive('rms_norm_eps'))),
  );
  set('rope.dimension_count', uint32(headDim));
  if (experts > 0) {
    set('expert_count', uint32(experts));
    set('expert_used_count', uint32(need('num_experts_per_tok')));
  }
  const window = slidingWindow(fields, modelType);
  if (window !== undefined) set('attention.sliding_window', uint32(window));
  const ropeFactors = readRope(fields, headDim, set);
  return { ...shape, ropeFactors, metadata };
}

function architectureOf(modelType: string): string {
  const found = ARCHITECTURES.get(modelType);
  if (found !== undefined) return found;
  const known = [...ARCHITECTURES.keys()];
  const got = modelType.slice(0, 64);
  throw new FrugalError(
    'UNKNOWN_ARCHITECTURE',
    `config.json: the model type '${got}' is not known; known are ${known.join(', ')}`,
    { cure: `Convert a model whose type is one of ${known.join(', ')}.`, data: { architecture: got, known } },
  );
}

/** Of Mistral models; Qwen's have one that is switched off. */
function slidingWindow(fields: Fields, modelType: string): number | undefined {
  if (modelType === 'mistral' || modelType === 'mixtral') return fields.count('sliding_window');
  if (fields.boolean('use_sliding_window') === true)
    throw unsupported('config.json: a sliding window in some layers (use_sliding_window)', {});
  return undefined;
}

type Setter = (key: string, value: GgufValue) => void;

/** Newer files keep all of it in `rope_parameters`, older ones only what differs in `rope_scaling`. */
function readRope(fields: Fields, headDim: number, set: Setter): Float32Array | undefined {
  const scaling = fields.object('rope_parameters') ?? fields.object('rope_scaling');
  const base = fields.positive('rope_theta') ?? scaling?.positive('rope_theta') ?? 10_000;
  set('rope.freq_base', float32(base));
  const partial = fields.positive('partial_rotary_factor') ?? 1;
  if (partial !== 1) throw unsupported(`config.json: the partial_rotary_factor ${partial}`, { partial });
  const type = scaling?.string('rope_type') ?? scaling?.string('type') ?? 'default';
  if (scaling === undefined || type === 'default') return undefined;
  if (type === 'llama3') return llama3Factors(scaling, base, headDim);
  if (type !== 'linear' && type !== 'yarn') {
    const known = 'default, linear, yarn, llama3';
    throw unsupported(`config.json: rope scaling of the type '${type.slice(0, 64)}' (known are ${known})`, {
      type,
    });
  }
  set('rope.scaling.type', text(type));
  set('rope.scaling.factor', float32(scaling.need('factor', scaling.positive('factor'))));
  if (type === 'yarn') setYarn(scaling, fields, set);
  return undefined;
}

function setYarn(scaling: Fields, fields: Fields, set: Setter): void {
  for (const key of ['attention_factor', 'attn_factor', 'mscale', 'mscale_all_dim']) {
    if (scaling.raw(key) !== undefined) throw unsupported(`config.json: ${key} of rope scaling`, { key });
  }
  if (scaling.raw('truncate') === false)
    throw unsupported('config.json: truncate: false of rope scaling', { key: 'truncate' });
  const original =
    scaling.count('original_max_position_embeddings') ?? fields.count('max_position_embeddings');
  set('rope.scaling.original_context_length', uint32(fields.need('max_position_embeddings', original)));
  const fast = scaling.positive('beta_fast');
  const slow = scaling.positive('beta_slow');
  if (fast !== undefined) set('rope.scaling.yarn_beta_fast', float32(fast));
  if (slow !== undefined) set('rope.scaling.yarn_beta_slow', float32(slow));
}

/**
 * How much slower each pair turns in Llama 3.1 and later: pairs that turn often within the original
 * context as they did, those that never make a whole turn by `factor`, and a ramp in between.
 */
function llama3Factors(scaling: Fields, base: number, headDim: number): Float32Array {
  const need = (key: string) => scaling.need(key, scaling.positive(key));
  const factor = need('factor');
  const low = need('low_freq_factor');
  const high = need('high_freq_factor');
  const context = need('original_max_position_embeddings');
  if (high <= low) throw scaling.invalid('high_freq_factor', `above low_freq_factor, ${low}`);
  return Float32Array.from({ length: headDim / 2 }, (_, i) => {
    const turns = context / (2 * Math.PI * base ** ((2 * i) / headDim));
    if (turns > high) return 1;
    if (turns < low) return factor;
    const share = (turns - low) / (high - low);
    return 1 / ((1 - share) / factor + share);
  });
}
