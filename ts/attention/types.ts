/**
 * What attention keeps of the keys before a query. Keys are kept in blocks of 64 positions, windows and first tokens to
 * the token. Patterns say which blocks; policies that look at keys and queries choose the blocks that matter most, and
 * always keep a query's own.
 */
export type AttentionPolicy =
  | DensePolicy
  | WindowPolicy
  | LongformerPolicy
  | BigBirdPolicy
  | StridedPolicy
  | AntidiagonalPolicy
  | VerticalSlashPolicy
  | LshPolicy
  | QuestPolicy
  | AutoPolicy;

/** All keys. */
export interface DensePolicy {
  readonly policy: 'dense';
}

/** The last tokens, and the first ones as attention sinks (StreamingLLM: Xiao et al., 2023, arXiv:2309.17453). */
export interface WindowPolicy {
  readonly policy: 'window';
  /** Tokens before a query, its own included. */
  readonly window: number;
  /** The sequence's first tokens. @default 4 */
  readonly sinks?: number;
}

/** A window, a dilated window, and global tokens (Longformer: Beltagy et al., 2020, arXiv:2004.05150). */
export interface LongformerPolicy {
  readonly policy: 'longformer';
  readonly window: number;
  /** Blocks of 64 tokens before the query's own, each `dilation` blocks before the next. @default 0 */
  readonly dilatedBlocks?: number;
  /** @default 2 */
  readonly dilation?: number;
  /** The sequence's first tokens, which all queries see. @default 64 */
  readonly globalTokens?: number;
}

/** A window, global tokens and random blocks (BigBird: Zaheer et al., 2020, arXiv:2007.14062). */
export interface BigBirdPolicy {
  readonly policy: 'bigbird';
  readonly window: number;
  /** @default 64 */
  readonly globalTokens?: number;
  /** Blocks of 64 tokens, up to 65536, drawn anew for each layer, head and block of queries. @default 3 */
  readonly randomBlocks?: number;
  /** @default 0 */
  readonly seed?: number;
}

/** A window, and every block that many apart (Sparse Transformer: Child et al., 2019, arXiv:1904.10509). */
export interface StridedPolicy {
  readonly policy: 'strided';
  readonly window: number;
  /** In blocks of 64 tokens. */
  readonly stride: number;
}

/** How much a policy that chooses by content may keep of the blocks before the queries' own. */
export interface KeepOptions {
  /** Share of the blocks, 0 to 1. @default 0.1 */
  readonly keep?: number;
  /** No fewer blocks than hold so many tokens. @default 1024 */
  readonly minTokens?: number;
}

/**
 * By the scores of pairs along antidiagonals (after XAttention: Xu et al., 2025, arXiv:2503.16428); a quarter of what is
 * kept goes to keys that few queries look for: half to what the longest query looks at, half to the highest page
 * bounds, as {@link QuestPolicy} has them.
 */
export interface AntidiagonalPolicy extends KeepOptions {
  readonly policy: 'antidiagonal';
  /** One pair in so many is looked at: 4, 8 or 16. @default 16 */
  readonly stride?: number;
  /** Keeps fewer blocks where these have such a share of the estimated attention mass. @default 1: never */
  readonly mass?: number;
}

/**
 * By what the last and the longest query of a block and head look at (after MInference: Jiang et al., 2024, arXiv:2407.02490); a quarter of what
 * is kept goes to the highest page bounds, as {@link QuestPolicy} has them.
 */
export interface VerticalSlashPolicy extends KeepOptions {
  readonly policy: 'vertical-slash';
}

/** By locality-sensitive hashing (after Reformer: Kitaev et al., 2020, arXiv:2001.04451). */
export interface LshPolicy extends KeepOptions {
  readonly policy: 'lsh';
  /** Rounds of random rotations, 1 to 8. @default 8 */
  readonly rounds?: number;
  /** @default 0 */
  readonly seed?: number;
}

/** By bounds of small pages' keys (Quest: Tang et al., 2024, arXiv:2406.10774); best for decoding. */
export interface QuestPolicy extends KeepOptions {
  readonly policy: 'quest';
}

/**
 * Dense in short contexts. In longer ones antidiagonals choose for prompts and page bounds for single tokens, and
 * sampled queries measure the attention mass that this keeps: where it is less than `quality`, attention is dense.
 * Of prompts, a sixteenth of the earlier blocks is kept beside, for keys that few queries look for.
 */
export interface AutoPolicy {
  readonly policy: 'auto';
  /** The share of the attention mass to keep. @default 0.98 */
  readonly quality?: number;
  /** Positions before this one are dense. @default 4096 */
  readonly from?: number;
}

/** One policy for all layers, or one for each. */
export type LayerPolicies = AttentionPolicy | readonly AttentionPolicy[];

export interface AttentionOptions {
  /** Where several tokens of a block of 64 positions are computed at once. @default dense */
  readonly prefill?: LayerPolicies;
  /** For tokens computed one by one. @default dense */
  readonly decode?: LayerPolicies;
}

/** What one layer kept. */
export interface LayerKeys {
  /** Share of the blocks that queries saw, the mean over queries that each counts by what it saw: 1 is dense. */
  readonly kept: number;
  /**
   * Share of the attention mass of the blocks before the queries' own that this held: 1 where all was kept, else the mean
   * over sampled queries, once there are any. The own block is always kept, so of all mass the share is no smaller. Absent
   * where blocks were chosen without looking at them, by a pattern for prompts or single tokens.
   */
  readonly mass?: number;
}

/** What attention kept during a generation, of models loaded with `attention`. */
export interface AttentionUsage {
  readonly options: AttentionOptions;
  readonly layers: readonly LayerKeys[];
  /** Over all layers. */
  readonly kept: number;
  /** The mean over layers; absent where that of one is. */
  readonly mass?: number;
}

/** Which blocks of keys one KV head of a layer kept. */
export interface HeadBlocks {
  /** Among the layers that have keys. */
  readonly layer: number;
  readonly head: number;
  /** One for each block of queries, ascending. */
  readonly rows: readonly QueryBlocks[];
}

export interface QueryBlocks {
  /** The queries' positions / 64. */
  readonly block: number;
  /** Blocks of keys, ascending, up to the queries' own. */
  readonly keys: Uint32Array;
}
