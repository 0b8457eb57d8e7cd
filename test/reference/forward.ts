/**
 * A decoder in float64, written from the papers and as plainly as possible: what the engine's logits
 * are measured against. It shares only the reader of the file's header with the engine, and neither
 * rounds activations nor quantises them.
 *
 * Llama: Touvron et al., 2023, arXiv:2302.13971; grouped heads: Ainslie et al., 2023, arXiv:2305.13245;
 * Qwen2: arXiv:2407.10671; Qwen3: arXiv:2505.09388; Gemma 2: arXiv:2408.00118; Gemma 3: arXiv:2503.19786.
 */
import type { GgufMetadata, GgufModel } from '../../ts/gguf/index.js';
import { latentAttention } from './latent.js';
import { gatedLayer, mixture, silu } from './mixture.js';
import { decode, isStoredType } from './numbers.js';
import { type Rotation, readLocalRotation, readRotation, rotate } from './rotation.js';
import { add, dot, linear, norm, split, type Vector, weight } from './vectors.js';

export interface FloatModel {
  readonly blocks: number;
  readonly width: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly valueDim: number;
  readonly eps: number;
  /** Positions that attention looks back over, the present one included. */
  readonly window: number;
  /** Whether a block has the window: others look back over all positions. */
  readonly isLocal: (block: number) => boolean;
  readonly rotation: Rotation;
  /** That of blocks with a window. */
  readonly localRotation: Rotation;
  /** Gemma's: scaled embeddings, GELU, norms after each branch. */
  readonly gemma: boolean;
  /** What scores and logits stay within. */
  readonly scoreCap: number;
  readonly logitCap: number;
  /** Values of the file's metadata by their names without the architecture's; undefined where it has none. */
  readonly number: (name: string) => number | undefined;
  readonly boolean: (name: string) => boolean | undefined;
  readonly architecture: string;
  readonly weights: ReadonlyMap<string, Float64Array>;
}

/** Reads the hyper-parameters and every tensor of a file. */
export async function readFloatModel(file: GgufModel): Promise<FloatModel> {
  const { metadata } = file;
  const architecture = metadata.string('general.architecture');
  const key = (name: string) => `${architecture}.${name}`;
  const width = metadata.number(key('embedding_length'));
  const heads = metadata.number(key('attention.head_count'));
  const headDim = metadata.optionalNumber(key('attention.key_length')) ?? width / heads;
  const weights = new Map<string, Vector>();
  for (const { name, type, part, offset, bytes } of file.tensors.values()) {
    const source = file.parts[part];
    if (source === undefined || !isStoredType(type)) throw new Error(`${name} has the type ${type}`);
    weights.set(name, decode(type, await source.read(offset, bytes)));
  }
  const gemma = architecture.startsWith('gemma');
  const alternating = gemma || architecture === 'gpt-oss';
  const infinite = Number.POSITIVE_INFINITY;
  const rotation = readRotation(metadata, headDim, weights.get('rope_freqs.weight'));
  return {
    blocks: metadata.number(key('block_count')),
    width,
    heads,
    kvHeads: metadata.optionalNumber(key('attention.head_count_kv')) ?? heads,
    headDim,
    valueDim: metadata.optionalNumber(key('attention.value_length')) ?? headDim,
    eps: metadata.number(key('attention.layer_norm_rms_epsilon')),
    window: metadata.optionalNumber(key('attention.sliding_window')) ?? infinite,
    isLocal: readPattern(metadata, alternating ? 2 : infinite),
    rotation,
    localRotation: architecture === 'gemma3' ? readLocalRotation(metadata, headDim) : rotation,
    gemma,
    // Gemma 2's configuration has these where a file states none.
    scoreCap:
      metadata.optionalNumber(key('attn_logit_softcapping')) ?? (architecture === 'gemma2' ? 50 : infinite),
    logitCap:
      metadata.optionalNumber(key('final_logit_softcapping')) ?? (architecture === 'gemma2' ? 30 : infinite),
    number: (name) => metadata.optionalNumber(key(name)),
    boolean: (name) => metadata.optionalBoolean(key(name)),
    architecture,
    weights,
  };
}

/** Each `period`th block looks back over all positions, unless the file states another period, or each block's. */
function readPattern(metadata: GgufMetadata, period: number): FloatModel['isLocal'] {
  const key = `${metadata.string('general.architecture')}.attention.sliding_window_pattern`;
  const blocks = metadata.get(key)?.kind === 'array[bool]' ? metadata.booleans(key) : undefined;
  if (blocks !== undefined) return (block) => blocks[block] === 1;
  const stated = metadata.optionalNumber(key) ?? period;
  return (block) => (block + 1) % stated !== 0;
}

/** The logits after each of `positions`, by default all. */
export function forward(
  model: FloatModel,
  tokens: readonly number[],
  positions: readonly number[] = tokens.map((_, i) => i),
): Vector[] {
  const table = weight(model, 'token_embd.weight');
  const root = model.gemma ? Math.sqrt(model.width) : 1;
  const stream = tokens.map((token) =>
    table.slice(token * model.width, (token + 1) * model.width).map((value) => value * root),
  );
  const after = (name: string, x: Vector) => (model.gemma ? norm(model, `${name}.weight`, x) : x);
  for (let block = 0; block < model.blocks; block++) {
    const prefix = `blk.${block}.`;
    const latent = model.weights.has(`${prefix}attn_kv_a_mqa.weight`);
    const attended = latent ? latentAttention(model, prefix, stream) : attention(model, block, stream);
    for (const [i, x] of stream.entries()) {
      add(x, after(`${prefix}post_attention_norm`, attended[i] ?? x));
      add(x, after(`${prefix}post_ffw_norm`, feedForward(model, prefix, x)));
    }
  }
  const output = model.weights.has('output.weight') ? 'output' : 'token_embd';
  return positions.map((position) => {
    const x = stream[position];
    if (x === undefined) throw new Error(`there is no position ${position}`);
    const logits = linear(model, output, norm(model, 'output_norm.weight', x));
    return logits.map((logit) => cap(logit, model.logitCap));
  });
}

/** Causal attention of all positions, without the residual. */
function attention(model: FloatModel, index: number, stream: readonly Vector[]): Vector[] {
  const { heads, kvHeads, headDim, valueDim } = model;
  const block = `blk.${index}.`;
  const local = model.isLocal(index);
  const rotation = local ? model.localRotation : model.rotation;
  const window = local ? model.window : Number.POSITIVE_INFINITY;
  const normed = stream.map((x) => norm(model, `${block}attn_norm.weight`, x));
  // Each head is normalised, or, where the scale is as long as that, the row of all heads.
  const turned = (name: string) =>
    normed.map((x, position) => {
      const row = linear(model, `${block}attn_${name}`, x);
      const scale = `${block}attn_${name}_norm.weight`;
      const length = model.weights.get(scale)?.length;
      const value = length === row.length ? norm(model, scale, row) : row;
      return split(value, headDim).map((head) =>
        rotate(
          rotation,
          length === headDim && length !== row.length ? norm(model, scale, head) : head,
          position,
        ),
      );
    });
  const queries = turned('q');
  const keys = turned('k');
  const values = normed.map((x) => split(linear(model, `${block}attn_v`, x), valueDim));
  const sinks = model.weights.get(`${block}attn_sinks.weight`);
  return queries.map((query, position) => {
    const first = Math.max(0, position - window + 1);
    const out = new Float64Array(heads * valueDim);
    query.forEach((q, head) => {
      const group = Math.floor((head * kvHeads) / heads);
      const seen = (all: Vector[][]) => all.slice(first, position + 1).map((each) => each[group] ?? q);
      const scale = 1 / Math.sqrt(headDim);
      const result = attend(q, seen(keys), seen(values), {
        scale,
        limit: model.scoreCap,
        sink: sinks?.[head],
      });
      out.set(result, head * valueDim);
    });
    return linear(model, `${block}attn_output`, out);
  });
}

/**
 * One head at one position: values weighed by softmax(scale * q · k), the scores held within `limit`. A sink is a
 * score without a value.
 */
export function attend(
  query: Vector,
  keys: readonly Vector[],
  values: readonly Vector[],
  { scale, limit, sink }: { scale: number; limit: number; sink?: number | undefined },
): Vector {
  const scores = keys.map((key) => cap(dot(query, key, 0) * scale, limit));
  const all = sink === undefined ? scores : [...scores, sink];
  const most = Math.max(...all);
  const sum = all.reduce((total, score) => total + Math.exp(score - most), 0);
  const out = new Float64Array(values[0]?.length ?? 0);
  values.forEach((value, i) => {
    const share = Math.exp((scores[i] ?? 0) - most) / sum;
    for (const [j, each] of value.entries()) out[j] = (out[j] ?? 0) + share * each;
  });
  return out;
}

/** Soft capping (Bello et al., 2016, arXiv:1611.09940). */
function cap(x: number, limit: number): number {
  return limit === Number.POSITIVE_INFINITY ? x : limit * Math.tanh(x / limit);
}

/** SwiGLU, or with GELU in the approximation by tanh (Shazeer, 2020, arXiv:2002.05202), without the residual. */
function feedForward(model: FloatModel, block: string, x: Vector): Vector {
  const before = model.weights.has(`${block}ffn_norm.weight`) ? 'ffn_norm' : 'post_attention_norm';
  const normed = norm(model, `${block}${before}.weight`, x);
  if (model.weights.has(`${block}ffn_gate_inp.weight`)) return mixture(model, block, normed);
  return gatedLayer(model, block, '', normed, model.gemma ? gelu : silu);
}

function gelu(x: number): number {
  return (x / 2) * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
}
