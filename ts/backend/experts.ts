import type { Plan } from '../plan/types.js';
import { readPart } from './read-ahead.js';
import type { TensorPlacement } from './types.js';

/** How far a step came: it is done, or needs matrix i: expert `experts[i]` of tensor `tensors[i]`. */
export interface StepProgress<T> {
  readonly outputs?: T | null;
  readonly tensors: Uint32Array;
  readonly experts: Uint32Array;
}

/** Matrices that are read at once. */
const AT_ONCE = 4;

/**
 * Runs a step to its end. Whenever it stops for want of experts that only JavaScript can read, they are read and
 * supplied, and it goes on from there.
 * @param sources of the tensors whose experts stay there, by tensor
 * @throws FrugalError `SOURCE_READ`, or what the step throws
 */
export async function stepWithExperts<T>(
  plan: Plan,
  sources: ReadonlyMap<number, TensorPlacement>,
  step: () => Promise<T[] | StepProgress<T[]>>,
  supply: (tensor: number, expert: number, bytes: Uint8Array) => Promise<void>,
): Promise<T[]> {
  for (;;) {
    const progress = await step();
    if (Array.isArray(progress)) return progress;
    const { outputs, tensors, experts } = progress;
    if (outputs != null) return outputs;
    let next = 0;
    const work = async (): Promise<void> => {
      for (let i = next++; i < tensors.length; i = next++) {
        const [tensor = 0, expert = 0] = [tensors[i], experts[i]];
        await supply(tensor, expert, await readExpert(plan, sources, tensor, expert));
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
  }
}

async function readExpert(
  plan: Plan,
  sources: ReadonlyMap<number, TensorPlacement>,
  tensor: number,
  expert: number,
): Promise<Uint8Array> {
  const placement = sources.get(tensor);
  if (placement === undefined) throw new Error(`tensor ${tensor} has no source`);
  const length = placement.bytes / (plan.tensors[tensor]?.experts ?? 1);
  return readPart(
    { tensor, source: placement.source, offset: placement.offset + expert * length, length },
    [],
  );
}
