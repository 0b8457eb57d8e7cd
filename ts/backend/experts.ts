import { onAbort, settled } from '../abort.js';
import type { Plan } from '../plan/types.js';
import { type Part, readPart } from './read-ahead.js';
import type { TensorPlacement } from './types.js';

/** How far a step came: it is done, or needs matrix `matrices[i]` of tensor `tensors[i]`, for each i. */
export interface StepProgress<T> {
  readonly outputs?: T | null;
  readonly tensors: Uint32Array;
  readonly matrices: Uint32Array;
}

/** Reads the matrices that a step needs and supplies them; ends early, without an error, once `signal` is aborted. */
export type BringExperts = (needs: StepProgress<unknown>, signal: AbortSignal) => Promise<void>;

/** Matrices that are read at once, where they do not take more than so many bytes together. */
const AT_ONCE = 4;
const MOST_BYTES = 8 << 20;

/**
 * Runs a step to its end. Whenever it stops for want of experts that only JavaScript can read, they are brought, and it
 * goes on from there.
 * @param signal aborted when a sequence of the step is freed: it is then called again to say so
 * @throws FrugalError `SOURCE_READ`, or what the step throws
 */
export async function stepWithExperts<T>(
  step: () => Promise<T[] | StepProgress<T[]>>,
  bring: BringExperts,
  signal: AbortSignal,
): Promise<T[]> {
  for (;;) {
    const progress = await step();
    if (Array.isArray(progress)) return progress;
    if (progress.outputs != null) return progress.outputs;
    await bring(progress, signal);
  }
}

/**
 * @param sources of the tensors whose experts stay there, by tensor
 * @param supply packs bytes, which may be used for others afterwards
 */
export function expertReader(
  plan: Plan,
  sources: ReadonlyMap<number, TensorPlacement>,
  supply: (tensor: number, matrix: number, bytes: Uint8Array) => Promise<void>,
): BringExperts {
  const idle: ArrayBuffer[] = [];
  const partOf = (tensor: number, matrix: number) => matrixOf(plan, sources, tensor, matrix);

  async function bringOne(tensor: number, matrix: number, signal: AbortSignal): Promise<void> {
    const part = partOf(tensor, matrix);
    // A source that does not know signals may go on: what it gives then is nobody's.
    const bytes = await settled(readPart(part, idle, signal), signal);
    await supply(tensor, matrix, bytes);
    if (part.source.readInto !== undefined) idle.push(bytes.buffer);
  }

  return async ({ tensors, matrices }, signal) => {
    const stop = new AbortController();
    const abort = () => stop.abort(signal.reason);
    const release = onAbort(signal, abort);
    if (signal.aborted) abort();
    const failures: unknown[] = [];
    const largest = tensors.reduce((most, tensor) => Math.max(most, partOf(tensor, 0).length), 1);
    const atOnce = Math.min(AT_ONCE, Math.max(1, Math.floor(MOST_BYTES / largest)));
    let next = 0;
    const work = async (): Promise<void> => {
      try {
        for (let i = next++; i < tensors.length && !stop.signal.aborted; i = next++)
          await bringOne(tensors[i] ?? 0, matrices[i] ?? 0, stop.signal);
      } catch (error) {
        failures.push(error);
        stop.abort(error);
      }
    };
    await Promise.all(Array.from({ length: atOnce }, work));
    release();
    if (failures.length > 0 && !signal.aborted) throw failures[0];
  };
}

function matrixOf(
  plan: Plan,
  sources: ReadonlyMap<number, TensorPlacement>,
  tensor: number,
  matrix: number,
): Part {
  const placement = sources.get(tensor);
  if (placement === undefined) throw new Error(`tensor ${tensor} has no source`);
  const { source, offset, bytes } = placement;
  const length = bytes / (plan.tensors[tensor]?.experts ?? 1);
  return { tensor, source, offset: offset + matrix * length, length };
}
