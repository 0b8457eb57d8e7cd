import type { TensorPlacement } from '../backend/types.js';
import type { ByteSource } from '../gguf/source.js';
import type { KvCacheType, Plan } from '../plan/types.js';

/** What is read of a file's metadata. Each getter throws METADATA_MISSING or METADATA_INVALID by itself. */
export interface Metadata {
  string(key: string): string;
  number(key: string): number;
  optionalString(key: string): string | undefined;
  optionalNumber(key: string): number | undefined;
  optionalBoolean(key: string): boolean | undefined;
  optionalStrings(key: string): { readonly length: number } | undefined;
  /** The numbers of an array, booleans as 0 or 1; undefined where there is a single value. */
  optionalList(key: string): ArrayLike<number> | undefined;
}

export interface FileTensor {
  readonly type: string;
  /** GGUF order: shape[0] is the row length (inputs). */
  readonly shape: readonly number[];
  readonly elements: number;
  /** Index in the file's parts. */
  readonly part: number;
  /** In that part, in bytes. */
  readonly offset: number;
  readonly bytes: number;
}

/** The parts of an opened model file that a plan is built from. */
export interface ModelFile {
  readonly metadata: Metadata;
  readonly tensors: ReadonlyMap<string, FileTensor>;
  readonly parts: readonly ByteSource[];
}

export interface PlanOptions {
  /**
   * Positions a sequence may hold. More than the model was trained for is allowed and noted in the facts.
   * @default the trained context, at most 4096
   */
  readonly contextLength?: number;
  /** @default 'f16' */
  readonly kvCache?: KvCacheType;
  /** The GGML types that the backend has kernels for. */
  readonly tensorTypes: readonly string[];
}

/** A layer that is a mixture of experts. */
export interface ExpertLayer {
  /** Number of the transformer block. */
  readonly block: number;
  readonly experts: number;
  /** Experts that a token is routed to. */
  readonly topK: number;
  /** Bytes of one expert's weights. */
  readonly expertBytes: number;
}

/** Numbers about a model for people and for memory estimates. Sizes are in bytes. */
export interface ModelFacts {
  readonly architecture: string;
  readonly name: string;
  readonly parameters: number;
  readonly trainedContext: number;
  readonly contextLength: number;
  readonly vocabSize: number;
  readonly embeddingLength: number;
  /** The file's `pooling_type`, where it states one: 1 is the mean, 3 the last token. */
  readonly poolingType?: number;
  readonly blockCount: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly weightBytes: number;
  /** Weight bytes read to decode one token of one sequence. */
  readonly bytesPerToken: number;
  /** Bytes that one position takes in the key/value caches of all layers. */
  readonly kvBytesPerToken: number;
  /** What these hold. */
  readonly kvCache: KvCacheType;
  /** In the order of the plan; empty for dense models. */
  readonly expertLayers: readonly ExpertLayer[];
  /** Bytes of all experts. */
  readonly expertBytes: number;
  /** What a user should know about this combination of file and options; mostly empty. */
  readonly notes: readonly string[];
}

export interface ModelPlan {
  readonly plan: Plan;
  /** One for each of `plan.tensors`, in its order. */
  readonly placements: readonly TensorPlacement[];
  readonly facts: ModelFacts;
}
