import { FrugalError } from '../errors.js';

/** Where one decoder architecture differs from the others. Everything else is one function. */
export interface Differences {
  /**
   * How rotary embedding pairs the dimensions of a head. Converters permute the Q and K weights of
   * `llama` files for interleaved pairs; the others keep the original order, two halves.
   */
  readonly ropeLayout: 'interleaved' | 'neox';
  /** Whether rope_freqs, rope_factors_long and rope_factors_short scale the frequencies. */
  readonly ropeFactors: boolean;
  /** Q, K and V projections must have biases. Elsewhere they have them where the file does. */
  readonly qkvBias: boolean;
  /** Each head of Q and K is normalised before it is rotated. */
  readonly qkNorm: boolean;
}

const TABLE: ReadonlyMap<string, Differences> = new Map([
  ['llama', { ropeLayout: 'interleaved', ropeFactors: true, qkvBias: false, qkNorm: false }],
  ['qwen2', { ropeLayout: 'neox', ropeFactors: false, qkvBias: true, qkNorm: false }],
  ['qwen3', { ropeLayout: 'neox', ropeFactors: false, qkvBias: false, qkNorm: true }],
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
