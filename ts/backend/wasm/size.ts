import { FrugalError } from '../../errors.js';
import { GGML_TYPES, type GgmlType } from '../../gguf/types.js';
import type { Plan, PlanTensor } from '../../plan/types.js';
import type { Choice, Lacks } from './variant.js';

/** Rows that the kernels keep side by side: a matrix is padded to a multiple, a vector is not. */
const TILE_ROWS = 16;

/** The most memory that engines give a module, in bytes. */
export function mostBytes({ memory64 }: Choice): number {
  return memory64 ? 2 ** 34 : 2 ** 32;
}

/** Above this weights are better off with 64-bit addresses: caches and activations need room, too. */
export const LARGE_BYTES = 3 * 2 ** 30;

/** Bytes of weights that a plan keeps in memory; `expertMemory` as in `BackendOptions`. */
export function residentBytes(plan: Plan, expertMemory = Number.POSITIVE_INFINITY): number {
  const names = expertNames(plan);
  let [experts, others] = [0, 0];
  for (const tensor of plan.tensors) {
    if (names.has(tensor.name)) experts += packedBytes(tensor);
    else others += packedBytes(tensor);
  }
  return others + Math.min(experts, expertMemory);
}

/** Tensors that hold experts; other stacks of matrices are always in memory. */
function expertNames({ ops }: Plan): Set<string> {
  return new Set(ops.flatMap((op) => (op.op === 'experts' ? [op.gate, op.up, op.down] : [])));
}

function packedBytes({ type, rows, cols, experts = 1 }: PlanTensor): number {
  const { block, bytes } = GGML_TYPES[type as GgmlType];
  const padded = rows === 1 ? 1 : Math.ceil(rows / TILE_ROWS) * TILE_ROWS;
  return Math.ceil(cols / block) * bytes * padded * experts;
}

/** @throws FrugalError `OUT_OF_MEMORY` unless the weights fit into a module's memory */
export function checkSize(plan: Plan, bytes: number, choice: Choice, { memory64, relaxed }: Lacks): void {
  const most = mostBytes(choice);
  if (bytes < most) return;
  const larger =
    (memory64 ?? relaxed) ? 'a runtime with 64-bit memory and relaxed SIMD' : 'a variant with 64-bit memory';
  const other = choice.memory64 ? '' : `, ${larger}`;
  const fewer = expertNames(plan).size > 0 ? 'Keep fewer experts in memory (expertMemory), or use' : 'Use';
  throw new FrugalError(
    'OUT_OF_MEMORY',
    `the weights need ${bytes} bytes, and WebAssembly has at most ${most} (${choice.reason})`,
    {
      cure: `${fewer} a smaller or more strongly quantised model${other}, or the native backend in Node.`,
      data: { bytes, most },
    },
  );
}
