import type { BackendModel, SamplerSettings, StepEntry, StepResult } from '../../ts/backend/types.js';
import type { Engine } from '../../ts/engine/context.js';
import { createModel, type Model } from '../../ts/engine/model.js';
import { createScheduler, type SchedulerLimits } from '../../ts/engine/scheduler.js';
import type { ModelFacts } from '../../ts/models/index.js';
import type { Tokenizer } from '../../ts/tokenizer/index.js';

/** Tokens 0..255 are bytes; then come the beginning of text, its end, and the end of a turn. */
export const BOS = 256;
export const EOS = 257;
export const END_OF_TURN = 258;
const NAMES = ['<s>', '</s>', '<|end|>'];
export const VOCAB = 260;
export const WIDTH = 4;

export interface FakeSequence {
  readonly tokens: number[];
  readonly sampler: SamplerSettings | undefined;
}

export interface FakeOptions {
  /** The token that follows a sequence. By default "abcdefghij" forever. */
  readonly next?: (tokens: readonly number[]) => number;
  readonly maxLogitRows?: number;
  /** Awaited in every step before anything happens. */
  readonly beforeStep?: (batch: readonly StepEntry[]) => Promise<void> | void;
}

export interface FakeBackend extends BackendModel {
  readonly sequences: Map<number, FakeSequence>;
  /** Every step that was asked for, failed ones too. */
  readonly steps: StepEntry[][];
  disposed: boolean;
}

const LETTERS = 'abcdefghij';

/** A backend of toy logits that keeps the contract: a step fails as a whole and then changes nothing. */
export function createFakeBackend(options: FakeOptions = {}): FakeBackend {
  const next = options.next ?? ((tokens) => LETTERS.charCodeAt(tokens.length % LETTERS.length));
  const sequences = new Map<number, FakeSequence>();
  let created = 0;
  const fake: FakeBackend = {
    info: { kind: 'native', isa: 'scalar', threads: 1 },
    weightBytes: 1000,
    maxLogitRows: options.maxLogitRows ?? 32,
    holdsThread: false,
    sequences,
    steps: [],
    disposed: false,
    kvBytes: () => [...sequences.values()].reduce((sum, { tokens }) => sum + tokens.length * 10, 0),
    setThreads() {},
    async loadTensors() {},
    keepsSources: () => false,
    createSequence(sampler) {
      created += 1;
      sequences.set(created, { tokens: [], sampler });
      return created;
    },
    countExperts() {},
    expertCounts: () => undefined,
    keptKeys: () => new Float64Array(0),
    recordKeys() {},
    recordedKeys: () => new Uint32Array(0),
    rewind(sequence, length) {
      sequences.get(sequence)?.tokens.splice(length);
    },
    freeSequence(sequence) {
      if (!sequences.delete(sequence)) throw new Error(`sequence ${sequence} is freed twice`);
    },
    async step(batch) {
      fake.steps.push([...batch]);
      if (rowsOf(batch) > fake.maxLogitRows) throw new Error('more rows of logits than a step may have');
      await new Promise((resolve) => setImmediate(resolve));
      await options.beforeStep?.(batch);
      for (const entry of batch) {
        if (!sequences.has(entry.sequence)) throw new Error('the step was cut short');
      }
      return batch.map((entry) => runEntry(entry, sequences, next));
    },
    async dispose() {
      sequences.clear();
      fake.disposed = true;
    },
  };
  return fake;
}

function rowsOf(batch: readonly StepEntry[]): number {
  const rows = { none: 0, sample: 1, 'last-logits': 1, 'all-hidden': 0 };
  return batch.reduce(
    (sum, { output, tokens }) => sum + (output === 'all-logits' ? tokens.length : rows[output]),
    0,
  );
}

function runEntry(
  entry: StepEntry,
  sequences: ReadonlyMap<number, FakeSequence>,
  next: (tokens: readonly number[]) => number,
): StepResult {
  const tokens = sequences.get(entry.sequence)?.tokens ?? [];
  const rows: number[] = [];
  for (const token of entry.tokens) {
    tokens.push(token);
    if (entry.output === 'all-logits') rows.push(...logitsOf(next(tokens)));
    if (entry.output === 'all-hidden') rows.push(token, tokens.length, 1, 0);
  }
  if (entry.output === 'sample') return { token: next(tokens) };
  if (entry.output === 'last-logits') return { values: Float32Array.from(logitsOf(next(tokens))) };
  return entry.output === 'none' ? {} : { values: Float32Array.from(rows) };
}

/** Logits that favour one token: 2 for it, 0 for all others. */
function logitsOf(token: number): number[] {
  const row = new Array<number>(VOCAB).fill(0);
  row[token] = 2;
  return row;
}

export function createFakeTokenizer(): Tokenizer {
  const encode = (text: string, parseSpecial: boolean): number[] => {
    if (!parseSpecial) return [...new TextEncoder().encode(text)];
    return text.split(/(<s>|<\/s>|<\|end\|>)/).flatMap((part) => {
      const special = NAMES.indexOf(part);
      return special < 0 ? [...new TextEncoder().encode(part)] : [BOS + special];
    });
  };
  const tokenizer: Tokenizer = {
    vocabSize: VOCAB,
    model: 'fake',
    bos: BOS,
    eos: EOS,
    endTokens: new Set([EOS, END_OF_TURN]),
    addBos: true,
    tables: {
      tokens: { buffer: new Uint8Array(0), offsets: new Uint32Array(1) },
      model: 'llama',
      addSpacePrefix: false,
      attributes: new Uint8Array(0),
      bos: BOS,
    },
    async encode(text, { addSpecial = true, parseSpecial = false } = {}) {
      return Uint32Array.from([...(addSpecial ? [BOS] : []), ...encode(text, parseSpecial)]);
    },
    decode: (tokens) => new TextDecoder().decode(Uint8Array.from([...tokens].filter((token) => token < BOS))),
    stream() {
      const decoder = new TextDecoder();
      return {
        push: (token) => (token < BOS ? decoder.decode(Uint8Array.of(token), { stream: true }) : ''),
        end: () => decoder.decode(),
      };
    },
    tokenText: (id) => NAMES[id - BOS] ?? String.fromCharCode(id),
    tokenId: (text) => (NAMES.includes(text) ? BOS + NAMES.indexOf(text) : undefined),
    async dispose() {},
  };
  return tokenizer;
}

const FACTS: ModelFacts = {
  architecture: 'fake',
  name: 'fake model',
  parameters: 1,
  trainedContext: 200,
  contextLength: 100,
  vocabSize: VOCAB,
  embeddingLength: WIDTH,
  blockCount: 1,
  heads: 1,
  kvHeads: 1,
  weightBytes: 1000,
  bytesPerToken: 1000,
  kvBytesPerToken: 10,
  kvCache: 'f16',
  expertLayers: [],
  expertBytes: 0,
  notes: [],
};

export interface FakeModel {
  readonly model: Model;
  readonly backend: FakeBackend;
}

export function createFakeModel(
  options: FakeOptions & {
    readonly limits?: Partial<SchedulerLimits>;
    readonly contextLength?: number;
    readonly chatTemplate?: string;
  } = {},
): FakeModel {
  const backend = createFakeBackend(options);
  const engine: Engine = {
    meter: undefined,
    attention: undefined,
    identity: undefined,
    scheduler: createScheduler(backend, { maxStepTokens: 32, chunk: 16, ...options.limits }),
    tokenizer: createFakeTokenizer(),
    facts: { ...FACTS, contextLength: options.contextLength ?? FACTS.contextLength },
    backend: backend.info,
    chatTemplate: options.chatTemplate,
  };
  return { model: createModel(engine, backend.weightBytes), backend };
}

/** A `next` that answers every prompt with a text, then an end token. */
export function answering(
  promptLength: number,
  text: string,
  end = EOS,
): (tokens: readonly number[]) => number {
  const bytes = new TextEncoder().encode(text);
  return (tokens) => bytes[tokens.length - promptLength] ?? end;
}

export async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}
