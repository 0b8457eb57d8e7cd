import { onAbort } from '../abort.js';
import { type AttentionUsage, attentionUsage, keptShare } from '../attention/index.js';
import type { ExpertCounts } from '../backend/types.js';
import type { Energy } from '../energy/types.js';
import { FrugalError } from '../errors.js';
import { checkTokens, invalidArgument, isTokenList } from './check.js';
import { checkFits, type Engine } from './context.js';
import { addCounts, type ExpertUsage, expertUsage } from './experts.js';
import { type GenerateSettings, reportSeed } from './options.js';
import { createProvenance, type Provenance } from './provenance.js';
import { disposed } from './scheduler.js';
import { createStopMatcher } from './stop.js';
import { createTextList, createTokenList, type TextList, type TokenList } from './transcript.js';
import { type ContextUsage, droppedAt, keptTokens, seedAt } from './window.js';

/**
 * Why a generation ended: the model gave an end token, a stop string was found, `maxTokens` was reached, the context
 * is full, or the consumer stopped taking pieces.
 */
export type FinishReason = 'stop' | 'stop-string' | 'length' | 'context' | 'cancelled';

export interface Usage {
  readonly promptTokens: number;
  /** Prompt tokens that an earlier turn of the chat had left in the cache. */
  readonly cachedTokens: number;
  readonly completionTokens: number;
  /** From the first pull to the first token, in milliseconds; 0 when there was none. */
  readonly timeToFirstTokenMs: number;
  /** Time in which the prompt was computed, in milliseconds, waiting for other sequences included. */
  readonly prefillMs: number;
  /** From the first token to the last, less what the consumer took between them, in milliseconds. */
  readonly decodeMs: number;
  /** 0 where nothing was measured. */
  readonly prefillTokensPerSecond: number;
  readonly decodeTokensPerSecond: number;
  /** Threads that the model decodes with when the generation ended. */
  readonly threads: number;
  /** Bytes of all key/value caches of the model when the generation ended. */
  readonly kvBytes: number;
  /** What fell out of the context: with the option `context`. */
  readonly context?: ContextUsage;
  /** Where the computed tokens were routed: of models with experts, with the option `expertUsage`. */
  readonly experts?: ExpertUsage;
  /** What attention kept of the keys: of models loaded with `attention`. */
  readonly attention?: AttentionUsage;
  /** What the machine spent meanwhile, other work on it included; in runtimes that cannot tell, nothing. */
  readonly energy?: UsageEnergy;
}

export type UsageEnergy = Energy & {
  /** Bytes of weights, keys and values that the steps read at least, counted from the plan. */
  readonly bytesMoved: number;
};

export interface Completion {
  readonly text: string;
  /** The generated tokens, without the end token. */
  readonly tokens: Uint32Array;
  readonly finishReason: FinishReason;
  /** The stop string found, with the finish reason `stop-string`. */
  readonly stopString?: string;
  /** Repeats the run, with the same prompt and options. */
  readonly seed: number | bigint;
  readonly usage: Usage;
  /** What it takes to make the text again, of models loaded with `provenance`. */
  readonly provenance?: Provenance;
}

/**
 * Text in pieces, made as they are asked for. Iterate once. Leaving the loop (`break`) frees the sequence at once;
 * errors are thrown from the loop.
 */
export interface Generation extends AsyncIterableIterator<string, void, undefined> {
  /**
   * The whole, once iteration has ended; rejects with what the loop threw. It does not iterate by itself: use
   * `complete` for that.
   */
  readonly result: Promise<Completion>;
  next(): Promise<IteratorResult<string, void>>;
  return(): Promise<IteratorResult<string, void>>;
  [Symbol.asyncIterator](): Generation;
  [Symbol.asyncDispose](): Promise<void>;
}

/** What a generation has done so far. */
export interface GenerationRecord {
  prompt: Uint32Array;
  cachedTokens: number;
  /** Tokens drawn, the end token included. */
  readonly drawn: TokenList;
  endTokens: number;
  readonly text: TextList;
  finishReason: FinishReason;
  stopString: string | undefined;
  /** It ended with an error. */
  failed: boolean;
  seed: bigint;
  timeToFirstTokenMs: number;
  prefillMs: number;
  decodeMs: number;
  kvBytes: number;
  /** Tokens of the prompt that its sequence did not hold to begin with. */
  promptDropped: number;
  context: ContextUsage;
  /** Steps computed, if no other sequence shared them, and pairs of a token and one before it or itself. */
  steps: number;
  pairs: number;
  expertCounts: ExpertCounts | undefined;
  keptKeys: Float64Array;
  experts: ExpertUsage | undefined;
  attention: AttentionUsage | undefined;
  energy: UsageEnergy | undefined;
  settings: GenerateSettings | undefined;
}

/** Where a generation starts: a sequence that holds the first `cachedTokens` kept tokens of the prompt, and not all. */
export interface Start {
  /** The one that holds the text now: with a window, others take over. */
  sequence: number;
  readonly prompt: Uint32Array;
  readonly cachedTokens: number;
  readonly settings: GenerateSettings;
  /** Why its sequence was freed by another call, which is then what the generation throws. */
  ended?: FrugalError;
  /** Called when the generation ends, however it ends. */
  release(record: GenerationRecord): void;
}

/**
 * @param begin checks the options and opens the sequence; runs at the first pull
 */
export function createGeneration(engine: Engine, begin: () => Promise<Start>): Generation {
  const record = emptyRecord();
  return followPieces(produce(engine, begin, record), () =>
    toCompletion(record, engine.scheduler.threads.decode, engine),
  );
}

/**
 * A generation from its pieces.
 * @param completion what it has come to, once it has ended
 */
export function followPieces(
  pieces: AsyncGenerator<string, void, undefined>,
  completion: () => Completion,
): Generation {
  let settle: { resolve(value: Completion): void; reject(reason: unknown): void } | undefined;
  const result = new Promise<Completion>((resolve, reject) => {
    settle = { resolve, reject };
  });
  // The loop throws the same error; nobody has to look at `result` as well.
  result.catch(() => {});
  const follow = async (step: Promise<IteratorResult<string, void>>) => {
    try {
      const taken = await step;
      if (taken.done) settle?.resolve(completion());
      return taken;
    } catch (error) {
      settle?.reject(error);
      throw error;
    }
  };
  const generation: Generation = {
    result,
    next: () => follow(pieces.next()),
    return: () => follow(pieces.return()),
    [Symbol.asyncIterator]: () => generation,
    async [Symbol.asyncDispose]() {
      await generation.return();
    },
  };
  return generation;
}

/** Takes all pieces of a generation. */
export async function drain(generation: Generation): Promise<Completion> {
  for await (const _ of generation);
  return generation.result;
}

async function* produce(
  engine: Engine,
  begin: () => Promise<Start>,
  record: GenerationRecord,
): AsyncGenerator<string, void, undefined> {
  const began = performance.now();
  const start = await begin();
  const span = engine.meter?.start();
  record.prompt = start.prompt;
  record.settings = start.settings;
  record.cachedTokens = start.cachedTokens;
  record.seed = start.settings.sampler.seed;
  record.promptDropped = droppedAt(start.settings.context, start.prompt.length);
  record.context = { ...record.context, droppedTokens: record.promptDropped };
  // The sequence is freed at once even while the consumer is busy with a piece.
  const { signal } = start.settings;
  const release = onAbort(signal, () => engine.scheduler.close(start.sequence, signal?.reason));
  if (start.settings.expertUsage) engine.scheduler.countExperts(start.sequence);
  try {
    if (start.settings.maxTokens === 0) {
      record.finishReason = 'length';
      return;
    }
    yield* decode(engine, start, record, began);
    assertOpen(engine, start);
  } catch (error) {
    record.failed = true;
    throw error;
  } finally {
    release();
    record.kvBytes = engine.scheduler.kvBytes();
    takeCounts(engine, start, record);
    if (record.expertCounts && engine.facts.expertLayers.length > 0)
      record.experts = expertUsage(record.expertCounts, engine.facts.expertLayers);
    if (engine.attention) record.attention = attentionUsage(engine.attention, record.keptKeys);
    const energy = span?.end();
    if (energy) record.energy = { ...energy, bytesMoved: bytesMoved(engine, record) };
    start.release(record);
  }
}

async function* decode(
  engine: Engine,
  start: Start,
  record: GenerationRecord,
  began: number,
): AsyncGenerator<string, void, undefined> {
  const { prompt, settings } = start;
  const detokenizer = engine.tokenizer.stream();
  const matcher = createStopMatcher(settings.stop);
  let held = start.cachedTokens;
  let next = keptTokens(settings.context, record.promptDropped, prompt).subarray(held);
  // When the last token was there, later by as long as the reader kept it.
  let since = performance.now();
  for (;;) {
    const token = await draw(engine, start, next, record, began, since);
    since = performance.now();
    countWork(engine, record, held, next.length);
    held += next.length;
    if (!settings.ignoreEnd && engine.tokenizer.endTokens.has(token)) {
      record.endTokens = 1;
      record.finishReason = 'stop';
      break;
    }
    const { text, matched } = matcher.push(detokenizer.push(token));
    const finish = matched === undefined ? limitReached(engine, settings, record) : 'stop-string';
    if (finish) record.finishReason = finish;
    record.stopString = matched;
    record.text.push(text);
    if (text !== '') {
      const left = performance.now();
      yield text;
      since += performance.now() - left;
    }
    if (matched !== undefined) return;
    if (finish) break;
    next = Uint32Array.of(token);
    const dropped = droppedAt(settings.context, prompt.length + record.drawn.length);
    if (dropped === record.context.droppedTokens) continue;
    next = switchSequence(engine, start, record, dropped);
    held = 0;
  }
  const { text, matched } = matcher.push(detokenizer.end());
  if (matched !== undefined) {
    record.finishReason = 'stop-string';
    record.stopString = matched;
  }
  const rest = matched === undefined ? text + matcher.end() : text;
  record.text.push(rest);
  if (rest !== '') yield rest;
}

/** Puts a fresh sequence in the place of a full one, which is freed first. @returns what to feed it */
function switchSequence(
  engine: Engine,
  start: Start,
  record: GenerationRecord,
  dropped: number,
): Uint32Array {
  const { scheduler } = engine;
  const { context, sampler, expertUsage } = start.settings;
  assertOpen(engine, start);
  takeCounts(engine, start, record);
  scheduler.close(start.sequence);
  start.sequence = scheduler.open({ ...sampler, seed: seedAt(sampler.seed, dropped) });
  if (expertUsage) scheduler.countExperts(start.sequence);
  const kept = keptTokens(context, dropped, start.prompt, record.drawn.view());
  record.context = {
    droppedTokens: dropped,
    switches: record.context.switches + 1,
    // The last was only drawn so far.
    recomputedTokens: record.context.recomputedTokens + kept.length - 1,
  };
  return kept;
}

/** @throws what a sequence was closed for while the consumer was busy with a piece */
function assertOpen({ scheduler }: Engine, { sequence, settings, ended }: Start): void {
  settings.signal?.throwIfAborted();
  scheduler.assertLive();
  if (!scheduler.isOpen(sequence)) throw ended ?? disposed('The sequence');
}

/** Adds what the sequence has counted to what those before it have. */
function takeCounts({ scheduler }: Engine, { sequence }: Start, record: GenerationRecord): void {
  const counts = scheduler.expertCounts(sequence);
  if (counts) record.expertCounts = addCounts(record.expertCounts, counts);
  const before = record.keptKeys;
  const kept = scheduler.keptKeys(sequence);
  if (kept.length > 0) record.keptKeys = kept.map((sum, i) => sum + (before[i] ?? 0));
}

async function draw(
  engine: Engine,
  start: Start,
  tokens: Uint32Array,
  record: GenerationRecord,
  began: number,
  since: number,
): Promise<number> {
  const token = await feed(engine, start, tokens);
  const after = performance.now();
  if (record.drawn.length === 0) {
    record.prefillMs = after - since;
    record.timeToFirstTokenMs = after - began;
  } else {
    record.decodeMs += after - since;
  }
  record.drawn.push(token);
  return token;
}

/**
 * Feeds all of `tokens` to a sequence, in as many steps as the scheduler makes of them, and draws the next.
 * An abort closes the sequence, so here it only has to be noticed.
 */
async function feed(engine: Engine, start: Start, tokens: Uint32Array): Promise<number> {
  let rest = tokens;
  while (rest.length > 0) {
    start.settings.signal?.throwIfAborted();
    if (start.ended) throw start.ended;
    const { consumed, token } = await engine.scheduler.run(start.sequence, rest, 'sample');
    if (token !== undefined) return token;
    rest = rest.subarray(consumed);
  }
  const message = 'The backend drew no token where one was asked for';
  throw new FrugalError('INTERNAL', message, { cure: 'Report this with the model and the call.' });
}

function limitReached(
  engine: Engine,
  settings: GenerateSettings,
  record: GenerationRecord,
): FinishReason | undefined {
  if (record.drawn.length >= settings.maxTokens) return 'length';
  if (settings.context) return undefined;
  // The token just drawn would be fed at this position.
  const position = record.prompt.length + record.drawn.length - 1;
  return position >= engine.facts.contextLength ? 'context' : undefined;
}

function emptyRecord(): GenerationRecord {
  return {
    prompt: new Uint32Array(0),
    cachedTokens: 0,
    drawn: createTokenList(),
    endTokens: 0,
    text: createTextList(),
    finishReason: 'cancelled',
    stopString: undefined,
    failed: false,
    seed: 0n,
    timeToFirstTokenMs: 0,
    prefillMs: 0,
    decodeMs: 0,
    kvBytes: 0,
    promptDropped: 0,
    context: { droppedTokens: 0, switches: 0, recomputedTokens: 0 },
    steps: 0,
    pairs: 0,
    expertCounts: undefined,
    keptKeys: new Float64Array(0),
    experts: undefined,
    attention: undefined,
    energy: undefined,
    settings: undefined,
  };
}

/** Takes note of `count` tokens fed to a sequence that held `held`. */
function countWork({ scheduler }: Engine, record: GenerationRecord, held: number, count: number): void {
  record.steps += Math.ceil(count / scheduler.limits.chunk);
  record.pairs += ((held + count) * (held + count + 1) - held * (held + 1)) / 2;
}

/** Weights once per step; of each token's keys and values, those before it that attention kept. */
function bytesMoved({ facts }: Engine, { steps, pairs, keptKeys }: GenerationRecord): number {
  return steps * facts.bytesPerToken + pairs * keptShare(keptKeys) * facts.kvBytesPerToken;
}

/** That of a generation that was left before it began. */
export function emptyCompletion(threads: number): Completion {
  return toCompletion(emptyRecord(), threads);
}

function toCompletion(record: GenerationRecord, threads: number, engine?: Engine): Completion {
  const completionTokens = record.drawn.length - record.endTokens;
  const computed =
    record.drawn.length === 0 ? 0 : record.prompt.length - record.promptDropped - record.cachedTokens;
  const [tokens, text] = [record.drawn.view(completionTokens).slice(), record.text.text()];
  const { settings } = record;
  return {
    text,
    tokens,
    ...(engine?.identity &&
      settings && {
        provenance: createProvenance(engine, engine.identity, settings, { ...record, tokens, text }),
      }),
    finishReason: record.finishReason,
    ...(record.stopString === undefined ? {} : { stopString: record.stopString }),
    seed: reportSeed(record.seed),
    usage: {
      promptTokens: record.prompt.length,
      cachedTokens: record.cachedTokens,
      completionTokens,
      timeToFirstTokenMs: record.timeToFirstTokenMs,
      prefillMs: record.prefillMs,
      decodeMs: record.decodeMs,
      prefillTokensPerSecond: perSecond(computed, record.prefillMs),
      decodeTokensPerSecond: perSecond(Math.max(0, record.drawn.length - 1), record.decodeMs),
      threads,
      kvBytes: record.kvBytes,
      ...(settings?.context && { context: record.context }),
      ...(record.experts === undefined ? {} : { experts: record.experts }),
      ...(record.attention ? { attention: record.attention } : {}),
      ...(record.energy && { energy: record.energy }),
    },
  };
}

function perSecond(count: number, ms: number): number {
  return ms > 0 ? (count * 1000) / ms : 0;
}

/** The prompt's token ids: text is encoded, ids are checked and taken as they are. */
export async function promptTokens(
  engine: Engine,
  prompt: unknown,
  settings: Pick<GenerateSettings, 'addSpecial' | 'parseSpecial' | 'context' | 'signal'>,
): Promise<Uint32Array> {
  engine.scheduler.assertLive();
  settings.signal?.throwIfAborted();
  // A list is copied before anything is awaited: the caller may use it for something else from then on.
  const ids = isTokenList(prompt) ? prompt : await encodePrompt(engine, prompt, settings);
  const tokens = checkTokens('prompt', ids, engine.facts.vocabSize);
  if (settings.context === undefined) checkFits(engine, tokens.length, 'The prompt');
  return tokens;
}

async function encodePrompt(
  engine: Engine,
  prompt: unknown,
  settings: Pick<GenerateSettings, 'addSpecial' | 'parseSpecial' | 'signal'>,
): Promise<Uint32Array> {
  if (typeof prompt !== 'string')
    throw invalidArgument('prompt', 'a string or an array of token ids', prompt);
  return engine.tokenizer.encode(prompt, {
    addSpecial: settings.addSpecial,
    parseSpecial: settings.parseSpecial,
    ...(settings.signal ? { signal: settings.signal } : {}),
  });
}
