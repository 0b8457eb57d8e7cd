import { type AttentionOptions, checkAttention } from '../attention/index.js';
import type { BackendInfo, SamplerSettings } from '../backend/types.js';
import { FrugalError } from '../errors.js';
import { createSha256 } from '../gguf/sha256.js';
import type { KvCacheType, Plan } from '../plan/types.js';
import { VERSION } from '../version.js';
import { inRange, isRecord } from './check.js';
import type { Engine } from './context.js';
import type { FinishReason } from './generation.js';
import { type GenerateOptions, type GenerateSettings, SAMPLING_DEFAULTS } from './options.js';
import type { ContextWindow } from './window.js';

/**
 * What a text was made from: enough for anyone, on any machine, to make it again and compare. All hashes are SHA-256 in
 * hexadecimal; tokens are hashed as little-endian 32-bit numbers, texts as UTF-8.
 */
export interface Provenance {
  readonly format: 'frugal-provenance';
  readonly formatVersion: 1;
  readonly engine: { readonly name: 'frugal'; readonly version: string };
  readonly model: {
    /** Where it was loaded from. */
    readonly source: string;
    readonly name: string;
    readonly architecture: string;
    /** Of each file, in order. */
    readonly sha256: readonly string[];
    /** Of the plan as JSON. */
    readonly planSha256: string;
    readonly contextLength: number;
    /** As in `LoadOptions`; not there: F16. */
    readonly kvCache?: KvCacheType;
    /** As in `LoadOptions`; not there: all keys. */
    readonly attention?: AttentionOptions;
  };
  /** What computed it: that makes no difference to the tokens. */
  readonly backend: BackendInfo;
  readonly settings: ProvenanceSettings;
  readonly prompt: { readonly tokens: readonly number[]; readonly sha256: string };
  readonly output: {
    readonly tokens: readonly number[];
    readonly text: string;
    readonly finishReason: FinishReason;
    /** Of the tokens, then the text. */
    readonly sha256: string;
  };
}

/** As in `GenerateOptions`, with every default applied. */
export interface ProvenanceSettings extends Omit<SamplerSettings, 'seed' | 'logitBias'> {
  /** In decimal. */
  readonly seed: string;
  /** By token id; null bans a token. */
  readonly logitBias: Readonly<Record<string, number | null>>;
  readonly context?: ContextWindow;
  readonly maxTokens: number;
  readonly stop: readonly string[];
  readonly ignoreEnd: boolean;
}

/** What a loaded model is, for its records. */
export interface Identity {
  readonly source: string;
  readonly sha256: readonly string[];
  readonly planSha256: string;
}

export function identify(source: string, digests: readonly string[], plan: Plan): Identity {
  return { source, sha256: digests, planSha256: hashText(JSON.stringify(plan)) };
}

/** The finished part of a generation that a record is made of. */
export interface Finished {
  readonly prompt: Uint32Array;
  readonly tokens: Uint32Array;
  readonly text: string;
  readonly finishReason: FinishReason;
}

export function createProvenance(
  { facts, backend, attention }: Engine,
  identity: Identity,
  settings: GenerateSettings,
  { prompt, tokens, text, finishReason }: Finished,
): Provenance {
  const { source, sha256, planSha256 } = identity;
  const { name, architecture, contextLength, kvCache } = facts;
  return {
    format: 'frugal-provenance',
    formatVersion: 1,
    engine: { name: 'frugal', version: VERSION },
    model: {
      ...{ source, name, architecture, sha256, planSha256, contextLength, kvCache },
      ...(attention && { attention }),
    },
    backend: { ...backend },
    settings: recordSettings(settings),
    prompt: { tokens: Array.from(prompt), sha256: hashTokens(prompt) },
    output: { tokens: Array.from(tokens), text, finishReason, sha256: hashTokens(tokens, text) },
  };
}

function recordSettings({
  sampler,
  context,
  maxTokens,
  stop,
  ignoreEnd,
}: GenerateSettings): ProvenanceSettings {
  const logitBias = sampler.logitBias.map(([token, bias]) => [token, Number.isFinite(bias) ? bias : null]);
  return {
    ...sampler,
    seed: String(sampler.seed),
    logitBias: Object.fromEntries(logitBias),
    ...(context && { context }),
    maxTokens,
    stop,
    ignoreEnd,
  };
}

/** The options of `generate` that a record was made with. */
export function recordedOptions({ settings, output }: Provenance): GenerateOptions {
  const { seed, logitBias, ...rest } = settings;
  const bias = Object.entries(logitBias).map(([token, each]) => [token, each ?? Number.NEGATIVE_INFINITY]);
  return {
    ...rest,
    seed: BigInt(seed),
    logitBias: Object.fromEntries(bias),
    // Whoever stopped taking pieces will not do so again.
    ...(output.finishReason === 'cancelled' && { maxTokens: output.tokens.length }),
  };
}

export function hashTokens(tokens: ArrayLike<number>, text = ''): string {
  const bytes = new DataView(new ArrayBuffer(tokens.length * 4));
  for (let i = 0; i < tokens.length; i++) bytes.setUint32(i * 4, tokens[i] ?? 0, true);
  const hash = createSha256();
  hash.update(new Uint8Array(bytes.buffer));
  hash.update(new TextEncoder().encode(text));
  return hash.hex();
}

function hashText(text: string): string {
  return hashTokens([], text);
}

/** @throws FrugalError `RECORD_INVALID` unless the value has the form of a record */
export function checkProvenance(value: unknown): Provenance {
  const record = value as Partial<Provenance> | null;
  if (record?.format !== 'frugal-provenance') throw malformed('format', "'frugal-provenance'");
  if (record.formatVersion !== 1) throw malformed('formatVersion', '1');
  const { engine, model, backend, settings, prompt, output } = record;
  if (engine?.name !== 'frugal') throw malformed('engine.name', "'frugal'");
  if (typeof backend !== 'object' || backend === null) throw malformed('backend', 'an object');
  const isHash = (text: unknown) => typeof text === 'string' && /^[0-9a-f]{64}$/.test(text);
  const areTokens = (list: unknown) =>
    Array.isArray(list) && list.every((id) => Number.isInteger(id) && id >= 0 && id < 2 ** 32);
  if (!Array.isArray(model?.sha256) || model.sha256.length === 0 || !model.sha256.every(isHash))
    throw malformed('model.sha256', 'a list of hashes');
  if (!isHash(model.planSha256)) throw malformed('model.planSha256', 'a hash');
  if (typeof model.source !== 'string') throw malformed('model.source', 'a path or an address');
  if (!inRange(model.contextLength, { min: 1, max: Number.MAX_SAFE_INTEGER, integer: true }))
    throw malformed('model.contextLength', 'a number of positions');
  if (![undefined, 'f16', 'q8_0'].includes(model.kvCache)) throw malformed('model.kvCache', 'f16 or q8_0');
  if (!isAttention(model.attention)) throw malformed('model.attention', 'options of attention');
  if (!isRecord(settings)) throw malformed('settings', 'an object');
  const missing = SETTINGS.find((name) => settings[name] === undefined);
  if (missing !== undefined) throw malformed(`settings.${missing}`, 'there');
  if (!/^\d{1,20}$/.test(String(settings.seed))) throw malformed('settings.seed', 'a number in decimal');
  if (!isRecord(settings.logitBias)) throw malformed('settings.logitBias', 'an object');
  if (!areTokens(prompt?.tokens)) throw malformed('prompt.tokens', 'token ids');
  if (!areTokens(output?.tokens)) throw malformed('output.tokens', 'token ids');
  if (typeof output?.text !== 'string') throw malformed('output.text', 'a text');
  if (typeof output.finishReason !== 'string') throw malformed('output.finishReason', 'a text');
  return record as Provenance;
}

const SETTINGS = [
  ...(Object.keys(SAMPLING_DEFAULTS) as Array<keyof typeof SAMPLING_DEFAULTS>),
  ...(['seed', 'logitBias', 'maxTokens', 'stop', 'ignoreEnd'] as const),
];

function isAttention(value: unknown): boolean {
  try {
    checkAttention(value);
    return true;
  } catch {
    return false;
  }
}

function malformed(field: string, expected: string): FrugalError {
  return new FrugalError('RECORD_INVALID', `${field} of the provenance record is not ${expected}`, {
    cure: 'Give the record as `provenance` of a completion, or `frugal run --provenance`, wrote it.',
    data: { field },
  });
}
