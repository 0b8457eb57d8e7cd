import type { PlanBuffer, PlanOp } from '../plan/types.js';
import type { Hyper } from './hyper.js';
import type { Differences } from './table.js';
import type { TensorTable } from './tensors.js';

/** The buffer names of a decoder. Layers share them; `x` is the residual stream. */
export function decoderBuffers(hyper: Hyper): PlanBuffer[] {
  const { embeddingLength, heads, kvHeads, headDim, feedForward } = hyper;
  return [
    { name: 'x', width: embeddingLength, rows: 'tokens' },
    { name: 'normed', width: embeddingLength, rows: 'tokens' },
    { name: 'q', width: heads * headDim, rows: 'tokens' },
    { name: 'k', width: kvHeads * headDim, rows: 'tokens' },
    { name: 'v', width: kvHeads * headDim, rows: 'tokens' },
    { name: 'attended', width: heads * headDim, rows: 'tokens' },
    { name: 'gated', width: feedForward, rows: 'tokens' },
    { name: 'selected', width: embeddingLength, rows: 'outputs' },
    { name: 'hidden', width: embeddingLength, rows: 'outputs' },
  ];
}

/**
 * The ops of a pre-norm decoder with gated feed-forward layers:
 * x += attention(norm(x)); x += feedForward(norm(x)); logits(norm(x)).
 * Takes the tensors it names from `tensors`, which checks them.
 */
export function decoderOps(hyper: Hyper, row: Differences, tensors: TensorTable): PlanOp[] {
  const { embeddingLength, vocabSize } = hyper;
  const table = tensors.required('token_embd.weight', [embeddingLength, vocabSize], 'matrix');
  const ops: PlanOp[] = [{ op: 'embed', table, out: 'x' }];
  for (let layer = 0; layer < hyper.blockCount; layer++) {
    ops.push(...attentionOps(hyper, row, tensors, layer), ...feedForwardOps(hyper, tensors, layer));
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
    { op: 'logits', x: 'hidden', weight: output, ...(bias === undefined ? {} : { bias }) },
  );
  return ops;
}

function attentionOps(hyper: Hyper, row: Differences, tensors: TensorTable, layer: number): PlanOp[] {
  const { embeddingLength, heads, kvHeads, headDim, normEps } = hyper;
  const block = `blk.${layer}`;
  // Precise, because the softmax magnifies errors of queries and keys; these matrices are a small part of a layer.
  const project = (name: 'q' | 'k' | 'v', count: number): PlanOp => ({
    ...linear(
      tensors,
      'normed',
      `${block}.attn_${name}`,
      embeddingLength,
      count * headDim,
      name,
      row.qkvBias,
    ),
    precise: true,
  });
  // Q and K are normalised and rotated in place, head by head.
  const normHeads = (name: 'q' | 'k'): PlanOp => {
    const weight = tensors.required(`${block}.attn_${name}_norm.weight`, [headDim], 'vector');
    return { op: 'rms_norm', x: name, weight, out: name, eps: normEps };
  };
  return [
    {
      op: 'rms_norm',
      x: 'x',
      weight: tensors.required(`${block}.attn_norm.weight`, [embeddingLength], 'vector'),
      out: 'normed',
      eps: normEps,
    },
    project('q', heads),
    project('k', kvHeads),
    project('v', kvHeads),
    ...(row.qkNorm ? [normHeads('q'), normHeads('k')] : []),
    { op: 'rope', x: 'q', rope: 0, headDim },
    { op: 'rope', x: 'k', rope: 0, headDim },
    {
      op: 'attention',
      q: 'q',
      k: 'k',
      v: 'v',
      out: 'attended',
      layer,
      heads,
      ...(hyper.window === undefined ? {} : { window: hyper.window }),
    },
    addTo('x', linear(tensors, 'attended', `${block}.attn_output`, heads * headDim, embeddingLength, 'x')),
  ];
}

function feedForwardOps(hyper: Hyper, tensors: TensorTable, layer: number): PlanOp[] {
  const { embeddingLength, feedForward, normEps } = hyper;
  const block = `blk.${layer}`;
  const shape = [embeddingLength, feedForward];
  return [
    {
      op: 'rms_norm',
      x: 'x',
      weight: tensors.required(`${block}.ffn_norm.weight`, [embeddingLength], 'vector'),
      out: 'normed',
      eps: normEps,
    },
    {
      op: 'glu',
      x: 'normed',
      gate: tensors.required(`${block}.ffn_gate.weight`, shape, 'matrix'),
      up: tensors.required(`${block}.ffn_up.weight`, shape, 'matrix'),
      activation: 'silu',
      out: 'gated',
    },
    addTo('x', linear(tensors, 'gated', `${block}.ffn_down`, feedForward, embeddingLength, 'x')),
  ];
}

type Linear = Extract<PlanOp, { op: 'linear' }>;

/** `name.weight` applied to x, with `name.bias` where the file has one or must have one. */
function linear(
  tensors: TensorTable,
  x: string,
  name: string,
  inputs: number,
  outputs: number,
  out: string,
  biasRequired = false,
): Linear {
  const weight = tensors.required(`${name}.weight`, [inputs, outputs], 'matrix');
  const take = biasRequired ? tensors.required : tensors.optional;
  const bias = take(`${name}.bias`, [outputs], 'vector');
  return { op: 'linear', x, weight, ...(bias === undefined ? {} : { bias }), out };
}

/** The projection back into the residual stream. */
function addTo(out: string, op: Linear): Linear {
  return { ...op, out, add: true };
}
