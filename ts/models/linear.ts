import type { PlanOp } from '../plan/types.js';
import type { TensorTable } from './tensors.js';

export type Linear = Extract<PlanOp, { op: 'linear' }>;

/** `name.weight` applied to x, with `name.bias` where the file has one or must have one. */
export function linear(
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
