import { settled } from '../abort.js';
import { type AttentionOptions, BLOCK, checkAttention, sparsePlan } from '../attention/index.js';
import type { Backend, BackendModel, Isa, TensorPlacement } from '../backend/types.js';
import { WASM_VARIANTS, type WasmVariant } from '../backend/wasm/variant.js';
import type { EnergyMeter, Watts } from '../energy/types.js';
import { checkWatts } from '../energy/watts.js';
import { FrugalError, isFrugalError } from '../errors.js';
import { type GgufModel, openGguf } from '../gguf/index.js';
import { checkHeaders, type RequestHeaders } from '../gguf/remote.js';
import { verifiedSource } from '../gguf/verified-source.js';
import { MAX_CONTEXT } from '../models/hyper.js';
import { buildPlan, type ModelFacts } from '../models/index.js';
import type { KvCacheType, Plan, Sparse } from '../plan/types.js';
import { createTokenizer } from '../tokenizer/index.js';
import {
  checkBoolean,
  checkChoice,
  checkKnown,
  checkNumber,
  checkSignal,
  describeRange,
  inRange,
  invalid,
} from './check.js';
import { createModel, type Model } from './model.js';
import { identify } from './provenance.js';
import { createScheduler } from './scheduler.js';
import { type ModelSource, openSource, type Runtime } from './source.js';
import { autoThreads, EFFICIENCIES, type Efficiency, fixedThreads, type ThreadTuner } from './threads.js';

export type LoadPhase = 'header' | 'tokenizer' | 'weights';

export interface LoadEvent {
  readonly phase: LoadPhase;
  /** Bytes for `weights`; otherwise 0 when the phase begins and 1 when it has ended. */
  readonly loaded: number;
  readonly total: number;
}

export interface LoadOptions {
  /** Positions that a sequence may hold, up to 2^24. @default what the model was trained with, at most 4096 */
  readonly contextLength?: number;
  /**
   * What keys and values are cached as: `q8_0` takes 34 bytes where F16 takes 64, for slightly other results.
   * @default 'f16'
   */
  readonly kvCache?: KvCacheType;
  /** 1 to 1024, or `auto`: for prompts all cores, and for decoding what `efficiency` asks for. @default 'auto' */
  readonly threads?: number | 'auto';
  /** How `auto` chooses, by what it measures in the first tokens. @default 'balanced' */
  readonly efficiency?: Efficiency;
  /** Forces an instruction set. @default the environment variable FRUGAL_ISA, else the fastest the CPU has */
  readonly isa?: Isa;
  /** @default 'auto': the fastest that works here */
  readonly backend?: 'auto' | 'native' | 'wasm';
  /** Forces a module of WebAssembly, and so the backend `wasm`. @default the best that works here */
  readonly variant?: WasmVariant;
  /**
   * The most prompt tokens of one sequence in one step, up to 65536; it changes speed and memory, never a result.
   * @default 256; where WebAssembly has no threads 32, or 64 with `attention`, as an abort is only heard between steps
   */
  readonly chunk?: number;
  /**
   * The most bytes of experts in memory. The others stay in the file, Blob or URL, which must not change, and are read
   * when tokens are routed to them: a model larger than memory runs, slower, with the same results. Of use below
   * `info.expertBytes`; one expert of each layer is the least. @default all experts
   */
  readonly expertMemory?: number;
  /** Lets attention keep only a part of the keys: less work in long contexts, for other results. @default all keys */
  readonly attention?: AttentionOptions;
  /** A Jinja chat template in place of the model's own. */
  readonly chatTemplate?: string;
  /**
   * The SHA-256 that the file must have, in hexadecimal; of a split model, one for each part. The load then reads the
   * whole file, and rejects with `SOURCE_CHECKSUM` if it is another.
   */
  readonly sha256?: string | readonly string[];
  /** Hashes the file while it is loaded, and gives each completion a record that others can replay. @default false */
  readonly provenance?: boolean;
  /** Keeps what a URL gives in the browser's file system, where later loads find it (see `listCached`). @default false */
  readonly cache?: boolean;
  /**
   * Sent with each request for a URL, of all parts of a split model too: `{ Authorization: 'Bearer ...' }`. A browser asks
   * a server of another origin first whether it may send them.
   */
  readonly headers?: Readonly<Record<string, string>>;
  /** The machine's watts, for `usage.energy` where there are no counters to read. */
  readonly watts?: Watts;
  readonly onProgress?: (event: LoadEvent) => void;
  /** Aborts the load, which then rejects with the signal's reason. */
  readonly signal?: AbortSignal;
}

export const ISAS: readonly Isa[] = [
  'scalar',
  'avx2',
  'avx-vnni',
  'avx512',
  'amx',
  'neon',
  'simd128',
  'relaxed-simd',
];
export const KV_CACHES: readonly KvCacheType[] = ['f16', 'q8_0'];
const BACKENDS = ['auto', 'native', 'wasm'] as const;
export const CONTEXT_RANGE = { min: 1, max: MAX_CONTEXT, integer: true };
export const THREADS_RANGE = { min: 1, max: 1024, integer: true };
export const EXPERT_MEMORY_RANGE = { min: 1, max: Number.MAX_SAFE_INTEGER, integer: true };
export const CHUNK_RANGE = { min: 1, max: 65536, integer: true };

const DEFAULT_CHUNK = 256;
/** Where nothing hears of an abort until a step has ended. It costs next to no speed there. */
const HELD_CHUNK = 32;
const MIN_STEP_TOKENS = 256;

const LOAD_NAMES = [
  'contextLength',
  'kvCache',
  'threads',
  'efficiency',
  'isa',
  'backend',
  'variant',
  'chunk',
  'expertMemory',
  'attention',
  'chatTemplate',
  'sha256',
  'provenance',
  'cache',
  'headers',
  'watts',
  'onProgress',
  'signal',
];

interface LoadSettings {
  readonly contextLength: number | undefined;
  readonly kvCache: KvCacheType;
  readonly threads: number | undefined;
  readonly efficiency: Efficiency;
  readonly isa: Isa | undefined;
  readonly backend: (typeof BACKENDS)[number];
  readonly variant: WasmVariant | undefined;
  readonly chunk: number | undefined;
  readonly expertMemory: number | undefined;
  readonly attention: AttentionOptions | undefined;
  readonly chatTemplate: string | undefined;
  readonly sha256: readonly string[] | undefined;
  readonly provenance: boolean;
  readonly cache: boolean;
  readonly headers: RequestHeaders;
  readonly watts: Watts | undefined;
  readonly report: (event: LoadEvent) => void;
  readonly signal: AbortSignal | undefined;
}

function checkLoad(options: LoadOptions): LoadSettings {
  checkKnown('load', options, LOAD_NAMES);
  const { chatTemplate, onProgress } = options;
  if (chatTemplate !== undefined && typeof chatTemplate !== 'string')
    throw invalid('chatTemplate', 'a string', chatTemplate);
  if (onProgress !== undefined && typeof onProgress !== 'function')
    throw invalid('onProgress', 'a function', onProgress);
  const backend = checkChoice('backend', options.backend, BACKENDS, 'auto');
  if (options.variant !== undefined && backend === 'native')
    throw invalid('variant', 'left out with the backend native', options.variant);
  return {
    contextLength: checkNumber('contextLength', options.contextLength, CONTEXT_RANGE, undefined),
    kvCache: checkChoice('kvCache', options.kvCache, KV_CACHES, 'f16'),
    threads: options.threads === 'auto' ? undefined : checkThreads(options.threads),
    efficiency: checkChoice('efficiency', options.efficiency, EFFICIENCIES, 'balanced'),
    isa: options.isa === undefined ? undefined : checkChoice('isa', options.isa, ISAS, 'scalar'),
    backend: options.variant === undefined ? backend : 'wasm',
    variant:
      options.variant === undefined
        ? undefined
        : checkChoice('variant', options.variant, WASM_VARIANTS, 'simd128'),
    chunk: checkNumber('chunk', options.chunk, CHUNK_RANGE, undefined),
    expertMemory: checkExpertMemory(options.expertMemory),
    attention: checkAttention(options.attention),
    chatTemplate,
    sha256: checkSha256(options.sha256),
    provenance: checkBoolean('provenance', options.provenance, false),
    cache: checkBoolean('cache', options.cache, false),
    headers: checkHeaders(options.headers),
    watts: checkWatts(options.watts),
    report: onProgress ?? (() => {}),
    signal: checkSignal(options.signal),
  };
}

function checkThreads(threads: unknown): number | undefined {
  if (threads === undefined || inRange(threads, THREADS_RANGE)) return threads;
  throw invalid('threads', `auto or ${describeRange(THREADS_RANGE)}`, threads);
}

function checkExpertMemory(bytes: unknown): number | undefined {
  if (bytes === undefined || inRange(bytes, EXPERT_MEMORY_RANGE)) return bytes;
  const { min, max } = EXPERT_MEMORY_RANGE;
  throw invalid('expertMemory', `a whole number of bytes from ${min} to ${max}`, bytes);
}

function checkSha256(sha256: unknown): readonly string[] | undefined {
  if (sha256 === undefined) return undefined;
  const list: readonly unknown[] = Array.isArray(sha256) ? sha256 : [sha256];
  return Array.from(list, (item) => {
    if (typeof item === 'string' && /^[0-9a-f]{64}$/i.test(item)) return item;
    throw invalid('sha256', '64 hexadecimal digits or a list of them', item);
  });
}

/**
 * Loads a model with what a runtime provides. A source is closed when the load ends, however it ends: the weights are
 * in memory then. Only a source of experts that stay there is closed when the model is disposed of.
 */
export async function loadWith(runtime: Runtime, source: ModelSource, options: LoadOptions): Promise<Model> {
  const settings = checkLoad(options);
  settings.signal?.throwIfAborted();
  const meter = await runtime.openEnergyMeter?.(settings.watts ? { watts: settings.watts } : {});
  const opened = await settled(openBackend(runtime, settings), settings.signal);
  settings.report({ phase: 'header', loaded: 0, total: 1 });
  const bytes = await openSource(runtime, source, settings);
  const digests: string[] = [];
  const hashed = settings.sha256 !== undefined || settings.provenance;
  const checked = hashed ? verifiedSource(bytes, settings.sha256, digests) : bytes;
  const gguf = await openGguf(checked, settings.signal ? { signal: settings.signal } : {});
  try {
    settings.report({ phase: 'header', loaded: 1, total: 1 });
    checkChecksums(gguf, settings.sha256);
    const model = await assemble(opened, gguf, settings, meter, digests);
    return model;
  } catch (error) {
    // A wrong file must not be what the next load finds, which may be waiting for this one to end.
    if (isFrugalError(error) && error.code === 'SOURCE_CHECKSUM') {
      await Promise.allSettled(gguf.parts.map((part) => part.discard?.()));
    }
    await gguf.close();
    throw error;
  }
}

function checkChecksums(gguf: GgufModel, sha256: readonly string[] | undefined): void {
  if (sha256 === undefined || sha256.length === gguf.parts.length) return;
  throw invalid('sha256', `one checksum for each of the model's ${gguf.parts.length} files`, sha256);
}

interface Opened {
  readonly backend: Backend;
  /** What the user should know about the choice. */
  readonly notes: readonly string[];
}

async function openBackend(runtime: Runtime, { backend, isa, variant }: LoadSettings): Promise<Opened> {
  const loadWasm = () => runtime.loadWasm({ ...(isa ? { isa } : {}), ...(variant ? { variant } : {}) });
  if (backend === 'wasm' || (backend === 'auto' && runtime.loadNative === undefined))
    return { backend: await loadWasm(), notes: [] };
  if (runtime.loadNative === undefined) {
    throw new FrugalError('BACKEND_UNAVAILABLE', 'There is no native code in this runtime', {
      cure: 'Use the backend wasm, or auto.',
      data: { backend },
    });
  }
  try {
    return { backend: await runtime.loadNative(), notes: [] };
  } catch (error) {
    if (backend === 'native' || !isFrugalError(error) || error.code !== 'BACKEND_UNAVAILABLE') throw error;
    const note = `WebAssembly computes, which is slower than native code. ${error.message}. ${error.cure}`;
    return { backend: await loadWasm(), notes: [note] };
  }
}

/** Plan, tokenizer, then weights: what refuses a file comes before what takes time. */
async function assemble(
  { backend, notes }: Opened,
  gguf: GgufModel,
  settings: LoadSettings,
  meter: EnergyMeter | undefined,
  digests: readonly string[],
): Promise<Model> {
  const { contextLength, kvCache, signal } = settings;
  const built = buildPlan(gguf, {
    kvCache,
    ...(contextLength === undefined ? {} : { contextLength }),
    tensorTypes: backend.tensorTypes,
  });
  const { placements, facts } = built;
  const { attention } = settings;
  const plan = attention
    ? { ...built.plan, sparse: sparsePlan(attention, built.plan.kvLayers.length) }
    : built.plan;
  const expertMemory = limitOfExperts(facts, settings);
  const maxStepTokens = Math.max(settings.chunk ?? DEFAULT_CHUNK, MIN_STEP_TOKENS);
  const owned: Array<{ dispose(): Promise<void> }> = [];
  try {
    const compiled = await backend.compile(plan, {
      ...(settings.threads === undefined ? {} : { threads: settings.threads }),
      ...(settings.isa === undefined ? {} : { isa: settings.isa }),
      ...(expertMemory === undefined ? {} : { expertMemory }),
      maxStepTokens,
    });
    owned.push(compiled);
    signal?.throwIfAborted();
    settings.report({ phase: 'tokenizer', loaded: 0, total: 1 });
    const tokenizer = await createTokenizer(gguf.metadata, signal ? { signal } : {});
    owned.push(tokenizer);
    settings.report({ phase: 'tokenizer', loaded: 1, total: 1 });
    await loadWeights(compiled, inFileOrder(gguf, placements), settings);
    for (const part of gguf.parts) await part.finish?.(signal);
    if (!compiled.keepsSources()) await gguf.close();
    const chunk = settings.chunk ?? defaultChunk(compiled, attention !== undefined);
    const limits = { maxStepTokens, chunk, ...(attention ? { block: BLOCK } : {}) };
    const engine = {
      scheduler: createScheduler(closing(compiled, gguf), limits, tunerOf(compiled, plan, settings, meter)),
      tokenizer,
      facts: withNotes(facts, notes, settings, plan.sparse),
      backend: compiled.info,
      meter,
      attention,
      identity: settings.provenance ? identify(gguf.parts[0]?.name ?? '', digests, plan) : undefined,
      chatTemplate: settings.chatTemplate ?? gguf.metadata.optionalString('tokenizer.chat_template'),
    };
    return createModel(engine, compiled.weightBytes);
  } catch (error) {
    await Promise.allSettled(owned.map((resource) => resource.dispose()));
    throw error;
  }
}

function defaultChunk({ holdsThread, keepsSources }: BackendModel, sparse: boolean): number {
  // Steps that read experts stop for that, and the fewer they are the less they read.
  if (!holdsThread || keepsSources()) return DEFAULT_CHUNK;
  return sparse ? Math.max(HELD_CHUNK, BLOCK) : HELD_CHUNK;
}

function tunerOf(
  compiled: BackendModel,
  { name }: Plan,
  { threads, efficiency }: LoadSettings,
  meter: EnergyMeter | undefined,
): ThreadTuner {
  const { info, weightBytes } = compiled;
  const set = (count: number) => compiled.setThreads(count);
  if (threads !== undefined) return fixedThreads(info.threads, set);
  const key = `${name} ${weightBytes} ${info.kind} ${info.isa} ${info.threads}`;
  return autoThreads({ most: info.threads, set, efficiency, meter, key });
}

/** The same model, which closes its file in the end: twice does no harm. */
function closing(model: BackendModel, gguf: GgufModel): BackendModel {
  return { ...model, dispose: () => model.dispose().finally(() => gguf.close()) };
}

/** None where all experts fit: with what packing pads them by, they may take a little more than in the file. */
function limitOfExperts({ expertBytes }: ModelFacts, { expertMemory }: LoadSettings): number | undefined {
  return expertMemory !== undefined && expertMemory < expertBytes ? expertMemory : undefined;
}

function withNotes(
  facts: ModelFacts,
  notes: readonly string[],
  { expertMemory }: LoadSettings,
  sparse: Sparse | undefined,
): ModelFacts {
  const all = [...facts.notes, ...notes];
  if (expertMemory !== undefined && facts.expertBytes === 0)
    all.push('expertMemory has no effect: the model has no experts');
  const policies = sparse ? [...sparse.prefill, ...sparse.decode] : [];
  const from = Math.min(...policies.flatMap((each) => (each.policy === 'auto' ? [each.from] : [])));
  if (Number.isFinite(from) && from >= facts.contextLength) {
    all.push(
      `attention: auto begins at position ${from}, but the context holds ${facts.contextLength} positions: pass a larger contextLength, or a smaller from`,
    );
  }
  return { ...facts, notes: all };
}

/** Networks and hashes are best served front to back. */
function inFileOrder(gguf: GgufModel, placements: readonly TensorPlacement[]): TensorPlacement[] {
  const part = ({ source }: TensorPlacement) => gguf.parts.indexOf(source);
  return [...placements].sort((a, b) => part(a) - part(b) || a.offset - b.offset);
}

async function loadWeights(
  compiled: BackendModel,
  placements: readonly TensorPlacement[],
  settings: LoadSettings,
): Promise<void> {
  const { signal } = settings;
  const total = placements.reduce((sum, placement) => sum + placement.bytes, 0);
  const report = (loaded: number) => settings.report({ phase: 'weights', loaded, total });
  signal?.throwIfAborted();
  report(0);
  await compiled.loadTensors(placements, { onProgress: report, ...(signal ? { signal } : {}) });
  signal?.throwIfAborted();
  report(total);
}
