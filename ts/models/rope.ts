import type { Rope } from '../plan/types.js';
import type { Hyper } from './hyper.js';
import { invalid, type Keys, unsupported } from './keys.js';
import type { Differences } from './table.js';
import type { TensorTable } from './tensors.js';

// Several keys have two names: llama.cpp's, and another that Ollama's converter writes for Gemma 3.

const SCALINGS = ['none', 'linear', 'yarn', 'longrope'] as const;

/**
 * The rotary embedding that the metadata describes. Absent keys mean: all of a head's dimensions,
 * base 10000, no scaling.
 */
function readRope(keys: Keys, hyper: Hyper, row: Differences, tensors: TensorTable): Rope {
  const dims = keys.optionalCount('rope.dimension_count', hyper.headDim) ?? hyper.headDim;
  if (dims % 2 !== 0) throw invalid(keys.full('rope.dimension_count'), 'even', dims);
  const scaling = readScaling(keys, row);
  const originalContext =
    keys.optionalCount('rope.scaling.original_context_length', 2 ** 32 - 1) ?? hyper.trainedContext;
  const factors = row.ropeFactors
    ? findFactors(tensors, scaling, dims, hyper.contextLength > originalContext)
    : undefined;
  const factor = scaling === 'none' ? 1 : readFactor(keys);
  return {
    dims,
    base: readBase(keys),
    layout: row.ropeLayout,
    factor,
    extFactor: scaling === 'yarn' ? readExtFactor(keys) : 0,
    attnFactor:
      (keys.optionalPositive('rope.scaling.attn_factor') ?? 1) *
      readYarnFactor(keys, scaling === 'yarn' ? factor : 1),
    betaFast: keys.optionalPositive('rope.scaling.yarn_beta_fast', 'rope.scaling.beta_fast') ?? 32,
    betaSlow: keys.optionalPositive('rope.scaling.yarn_beta_slow', 'rope.scaling.beta_slow') ?? 1,
    originalContext,
    ...(scaling === 'yarn' && row.exactRamp ? { exactRamp: true } : {}),
    ...(row.latent ? readLogMultiplier(keys, scaling) : {}),
    ...(factors === undefined ? {} : { factors }),
  };
}

/** The rotations of a plan: of layers that see all positions and, where it differs, of those with a window. */
export function readRopes(keys: Keys, hyper: Hyper, row: Differences, tensors: TensorTable): Rope[] {
  const rope = readRope(keys, hyper, row, tensors);
  if (hyper.localRopeBase === undefined) return [rope];
  const local = { ...rope, base: hyper.localRopeBase };
  if (row.windows?.ropeBase === undefined) return [rope, local];
  // A window needs no extension of the context.
  return [rope, { ...local, factor: 1, extFactor: 0, attnFactor: 1 }];
}

/**
 * Converters write two things there: a factor of the length that YaRN gives rotations, or that length itself, of which
 * the usual one can be told apart.
 * @param factor YaRN's
 */
function readYarnFactor(keys: Keys, factor: number): number {
  const stated = keys.optionalPositive('rope.scaling.yarn_attn_factor') ?? 1;
  return Math.abs(stated - (1 + 0.1 * Math.log(Math.max(factor, 1)))) < 1e-4 ? 1 : stated;
}

/** DeepSeek's YaRN, where the file states it; zero says no. */
function readLogMultiplier(keys: Keys, scaling: (typeof SCALINGS)[number]): Pick<Rope, 'logMultiplier'> {
  const key = 'rope.scaling.yarn_log_multiplier';
  const logMultiplier = keys.optionalFinite(key) ?? 0;
  if (logMultiplier === 0) return {};
  if (scaling === 'yarn') return { logMultiplier };
  throw unsupported(`the file sets ${keys.full(key)} without YaRN`, { key: keys.full(key), scaling });
}

/** Linear is what an old file means that gives a factor and no type. */
function readScaling(keys: Keys, row: Differences): (typeof SCALINGS)[number] {
  const key = keys.full('rope.scaling.type');
  const text = keys.metadata.optionalString(key) ?? 'linear';
  const scaling = SCALINGS.find((name) => name === text);
  if (scaling === undefined) {
    throw unsupported(`the file sets ${key} to '${text.slice(0, 64)}' (known are ${SCALINGS.join(', ')})`, {
      key,
      value: text.slice(0, 64),
      known: SCALINGS,
    });
  }
  if (scaling === 'longrope' && !row.ropeFactors) {
    throw unsupported(`the file sets ${key} to 'longrope' for ${keys.architecture}`, { key, value: text });
  }
  return scaling;
}

/** `rope.scale_linear` is the key's name in old files; a factor of 0 means none. */
function readFactor(keys: Keys): number {
  for (const key of ['rope.scaling.factor', 'rope.scale_linear']) {
    const factor = keys.optionalFinite(key);
    if (factor === undefined) continue;
    if (factor < 0) throw invalid(keys.full(key), 'at least 0', factor);
    return factor === 0 ? 1 : factor;
  }
  return 1;
}

/** A negative factor means that the file leaves it open. */
function readExtFactor(keys: Keys): number {
  const names = ['rope.scaling.yarn_ext_factor', 'rope.scaling.extrapolation_factor'];
  const factor = keys.optionalFinite(...names) ?? -1;
  return factor < 0 ? 1 : factor;
}

/** Long factors serve contexts beyond the original one, short factors the others. */
function findFactors(
  tensors: TensorTable,
  scaling: (typeof SCALINGS)[number],
  dims: number,
  beyondOriginal: boolean,
): string | undefined {
  if (scaling !== 'longrope') return tensors.optional('rope_freqs.weight', [dims / 2], 'factors');
  const [chosen, other] = beyondOriginal ? ['long', 'short'] : ['short', 'long'];
  tensors.ignore(`rope_factors_${other}.weight`);
  return tensors.required(`rope_factors_${chosen}.weight`, [dims / 2], 'factors');
}

function readBase(keys: Keys): number {
  const base = keys.optionalPositive('rope.freq_base', 'rope.global.freq_base') ?? 10_000;
  if (base > 1) return base;
  throw invalid(keys.full('rope.freq_base'), 'above 1', base);
}
