/** Multi-head latent attention in float64 (DeepSeek-AI, 2024, arXiv:2405.04434, section 2.1), nothing absorbed. */
import { attend, type FloatModel } from './forward.js';
import { rotate } from './rotation.js';
import { dot, linear, norm, split, type Vector, weight } from './vectors.js';

/** Causal attention of all positions, without the residual. */
export function latentAttention(model: FloatModel, block: string, stream: readonly Vector[]): Vector[] {
  const { heads } = model;
  const { keyDim, valueDim, turned, scale } = sizes(model);
  const kept = keyDim - turned;
  const positions = stream.map((x, position) => {
    const normed = norm(model, `${block}attn_norm.weight`, x);
    const pair = linear(model, `${block}attn_kv_a_mqa`, normed);
    const latent = norm(model, `${block}attn_kv_a_norm.weight`, pair.slice(0, pair.length - turned));
    const sharedKey = rotate(model.rotation, pair.slice(pair.length - turned), position);
    return {
      queries: split(queries(model, block, normed), keyDim).map((head) =>
        join(head.slice(0, kept), rotate(model.rotation, head.slice(kept), position)),
      ),
      keys: Array.from({ length: heads }, (_, head) =>
        join(plainKey(model, block, latent, head, kept, valueDim), sharedKey),
      ),
      values: Array.from({ length: heads }, (_, head) => value(model, block, latent, head, kept, valueDim)),
    };
  });
  return positions.map(({ queries }, position) => {
    const out = new Float64Array(heads * valueDim);
    queries.forEach((query, head) => {
      const seen = positions.slice(0, position + 1);
      const keys = seen.map((each) => each.keys[head] ?? query);
      const values = seen.map((each) => each.values[head] ?? query);
      out.set(attend(query, keys, values, { scale, limit: model.scoreCap }), head * valueDim);
    });
    return linear(model, `${block}attn_output`, out);
  });
}

/** Files whose matrices are split by head have lengths of the cache under the plain names. */
function sizes({ number }: FloatModel) {
  const keyDim = number('attention.key_length_mla') ?? number('attention.key_length') ?? 0;
  const valueDim = number('attention.value_length_mla') ?? number('attention.value_length') ?? 0;
  // DeepSeek's YaRN: 0.1 * mscale_all_dim * ln(factor) + 1, squared; the file has the product of the first two.
  const stretch =
    1 + (number('rope.scaling.yarn_log_multiplier') ?? 0) * Math.log(number('rope.scaling.factor') ?? 1);
  return {
    keyDim,
    valueDim,
    turned: number('rope.dimension_count') ?? 0,
    scale: stretch ** 2 / Math.sqrt(keyDim),
  };
}

function queries(model: FloatModel, block: string, normed: Vector): Vector {
  if (model.weights.has(`${block}attn_q.weight`)) return linear(model, `${block}attn_q`, normed);
  const short = linear(model, `${block}attn_q_a`, normed);
  return linear(model, `${block}attn_q_b`, norm(model, `${block}attn_q_a_norm.weight`, short));
}

/** A head's key before the part that is turned. */
function plainKey(
  model: FloatModel,
  block: string,
  latent: Vector,
  head: number,
  kept: number,
  valueDim: number,
): Vector {
  const both = model.weights.get(`${block}attn_kv_b.weight`);
  if (both !== undefined) return rows(both, latent, head * (kept + valueDim), kept);
  // [heads][rank][kept]: transposed, so that it can be applied to queries.
  const transposed = weight(model, `${block}attn_k_b.weight`);
  return Float64Array.from({ length: kept }, (_, i) =>
    latent.reduce((sum, x, r) => sum + x * (transposed[(head * latent.length + r) * kept + i] ?? 0), 0),
  );
}

function value(
  model: FloatModel,
  block: string,
  latent: Vector,
  head: number,
  kept: number,
  valueDim: number,
): Vector {
  const both = model.weights.get(`${block}attn_kv_b.weight`);
  if (both !== undefined) return rows(both, latent, head * (kept + valueDim) + kept, valueDim);
  return rows(weight(model, `${block}attn_v_b.weight`), latent, head * valueDim, valueDim);
}

/** `count` rows of a matrix from `first` on, applied to x. */
function rows(matrix: Vector, x: Vector, first: number, count: number): Vector {
  return Float64Array.from({ length: count }, (_, row) => dot(x, matrix, (first + row) * x.length));
}

function join(a: Vector, b: Vector): Vector {
  return Float64Array.from([...a, ...b]);
}
