import type { StepProgress } from '../experts.js';
import type { RuntimeModel } from '../model.js';
import type { StepResult } from '../types.js';
import type { StepAnswer } from './glue.js';
import type { Instance } from './instance.js';
import { nextTurn } from './turn.js';

export interface LocalModel extends RuntimeModel {
  /** Copies an expert's bytes into the model's memory, where they wait to be packed. */
  stage(tensor: number, matrix: number, bytes: Uint8Array): void;
}

/** A model that computes on the calling thread: a step holds it, and other tasks get their turn between steps. */
export function localModel({ call, ask, release }: Instance): LocalModel {
  const stage = (tensor: number, matrix: number, bytes: Uint8Array) =>
    call((glue) => glue.stage(tensor, matrix, bytes));
  return {
    threads: call((glue) => glue.threads()),
    weightBytes: call((glue) => glue.weightBytes()),
    maxLogitRows: call((glue) => glue.maxLogitRows()),
    holdsThread: true,
    kvBytes: () => ask((glue) => glue.kvBytes(), 0),
    setStepThreads: (threads) => call((glue) => glue.setStepThreads(threads)),
    pushRows: async (id, rows) => call((glue) => glue.pushRows(id, rows)),
    isOnDemand: (id) => call((glue) => glue.isOnDemand(id)),
    attachTensor: (id) => call((glue) => glue.attachTensor(id)),
    stage,
    async supply(tensor, matrix, bytes) {
      await nextTurn();
      stage(tensor, matrix, bytes);
      call((glue) => glue.packStaged());
    },
    createSequence: (settings) => call((glue) => glue.createSequence(settings)),
    countExperts: (sequence) => call((glue) => glue.countExperts(sequence)),
    expertCounts(sequence) {
      const counts = ask((glue) => glue.expertCounts(sequence), undefined);
      if (counts === undefined) return undefined;
      const [tokens, reads, misses] = counts;
      return { tokens, reads, misses };
    },
    keptKeys: (sequence) => ask((glue) => glue.keptKeys(sequence), new Float64Array()),
    recordKeys: (sequence) => call((glue) => glue.recordKeys(sequence)),
    recordedKeys: (sequence) => ask((glue) => glue.recordedKeys(sequence), new Uint32Array()),
    rewind: (sequence, length) => call((glue) => glue.rewind(sequence, length)),
    freeSequence: async (sequence) => ask((glue) => glue.freeSequence(sequence), undefined),
    async step(sequences, counts, tokens, wants) {
      await nextTurn();
      return progressOf(call((glue) => glue.step(sequences, counts, tokens, wants)));
    },
    async dispose() {
      try {
        ask((glue) => glue.dispose(), undefined);
      } finally {
        await release();
      }
    },
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
