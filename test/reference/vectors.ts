/** Plain arithmetic of the reference, in float64. */
import type { FloatModel } from './forward.js';

export type Vector = Float64Array;

export function norm(model: FloatModel, name: string, x: Vector): Vector {
  const scale = weight(model, name);
  const root = Math.sqrt(dot(x, x, 0) / x.length + model.eps);
  return x.map((value, i) => (value / root) * (scale[i] ?? 0));
}

/** `name.weight` applied to x, plus `name.bias` where the model has it. */
export function linear(model: FloatModel, name: string, x: Vector): Vector {
  const matrix = weight(model, `${name}.weight`);
  const bias = model.weights.get(`${name}.bias`);
  return Float64Array.from(
    { length: matrix.length / x.length },
    (_, row) => dot(x, matrix, row * x.length) + (bias?.[row] ?? 0),
  );
}

/** x · the numbers of `row` from `at` on. */
export function dot(x: Vector, row: Vector, at: number): number {
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += (x[i] ?? 0) * (row[at + i] ?? 0);
  return sum;
}

export function add(x: Vector, y: ArrayLike<number>): void {
  for (let i = 0; i < x.length; i++) x[i] = (x[i] ?? 0) + (y[i] ?? 0);
}

export function split(x: Vector, length: number): Vector[] {
  return Array.from({ length: x.length / length }, (_, i) => x.slice(i * length, (i + 1) * length));
}

export function weight(model: FloatModel, name: string): Vector {
  const found = model.weights.get(name);
  if (found === undefined) throw new Error(`the model has no ${name}`);
  return found;
}
