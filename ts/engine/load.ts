import type { Backend, BackendModel, Isa } from '../backend/types.js';
import { FrugalError } from '../errors.js';
import { type GgufModel, openGguf } from '../gguf/index.js';
import { buildPlan } from '../models/index.js';
import { createTokenizer, type Tokenizer } from '../tokenizer/index.js';
import { checkChoice, checkKnown, checkNumber, checkSignal, invalid } from './check.js';
import { createModel, type Model } from './model.js';
import { createScheduler } from './scheduler.js';
import { type ModelSource, openSource, type Runtime } from './source.js';

export type LoadPhase = 'header' | 'tokenizer' | 'weights';

export interface LoadEvent {
  readonly phase: LoadPhase;
  /** Bytes for `weights`; otherwise 0 when the phase begins and 1 when it has ended. */
  readonly loaded: number;
  readonly total: number;
}

export interface LoadOptions {
  /** Positions that a sequence may hold. @default what the model was trained with, at most 4096 */
  readonly contextLength?: number;
  /** @default the machine's cores */
  readonly threads?: number;
  /** Forces an instruction set. @default the environment variable FRUGAL_ISA, else the fastest the CPU has */
  readonly isa?: Isa;
  /** @default 'auto': the fastest that works here */
  readonly backend?: 'auto' | 'native' | 'wasm';
  /** The most prompt tokens of one sequence in one step; it changes speed and memory, never a result. @default 256 */
  readonly chunk?: number;
  /** A Jinja chat template in place of the model's own. */
  readonly chatTemplate?: string;
  readonly onProgress?: (event: LoadEvent) => void;
  /** Aborts the load, which then rejects with the signal's reason. */
  readonly signal?: AbortSignal;
}

export const ISAS: readonly Isa[] = ['scalar', 'avx2', 'avx512', 'neon'];
export const BACKENDS = ['auto', 'native', 'wasm'] as const;
export const CONTEXT_RANGE = { min: 1, max: 2 ** 31 - 1, integer: true };
export const THREADS_RANGE = { min: 1, max: 1024, integer: true };
export const CHUNK_RANGE = { min: 1, max: 65536, integer: true };

const DEFAULT_CHUNK = 256;
const MIN_STEP_TOKENS = 256;

const LOAD_NAMES = [
  'contextLength',
  'threads',
  'isa',
  'backend',
  'chunk',
  'chatTemplate',
  'onProgress',
  'signal',
];

interface LoadSettings {
  readonly contextLength: number | undefined;
  readonly threads: number | undefined;
  readonly isa: Isa | undefined;
  readonly backend: (typeof BACKENDS)[number];
  readonly chunk: number;
  readonly chatTemplate: string | undefined;
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
  return {
    contextLength: checkNumber('contextLength', options.contextLength, CONTEXT_RANGE, undefined),
    threads: checkNumber('threads', options.threads, THREADS_RANGE, undefined),
    isa: options.isa === undefined ? undefined : checkChoice('isa', options.isa, ISAS, 'scalar'),
    backend: checkChoice('backend', options.backend, BACKENDS, 'auto'),
    chunk: checkNumber('chunk', options.chunk, CHUNK_RANGE, DEFAULT_CHUNK),
    chatTemplate,
    report: onProgress ?? (() => {}),
    signal: checkSignal(options.signal),
  };
}

/**
 * Loads a model with what a runtime provides. A source is closed when the load ends, however it ends: the weights are
 * in memory then.
 */
export async function loadWith(runtime: Runtime, source: ModelSource, options: LoadOptions): Promise<Model> {
  const settings = checkLoad(options);
  settings.signal?.throwIfAborted();
  const backend = await openBackend(runtime, settings.backend);
  settings.report({ phase: 'header', loaded: 0, total: 1 });
  const bytes = await openSource(runtime, source, settings.signal);
  const gguf = await openGguf(bytes, settings.signal ? { signal: settings.signal } : {});
  try {
    settings.report({ phase: 'header', loaded: 1, total: 1 });
    return await assemble(backend, gguf, settings);
  } finally {
    await gguf.close();
  }
}

async function openBackend(runtime: Runtime, wanted: (typeof BACKENDS)[number]): Promise<Backend> {
  if (wanted !== 'wasm') return runtime.loadNative();
  throw new FrugalError('BACKEND_UNAVAILABLE', 'The backend wasm is not part of this version', {
    cure: 'Use the backend native, or auto.',
    data: { backend: wanted },
  });
}

/** Plan, tokenizer, then weights: what refuses a file comes before what takes time. */
async function assemble(backend: Backend, gguf: GgufModel, settings: LoadSettings): Promise<Model> {
  const { contextLength, signal } = settings;
  const { plan, placements, facts } = buildPlan(gguf, {
    ...(contextLength === undefined ? {} : { contextLength }),
    tensorTypes: backend.tensorTypes,
  });
  const maxStepTokens = Math.max(settings.chunk, MIN_STEP_TOKENS);
  const owned: Array<{ dispose(): Promise<void> }> = [];
  try {
    const compiled = await backend.compile(plan, {
      ...(settings.threads === undefined ? {} : { threads: settings.threads }),
      ...(settings.isa === undefined ? {} : { isa: settings.isa }),
      maxStepTokens,
    });
    owned.push(compiled);
    signal?.throwIfAborted();
    const tokenizer = await readTokenizer(gguf, settings);
    owned.push(tokenizer);
    await loadWeights(compiled, placements, settings);
    const engine = {
      scheduler: createScheduler(compiled, { maxStepTokens, chunk: settings.chunk }),
      tokenizer,
      facts,
      backend: compiled.info,
      chatTemplate: settings.chatTemplate ?? gguf.metadata.optionalString('tokenizer.chat_template'),
    };
    return createModel(engine, compiled.weightBytes);
  } catch (error) {
    await Promise.allSettled(owned.map((resource) => resource.dispose()));
    throw error;
  }
}

async function readTokenizer(gguf: GgufModel, settings: LoadSettings): Promise<Tokenizer> {
  settings.report({ phase: 'tokenizer', loaded: 0, total: 1 });
  const tokenizer = await createTokenizer(gguf.metadata, settings.signal ? { signal: settings.signal } : {});
  settings.report({ phase: 'tokenizer', loaded: 1, total: 1 });
  return tokenizer;
}

async function loadWeights(
  compiled: BackendModel,
  placements: Parameters<BackendModel['loadTensors']>[0],
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
