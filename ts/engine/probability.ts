import type { Pace } from '../yield.js';

// These numbers are reports about logits. They are computed in f64 with the runtime's own `Math`, whose last bit may
// differ between runtimes, and nothing of them ever goes back into a model.

/** How many values are handled between two looks at the clock. */
const SLICE = 16384;

/** ln(sum(exp(logits))), in f64. */
async function logSumExp(logits: Float32Array, pace: Pace): Promise<number> {
  let max = Number.NEGATIVE_INFINITY;
  for (const logit of logits) if (logit > max) max = logit;
  let sum = 0;
  for (let start = 0; start < logits.length; start += SLICE) {
    for (const logit of logits.subarray(start, start + SLICE)) sum += Math.exp(logit - max);
    if (pace.due()) await pace.rest();
  }
  return max + Math.log(sum);
}

/**
 * The natural logarithm of each token's probability.
 * @param pace shared by all rows of a loop, so that many short rows do not hold the thread together
 */
export async function logProbabilities(logits: Float32Array, pace: Pace): Promise<Float32Array> {
  const total = await logSumExp(logits, pace);
  return logits.map((logit) => logit - total);
}

/** The natural logarithm of one token's probability, in f64. */
export async function logProbability(logits: Float32Array, token: number, pace: Pace): Promise<number> {
  return (logits[token] ?? Number.NEGATIVE_INFINITY) - (await logSumExp(logits, pace));
}

/** The token with the largest logit; of equal ones the lowest. */
export function mostLikely(logits: Float32Array): number {
  let best = 0;
  let value = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < logits.length; i++) {
    const logit = logits[i] ?? Number.NEGATIVE_INFINITY;
    if (logit > value) {
      value = logit;
      best = i;
    }
  }
  return best;
}
