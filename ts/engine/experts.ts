import type { ExpertCounts } from '../backend/types.js';
import type { ExpertLayer } from '../models/index.js';

/** How a layer spread tokens over its experts. */
export interface LayerRouting {
  /** Number of the transformer block. */
  readonly block: number;
  /** How many tokens each expert got: tokens times top-k in all. */
  readonly tokens: readonly number[];
  /**
   * Evenness of these counts: their entropy divided by the logarithm of the number of experts (Pielou, 1966). 1 when
   * all experts got as many tokens, 0 when one got all.
   */
  readonly balance: number;
  /**
   * The busiest expert's tokens, in units of the mean: 1 when even, the number of experts at most. Less one it is the
   * maximal violation of Wang et al., 2024, arXiv:2408.15664.
   */
  readonly peak: number;
}

/** Which experts a generation's computed tokens were routed to. */
export interface ExpertUsage {
  readonly layers: readonly LayerRouting[];
  /** Bytes of expert weights read for one token, in the mean: tokens of a step share those of an expert. */
  readonly bytesPerToken: number;
  /**
   * How often an expert's weights were read, and how many of these reads found them in memory: all, unless
   * `expertMemory` keeps some in the file.
   */
  readonly reads: number;
  readonly hits: number;
}

export function expertUsage(counts: ExpertCounts, layers: readonly ExpertLayer[]): ExpertUsage {
  let at = 0;
  const routings = layers.map(({ block, experts }): LayerRouting => {
    const tokens = [...counts.tokens.subarray(at, at + experts)];
    at += experts;
    return { block, tokens, balance: balance(tokens), peak: peak(tokens) };
  });
  const routed = sum(routings[0]?.tokens ?? []) / (layers[0]?.topK ?? 1);
  const bytes = layers.reduce((total, layer, i) => total + layer.expertBytes * (counts.reads[i] ?? 0), 0);
  const reads = sum(counts.reads);
  return {
    layers: routings,
    bytesPerToken: routed === 0 ? 0 : bytes / routed,
    reads,
    hits: reads - sum(counts.misses),
  };
}

/** The counts of two sequences together. */
export function addCounts(a: ExpertCounts | undefined, b: ExpertCounts): ExpertCounts {
  if (a === undefined) return b;
  const add = (x: Uint32Array, y: Uint32Array) => x.map((count, i) => count + (y[i] ?? 0));
  return { tokens: add(a.tokens, b.tokens), reads: add(a.reads, b.reads), misses: add(a.misses, b.misses) };
}

/** Shannon's entropy of the shares over that of even ones; 1 for a single expert, and where there are no tokens. */
function balance(tokens: readonly number[]): number {
  const total = sum(tokens);
  if (total === 0 || tokens.length === 1) return 1;
  const entropy = tokens.reduce(
    (h, count) => (count === 0 ? h : h - (count / total) * Math.log(count / total)),
    0,
  );
  return entropy / Math.log(tokens.length);
}

function peak(tokens: readonly number[]): number {
  const total = sum(tokens);
  return total === 0 ? 1 : (Math.max(...tokens) * tokens.length) / total;
}

function sum(values: Iterable<number>): number {
  let total = 0;
  for (const value of values) total += value;
  return total;
}
