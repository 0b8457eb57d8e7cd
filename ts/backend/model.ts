import { type ErrorCode, FrugalError } from '../errors.js';
import type { Plan } from '../plan/types.js';
import { expertReader, type StepProgress, stepWithExperts } from './experts.js';
import { readTiles } from './read-ahead.js';
import type {
  BackendInfo,
  BackendModel,
  ExpertCounts,
  Isa,
  LoadProgress,
  SamplerSettings,
  StepEntry,
  StepOutput,
  StepResult,
  TensorPlacement,
} from './types.js';

/** A model of the runtime, as each of its bindings offers it. Calls throw three lines: code, message, cure. */
export interface RuntimeModel {
  readonly threads: number;
  readonly weightBytes: number;
  readonly maxLogitRows: number;
  /** Whether a step keeps the calling thread to itself. */
  readonly holdsThread?: boolean;
  kvBytes(): number;
  setStepThreads(threads: number): void;
  /** Where the binding reads files by itself. */
  loadTensor?(id: number, path: string, offset: number): Promise<void>;
  pushRows(id: number, rows: Uint8Array): Promise<void>;
  createSequence(settings?: RuntimeSettings): number;
  countExperts(sequence: number): void;
  expertCounts(sequence: number): ExpertCounts | null | undefined;
  keptKeys(sequence: number): Float64Array;
  recordKeys(sequence: number): void;
  recordedKeys(sequence: number): Uint32Array;
  rewind(sequence: number, length: number): void;
  freeSequence(sequence: number): Promise<void>;
  step(
    sequences: Uint32Array,
    counts: Uint32Array,
    tokens: Uint32Array,
    wants: Uint8Array,
  ): Promise<StepResult[] | StepProgress<StepResult[]>>;
  /** Where the binding keeps experts in their source: whether those of a tensor stay there. */
  isOnDemand?(id: number): boolean;
  /** Their source is one that JavaScript reads: steps ask for them. */
  attachTensor?(id: number): void;
  supply?(tensor: number, matrix: number, bytes: Uint8Array): Promise<void>;
  dispose(): Promise<void>;
}

export interface RuntimeSettings extends Omit<SamplerSettings, 'logitBias'> {
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

/** A model of the runtime behind the interface of all backends. */
export function backendModel(model: RuntimeModel, plan: Plan, info: BackendInfo): BackendModel {
  const onDemand = new Map<number, TensorPlacement>();
  const bring = expertReader(plan, onDemand, (tensor, matrix, bytes) =>
    translateAsync(async () => model.supply?.(tensor, matrix, bytes)),
  );
  /** The step in progress, and what tells it that a sequence of it was freed. */
  let current: { readonly sequences: ReadonlySet<number>; readonly stop: AbortController } | undefined;
  return {
    info,
    weightBytes: model.weightBytes,
    maxLogitRows: model.maxLogitRows,
    holdsThread: model.holdsThread === true,
    kvBytes: () => model.kvBytes(),
    setThreads: (threads) => model.setStepThreads(threads),
    loadTensors: (placements, progress) => loadTensors(model, plan, placements, onDemand, progress),
    createSequence: (sampler) => translate(() => model.createSequence(sampler && toRuntime(sampler))),
    countExperts: (sequence) => translate(() => model.countExperts(sequence)),
    expertCounts: (sequence) => model.expertCounts(sequence) ?? undefined,
    keptKeys: (sequence) => model.keptKeys(sequence),
    recordKeys: (sequence) => translate(() => model.recordKeys(sequence)),
    recordedKeys: (sequence) => model.recordedKeys(sequence),
    rewind: (sequence, length) => translate(() => model.rewind(sequence, length)),
    keepsSources: () => onDemand.size > 0,
    freeSequence(sequence) {
      void model.freeSequence(sequence);
      if (current?.sequences.has(sequence)) current.stop.abort();
    },
    async step(batch) {
      const stop = new AbortController();
      current = { sequences: new Set(batch.map(({ sequence }) => sequence)), stop };
      try {
        return await stepWithExperts(() => step(model, batch), bring, stop.signal);
      } finally {
        current = undefined;
      }
    },
    dispose: () => model.dispose(),
  };
}

/** The plan as the runtime takes it. */
export function planBytes(plan: Plan): Uint8Array {
  return new TextEncoder().encode(JSON.stringify(plan));
}

/** @throws FrugalError `INVALID_ARGUMENT` */
export function chooseIsa(isas: readonly Isa[], wanted: string | undefined): Isa {
  if (wanted === undefined || wanted === '') return isas[0] ?? 'scalar';
  const found = isas.find((isa) => isa === wanted);
  if (found !== undefined) return found;
  throw new FrugalError('INVALID_ARGUMENT', `isa is ${wanted}, but this machine has ${isas.join(', ')}`, {
    cure: 'Choose one of these, or leave it out (option isa, environment variable FRUGAL_ISA).',
    data: { isa: wanted, available: isas },
  });
}

function toRuntime({ logitBias, ...settings }: SamplerSettings): RuntimeSettings {
  return {
    ...settings,
    biasTokens: Uint32Array.from(logitBias, ([token]) => token),
    biasValues: Float32Array.from(logitBias, ([, bias]) => bias),
  };
}

async function step(
  model: RuntimeModel,
  batch: readonly StepEntry[],
): Promise<StepResult[] | StepProgress<StepResult[]>> {
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
  model: RuntimeModel,
  plan: Plan,
  placements: readonly TensorPlacement[],
  onDemand: Map<number, TensorPlacement>,
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
  const pathOf = ({ source }: TensorPlacement) => (model.loadTensor ? source.path : undefined);
  for (const placement of placements) {
    const path = pathOf(placement);
    if (path === undefined) continue;
    signal?.throwIfAborted();
    await translateAsync(async () => model.loadTensor?.(placement.tensor, path, placement.offset));
    advance(placement.bytes);
  }
  const byPath = new Set(placements.filter((each) => pathOf(each) !== undefined).map(({ source }) => source));
  for (const source of byPath) await source.checkPath?.();
  const pushed: TensorPlacement[] = [];
  for (const placement of placements) {
    const { tensor, bytes } = placement;
    if (pathOf(placement) !== undefined) continue;
    if (model.isOnDemand?.(tensor)) {
      translate(() => model.attachTensor?.(tensor));
      onDemand.set(tensor, placement);
      advance(bytes);
    } else {
      pushed.push(placement);
    }
  }
  for await (const [tensor, bytes] of readTiles(plan, pushed, signal)) {
    await translateAsync(() => model.pushRows(tensor, bytes));
    advance(bytes.length);
  }
}

/** A call of the runtime, its errors as FrugalErrors. */
export function translate<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw fromRuntime(error);
  }
}

export async function translateAsync<T>(call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (error) {
    throw fromRuntime(error);
  }
}

function fromRuntime(error: unknown): unknown {
  if (!(error instanceof Error)) return error;
  const [code, message, cure] = error.message.split('\n');
  if (code === undefined || message === undefined || cure === undefined) return error;
  // The executor's own word for a step whose sequences were freed.
  const known = code === 'CANCELLED' ? 'DISPOSED' : (code as ErrorCode);
  return new FrugalError(known, message, { cure });
}
