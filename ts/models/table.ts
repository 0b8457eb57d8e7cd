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
  /** What of Q and K is normalised before the rotation: each head, or the whole row. */
  readonly qkNorm?: 'heads' | 'row';
  /**
   * Feed-forward layers are mixtures of experts: in every file, or in those that count experts. `normalise`: the
   * weights of the chosen ones are divided by their sum.
   */
  readonly experts?: { readonly required: boolean; readonly normalise: boolean };
}

const TABLE: ReadonlyMap<string, Differences> = new Map([
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
