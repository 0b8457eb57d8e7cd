import type { PlanOp } from '../plan/types.js';
import type { TensorTable } from './tensors.js';

export type Linear = Extract<PlanOp, { op: 'linear' }>;

/**
 * `name.weight` applied to x, with `name.bias` where the file has one.
 * @param beside a tensor of the file that goes with the bias, which must then be there
 */
export function linear(
  tensors: TensorTable,
  x: string,
  name: string,
  inputs: number,
  outputs: number,
  out: string,
  beside?: string,
): Linear {
  const weight = tensors.required(`${name}.weight`, [inputs, outputs], 'matrix');
  const bias =
    beside === undefined
      ? tensors.optional(`${name}.bias`, [outputs], 'vector')
      : tensors.required(`${name}.bias`, [outputs], 'vector', beside);
  return { op: 'linear', x, weight, ...(bias === undefined ? {} : { bias }), out };
}
