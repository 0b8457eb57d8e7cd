import type { PlanBuffer, PlanOp, Rope } from '../plan/types.js';
import { expertBuffers, expertOps } from './experts.js';
import { type Hyper, isLocal } from './hyper.js';
import { latentBuffers, latentOps } from './latent.js';
import { type Linear, linear } from './linear.js';
import type { Differences } from './table.js';
import type { TensorTable } from './tensors.js';

/** The buffer names of a decoder. Layers share them; `x` is the residual stream. */
export function decoderBuffers(hyper: Hyper, row: Differences): PlanBuffer[] {
  const { embeddingLength, heads, kvHeads, headDim, latent, feedForward, blockCount, experts } = hyper;
  const { valueDim = headDim } = hyper;
  const attention = (): PlanBuffer[] => [
    { name: 'q', width: heads * headDim, rows: 'tokens' },
    { name: 'k', width: kvHeads * headDim, rows: 'tokens' },
    { name: 'v', width: kvHeads * valueDim, rows: 'tokens' },
    { name: 'attended', width: heads * valueDim, rows: 'tokens' },
  ];
  const dense = experts === undefined || experts.leadingDense > 0;
  const mixture = experts !== undefined && experts.leadingDense < blockCount;
  return [
    { name: 'x', width: embeddingLength, rows: 'tokens' },
    { name: 'normed', width: embeddingLength, rows: 'tokens' },
    ...(latent ? latentBuffers(latent, heads) : attention()),
    ...(dense ? [{ name: 'gated', width: feedForward, rows: 'tokens' } as const] : []),
    ...(mixture ? expertBuffers(experts) : []),
    ...(row.postNorms ? [{ name: 'branch', width: embeddingLength, rows: 'tokens' } as const] : []),
    { name: 'selected', width: embeddingLength, rows: 'outputs' },
    { name: 'hidden', width: embeddingLength, rows: 'outputs' },
  ];
}

/**
 * The ops of a pre-norm decoder with gated feed-forward layers:
 * x += attention(norm(x)); x += feedForward(norm(x)); logits(norm(x)).
 * Takes the tensors it names from `tensors`, which checks them.
 */
export function decoderOps(
  hyper: Hyper,
  row: Differences,
  tensors: TensorTable,
  ropes: readonly Rope[],
): PlanOp[] {
  const { embeddingLength, vocabSize } = hyper;
  const table = tensors.required('token_embd.weight', [embeddingLength, vocabSize], 'matrix');
  const scale = row.scaledEmbedding ? { scale: Math.sqrt(embeddingLength) } : {};
  const ops: PlanOp[] = [{ op: 'embed', table, out: 'x', ...scale }];
  for (let layer = 0; layer < hyper.blockCount; layer++) {
    ops.push(
      ...attentionOps(hyper, row, tensors, layer, ropes),
      ...feedForwardOps(hyper, row, tensors, layer),
    );
  }
  // A file without an output matrix uses the token embeddings for it.
  const output = tensors.optional('output.weight', [embeddingLength, vocabSize], 'matrix') ?? table;
  const bias = tensors.optional('output.bias', [vocabSize], 'vector');
  ops.push(
    { op: 'select_outputs', x: 'x', out: 'selected' },
    {
      op: 'rms_norm',
      x: 'selected',
      weight: tensors.required('output_norm.weight', [embeddingLength], 'vector'),
      out: 'hidden',
      eps: hyper.normEps,
    },
    {
      op: 'logits',
      x: 'hidden',
      weight: output,
      ...(bias === undefined ? {} : { bias }),
      ...(hyper.logitCap === undefined ? {} : { softcap: hyper.logitCap }),
    },
  );
  return ops;
}

function attentionOps(
  hyper: Hyper,
  row: Differences,
  tensors: TensorTable,
  layer: number,
  ropes: readonly Rope[],
): PlanOp[] {
  const { embeddingLength, heads, headDim, latent, normEps } = hyper;
  const block = `blk.${layer}`;
  const scoreRope = ropes[0]?.logMultiplier === undefined ? undefined : 0;
  const sizes = { layer, heads, width: embeddingLength, eps: normEps };
  const attended = heads * (latent?.valueDim ?? hyper.valueDim ?? headDim);
  return [
    {
      op: 'rms_norm',
      x: 'x',
      weight: tensors.required(`${block}.attn_norm.weight`, [embeddingLength], 'vector'),
      out: 'normed',
      eps: normEps,
    },
    ...(latent ? latentOps(latent, sizes, tensors, scoreRope) : headsOps(hyper, row, tensors, layer)),
    ...addBranch(hyper, row, tensors, `${block}.post_attention_norm`, (out) =>
      linear(tensors, 'attended', `${block}.attn_output`, attended, embeddingLength, out),
    ),
  ];
}

/** `attended` = attention of `normed`, with keys and values of their own for each head or group of heads. */
function headsOps(hyper: Hyper, row: Differences, tensors: TensorTable, layer: number): PlanOp[] {
  const { embeddingLength, heads, kvHeads, headDim, valueDim = headDim, normEps } = hyper;
  const block = `blk.${layer}`;
  const local = isLocal(hyper, layer);
  const rope = local && hyper.localRopeBase !== undefined ? 1 : 0;
  const biases = ['q', 'k', 'v'].map((name) => `${block}.attn_${name}.bias`);
  const bias = row.qkvBias ? biases.find((name) => tensors.has(name)) : undefined;
  // Keys and values are precise: every later token reads them, and their matrices are the smallest of a layer. With
  // F16 weights so are queries, as the cache takes up all the error that is allowed.
  const project = (name: 'q' | 'k' | 'v', outputs: number): PlanOp => ({
    ...linear(tensors, 'normed', `${block}.attn_${name}`, embeddingLength, outputs, name, bias),
    precise: name !== 'q' || tensors.typeOf(`${block}.attn_q.weight`) === 'F16',
  });
  // Q and K are normalised and rotated in place.
  const norm = (name: 'q' | 'k', count: number): PlanOp => {
    const length = row.qkNorm === 'row' ? count * headDim : headDim;
    const weight = tensors.required(`${block}.attn_${name}_norm.weight`, [length], 'vector');
    return { op: 'rms_norm', x: name, weight, out: name, eps: normEps };
  };
  return [
    project('k', kvHeads * headDim),
    project('v', kvHeads * valueDim),
    project('q', heads * headDim),
    ...(row.qkNorm === undefined ? [] : [norm('q', heads), norm('k', kvHeads)]),
    { op: 'rope', x: 'q', rope, headDim },
    { op: 'rope', x: 'k', rope, headDim },
    {
      op: 'attention',
      q: 'q',
      k: 'k',
      v: 'v',
      out: 'attended',
      layer,
      heads,
      ...(local && hyper.window !== undefined ? { window: hyper.window } : {}),
      ...(hyper.scoreScale === undefined ? {} : { scale: hyper.scoreScale }),
      ...(hyper.scoreCap === undefined ? {} : { softcap: hyper.scoreCap }),
      ...(row.sinks ? { sinks: tensors.required(`${block}.attn_sinks.weight`, [heads], 'vector') } : {}),
    },
  ];
}

function feedForwardOps(hyper: Hyper, row: Differences, tensors: TensorTable, layer: number): PlanOp[] {
  const { embeddingLength, normEps, experts } = hyper;
  const block = `blk.${layer}`;
  return [
    {
      op: 'rms_norm',
      x: 'x',
      weight: tensors.required(
        `${block}.${row.feedForwardNorm ?? 'ffn_norm'}.weight`,
        [embeddingLength],
        'vector',
      ),
      out: 'normed',
      eps: normEps,
    },
    ...(experts && layer >= experts.leadingDense
      ? expertOps(experts, embeddingLength, tensors, block)
      : denseOps(hyper, row, tensors, block)),
  ];
}

function denseOps(hyper: Hyper, row: Differences, tensors: TensorTable, block: string): PlanOp[] {
  const { embeddingLength, feedForward } = hyper;
  const shape = [embeddingLength, feedForward];
  const [gateBias, upBias] = ['gate', 'up'].map((name) =>
    tensors.optional(`${block}.ffn_${name}.bias`, [feedForward], 'vector'),
  );
  return [
    {
      op: 'glu',
      x: 'normed',
      gate: tensors.required(`${block}.ffn_gate.weight`, shape, 'matrix'),
      up: tensors.required(`${block}.ffn_up.weight`, shape, 'matrix'),
      ...(gateBias === undefined ? {} : { gateBias }),
      ...(upBias === undefined ? {} : { upBias }),
      activation: row.activation ?? 'silu',
      out: 'gated',
    },
    ...addBranch(hyper, row, tensors, `${block}.post_ffw_norm`, (out) =>
      linear(tensors, 'gated', `${block}.ffn_down`, feedForward, embeddingLength, out),
    ),
  ];
}

/** The projection back into the residual stream, normalised before it is added where the architecture does so. */
function addBranch(
  hyper: Hyper,
  row: Differences,
  tensors: TensorTable,
  norm: string,
  project: (out: string) => Linear,
): PlanOp[] {
  if (!row.postNorms) return [{ ...project('x'), add: true }];
  const weight = tensors.required(`${norm}.weight`, [hyper.embeddingLength], 'vector');
  return [
    project('branch'),
    { op: 'rms_norm', x: 'branch', weight, out: 'branch', eps: hyper.normEps },
    { op: 'add', x: 'branch', out: 'x' },
  ];
}
