import type { PlanBuffer, PlanOp } from '../plan/types.js';
import { invalid, type Keys } from './keys.js';
import { linear } from './linear.js';
import type { TensorTable } from './tensors.js';

/**
 * Multi-head latent attention (DeepSeek-AI, 2024, arXiv:2405.04434): keys and values of all heads come from one
 * short vector, and one rotated part of the keys serves all heads.
 */
export interface Latent {
  /** Dimensions of a head's queries and keys, of which the last `ropeDim` are rotated, and of its values. */
  readonly keyDim: number;
  readonly ropeDim: number;
  readonly valueDim: number;
  /** Length of the vector that keys and values come from, and of the one that queries do. */
  readonly rank: number;
  readonly queryRank?: number;
  /**
   * The matrices that make keys and values are applied to queries and results instead, so that the vectors
   * themselves are what is cached. Older files have the two matrices as one, which then makes keys and values.
   */
  readonly absorbed: boolean;
}

/** What the cache holds of a layer. */
export interface CacheShape {
  readonly kvHeads: number;
  readonly headDim: number;
  readonly valueDim: number;
}

/** @throws FrugalError `METADATA_MISSING`, `METADATA_INVALID` */
export function readLatent(keys: Keys, maxDim: number, maxWidth: number): Latent {
  const absorbed = keys.optionalFinite('attention.key_length_mla') !== undefined;
  const suffix = absorbed ? '_mla' : '';
  const keyDim = keys.count(`attention.key_length${suffix}`, maxDim);
  const valueDim = keys.count(`attention.value_length${suffix}`, maxDim);
  const ropeDim = keys.count('rope.dimension_count', maxDim);
  if (ropeDim >= keyDim) throw invalid(keys.full('rope.dimension_count'), `below ${keyDim}`, ropeDim);
  const rank = keys.count('attention.kv_lora_rank', absorbed ? maxDim - ropeDim : maxWidth);
  // Zero in files of models that do without.
  const ranked = (keys.optionalFinite('attention.q_lora_rank') ?? 0) !== 0;
  const queryRank = ranked ? { queryRank: keys.count('attention.q_lora_rank', maxWidth) } : {};
  return { keyDim, ropeDim, valueDim, rank, ...queryRank, absorbed };
}

export function cacheShape({ absorbed, rank, ropeDim, keyDim, valueDim }: Latent, heads: number): CacheShape {
  return absorbed
    ? { kvHeads: 1, headDim: rank + ropeDim, valueDim: rank }
    : { kvHeads: heads, headDim: keyDim, valueDim };
}

export function latentBuffers(latent: Latent, heads: number): PlanBuffer[] {
  const { keyDim, ropeDim, valueDim, rank, queryRank, absorbed } = latent;
  const plainDim = keyDim - ropeDim;
  const widths: Record<string, number> = {
    ...(queryRank === undefined ? {} : { q_latent: queryRank }),
    q: heads * keyDim,
    kv_rotated: rank + ropeDim,
    kv_latent: rank,
    ...(absorbed
      ? {
          q_plain: heads * plainDim,
          q_absorbed: heads * rank,
          query: heads * (rank + ropeDim),
          attended_latent: heads * rank,
        }
      : { kv: heads * (plainDim + valueDim), k: heads * keyDim, v: heads * valueDim }),
    attended: heads * valueDim,
  };
  return Object.entries(widths).map(([name, width]) => ({ name, width, rows: 'tokens' }));
}

/** `attended` = latent attention of `normed`. `scoreRope`: the rope that scales scores too. */
export function latentOps(
  latent: Latent,
  { layer, heads, width, eps }: { layer: number; heads: number; width: number; eps: number },
  tensors: TensorTable,
  scoreRope: number | undefined,
): PlanOp[] {
  const { keyDim, ropeDim, rank } = latent;
  const block = `blk.${layer}`;
  const norm = (name: string, length: number, x: string): PlanOp => {
    const weight = tensors.required(`${block}.${name}.weight`, [length], 'vector');
    return { op: 'rms_norm', x, weight, out: x, eps };
  };
  const copy = (x: string, out: string, xHeads: number, to: Partial<Copied>): PlanOp => ({
    op: 'copy',
    x,
    out,
    xHeads,
    heads: xHeads,
    from: 0,
    to: 0,
    count: rank,
    ...to,
  });
  const score = { scale: 1 / Math.sqrt(keyDim), ...(scoreRope === undefined ? {} : { rope: scoreRope }) };
  const parts: Parts = { latent, heads, block, layer, tensors, copy, score };
  const project = (x: string, name: string, inputs: number, outputs: number, out: string): PlanOp => ({
    ...linear(tensors, x, `${block}.${name}`, inputs, outputs, out),
    precise: true,
  });
  const queries = heads * keyDim;
  const { queryRank } = latent;
  return [
    ...(queryRank === undefined
      ? [project('normed', 'attn_q', width, queries, 'q')]
      : [project('normed', 'attn_q_a', width, queryRank, 'q_latent')]),
    project('normed', 'attn_kv_a_mqa', width, rank + ropeDim, 'kv_rotated'),
    ...(queryRank === undefined
      ? []
      : [
          norm('attn_q_a_norm', queryRank, 'q_latent'),
          project('q_latent', 'attn_q_b', queryRank, queries, 'q'),
        ]),
    copy('kv_rotated', 'kv_latent', 1, {}),
    norm('attn_kv_a_norm', rank, 'kv_latent'),
    { op: 'rope', x: 'q', rope: 0, headDim: keyDim, at: keyDim - ropeDim },
    { op: 'rope', x: 'kv_rotated', rope: 0, headDim: rank + ropeDim, at: rank },
    ...(latent.absorbed ? absorbedOps(parts) : expandedOps(parts)),
  ];
}

type Copied = Pick<Extract<PlanOp, { op: 'copy' }>, 'heads' | 'from' | 'to' | 'count'>;

interface Parts {
  readonly latent: Latent;
  readonly heads: number;
  readonly block: string;
  readonly layer: number;
  readonly tensors: TensorTable;
  /** From each head of x to each of out, or of its one head to as many as `to` says. */
  readonly copy: (x: string, out: string, xHeads: number, to: Partial<Copied>) => PlanOp;
  readonly score: { readonly scale: number; readonly rope?: number };
}

/** One key for all heads: the vector itself and its rotated part. */
function absorbedOps({ latent, heads, block, layer, tensors, copy, score }: Parts): PlanOp[] {
  const { keyDim, ropeDim, valueDim, rank } = latent;
  const plainDim = keyDim - ropeDim;
  const stack = (name: string, shape: readonly number[]) =>
    tensors.required(`${block}.${name}.weight`, [...shape, heads], 'heads');
  return [
    copy('q', 'q_plain', heads, { count: plainDim }),
    {
      op: 'linear_heads',
      x: 'q_plain',
      weight: stack('attn_k_b', [plainDim, rank]),
      out: 'q_absorbed',
      precise: true,
    },
    copy('q_absorbed', 'query', heads, {}),
    copy('q', 'query', heads, { from: plainDim, to: rank, count: ropeDim }),
    copy('kv_latent', 'kv_rotated', 1, {}),
    {
      op: 'attention',
      q: 'query',
      k: 'kv_rotated',
      v: 'kv_latent',
      out: 'attended_latent',
      layer,
      heads,
      ...score,
    },
    {
      op: 'linear_heads',
      x: 'attended_latent',
      weight: stack('attn_v_b', [rank, valueDim]),
      out: 'attended',
    },
  ];
}

function expandedOps({ latent, heads, block, layer, tensors, copy, score }: Parts): PlanOp[] {
  const { keyDim, ropeDim, valueDim, rank } = latent;
  const plainDim = keyDim - ropeDim;
  const to = heads * (plainDim + valueDim);
  return [
    { ...linear(tensors, 'kv_latent', `${block}.attn_kv_b`, rank, to, 'kv'), precise: true },
    copy('kv', 'k', heads, { count: plainDim }),
    copy('kv_rotated', 'k', 1, { heads, from: rank, to: plainDim, count: ropeDim }),
    copy('kv', 'v', heads, { from: plainDim, count: valueDim }),
    { op: 'attention', q: 'q', k: 'k', v: 'v', out: 'attended', layer, heads, ...score },
  ];
}
