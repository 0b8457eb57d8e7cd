/**
 * Rotary position embedding (Su et al., 2021, arXiv:2104.09864), position interpolation (Chen et al.,
 * 2023, arXiv:2306.15595) and YaRN (Peng et al., 2023, arXiv:2309.00071), in float64.
 */
import type { GgufMetadata } from '../../ts/gguf/index.js';

export interface Rotation {
  /** Radians per position of each pair. */
  readonly frequencies: readonly number[];
  /** What YaRN multiplies queries and keys by. */
  readonly magnitude: number;
  /** Where the two dimensions of pair i lie in a head. */
  readonly pair: (i: number) => readonly [number, number];
}

/** @param divisors per-frequency divisors, which Llama 3.1 files have */
export function readRotation(
  metadata: GgufMetadata,
  headDim: number,
  divisors: Float64Array | undefined,
): Rotation {
  const architecture = metadata.string('general.architecture');
  const number = (name: string) => metadata.optionalNumber(`${architecture}.rope.${name}`);
  const dims = number('dimension_count') ?? headDim;
  const base = number('freq_base') ?? number('global.freq_base') ?? 10_000;
  const scaling = metadata.optionalString(`${architecture}.rope.scaling.type`) ?? 'none';
  const factor = number('scaling.factor') ?? 1;
  const plain = Array.from({ length: dims / 2 }, (_, i) => base ** ((-2 * i) / dims) / (divisors?.[i] ?? 1));
  const turns = [number('scaling.beta_fast') ?? 32, number('scaling.beta_slow') ?? 1] as const;
  const context =
    number('scaling.original_context_length') ?? metadata.number(`${architecture}.context_length`);
  return {
    frequencies:
      scaling === 'yarn'
        ? yarn(plain, { dims, base, factor, context, turns, exact: architecture === 'gpt-oss' })
        : plain.map((frequency) => (scaling === 'linear' ? frequency / factor : frequency)),
    // DeepSeek's files stretch whole scores instead.
    magnitude: scaling === 'yarn' && !number('scaling.yarn_log_multiplier') ? 0.1 * Math.log(factor) + 1 : 1,
    pair: ['llama', 'deepseek2'].includes(architecture)
      ? (i) => [2 * i, 2 * i + 1]
      : (i) => [i, i + dims / 2],
  };
}

/** Gemma 3's in blocks with a window: another base, and never scaled. */
export function readLocalRotation(metadata: GgufMetadata, headDim: number): Rotation {
  const number = (name: string) => metadata.optionalNumber(`gemma3.rope.${name}`);
  const base = number('freq_base_swa') ?? number('local.freq_base') ?? 10_000;
  const frequencies = Array.from({ length: headDim / 2 }, (_, i) => base ** ((-2 * i) / headDim));
  return { frequencies, magnitude: 1, pair: (i) => [i, i + headDim / 2] };
}

interface Yarn {
  readonly dims: number;
  readonly base: number;
  readonly factor: number;
  readonly context: number;
  readonly turns: readonly [fast: number, slow: number];
  readonly exact: boolean;
}

/**
 * Pairs that turn `turns[0]` times (mostly 32) or more within the original context stay as they are; those that turn at
 * most `turns[1]` times (once) are slowed by the factor; between the two, a ramp over the pairs' numbers, from and to whole ones as its authors'
 * code has it, or not, as gpt-oss has it.
 */
function yarn(plain: readonly number[], { dims, base, factor, context, turns, exact }: Yarn): number[] {
  const pairOfTurns = (count: number) =>
    (dims * Math.log(context / (count * 2 * Math.PI))) / (2 * Math.log(base));
  const [first, last] = [pairOfTurns(turns[0]), pairOfTurns(turns[1])];
  const low = Math.max(exact ? first : Math.floor(first), 0);
  const high = Math.min(exact ? last : Math.ceil(last), dims - 1);
  return plain.map((frequency, i) => {
    const slowed = Math.min(Math.max((i - low) / Math.max(high - low, 0.001), 0), 1);
    return (frequency / factor) * slowed + frequency * (1 - slowed);
  });
}

/** The head turned as its position asks. Dimensions beyond the pairs stay. */
export function rotate(rotation: Rotation, head: Float64Array, position: number): Float64Array {
  const out = head.slice();
  rotation.frequencies.forEach((frequency, i) => {
    const [first, second] = rotation.pair(i);
    const cos = Math.cos(position * frequency) * rotation.magnitude;
    const sin = Math.sin(position * frequency) * rotation.magnitude;
    const x = head[first] ?? 0;
    const y = head[second] ?? 0;
    out[first] = x * cos - y * sin;
    out[second] = x * sin + y * cos;
  });
  return out;
}
