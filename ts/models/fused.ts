import type { Hyper } from './hyper.js';
import { checkShape } from './tensors.js';
import type { FileTensor, ModelFile } from './types.js';

/**
 * The file with `attn_q`, `attn_k` and `attn_v` where it holds the three of a layer as one tensor, `attn_qkv`, in this
 * order: rows follow one another, so each is a part of it. Layers that have any of the three apart are left as they are.
 * @throws FrugalError `TENSOR_SHAPE`
 */
export function splitFused(file: ModelFile, hyper: Hyper): ModelFile {
  const { heads, kvHeads, headDim, valueDim = headDim, embeddingLength } = hyper;
  const rows = { q: heads * headDim, k: kvHeads * headDim, v: kvHeads * valueDim };
  const all = rows.q + rows.k + rows.v;
  const tensors = new Map(file.tensors);
  for (const [name, tensor] of file.tensors) {
    const [, block, kind] = /^(blk\.\d+\.)attn_qkv\.(weight|bias)$/.exec(name) ?? [];
    if (block === undefined || hyper.latent) continue;
    const nameOf = (part: string) => `${block}attn_${part}.${kind}`;
    if (Object.keys(rows).some((part) => tensors.has(nameOf(part)))) continue;
    const shapeOf = (count: number) => (kind === 'bias' ? [count] : [embeddingLength, count]);
    checkShape(name, shapeOf(all), tensor);
    tensors.delete(name);
    let first = 0;
    for (const [part, count] of Object.entries(rows)) {
      tensors.set(nameOf(part), { ...rowsOf(tensor, all, first, count), shape: shapeOf(count) });
      first += count;
    }
  }
  return { metadata: file.metadata, parts: file.parts, tensors };
}

/** `count` rows from `first` on of a tensor that has `all`. */
function rowsOf(tensor: FileTensor, all: number, first: number, count: number): FileTensor {
  return {
    ...tensor,
    elements: (tensor.elements / all) * count,
    offset: tensor.offset + (tensor.bytes / all) * first,
    bytes: (tensor.bytes / all) * count,
  };
}
