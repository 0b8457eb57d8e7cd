import { type GgmlType, tensorBytes } from '../gguf/index.js';
import type { QuantizeType } from './choose.js';

/** What became of the tensors that now have one type. */
export interface TypeReport {
  readonly type: GgmlType;
  readonly tensors: number;
  readonly elements: number;
  readonly bytesIn: number;
  readonly bytesOut: number;
  readonly bitsPerWeight: number;
  /** The root mean square of the differences over that of the values. */
  readonly relativeError: number;
}

/** What `quantize` has written. */
export interface QuantizeReport {
  readonly path: string;
  readonly type: QuantizeType;
  /** The size of the new file. */
  readonly fileBytes: number;
  readonly types: readonly TypeReport[];
  /** All tensors together. */
  readonly total: Omit<TypeReport, 'type'>;
  /** What is not as asked for, and what could not be carried over. */
  readonly notices: readonly string[];
}

/** Sums over tensors. */
export interface Tally {
  tensors: number;
  elements: number;
  bytesIn: number;
  bytesOut: number;
  squares: number;
  errors: number;
}

export function emptyTally(): Tally {
  return { tensors: 0, elements: 0, bytesIn: 0, bytesOut: 0, squares: 0, errors: 0 };
}

/** Counts a tensor, without what its conversion changed. */
export function countTensor(
  tally: Tally,
  tensor: { readonly type: GgmlType; readonly shape: readonly number[]; readonly elements: number },
  type: GgmlType,
): void {
  tally.tensors += 1;
  tally.elements += tensor.elements;
  tally.bytesIn += tensorBytes(tensor.type, tensor.shape);
  tally.bytesOut += tensorBytes(type, tensor.shape);
}

export function summarise(tallies: ReadonlyMap<GgmlType, Tally>): Pick<QuantizeReport, 'types' | 'total'> {
  const all = emptyTally();
  for (const tally of tallies.values()) {
    for (const name of Object.keys(all) as (keyof Tally)[]) all[name] += tally[name];
  }
  const types = [...tallies].map(([type, tally]) => ({ type, ...finish(tally) }));
  return { types: types.sort((a, b) => b.bytesOut - a.bytesOut), total: finish(all) };
}

function finish({ squares, errors, ...counts }: Tally): Omit<TypeReport, 'type'> {
  const bitsPerWeight = counts.elements === 0 ? 0 : (8 * counts.bytesOut) / counts.elements;
  return { ...counts, bitsPerWeight, relativeError: squares === 0 ? 0 : Math.sqrt(errors / squares) };
}
