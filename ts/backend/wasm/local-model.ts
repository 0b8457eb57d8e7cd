import { FrugalError } from '../../errors.js';
import type { StepProgress } from '../experts.js';
import type { RuntimeModel } from '../model.js';
import type { StepResult } from '../types.js';
import type { Glue, StepAnswer } from './glue.js';
import { nextTurn } from './turn.js';

/** Runs calls into an instance; after one that crashed, none runs any more. */
export type Watch = <T>(call: () => T) => T;

/** An instance's memory at most, in bytes. */
const MOST_BYTES = 2 ** 32;
/** What may be left when an allocation fails. */
const SLACK_BYTES = 16 << 20;

export function watched(memory: WebAssembly.Memory): Watch {
  let broken: FrugalError | undefined;
  return (call) => {
    if (broken !== undefined) throw broken;
    try {
      return call();
    } catch (error) {
      // All others come from an instance that has stopped midway.
      if (error instanceof Error && isRefusal(error.message)) throw error;
      broken = crashed(memory.buffer.byteLength, error);
      throw broken;
    }
  };
}

/** The runtime's own errors have three lines; a panic's may have more, but no code. */
export function isRefusal(message: string): boolean {
  return /^[A-Z_]+\n.*\n/.test(message);
}

export function crashed(memoryBytes: number, cause: unknown): FrugalError {
  const why = cause instanceof Error ? cause.message : String(cause);
  if (memoryBytes > MOST_BYTES - SLACK_BYTES) {
    return new FrugalError(
      'OUT_OF_MEMORY',
      `${memoryBytes} bytes of memory are in use, and WebAssembly has at most ${MOST_BYTES}`,
      {
        cure: 'Use a smaller model, a shorter context, fewer sequences at once, or the native backend.',
        cause,
      },
    );
  }
  return new FrugalError('INTERNAL', `the WebAssembly engine stopped: ${why}`, {
    cure: 'This is a fault of the engine; report it with the command that shows it.',
    cause,
  });
}

export interface LocalModel extends RuntimeModel {
  /** Copies an expert's bytes into the model's memory, where they wait to be packed. */
  stage(tensor: number, matrix: number, bytes: Uint8Array): void;
}

/** A model that computes on the calling thread: a step holds it, and other tasks get their turn between steps. */
export function localModel(glue: Glue, watch: Watch): LocalModel {
  const stage = (tensor: number, matrix: number, bytes: Uint8Array) =>
    watch(() => glue.stage(tensor, matrix, bytes));
  return {
    threads: watch(() => glue.threads()),
    weightBytes: watch(() => glue.weightBytes()),
    maxLogitRows: watch(() => glue.maxLogitRows()),
    kvBytes: () => watch(() => glue.kvBytes()),
    setStepThreads: (threads) => watch(() => glue.setStepThreads(threads)),
    pushRows: async (id, rows) => watch(() => glue.pushRows(id, rows)),
    isOnDemand: (id) => watch(() => glue.isOnDemand(id)),
    attachTensor: (id) => watch(() => glue.attachTensor(id)),
    stage,
    async supply(tensor, matrix, bytes) {
      await nextTurn();
      stage(tensor, matrix, bytes);
      watch(() => glue.packStaged());
    },
    createSequence: (settings) => watch(() => glue.createSequence(settings)),
    countExperts: (sequence) => watch(() => glue.countExperts(sequence)),
    expertCounts(sequence) {
      const counts = watch(() => glue.expertCounts(sequence));
      if (counts === undefined) return undefined;
      const [tokens, reads, misses] = counts;
      return { tokens, reads, misses };
    },
    keptKeys: (sequence) => watch(() => glue.keptKeys(sequence)),
    recordKeys: (sequence) => watch(() => glue.recordKeys(sequence)),
    recordedKeys: (sequence) => watch(() => glue.recordedKeys(sequence)),
    freeSequence: async (sequence) => watch(() => glue.freeSequence(sequence)),
    async step(sequences, counts, tokens, wants) {
      await nextTurn();
      return progressOf(watch(() => glue.step(sequences, counts, tokens, wants)));
    },
    dispose: async () => watch(() => glue.dispose()),
  };
}

export function progressOf(answer: StepAnswer): StepResult[] | StepProgress<StepResult[]> {
  if (!Array.isArray(answer))
    return { tensors: answer.filter((_, i) => i % 2 === 0), matrices: answer.filter((_, i) => i % 2 === 1) };
  return answer.map((value) => {
    if (value === undefined) return {};
    return typeof value === 'number' ? { token: value } : { values: value };
  });
}
