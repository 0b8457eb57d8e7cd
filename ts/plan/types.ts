/**
 * A plan: what one step of inference computes, as flat data. TypeScript builds it from a model's
 * hyper-parameters; the Rust executor verifies it once and runs it for every step.
 *
 * Activations live in named f32 buffers of shape [rows, width]. Rows are the tokens of the step,
 * or, after `select_outputs`, the tokens whose results the caller asked for.
 */
export interface Plan {
  readonly version: 1;
  /** Shown in messages: the architecture and the model's name. */
  readonly name: string;
  readonly vocabSize: number;
  /** Positions a sequence may hold. */
  readonly contextLength: number;
  readonly kvLayers: readonly KvLayer[];
  /** What the caches of all layers hold. @default 'f16' */
  readonly kvCache?: KvCacheType;
  readonly tensors: readonly PlanTensor[];
  readonly buffers: readonly PlanBuffer[];
  readonly ropes: readonly Rope[];
  readonly ops: readonly PlanOp[];
  /** Which keys attention keeps, where that is not all. */
  readonly sparse?: Sparse;
  /** The buffer (rows: outputs) that holds the final hidden state, for embeddings. */
  readonly hidden: string;
}

/** Keys and values as F16, or as signed bytes with an F16 scale for every 32 dimensions of a head. */
export type KvCacheType = 'f16' | 'q8_0';

/** One layer's key/value cache: `kvHeads` heads of `headDim` values for keys and `valueDim` for values. */
export interface KvLayer {
  readonly kvHeads: number;
  readonly headDim: number;
  /** @default headDim */
  readonly valueDim?: number;
}

/** A weight matrix of `rows` outputs by `cols` inputs (a GGUF shape [cols, rows]); a vector has rows = 1. */
export interface PlanTensor {
  /** The GGUF tensor name. */
  readonly name: string;
  /** The GGML type name: `F32`, `Q4_0`, ... */
  readonly type: string;
  readonly rows: number;
  readonly cols: number;
  /**
   * How many matrices of that shape follow one another: the experts of a layer (a GGUF shape [cols, rows, experts]), or
   * twice as many where the tensor holds both the gate and the up matrix of each ([cols, 2 * rows, experts]).
   */
  readonly experts?: number;
}

/**
 * A policy for each layer of the cache, or one for all: `prefill` where a step has several queries of a block of 64
 * positions, `decode` where it has one.
 */
export interface Sparse {
  readonly prefill: readonly SparsePolicy[];
  readonly decode: readonly SparsePolicy[];
}

/** See `AttentionPolicy`. Blocks are of 64 positions. */
export type SparsePolicy =
  | { readonly policy: 'dense' }
  /** The union of the first `sinks` and last `recent` positions, and of whole blocks. */
  | {
      readonly policy: 'pattern';
      readonly sinks: number;
      readonly recent: number;
      /** So many blocks before the queries' own, `dilation` blocks apart. */
      readonly dilated: number;
      readonly dilation: number;
      /** Blocks by number. */
      readonly global: readonly number[];
      /** Of the earlier blocks those that are a multiple of so many blocks away; 0: none. */
      readonly stride: number;
      /** Blocks drawn at random. */
      readonly random: number;
      readonly seed: number;
    }
  | {
      readonly policy: 'antidiagonal';
      readonly stride: number;
      readonly mass: number;
      readonly keep: number;
      readonly tokens: number;
    }
  | { readonly policy: 'vertical-slash'; readonly keep: number; readonly tokens: number }
  | {
      readonly policy: 'lsh';
      readonly rounds: number;
      readonly seed: number;
      readonly keep: number;
      readonly tokens: number;
    }
  | { readonly policy: 'bounds'; readonly keep: number; readonly tokens: number }
  | { readonly policy: 'auto'; readonly quality: number; readonly from: number };

export interface PlanBuffer {
  readonly name: string;
  readonly width: number;
  readonly rows: 'tokens' | 'outputs';
}

/**
 * Rotary position embedding. The angle of pair i at position p is
 * p * base^(-2i/dims) / factors[i], then scaled as YaRN does (Peng et al., 2023, arXiv:2309.00071).
 */
export interface Rope {
  /** How many leading dimensions of each head are rotated; even. */
  readonly dims: number;
  readonly base: number;
  /** `interleaved` pairs dimensions 2i and 2i+1; `neox` pairs i and i + dims/2. */
  readonly layout: 'interleaved' | 'neox';
  /** Context extension factor: positions are divided by it where YaRN interpolates. 1: none. */
  readonly factor: number;
  /** How much of YaRN's extrapolation is mixed in: 0 gives plain linear scaling, 1 gives YaRN. */
  readonly extFactor: number;
  readonly attnFactor: number;
  readonly betaFast: number;
  readonly betaSlow: number;
  readonly originalContext: number;
  /**
   * YaRN's ramp begins and ends where its formula says, as in gpt-oss, whose file formats have no key for it (llama.cpp
   * rounds there, too). @default at whole pairs
   */
  readonly exactRamp?: boolean;
  /** Name of an F32 tensor of dims/2 per-frequency divisors (llama3 and long-factor scaling). */
  readonly factors?: string;
  /**
   * How DeepSeek has YaRN: rotations keep their length but for `attnFactor`, and attention that names this rope
   * multiplies scores by (attnFactor * (1 + logMultiplier * ln factor))².
   */
  readonly logMultiplier?: number;
}

/**
 * The activation of a gate, and what it is multiplied with. `clamped_swiglu` is gpt-oss's: with g = min(gate, 7),
 * g * sigmoid(1.702 g) * (up within -7..7, plus 1).
 */
export type Activation = 'silu' | 'gelu' | 'clamped_swiglu';

/**
 * How gates become scores and weights of experts: by softmax over all, by sigmoids, or the gates choose and the
 * weights are the softmax over the chosen ones (`chosen`).
 */
export type Scoring = 'softmax' | 'sigmoid' | 'chosen';

/**
 * Experts in `count` equal runs, of which a token may use the best `used`; a group is as good as its best expert,
 * or as its `best` two together.
 */
export interface Groups {
  readonly count: number;
  readonly used: number;
  readonly best: 1 | 2;
}

export type PlanOp =
  /** out[row] = table[token[row]] * scale (default 1). */
  | { readonly op: 'embed'; readonly table: string; readonly out: string; readonly scale?: number }
  /** out = x / sqrt(mean(x²) + eps) * weight, for each run of `weight` length in a row (a row, or each head). */
  | {
      readonly op: 'rms_norm';
      readonly x: string;
      readonly weight: string;
      readonly out: string;
      readonly eps: number;
    }
  /**
   * out = x · weightᵀ + bias; with `add`, out = out + (x · weightᵀ + bias). With `precise`, what rounding the
   * activations leaves is multiplied too: twice the arithmetic, the same bytes of weights. Logits of weights
   * that are not quantised are precise.
   */
  | {
      readonly op: 'linear';
      readonly x: string;
      readonly weight: string;
      readonly bias?: string;
      readonly out: string;
      readonly add?: boolean;
      readonly precise?: boolean;
    }
  /** out = activation(x · gateᵀ + gateBias) * (x · upᵀ + upBias). */
  | {
      readonly op: 'glu';
      readonly x: string;
      readonly gate: string;
      readonly up: string;
      readonly gateBias?: string;
      readonly upBias?: string;
      readonly activation: Activation;
      readonly out: string;
    }
  /**
   * A mixture of experts: of `gates` [experts] the `topK` with the best scores (ties to the lowest index), by
   * default of the softmax. `selectionBias` [experts] is added to what chooses, not to what weighs. The weights are
   * divided by their sum where `normalise`, then multiplied by `scale`. Then, in order of rank,
   * out = out + weight * (activation(x · gateᵀ + gateBias) * (x · upᵀ + upBias) · downᵀ + downBias), summed before
   * it is added. Biases of experts are vectors, every expert's after the other's. Where `gate` and `up` are the same
   * tensor it holds both of each expert, in this order; so do biases.
   */
  | {
      readonly op: 'experts';
      readonly x: string;
      readonly gates: string;
      readonly gate: string;
      readonly up: string;
      readonly down: string;
      readonly activation: Activation;
      readonly out: string;
      readonly topK: number;
      readonly normalise: boolean;
      readonly scale: number;
      /** @default 'softmax' */
      readonly scoring?: Scoring;
      readonly selectionBias?: string;
      readonly groups?: Groups;
      readonly gateBias?: string;
      readonly upBias?: string;
      readonly downBias?: string;
    }
  /** Of each head of x its own matrix's product, to the same head of out; `weight` is a stack of one for each head. */
  | {
      readonly op: 'linear_heads';
      readonly x: string;
      readonly weight: string;
      readonly out: string;
      readonly precise?: boolean;
    }
  /** x = x * sigmoid(gate), with one gate for each row. */
  | { readonly op: 'gate'; readonly x: string; readonly gate: string }
  /** `count` numbers from place `from` of each head of x, or of its only one, to place `to` of each head of out. */
  | {
      readonly op: 'copy';
      readonly x: string;
      readonly out: string;
      readonly xHeads: number;
      readonly heads: number;
      readonly from: number;
      readonly to: number;
      readonly count: number;
    }
  /** Rotates each head of x in place by its token's position, from dimension `at` on; `rope` indexes `plan.ropes`. */
  | {
      readonly op: 'rope';
      readonly x: string;
      readonly rope: number;
      readonly headDim: number;
      /** @default 0 */
      readonly at?: number;
    }
  /**
   * Appends k and v to the layer's cache, then causal attention of q over it.
   * `scale` multiplies scores, default 1 / sqrt(headDim). `window` w lets position p see p-w+1..p.
   * `softcap` c then makes a score c * tanh(score / c). `sinks` names a vector [heads]: logits that take part in
   * each head's softmax but have no value. `rope` names one whose `logMultiplier` scales scores as well.
   */
  | {
      readonly op: 'attention';
      readonly q: string;
      readonly k: string;
      readonly v: string;
      readonly out: string;
      readonly layer: number;
      readonly heads: number;
      readonly scale?: number;
      readonly rope?: number;
      readonly window?: number;
      readonly softcap?: number;
      readonly sinks?: string;
    }
  /** out = out + x. */
  | { readonly op: 'add'; readonly x: string; readonly out: string }
  /** out = the rows of x that the caller wants results for. */
  | { readonly op: 'select_outputs'; readonly x: string; readonly out: string }
  /** The step's logits, [outputs, vocabSize] = x · weightᵀ + bias, held within `softcap` like scores. The last op. */
  | {
      readonly op: 'logits';
      readonly x: string;
      readonly weight: string;
      readonly bias?: string;
      readonly softcap?: number;
    };
