import type { BackendInfo } from '../backend/types.js';
import type { ModelFacts } from '../models/index.js';
import { type Chat, type ChatOptions, createChat } from './chat.js';
import { checkBoolean, checkKnown, checkList, checkSignal, checkTokens, invalidArgument } from './check.js';
import type { Engine } from './context.js';
import { type EmbedOptions, embed } from './embed.js';
import {
  type Completion,
  createGeneration,
  drain,
  type Generation,
  promptTokens,
  type Start,
} from './generation.js';
import { checkGenerate, type GenerateOptions } from './options.js';
import { createSession, type ScoreOptions, type Session, score } from './session.js';
import type { ThreadChoice } from './threads.js';
import { droppedAt, seedAt } from './window.js';

/** Text, or token ids that are used as they are. */
export type Prompt = string | Uint32Array | readonly number[];

export interface TokenizeOptions {
  /** Adds the special tokens that the model's file asks for at the ends. @default true */
  readonly addSpecial?: boolean;
  /** Reads the names of special tokens in the text as these tokens. @default false */
  readonly parseSpecial?: boolean;
  readonly signal?: AbortSignal;
}

export interface ModelInfo extends ModelFacts {
  readonly backend: BackendInfo;
  /** How many threads compute, and why; with `threads: 'auto'` that is known after the first tokens. */
  readonly threads: ThreadChoice;
  /** Bytes of weights as they lie in memory. */
  readonly packedBytes: number;
  /** The most prompt tokens of one sequence in one step. */
  readonly chunk: number;
  readonly hasChatTemplate: boolean;
  /** The token that text prompts begin with, where the model wants one. */
  readonly beginToken: number | undefined;
  /** The tokens that end a generation, ascending. */
  readonly endTokens: readonly number[];
}

/**
 * A loaded model. Any number of calls may run at once: their steps are merged, and each has its own key/value cache,
 * which does not change any result. Every call throws `DISPOSED` after `dispose`.
 *
 * ```ts
 * await using model = await load('model.gguf');
 * for await (const piece of model.generate('Once upon a time')) process.stdout.write(piece);
 * ```
 */
export interface Model {
  readonly info: ModelInfo;
  /** What computes, and why: `info.backend`. */
  readonly backend: BackendInfo;
  /**
   * Continues a prompt, in pieces of text.
   * @throws FrugalError from the loop: `INVALID_ARGUMENT`, `CONTEXT_OVERFLOW`, `NON_FINITE`, `OUT_OF_MEMORY`, `DISPOSED`
   */
  generate(prompt: Prompt, options?: GenerateOptions): Generation;
  /** Continues a prompt and gives the whole. Rejects as `generate` throws. */
  complete(prompt: Prompt, options?: GenerateOptions): Promise<Completion>;
  /**
   * A conversation in the format of the model's own chat template.
   * @throws FrugalError `TEMPLATE_MISSING`, `INVALID_ARGUMENT`, `DISPOSED`
   */
  chat(options?: ChatOptions): Chat;
  /** A sequence of one's own, for reading logits. */
  session(): Session;
  /**
   * A vector of `info.embeddingLength` numbers for a text: its final hidden states, pooled.
   * @throws FrugalError as `generate` does
   */
  embed(text: string, options?: EmbedOptions): Promise<Float32Array>;
  /** A vector for each text, in order. */
  embed(texts: readonly string[], options?: EmbedOptions): Promise<Float32Array[]>;
  /** @throws FrugalError `INVALID_ARGUMENT`, `DISPOSED` */
  tokenize(text: string, options?: TokenizeOptions): Promise<Uint32Array>;
  /**
   * The text of tokens; with `special` the names of special tokens too.
   * @throws FrugalError `INVALID_ARGUMENT` for what is no token, `DISPOSED`
   */
  detokenize(tokens: ArrayLike<number>, options?: { readonly special?: boolean }): string;
  /**
   * Yields one row [vocabSize] per token: the logits (or log-probabilities, f64 rounded to f32) of what follows it.
   * Row i belongs to tokens[0..i]. Rows are computed as they are asked for.
   * @throws FrugalError from the loop, as `generate` does
   */
  score(tokens: ArrayLike<number>, options?: ScoreOptions): AsyncGenerator<Float32Array, void, undefined>;
  /** Ends all calls with `DISPOSED` and frees everything. */
  dispose(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

const engines = new WeakMap<Model, Engine>();

/** What a model is made of, for measuring: the engine's own steps, without the stream of text around them. */
export function engineOf(model: Model): Engine {
  const engine = engines.get(model);
  if (engine) return engine;
  throw invalidArgument('model', 'a model that load gave', model);
}

export function createModel(engine: Engine, packedBytes: number): Model {
  const { scheduler, tokenizer, facts } = engine;
  let disposal: Promise<void> | undefined;

  function generate(prompt: Prompt, options: GenerateOptions = {}): Generation {
    return createGeneration(engine, () => beginGenerate(engine, prompt, options));
  }

  function embedding(text: string, options?: EmbedOptions): Promise<Float32Array>;
  function embedding(texts: readonly string[], options?: EmbedOptions): Promise<Float32Array[]>;
  function embedding(input: string | readonly string[], options: EmbedOptions = {}) {
    return embed(engine, input, options);
  }

  const model: Model = {
    info: {
      ...facts,
      notes: [...facts.notes, ...(engine.backend.notes ?? [])],
      backend: engine.backend,
      packedBytes,
      get threads() {
        return scheduler.threads;
      },
      chunk: scheduler.limits.chunk,
      hasChatTemplate: engine.chatTemplate !== undefined,
      beginToken: tokenizer.addBos ? tokenizer.bos : undefined,
      endTokens: [...tokenizer.endTokens],
    },
    backend: engine.backend,
    generate,
    complete: (prompt, options) => drain(generate(prompt, options)),
    chat: (options = {}) => createChat(engine, options),
    session: () => createSession(engine),
    embed: embedding,
    tokenize: (text, options = {}) => tokenize(engine, text, options),
    detokenize(tokens, options = {}) {
      scheduler.assertLive();
      checkKnown('detokenize', options, ['special']);
      const special = checkBoolean('special', options.special, false);
      checkList('tokens', tokens);
      if (tokens.length === 0) return '';
      return tokenizer.decode(checkTokens('tokens', tokens, tokenizer.vocabSize), { special });
    },
    score: (tokens, options = {}) => score(engine, tokens, options),
    dispose() {
      disposal ??= Promise.all([scheduler.dispose(), tokenizer.dispose()]).then(() => {});
      return disposal;
    },
    [Symbol.asyncDispose]: () => model.dispose(),
  };
  engines.set(model, engine);
  return model;
}

async function beginGenerate(engine: Engine, prompt: Prompt, options: GenerateOptions): Promise<Start> {
  const settings = checkGenerate('generate', options, engine.facts);
  const tokens = await promptTokens(engine, prompt, settings);
  const seed = seedAt(settings.sampler.seed, droppedAt(settings.context, tokens.length));
  const start: Start = {
    sequence: engine.scheduler.open({ ...settings.sampler, seed }),
    prompt: tokens,
    cachedTokens: 0,
    settings,
    release: () => engine.scheduler.close(start.sequence),
  };
  return start;
}

async function tokenize(engine: Engine, text: unknown, options: TokenizeOptions): Promise<Uint32Array> {
  engine.scheduler.assertLive();
  checkKnown('tokenize', options, ['addSpecial', 'parseSpecial', 'signal']);
  if (typeof text !== 'string') throw invalidArgument('text', 'a string', text);
  const signal = checkSignal(options.signal);
  signal?.throwIfAborted();
  return engine.tokenizer.encode(text, {
    addSpecial: checkBoolean('addSpecial', options.addSpecial, true),
    parseSpecial: checkBoolean('parseSpecial', options.parseSpecial, false),
    ...(signal ? { signal } : {}),
  });
}
