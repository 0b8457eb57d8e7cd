import type { MachinePeaks } from '../backend/native.js';
import type { BackendInfo, SamplerSettings } from '../backend/types.js';
import { sumEnergies } from '../energy/sum.js';
import type { Energy } from '../energy/types.js';
import type { Engine } from '../engine/context.js';
import { type LoadOptions, load, type Model, type ModelInfo } from '../engine/index.js';
import { engineOf } from '../engine/model.js';
import { SAMPLING_DEFAULTS } from '../engine/options.js';
import { runtime } from '../engine/runtime.js';
import { openSource } from '../engine/source.js';
import { GGML_TYPES, openGguf } from '../gguf/index.js';
import { buildPlan } from '../models/index.js';
import type { KvCacheType } from '../plan/types.js';
import { type MachineFacts, machineFacts, measurePeaks, medianPeaks } from './machine.js';
import { type Samples, summarise } from './stats.js';
import { type TokenWork, tokenWork } from './work.js';

export interface BenchSettings {
  /** Tokens of the prompt. */
  readonly prompt: number;
  /** Tokens to generate. */
  readonly generate: number;
  /** Tokens that are in the cache before. */
  readonly depth: number;
  readonly threads: readonly number[];
  readonly repetitions: number;
}

/** Measurements with one number of threads. */
export interface BenchRow {
  readonly threads: number;
  /** Prompt tokens per second. */
  readonly prefill: Samples;
  /** Generated tokens per second: steps of the engine, one after another. */
  readonly decode: Samples;
  /** The same through `generate`, piece of text by piece; not measured at a depth. */
  readonly stream?: Samples;
  /** From the call of `generate` to the first token, in milliseconds; not measured at a depth. */
  readonly firstTokenMs?: Samples;
  /** Seconds of all threads of the process per generated token. */
  readonly cpuSecondsPerToken: Samples;
  /** What generating took, all repetitions together, and the joules of one token where they are known. */
  readonly energy?: Energy & { readonly joulesPerToken?: number };
  /** CPU time of generating over wall time times threads. */
  readonly cpuShare: number;
  /** Bytes of weights and of keys and values that a generated token reads at least. */
  readonly bytesPerToken: number;
  /** Limits with so many threads, measured between the repetitions. */
  readonly peaks?: MachinePeaks;
  /** Bytes per second over the read bandwidth. */
  readonly bandwidthShare?: number;
  /** Prefill's operations per second over the peak of their kind, on vectors: the tiles of AMX can pass it. */
  readonly computeShare?: number;
}

export interface ModelBench {
  readonly machine: MachineFacts;
  readonly model: {
    readonly file: string;
    readonly name: string;
    readonly architecture: string;
    readonly parameters: number;
    readonly weightBytes: number;
    readonly types: string;
    readonly opsPerPromptToken: number;
    readonly arithmetic: 'int8' | 'float';
  };
  readonly backend: BackendInfo;
  readonly settings: BenchSettings & { readonly chunk: number; readonly kvCache: KvCacheType };
  readonly loadMs: Samples;
  /** From the call of `load` to the first token of a prompt of 16. */
  readonly loadToFirstTokenMs: Samples;
  /** Weights as they lie in memory, and the most that caches and the process have had. */
  readonly memory: { readonly packedBytes: number; readonly kvBytes: number; readonly peakBytes: number };
  readonly rows: readonly BenchRow[];
}

/** Says what is being measured, and how far the whole is (0 to 1). */
export type BenchProgress = (what: string, done: number) => void;

const LOADS = 3;
const FIRST_PROMPT = 16;

/**
 * Measures a model: loads it, then lets every number of threads take its turn in every repetition, with the machine's
 * limits measured in between, so that a machine that drifts does so for all alike.
 */
export async function benchModel(
  path: string,
  settings: BenchSettings,
  options: LoadOptions = {},
  progress: BenchProgress = () => {},
): Promise<ModelBench> {
  const { signal } = options;
  const work = await readWork(path, signal);
  const facts = await machineFacts();
  const { model, loads, firsts } = await loadModel(path, settings, options, progress);
  try {
    const runs = settings.threads.map((threads) => createRun(model, threads));
    await prepare(runs, settings, progress, signal);
    for (let i = 0; i < settings.repetitions; i++) {
      for (const [j, run] of runs.entries()) {
        const done = (i + j / runs.length) / settings.repetitions;
        await repeat(run, settings, i, (what) => progress(what, 0.2 + 0.8 * done), signal);
      }
    }
    return {
      machine: facts,
      model: describe(path, model.info, work),
      backend: model.info.backend,
      settings: { ...settings, chunk: model.info.chunk, kvCache: model.info.kvCache },
      loadMs: summarise(loads),
      loadToFirstTokenMs: summarise(firsts),
      memory: {
        packedBytes: model.info.packedBytes,
        kvBytes: Math.max(...runs.map((run) => run.kvBytes)),
        peakBytes: process.resourceUsage().maxRSS * 1024,
      },
      rows: runs.map((run) => rowOf(run, settings, model.info, work)),
    };
  } finally {
    await model.dispose();
  }
}

async function readWork(path: string, signal: AbortSignal | undefined): Promise<TokenWork> {
  const source = await openSource(runtime, path, { cache: false, signal });
  const gguf = await openGguf(source, signal ? { signal } : {});
  try {
    const { plan, placements } = buildPlan(gguf, { tensorTypes: Object.keys(GGML_TYPES) });
    return tokenWork(plan, (i) => placements[i]?.bytes ?? 0);
  } finally {
    await gguf.close();
  }
}

function describe(file: string, info: ModelInfo, work: TokenWork): ModelBench['model'] {
  const { name, architecture, parameters, weightBytes } = info;
  return {
    ...{ file, name, architecture, parameters, weightBytes },
    types: work.types,
    opsPerPromptToken: work.promptOps,
    arithmetic: work.float ? 'float' : 'int8',
  };
}

async function loadModel(
  path: string,
  { prompt, generate, depth, threads, repetitions }: BenchSettings,
  options: LoadOptions,
  progress: BenchProgress,
): Promise<{ model: Model; loads: number[]; firsts: number[] }> {
  // Each repetition of generating begins with a token of its own.
  const contextLength = Math.max(depth + (1 + prompt + generate) * repetitions, FIRST_PROMPT + 1);
  const most = Math.max(...threads);
  const [loads, firsts]: [number[], number[]] = [[], []];
  for (let i = 0; ; i++) {
    progress('loading', (i / LOADS) * 0.1);
    const began = performance.now();
    const model = await load(path, { contextLength, threads: most, ...options });
    loads.push(performance.now() - began);
    const tokens = promptOf(FIRST_PROMPT, model.info.vocabSize);
    await model.complete(tokens, { maxTokens: 1, temperature: 0, ...signalOf(options.signal) });
    firsts.push(performance.now() - began);
    if (i + 1 === LOADS) return { model, loads, firsts };
    await model.dispose();
  }
}

function signalOf(signal: AbortSignal | undefined): { signal?: AbortSignal } {
  return signal ? { signal } : {};
}

/** The same tokens in every run, spread over the vocabulary. */
function promptOf(count: number, vocabSize: number): Uint32Array {
  let state = 1;
  return Uint32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state >>> 8) % vocabSize;
  });
}

/** What one number of threads has shown so far. */
interface Run {
  readonly model: Model;
  readonly engine: Engine;
  readonly threads: number;
  /** At a depth: a sequence that holds so many tokens, and grows. */
  sequence: number | undefined;
  /** The most that caches had, while any was open. */
  kvBytes: number;
  readonly prefill: number[];
  readonly decode: number[];
  readonly stream: number[];
  readonly firstTokenMs: number[];
  readonly cpu: number[];
  readonly cpuShare: number[];
  readonly energies: Energy[];
  readonly peaks: MachinePeaks[];
}

function createRun(model: Model, threads: number): Run {
  return {
    ...{ model, engine: engineOf(model), threads, sequence: undefined, kvBytes: 0 },
    ...{
      prefill: [],
      decode: [],
      stream: [],
      firstTokenMs: [],
      cpu: [],
      cpuShare: [],
      energies: [],
      peaks: [],
    },
  };
}

const GREEDY: SamplerSettings = {
  ...SAMPLING_DEFAULTS,
  temperature: 0,
  seed: 0n,
  logitBias: [],
};

/** Warms up and, at a depth, fills a sequence for each number of threads: with all of them, as it is not measured. */
async function prepare(
  runs: readonly Run[],
  { depth, threads }: BenchSettings,
  progress: BenchProgress,
  signal: AbortSignal | undefined,
): Promise<void> {
  for (const [i, run] of runs.entries()) {
    run.engine.scheduler.setThreads(Math.max(...threads));
    const sequence = run.engine.scheduler.open(GREEDY);
    const tokens = promptOf(Math.max(depth, FIRST_PROMPT), run.model.info.vocabSize);
    for (let at = 0; at < tokens.length; at += 256) {
      progress('filling the cache', 0.1 + (0.1 * (i + at / tokens.length)) / runs.length);
      await feed(run, sequence, tokens.subarray(at, at + 256), signal);
    }
    if (depth > 0) run.sequence = sequence;
    else run.engine.scheduler.close(sequence);
  }
}

async function repeat(
  run: Run,
  settings: BenchSettings,
  index: number,
  progress: (what: string) => void,
  signal: AbortSignal | undefined,
): Promise<void> {
  const { threads, engine } = run;
  const label = `${threads} thread${threads === 1 ? '' : 's'}, repetition ${index + 1}`;
  progress(`${label}: machine`);
  const peaks = await measurePeaks(engine.backend.isa, threads);
  if (peaks) run.peaks.push(peaks);
  engine.scheduler.setThreads(threads);
  if (settings.generate > 0) {
    progress(`${label}: generating`);
    await measureDecode(run, settings, signal);
    if (run.sequence === undefined) await measureStream(run, settings, signal);
  }
  // At a depth, prompts are measured once: each makes the sequence deeper.
  if (settings.prompt > 0 && (run.sequence === undefined || index + 1 === settings.repetitions)) {
    progress(`${label}: prompt`);
    await (run.sequence === undefined ? measurePrompt : measurePromptAtDepth)(run, settings, signal);
  }
}

/** Appends tokens and draws the next, as `generate` does. */
async function feed(run: Run, sequence: number, tokens: Uint32Array, signal: AbortSignal | undefined) {
  let rest = tokens;
  for (;;) {
    const { consumed, token } = await run.engine.scheduler.run(sequence, rest, 'sample', signal);
    if (token !== undefined) return token;
    rest = rest.subarray(consumed);
  }
}

async function measureDecode(run: Run, { generate }: BenchSettings, signal: AbortSignal | undefined) {
  const { scheduler } = run.engine;
  const sequence = run.sequence ?? scheduler.open(GREEDY);
  let token = await feed(run, sequence, Uint32Array.of(1), signal);
  const span = run.engine.meter?.start();
  const [cpu, began] = [process.cpuUsage(), performance.now()];
  for (let i = 0; i < generate; i++) token = await feed(run, sequence, Uint32Array.of(token), signal);
  const seconds = (performance.now() - began) / 1000;
  const { user, system } = process.cpuUsage(cpu);
  const cpuSeconds = (user + system) / 1e6;
  if (span) run.energies.push(span.end());
  run.decode.push(generate / seconds);
  run.cpu.push(cpuSeconds / generate);
  run.cpuShare.push(cpuSeconds / seconds / run.threads);
  noteCaches(run, scheduler.kvBytes());
  if (run.sequence === undefined) scheduler.close(sequence);
}

/** By the clock outside of the generation: what the loop and the text cost is in it, unlike in its usage. */
async function measureStream(run: Run, { generate }: BenchSettings, signal: AbortSignal | undefined) {
  const options = { maxTokens: generate + 1, ignoreEnd: true, temperature: 0, ...signalOf(signal) };
  const began = performance.now();
  const generation = run.model.generate([1], options);
  for await (const _ of generation);
  const ms = performance.now() - began;
  const { completionTokens, timeToFirstTokenMs } = (await generation.result).usage;
  run.stream.push(((completionTokens - 1) * 1000) / (ms - timeToFirstTokenMs));
}

async function measurePrompt(run: Run, { prompt }: BenchSettings, signal: AbortSignal | undefined) {
  const tokens = promptOf(prompt, run.model.info.vocabSize);
  const began = performance.now();
  const { usage } = await run.model.complete(tokens, { maxTokens: 1, temperature: 0, ...signalOf(signal) });
  run.firstTokenMs.push(performance.now() - began);
  run.prefill.push(usage.prefillTokensPerSecond);
  noteCaches(run, usage.kvBytes);
}

async function measurePromptAtDepth(run: Run, { prompt }: BenchSettings, signal: AbortSignal | undefined) {
  const began = performance.now();
  await feed(run, run.sequence ?? 0, promptOf(prompt, run.model.info.vocabSize), signal);
  run.prefill.push((prompt * 1000) / (performance.now() - began));
  noteCaches(run, run.engine.scheduler.kvBytes());
}

function noteCaches(run: Run, bytes: number): void {
  run.kvBytes = Math.max(run.kvBytes, bytes);
}

function energyOf(energies: readonly Energy[], generate: number): BenchRow['energy'] {
  const sum = sumEnergies(energies);
  if (!sum || sum.kind === 'counted') return sum;
  return { ...sum, joulesPerToken: sum.joules / (generate * energies.length) };
}

function rowOf(run: Run, { depth, generate }: BenchSettings, info: ModelInfo, work: TokenWork): BenchRow {
  const [prefill, decode] = [summarise(run.prefill), summarise(run.decode)];
  const bytesPerToken = info.bytesPerToken + info.kvBytesPerToken * (depth + generate / 2);
  const peaks = medianPeaks(run.peaks);
  const energy = energyOf(run.energies, generate);
  const operations = work.float ? peaks?.floatOpsPerSecond : peaks?.int8OpsPerSecond;
  return {
    ...{ threads: run.threads, prefill, decode, bytesPerToken },
    ...(run.stream.length > 0 && { stream: summarise(run.stream) }),
    ...(run.firstTokenMs.length > 0 && { firstTokenMs: summarise(run.firstTokenMs) }),
    cpuSecondsPerToken: summarise(run.cpu),
    cpuShare: summarise(run.cpuShare).median,
    ...(energy && { energy }),
    ...(peaks && {
      peaks,
      bandwidthShare: (decode.median * bytesPerToken) / peaks.readBytesPerSecond,
      computeShare: (prefill.median * work.promptOps) / (operations ?? Number.NaN),
    }),
  };
}
