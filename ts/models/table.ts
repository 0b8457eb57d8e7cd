import { FrugalError } from '../errors.js';
import type { Activation } from '../plan/types.js';
import type { ExpertDifferences } from './experts.js';

/** Where one decoder architecture differs from the others. Everything else is one function. */
export interface Differences {
  /**
   * How rotary embedding pairs the dimensions of a head. Converters permute the Q and K weights of
   * `llama` files for interleaved pairs; the others keep the original order, two halves.
   */
  readonly ropeLayout: 'interleaved' | 'neox';
  /** Whether rope_freqs, rope_factors_long and rope_factors_short scale the frequencies. */
  readonly ropeFactors: boolean;
  /** YaRN's ramp begins and ends where its formula says. @default at whole pairs */
  readonly exactRamp?: boolean;
  /** Q, K and V projections of a layer have biases, all three or none. Elsewhere each has one where the file does. */
  readonly qkvBias: boolean;
  /** What of Q and K is normalised before the rotation: each head, or the whole row. */
  readonly qkNorm?: 'heads' | 'row';
  /** Feed-forward layers are mixtures of experts. */
  readonly experts?: ExpertDifferences;
  /** Multi-head latent attention. */
  readonly latent?: boolean;
  /** Each head has a logit that takes part in its softmax without a value. */
  readonly sinks?: boolean;
  /** The norm before feed-forward layers, where it has another name. @default 'ffn_norm' */
  readonly feedForwardNorm?: string;
  /** The activation of feed-forward gates. @default 'silu' */
  readonly activation?: Activation;
  /** Token embeddings are multiplied by the square root of their length. */
  readonly scaledEmbedding?: boolean;
  /** What attention and feed-forward give is normalised too, before it is added to the residual stream. */
  readonly postNorms?: boolean;
  /** Scores and logits are held within the caps that the file states, or else within these. */
  readonly softCaps?: SoftCaps;
  /** Only some layers have the sliding window. @default those that the file says, or all where it states just one */
  readonly windows?: Windows;
  /** The model of this many blocks scales scores by what its heads would have if they made up the embedding. */
  readonly blocksOfWideScale?: number;
}

export interface SoftCaps {
  readonly score?: number;
  readonly logit?: number;
}

export interface Windows {
  /** Each `period`th layer sees all positions. */
  readonly period: number;
  /** Where the file states no window. */
  readonly size?: number;
  /** The base of the rotation in layers with a window, where it is another one and the file does not state it. */
  readonly ropeBase?: number;
}

/** Gemma 2 (Riviere et al., 2024, arXiv:2408.00118) and 3 (Kamath et al., 2025, arXiv:2503.19786). */
const GEMMA = {
  ropeLayout: 'neox',
  ropeFactors: false,
  qkvBias: false,
  activation: 'gelu',
  scaledEmbedding: true,
  postNorms: true,
  softCaps: {},
} as const;

const TABLE: ReadonlyMap<string, Differences> = new Map<string, Differences>([
  [
    'llama',
    {
      ropeLayout: 'interleaved',
      ropeFactors: true,
      qkvBias: false,
      experts: { required: false, normalise: true },
    },
  ],
  ['qwen2', { ropeLayout: 'neox', ropeFactors: false, qkvBias: true }],
  ['qwen3', { ropeLayout: 'neox', ropeFactors: false, qkvBias: false, qkNorm: 'heads' }],
  [
    'qwen3moe',
    {
      ropeLayout: 'neox',
      ropeFactors: false,
      qkvBias: false,
      qkNorm: 'heads',
      experts: { required: true, normalise: true },
    },
  ],
  [
    'olmoe',
    {
      ropeLayout: 'neox',
      ropeFactors: false,
      qkvBias: false,
      qkNorm: 'row',
      experts: { required: true, normalise: false },
    },
  ],
  [
    'qwen2moe',
    {
      ropeLayout: 'neox',
      ropeFactors: false,
      qkvBias: true,
      experts: { required: true, normalise: false, shared: 'gated' },
    },
  ],
  [
    'deepseek2',
    {
      ropeLayout: 'interleaved',
      ropeFactors: false,
      qkvBias: false,
      latent: true,
      experts: { required: false, normalise: false, scoring: 'stated', shared: 'plain' },
    },
  ],
  [
    'gpt-oss',
    {
      ropeLayout: 'neox',
      ropeFactors: false,
      qkvBias: true,
      sinks: true,
      exactRamp: true,
      windows: { period: 2, size: 128 },
      feedForwardNorm: 'post_attention_norm',
      experts: { required: true, normalise: false, scoring: 'chosen', activation: 'clamped_swiglu' },
    },
  ],
  [
    'gemma2',
    {
      ...GEMMA,
      softCaps: { score: 50, logit: 30 },
      windows: { period: 2, size: 4096 },
      blocksOfWideScale: 46,
    },
  ],
  ['gemma3', { ...GEMMA, qkNorm: 'heads', windows: { period: 6, ropeBase: 10_000 }, blocksOfWideScale: 62 }],
]);

/** The values of `general.architecture` that plans can be built for. */
export const architectures: readonly string[] = [...TABLE.keys()];

/** @throws FrugalError `UNKNOWN_ARCHITECTURE` with the list of those known */
export function differencesOf(architecture: string): Differences {
  const row = TABLE.get(architecture);
  if (row !== undefined) return row;
  const got = architecture.slice(0, 64);
  throw new FrugalError(
    'UNKNOWN_ARCHITECTURE',
    `the architecture '${got}' is not known; known are ${architectures.join(', ')}`,
    {
      cure: `use a model whose general.architecture is one of ${architectures.join(', ')}`,
      data: { architecture: got, known: architectures },
    },
  );
}
