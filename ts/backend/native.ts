import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { type ErrorCode, FrugalError } from '../errors.js';
import type { Plan } from '../plan/types.js';
import { readTiles } from './read-ahead.js';
import type {
  Backend,
  BackendModel,
  BackendOptions,
  ExpertCounts,
  Isa,
  LoadProgress,
  SamplerSettings,
  StepEntry,
  StepOutput,
  StepResult,
  TensorPlacement,
} from './types.js';

/** What `bindings/napi` exports. */
interface Addon {
  isas(): Isa[];
  tensorTypes(): string[];
  /** `values`, of type `source`, as whole blocks of type `target`, and what that changed. */
  quantizeValues(source: string, target: string, values: Uint8Array, threads: number): Promise<Quantized>;
  /** What so many threads can do at most; memory is read from `bytes` of it. */
  measurePeaks(isa: string, threads: number, bytes: number): Promise<MachinePeaks>;
  NativeModel: new (plan: Uint8Array, threads: number, isa: string, maxStepTokens: number) => NativeModel;
}

/** Limits of the machine, measured. A multiplication and an addition count as two operations. */
export interface MachinePeaks {
  readonly readBytesPerSecond: number;
  readonly int8OpsPerSecond: number;
  readonly floatOpsPerSecond: number;
}

export interface Quantized {
  readonly bytes: Uint8Array;
  /** Sum of the squares of the values. */
  readonly squares: number;
  /** Sum of the squares of the differences. */
  readonly errors: number;
  /** The first element that cannot be held, where there is one: the other fields mean nothing then. */
  readonly badElement?: number;
  /** Its value, where it is a number. */
  readonly badValue?: number;
}

interface NativeModel {
  readonly threads: number;
  readonly weightBytes: number;
  readonly maxLogitRows: number;
  kvBytes(): number;
  setStepThreads(threads: number): void;
  loadTensor(id: number, path: string, offset: number): Promise<void>;
  pushRows(id: number, rows: Uint8Array): Promise<void>;
  createSequence(settings?: NativeSettings): number;
  countExperts(sequence: number): void;
  expertCounts(sequence: number): ExpertCounts | null;
  freeSequence(sequence: number): Promise<void>;
  step(
    sequences: Uint32Array,
    counts: Uint32Array,
    tokens: Uint32Array,
    wants: Uint8Array,
  ): Promise<StepResult[]>;
  dispose(): Promise<void>;
}

interface NativeSettings extends Omit<SamplerSettings, 'logitBias'> {
  readonly biasTokens: Uint32Array;
  readonly biasValues: Float32Array;
}

const WANTS: Record<StepOutput, number> = {
  none: 0,
  sample: 1,
  'last-logits': 2,
  'all-logits': 3,
  'all-hidden': 4,
};

const PROGRESS_MS = 100;

/**
 * The native addon.
 * @throws FrugalError `BACKEND_UNAVAILABLE`, with why each place it may be in did not work
 */
export async function loadNative(): Promise<Backend> {
  const addon = loadAddon();
  const isas = addon.isas();
  return {
    kind: 'native',
    isas,
    tensorTypes: addon.tensorTypes(),
    compile: async (plan, options) => compile(addon, isas, plan, options),
  };
}

/** Names that napi-rs gives the addon on this machine; on Linux the C library is part of it. */
function addonNames(): string[] {
  const base = `${process.platform}-${process.arch}`;
  const variants = { linux: ['-gnu', '-musl'], win32: ['-msvc'] }[process.platform as string] ?? [''];
  return variants.map((variant) => `frugal.${base}${variant}.node`);
}

/** @throws FrugalError `BACKEND_UNAVAILABLE` */
export function loadAddon(): Addon {
  const require = createRequire(import.meta.url);
  const failures: string[] = [];
  for (const name of addonNames()) {
    try {
      return require(`../../bindings/napi/${name}`) as Addon;
    } catch (error) {
      const why = error instanceof Error ? error.message.split('\n')[0] : String(error);
      failures.push(`${name}: ${why}`);
    }
  }
  throw new FrugalError('BACKEND_UNAVAILABLE', `The native addon cannot be loaded: ${failures.join('; ')}`, {
    cure: 'Build it with `npm run build`, which needs Rust.',
    data: { failures },
  });
}

function compile(addon: Addon, isas: readonly Isa[], plan: Plan, options: BackendOptions): BackendModel {
  const isa = chooseIsa(isas, options.isa);
  const threads = options.threads ?? availableParallelism();
  const json = new TextEncoder().encode(JSON.stringify(plan));
  const model = translate(() => new addon.NativeModel(json, threads, isa, options.maxStepTokens));
  return {
    info: { kind: 'native', isa, threads: model.threads },
    weightBytes: model.weightBytes,
    maxLogitRows: model.maxLogitRows,
    kvBytes: () => model.kvBytes(),
    setThreads: (threads) => model.setStepThreads(threads),
    loadTensors: (placements, progress) => loadTensors(model, plan, placements, progress),
    createSequence: (sampler) => translate(() => model.createSequence(sampler && toNative(sampler))),
    countExperts: (sequence) => translate(() => model.countExperts(sequence)),
    expertCounts: (sequence) => model.expertCounts(sequence) ?? undefined,
    freeSequence: (sequence) => void model.freeSequence(sequence),
    step: (batch) => step(model, batch),
    dispose: () => model.dispose(),
  };
}

function chooseIsa(isas: readonly Isa[], wanted: Isa | undefined): Isa {
  const forced = wanted ?? process.env.FRUGAL_ISA;
  if (forced === undefined || forced === '') return isas[0] ?? 'scalar';
  const found = isas.find((isa) => isa === forced);
  if (found !== undefined) return found;
  throw new FrugalError('INVALID_ARGUMENT', `isa is ${forced}, but this machine has ${isas.join(', ')}`, {
    cure: 'Choose one of these, or leave it out (option isa, environment variable FRUGAL_ISA).',
    data: { isa: forced, available: isas },
  });
}

function toNative({ logitBias, ...settings }: SamplerSettings): NativeSettings {
  return {
    ...settings,
    biasTokens: Uint32Array.from(logitBias, ([token]) => token),
    biasValues: Float32Array.from(logitBias, ([, bias]) => bias),
  };
}

async function step(model: NativeModel, batch: readonly StepEntry[]): Promise<StepResult[]> {
  const tokens = new Uint32Array(batch.reduce((sum, entry) => sum + entry.tokens.length, 0));
  let at = 0;
  for (const entry of batch) {
    tokens.set(entry.tokens, at);
    at += entry.tokens.length;
  }
  return translateAsync(() =>
    model.step(
      Uint32Array.from(batch, (entry) => entry.sequence),
      Uint32Array.from(batch, (entry) => entry.tokens.length),
      tokens,
      Uint8Array.from(batch, (entry) => WANTS[entry.output]),
    ),
  );
}

async function loadTensors(
  model: NativeModel,
  plan: Plan,
  placements: readonly TensorPlacement[],
  { onProgress, signal }: LoadProgress,
): Promise<void> {
  let loaded = 0;
  let reported = 0;
  const advance = (bytes: number) => {
    loaded += bytes;
    const now = performance.now();
    if (now - reported < PROGRESS_MS) return;
    reported = now;
    onProgress?.(loaded);
  };
  for (const { tensor, source, offset, bytes } of placements) {
    if (source.path === undefined) continue;
    signal?.throwIfAborted();
    const { path } = source;
    await translateAsync(() => model.loadTensor(tensor, path, offset));
    advance(bytes);
  }
  const pushed = placements.filter(({ source }) => source.path === undefined);
  for await (const [tensor, bytes] of readTiles(plan, pushed, signal)) {
    await translateAsync(() => model.pushRows(tensor, bytes));
    advance(bytes.length);
  }
}

function translate<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw fromNative(error);
  }
}

/** A call of the addon, its errors as FrugalErrors. */
export async function translateAsync<T>(call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (error) {
    throw fromNative(error);
  }
}

/** The addon's errors carry code, message and cure on three lines. */
function fromNative(error: unknown): unknown {
  if (!(error instanceof Error)) return error;
  const [code, message, cure] = error.message.split('\n');
  if (code === undefined || message === undefined || cure === undefined) return error;
  // The executor's own word for a step whose sequences were freed.
  const known = code === 'CANCELLED' ? 'DISPOSED' : (code as ErrorCode);
  return new FrugalError(known, message, { cure });
}
