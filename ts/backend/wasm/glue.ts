import type { RuntimeSettings } from '../model.js';
import type { Isa } from '../types.js';

/** One instance of a module, as `createGlue` of the generated glue gives it. It holds one model. */
export interface Glue {
  initSync(start: GlueStart): { readonly memory: WebAssembly.Memory };
  isas(): Isa[];
  tensorTypes(): string[];
  compile(plan: Uint8Array, threads: number, isa: string, maxStepTokens: number, expertMemory?: number): void;
  /** Lends the calling thread to the model until that is disposed of. */
  work(thread: number): void;
  threads(): number;
  weightBytes(): number;
  maxLogitRows(): number;
  kvBytes(): number;
  setStepThreads(threads: number): void;
  pushRows(id: number, rows: Uint8Array): void;
  isOnDemand(id: number): boolean;
  attachTensor(id: number): void;
  /** Copies the bytes of a matrix of an expert that a step needs, for `packStaged`. */
  stage(tensor: number, matrix: number, bytes: Uint8Array): void;
  /** Packs the matrix that was staged first, on all threads. */
  packStaged(): void;
  createSequence(settings?: RuntimeSettings): number;
  countExperts(sequence: number): void;
  /** Tokens of each expert, reads and misses of each mixture. */
  expertCounts(sequence: number): [Uint32Array, Uint32Array, Uint32Array] | undefined;
  keptKeys(sequence: number): Float64Array;
  recordKeys(sequence: number): void;
  recordedKeys(sequence: number): Uint32Array;
  rewind(sequence: number, length: number): void;
  freeSequence(sequence: number): void;
  step(sequences: Uint32Array, counts: Uint32Array, tokens: Uint32Array, wants: Uint8Array): StepAnswer;
  dispose(): void;
}

export interface GlueStart {
  readonly module: WebAssembly.Module;
  /** The memory that all threads of a model share. */
  readonly memory?: WebAssembly.Memory;
  /** Bytes, a multiple of 65536. */
  readonly thread_stack_size?: number;
}

/** What the entries of a step give; or, until it is done, the matrices it needs: the tensor of each, and which of its matrices. */
export type StepAnswer = StepValue[] | Uint32Array;

/** What an entry of a step gives: nothing, a sampled token, or logits or hidden states. */
export type StepValue = undefined | number | Float32Array;
