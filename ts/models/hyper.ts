import { FrugalError } from '../errors.js';
import { type Experts, readExperts } from './experts.js';
import { invalid, type Keys, unsupported } from './keys.js';
import { cacheShape, type Latent, readLatent } from './latent.js';
import type { Differences, SoftCaps } from './table.js';

/** The hyper-parameters of a decoder, checked for range and for agreement with each other. */
export interface Hyper {
  readonly blockCount: number;
  /** Blocks after these that predict further tokens; they take no part. */
  readonly predictingBlocks: number;
  readonly embeddingLength: number;
  /** See `ModelFacts.poolingType`. */
  readonly poolingType?: number;
  readonly feedForward: number;
  readonly heads: number;
  /** Heads that are cached, of so many dimensions. */
  readonly kvHeads: number;
  readonly headDim: number;
  /** Dimensions of cached values, where keys have another number. */
  readonly valueDim?: number;
  readonly latent?: Latent;
  readonly normEps: number;
  readonly vocabSize: number;
  readonly trainedContext: number;
  readonly contextLength: number;
  readonly experts?: Experts;
  /** Positions that attention looks back over in layers with a window, where that is fewer than the context. */
  readonly window?: number;
  /** Which layers have the window, of all that the file counts. @default all */
  readonly localLayers?: readonly boolean[];
  /** The base of the rotation in layers with a window, where it is another one. */
  readonly localRopeBase?: number;
  /** Multiplies scores. @default 1 / sqrt(headDim) */
  readonly scoreScale?: number;
  /** What scores and logits are held within. */
  readonly scoreCap?: number;
  readonly logitCap?: number;
}

/** Whether a layer's attention has the sliding window. */
export function isLocal({ localLayers }: Hyper, layer: number): boolean {
  return localLayers?.[layer] ?? true;
}

const DEFAULT_CONTEXT = 4096;
// Far above any real model, far below what would make a loop or an allocation noticeable.
const MAX_BLOCKS = 1024;
const MAX_WIDTH = 1 << 20;
const MAX_HEADS = 1 << 14;
const MAX_HEAD_DIM = 576;
const MAX_VOCABULARY = 1 << 22;
export const MAX_CONTEXT = 1 << 24;
const MAX_TRAINED_CONTEXT = 2 ** 31 - 1;

/**
 * @param tensors of the file: their number is a bound on its blocks
 * @param contextLength as the caller asked, or undefined
 * @throws FrugalError `METADATA_MISSING`, `METADATA_INVALID`, `UNSUPPORTED_FEATURE`, `INVALID_ARGUMENT`
 */
export function readHyper(
  keys: Keys,
  row: Differences,
  tensors: ReadonlyMap<string, unknown>,
  contextLength: number | undefined,
): Hyper {
  const { blockCount, predictingBlocks } = readBlocks(keys, tensors.size);
  const embeddingLength = keys.count('embedding_length', MAX_WIDTH);
  const trainedContext = keys.count('context_length', MAX_TRAINED_CONTEXT);
  const context = chooseContext(contextLength, trainedContext);
  const attention = row.latent ? readLatentHeads(keys) : readHeads(keys, embeddingLength);
  refuseOtherArithmetic(keys, row, attention.headDim);
  const feedForward = keys.count('feed_forward_length', MAX_WIDTH);
  const poolingType = keys.optionalFinite('pooling_type');
  const experts = readExperts(keys, row.experts, tensors, feedForward, MAX_WIDTH);
  return {
    blockCount,
    predictingBlocks,
    embeddingLength,
    ...(poolingType === undefined ? {} : { poolingType }),
    feedForward,
    ...attention,
    normEps: readEps(keys),
    vocabSize: readVocabSize(keys),
    trainedContext,
    contextLength: context,
    ...(experts === undefined ? {} : { experts }),
    ...readWindows(keys, row, context, blockCount + predictingBlocks),
    ...(row.softCaps ? readCaps(keys, row.softCaps) : {}),
    ...(blockCount === row.blocksOfWideScale
      ? { scoreScale: 1 / Math.sqrt(Math.floor(embeddingLength / attention.heads)) }
      : {}),
  };
}

/** Files count the blocks that predict further tokens too, which are the last. */
function readBlocks(keys: Keys, tensorCount: number): Pick<Hyper, 'blockCount' | 'predictingBlocks'> {
  const all = keys.count('block_count', MAX_BLOCKS);
  if (all > tensorCount) {
    throw invalid(keys.full('block_count'), `at most the number of tensors, ${tensorCount}`, all);
  }
  const predictingBlocks = keys.optionalFinite(PREDICTING) ?? 0;
  if (Number.isInteger(predictingBlocks) && predictingBlocks >= 0 && predictingBlocks < all)
    return { blockCount: all - predictingBlocks, predictingBlocks };
  throw invalid(keys.full(PREDICTING), `a whole number below the ${all} blocks`, predictingBlocks);
}

function chooseContext(asked: number | undefined, trained: number): number {
  if (asked === undefined) return Math.min(trained, DEFAULT_CONTEXT);
  if (Number.isInteger(asked) && asked >= 1 && asked <= MAX_CONTEXT) return asked;
  throw new FrugalError(
    'INVALID_ARGUMENT',
    `contextLength must be a whole number from 1 to ${MAX_CONTEXT}, got ${asked}`,
    {
      cure: `leave it out for the default, or ask for at most ${trained}, which the model was trained for`,
      data: { contextLength: asked, trainedContext: trained },
    },
  );
}

function readHeads(keys: Keys, embedding: number): Pick<Hyper, 'heads' | 'kvHeads' | 'headDim' | 'valueDim'> {
  const heads = keys.count('attention.head_count', MAX_HEADS);
  const kvHeads = keys.optionalCount('attention.head_count_kv', MAX_HEADS) ?? heads;
  if (heads % kvHeads !== 0) {
    throw invalid(
      keys.full('attention.head_count_kv'),
      `a divisor of the number of heads, ${heads}`,
      kvHeads,
    );
  }
  const keyLength = keys.optionalCount('attention.key_length', MAX_HEAD_DIM);
  if (keyLength === undefined && embedding % heads !== 0) {
    const key = keys.full('attention.head_count');
    throw invalid(key, `a divisor of the embedding length, ${embedding}`, heads);
  }
  const headDim = keyLength ?? embedding / heads;
  if (headDim % 2 !== 0 || headDim > MAX_HEAD_DIM) {
    const expected = `even and at most ${MAX_HEAD_DIM}`;
    throw invalid(keys.full('attention.key_length'), expected, headDim);
  }
  const valueDim = keys.optionalCount('attention.value_length', MAX_HEAD_DIM) ?? headDim;
  return { heads, kvHeads, headDim, ...(valueDim === headDim ? {} : { valueDim }) };
}

function readLatentHeads(keys: Keys): Pick<Hyper, 'heads' | 'kvHeads' | 'headDim' | 'valueDim' | 'latent'> {
  const heads = keys.count('attention.head_count', MAX_HEADS);
  const latent = readLatent(keys, MAX_HEAD_DIM, MAX_WIDTH);
  return { heads, latent, ...cacheShape(latent, heads) };
}

function readEps(keys: Keys): number {
  const key = 'attention.layer_norm_rms_epsilon';
  const eps = keys.optionalPositive(key) ?? keys.metadata.number(keys.full(key));
  if (eps < 1) return eps;
  throw invalid(keys.full(key), 'below 1', eps);
}

/** The tokenizer decides; a file without one gives the number by itself. */
function readVocabSize(keys: Keys): number {
  const tokens = keys.metadata.optionalStrings('tokenizer.ggml.tokens');
  if (tokens === undefined) return keys.count('vocab_size', MAX_VOCABULARY);
  if (tokens.length >= 1 && tokens.length <= MAX_VOCABULARY) return tokens.length;
  throw invalid(
    'tokenizer.ggml.tokens',
    `a list of 1 to ${MAX_VOCABULARY} tokens`,
    `${tokens.length} tokens`,
  );
}

/** A sliding window (zero says none): for all layers alike, as Mistral has it, or for some, as the file or the row says. */
function readWindows(
  keys: Keys,
  { windows }: Differences,
  context: number,
  blocks: number,
): Pick<Hyper, 'window' | 'localLayers' | 'localRopeBase'> {
  const key = 'attention.sliding_window';
  const none = keys.optionalFinite(key) === 0;
  const size = none ? undefined : (keys.optionalCount(key, MAX_TRAINED_CONTEXT) ?? windows?.size);
  if (size === undefined) return {};
  const localLayers = readLocalLayers(keys, windows?.period, blocks);
  const localRopeBase =
    keys.optionalPositive('rope.freq_base_swa', 'rope.local.freq_base') ?? windows?.ropeBase;
  return {
    ...(size < context ? { window: size } : {}),
    ...(localLayers === undefined ? {} : { localLayers }),
    ...(localRopeBase === undefined ? {} : { localRopeBase }),
  };
}

/** Files that say which layers have the window give a period, or say it of each layer. */
function readLocalLayers(keys: Keys, period: number | undefined, blocks: number): boolean[] | undefined {
  const key = 'attention.sliding_window_pattern';
  const layers = keys.metadata.optionalList(keys.full(key));
  if (layers === undefined) {
    const stated = keys.optionalCount(key, MAX_BLOCKS) ?? period;
    if (stated === undefined) return undefined;
    return Array.from({ length: blocks }, (_, layer) => layer % stated < stated - 1);
  }
  const values = Array.from(layers);
  const flags = values.every((value) => value === 0 || value === 1);
  if (flags && values.length === blocks) return values.map(Boolean);
  throw invalid(keys.full(key), `a number or a list of ${blocks} booleans`, `[${values.slice(0, 16)}]`);
}

const PREDICTING = 'nextn_predict_layers';
const EXPERT_SCALE = 'expert_weights_scale';
const LOG_MULTIPLIER = 'rope.scaling.yarn_log_multiplier';
const SCORE_CAP = 'attn_logit_softcapping';
const LOGIT_CAP = 'final_logit_softcapping';

/** Gemma's caps, or those of files that state none; zero says none. */
function readCaps(keys: Keys, otherwise: SoftCaps): Pick<Hyper, 'scoreCap' | 'logitCap'> {
  const read = (key: string, absent: number | undefined) =>
    keys.optionalFinite(key) === 0 ? undefined : (keys.optionalPositive(key) ?? absent);
  const scoreCap = read(SCORE_CAP, otherwise.score);
  const logitCap = read(LOGIT_CAP, otherwise.logit);
  return {
    ...(scoreCap === undefined ? {} : { scoreCap }),
    ...(logitCap === undefined ? {} : { logitCap }),
  };
}

/** Metadata keys of related architectures that would change the arithmetic, when not 0 or, of factors, 1. */
const FACTORS = ['embedding_scale', 'residual_scale', 'logit_scale', EXPERT_SCALE];
const OTHERS = [
  'attention.clamp_kqv',
  'attention.max_alibi_bias',
  SCORE_CAP,
  LOGIT_CAP,
  LOG_MULTIPLIER,
  'attention.temperature_scale',
];
/** What layers with a window may have otherwise in related architectures. */
const LOCAL = ['rope.dimension_count', 'attention.key_length', 'attention.value_length'];

function refuseOtherArithmetic(keys: Keys, row: Differences, headDim: number): void {
  const { metadata } = keys;
  for (const key of [...FACTORS, ...OTHERS]) {
    const known =
      (row.softCaps && (key === SCORE_CAP || key === LOGIT_CAP)) ||
      (row.experts && key === EXPERT_SCALE) ||
      (row.latent && key === LOG_MULTIPLIER);
    if (known) continue;
    const value = keys.optionalFinite(key) ?? 0;
    if (value !== 0 && !(value === 1 && FACTORS.includes(key))) throw unsupportedKey(keys.full(key), value);
  }
  for (const key of LOCAL) {
    const value = keys.optionalFinite(`${key}_swa`);
    if (value !== undefined && value !== (keys.optionalFinite(key) ?? headDim))
      throw unsupportedKey(keys.full(`${key}_swa`), value);
  }
  const scale = keys.optionalFinite('attention.scale') ?? 0;
  if (scale !== 0 && Math.abs(scale * Math.sqrt(headDim) - 1) > 1e-6) {
    throw unsupportedKey(keys.full('attention.scale'), scale);
  }
  if (metadata.optionalBoolean(keys.full('attention.causal')) === false) {
    throw unsupportedKey(keys.full('attention.causal'), false);
  }
  if (metadata.optionalBoolean(keys.full('use_parallel_residual')) === true) {
    throw unsupportedKey(keys.full('use_parallel_residual'), true);
  }
}

function unsupportedKey(key: string, value: unknown): FrugalError {
  return unsupported(`the file sets ${key} to ${value}`, { key, value });
}
