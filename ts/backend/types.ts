import type { ByteSource } from '../gguf/source.js';
import type { Plan } from '../plan/types.js';

export type Isa = 'scalar' | 'avx2' | 'avx-vnni' | 'avx512' | 'amx' | 'neon' | 'simd128' | 'relaxed-simd';

export interface BackendOptions {
  /** Worker threads, the caller's included. @default the machine's cores, at most 64 of them for WebAssembly */
  readonly threads?: number;
  /** Forces an instruction set. @default the environment variable FRUGAL_ISA, else the fastest the CPU has */
  readonly isa?: Isa;
  /** The most tokens one step may hold; sizes the activation buffers. */
  readonly maxStepTokens: number;
  /**
   * The most bytes of experts in memory. The others are read from the sources that `loadTensors` got when tokens are
   * routed to them: see `keepsSources`. @default all of them
   */
  readonly expertMemory?: number;
}

export interface BackendInfo {
  readonly kind: 'native' | 'wasm';
  readonly isa: Isa;
  readonly threads: number;
  /** Of WebAssembly: which of its modules runs, and why this one. */
  readonly variant?: string;
  readonly reason?: string;
  /** What the user should know about it; `info.notes` has it too. */
  readonly notes?: readonly string[];
}

/** Where one tensor of the plan lies. */
export interface TensorPlacement {
  /** Index in `plan.tensors`. */
  readonly tensor: number;
  readonly source: ByteSource;
  readonly offset: number;
  readonly bytes: number;
}

export interface LoadProgress {
  /** Called with the bytes loaded so far, at most a few times a second. */
  readonly onProgress?: (loadedBytes: number) => void;
  readonly signal?: AbortSignal;
}

/** Sampling settings with every default applied; see `SamplingOptions` for their meaning. */
export interface SamplerSettings {
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly repetitionPenalty: number;
  readonly frequencyPenalty: number;
  readonly presencePenalty: number;
  /** How many of the last tokens the penalties look at; -1: all. */
  readonly penaltyWindow: number;
  readonly seed: bigint;
  readonly logitBias: ReadonlyArray<readonly [token: number, bias: number]>;
}

/**
 * What an entry of a step asks for: nothing, one sampled token after its last token, the logits
 * of its last or all of its tokens, or the hidden state of all of its tokens.
 */
export type StepOutput = 'none' | 'sample' | 'last-logits' | 'all-logits' | 'all-hidden';

export interface StepEntry {
  readonly sequence: number;
  /** Appended to the sequence; at least one. */
  readonly tokens: Uint32Array;
  readonly output: StepOutput;
}

export interface StepResult {
  /** For `sample`: the token drawn. */
  readonly token?: number;
  /** For logits [n, vocabSize] and hidden states [n, width], row by row. */
  readonly values?: Float32Array;
}

/** Counts of a sequence's routes, of one mixture of experts after another, in the plan's order. */
export interface ExpertCounts {
  /** How many tokens each expert of each mixture got. */
  readonly tokens: Uint32Array;
  /** Per mixture: how often an expert's weights were read, once a step for all of the sequence's tokens. */
  readonly reads: Uint32Array;
  /** Per mixture: how many of these reads found the weights missing from memory. */
  readonly misses: Uint32Array;
}

/** A compiled plan with its weights. One step at a time; the engine's scheduler sees to that. */
export interface BackendModel {
  readonly info: BackendInfo;
  /** Bytes of packed weights. */
  readonly weightBytes: number;
  /** The most rows of logits that one step may return, sampled tokens included. */
  readonly maxLogitRows: number;
  /** Whether a step keeps the calling thread to itself, so that nothing can cut it short. */
  readonly holdsThread: boolean;
  /** Bytes that key/value caches take at present. */
  kvBytes(): number;
  /** Lets so many of the threads, at least one, take part in steps from now on. It changes no result. */
  setThreads(threads: number): void;
  loadTensors(placements: readonly TensorPlacement[], progress: LoadProgress): Promise<void>;
  /** Whether steps read experts from the sources that `loadTensors` got, which must stay open until `dispose`. */
  keepsSources(): boolean;
  /** A new empty sequence; `sampler` is needed for the output `sample`. */
  createSequence(sampler?: SamplerSettings): number;
  /** Starts to count, from zero, which experts the sequence's tokens are routed to; it costs nothing otherwise. */
  countExperts(sequence: number): void;
  /** Ends counting. Undefined where it never began, or the sequence has ended. */
  expertCounts(sequence: number): ExpertCounts | undefined;
  /**
   * Four numbers for each layer, of steps since this was last asked: blocks of keys kept and seen, the sum of the
   * measured shares of the attention mass, and how many were measured. Empty where all keys are kept.
   */
  keptKeys(sequence: number): Float64Array;
  /** Records which blocks of keys the sequence's layers keep, from now on; it costs nothing otherwise. */
  recordKeys(sequence: number): void;
  /**
   * Ends recording. For each KV head of one layer after another: the layer, the length of its list, and the list. That
   * has for each choice the queries' block, how many blocks of keys are kept, and these; 0 and none where that is all.
   */
  recordedKeys(sequence: number): Uint32Array;
  /** Leaves the sequence as it was after its first `length` tokens. Not while a step holds it. */
  rewind(sequence: number, length: number): void;
  /** Frees the sequence's cache. A step in progress that holds it is cut short. */
  freeSequence(sequence: number): void;
  /** Runs the plan for all entries at once. Rejects as a whole; the sequences are then unchanged. */
  step(batch: readonly StepEntry[]): Promise<StepResult[]>;
  /** Frees everything, after the step in progress (cut short). */
  dispose(): Promise<void>;
}

export interface Backend {
  readonly kind: 'native' | 'wasm';
  /** Instruction sets that this machine can run, fastest first; `scalar` is always last. */
  readonly isas: readonly Isa[];
  /** GGML types that the kernels take. */
  readonly tensorTypes: readonly string[];
  /** @throws FrugalError `PLAN_INVALID`, `INVALID_ARGUMENT` (an ISA this CPU lacks), `OUT_OF_MEMORY` */
  compile(plan: Plan, options: BackendOptions): Promise<BackendModel>;
}
