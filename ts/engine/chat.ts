import { FrugalError } from '../errors.js';
import { type ChatMessage, renderChat } from '../template/index.js';
import { checkKnown, fieldsOf, invalid, invalidArgument } from './check.js';
import { checkFits, type Engine } from './context.js';
import {
  createGeneration,
  type FinishReason,
  type Generation,
  type GenerationRecord,
  type Start,
} from './generation.js';
import { checkGenerate, GENERATE_NAMES, type GenerateOptions, type GenerateSettings } from './options.js';
import { disposed } from './scheduler.js';
import { droppedAt, seedAt } from './window.js';

/** Defaults for all answers of a chat, and what it starts with. */
export interface ChatOptions extends Omit<GenerateOptions, 'signal' | 'addSpecial' | 'parseSpecial'> {
  /** The first message, with the role `system`. */
  readonly system?: string;
  /** Earlier messages, after the system message. */
  readonly messages?: readonly ChatMessage[];
}

export type SendOptions = Omit<GenerateOptions, 'addSpecial' | 'parseSpecial'>;

export interface Chat {
  /** The messages so far, a copy. */
  readonly history: readonly ChatMessage[];
  /**
   * Streams the answer to a message. A turn enters the history once it has text, also when the loop is left or aborted
   * early; when the answer fails otherwise the history stays as it was.
   * What earlier turns left in the cache is used again, which changes nothing but the time (for sparse attention, earlier
   * answers stay as `decode` computed them; with `provenance` they are computed anew, as a replay does). With `context`, what has
   * left the window stays in the history, and is no longer seen by the model.
   * @throws FrugalError from the loop: `INVALID_ARGUMENT` (also while another answer streams), `TEMPLATE_FAILED`,
   *   `CONTEXT_OVERFLOW`, `NON_FINITE`, `OUT_OF_MEMORY`, `DISPOSED`
   */
  send(message: string, options?: SendOptions): Generation;
  /** Frees the cache; an answer in progress ends with `DISPOSED`. */
  dispose(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

/** A sequence kept between turns, and the text that it holds, or what `key` leaves of it. */
interface Cache {
  readonly sequence: number;
  readonly tokens: Uint32Array;
  readonly key: string;
}

/** What a chat starts with: the defaults of its answers, and its first messages. */
export interface ChatStart {
  readonly defaults: Omit<ChatOptions, 'system' | 'messages'>;
  readonly seed: bigint;
  readonly history: readonly ChatMessage[];
}

/** @throws FrugalError `TEMPLATE_MISSING`, `INVALID_ARGUMENT` */
export function checkChat(
  options: ChatOptions,
  model: {
    readonly name: string;
    readonly vocabSize: number;
    readonly contextLength: number;
    readonly hasChatTemplate: boolean;
  },
): ChatStart {
  checkKnown('chat', options, ['system', 'messages', ...chatNames()]);
  const { system, messages, ...defaults } = fieldsOf(options) as ChatOptions;
  // Each turn draws with the same seed at its own positions, so a chat can be repeated as a whole.
  const seed = checkGenerate('chat', defaults, model).sampler.seed;
  if (!model.hasChatTemplate) {
    throw new FrugalError('TEMPLATE_MISSING', `The model ${model.name} has no chat template`, {
      cure: 'Load it with the option chatTemplate (--template on the command line), or use generate with a prompt of your own.',
    });
  }
  return { defaults, seed, history: initialHistory(system, messages) };
}

/** @throws FrugalError `TEMPLATE_MISSING`, `INVALID_ARGUMENT`, `DISPOSED` */
export function createChat(engine: Engine, options: ChatOptions): Chat {
  engine.scheduler.assertLive();
  const { chatTemplate: template = '' } = engine;
  const start = checkChat(options, { ...engine.facts, hasChatTemplate: engine.chatTemplate !== undefined });
  const { defaults, seed } = start;
  let { history } = start;
  let cache: Cache | undefined;
  let answering: Start | undefined;
  let isDisposed = false;

  async function begin(message: string, overrides: SendOptions): Promise<Start> {
    const settings = checkGenerate('send', { ...defaults, seed, ...given(overrides) }, engine.facts);
    settings.signal?.throwIfAborted();
    const asked: readonly ChatMessage[] = [...history, { role: 'user', content: message }];
    const prompt = await chatTokens(engine, template, asked, settings.signal);
    if (settings.context === undefined) checkFits(engine, prompt.length, 'The chat', CHAT_CURE);
    if (isDisposed) throw chatDisposed();
    const opened = openSequence(engine, cache, prompt, settings);
    cache = undefined;
    const start: Start = {
      ...opened,
      prompt,
      settings,
      release(record) {
        answering = undefined;
        cache = keepSequence(engine, start.sequence, record, settings);
        if (isWorthKeeping(record, settings.signal)) {
          history = [...asked, { role: 'assistant', content: record.text.text() }];
        }
      },
    };
    answering = start;
    return start;
  }

  let busy = false;
  const chat: Chat = {
    get history() {
      return [...history];
    },
    send(message, overrides = {}) {
      return createGeneration(engine, async () => {
        if (isDisposed) throw chatDisposed();
        if (typeof message !== 'string') throw invalidArgument('message', 'a string', message);
        if (busy || answering !== undefined) throw stillAnswering();
        checkKnown('send', overrides, chatNames().concat('signal'));
        busy = true;
        try {
          return await begin(message, overrides);
        } finally {
          busy = false;
        }
      });
    },
    async dispose() {
      isDisposed = true;
      if (answering !== undefined) {
        answering.ended = chatDisposed();
        engine.scheduler.close(answering.sequence, answering.ended);
      }
      if (cache) engine.scheduler.close(cache.sequence);
      cache = undefined;
    },
    [Symbol.asyncDispose]: () => chat.dispose(),
  };
  return chat;
}

/** Without what is undefined, which is as good as left out. */
function given(options: SendOptions): SendOptions {
  return Object.fromEntries(Object.entries(fieldsOf(options)).filter(([, value]) => value !== undefined));
}

function chatNames(): string[] {
  return GENERATE_NAMES.filter((name) => !['signal', 'addSpecial', 'parseSpecial'].includes(name));
}

function initialHistory(system: unknown, messages: unknown): readonly ChatMessage[] {
  const history: ChatMessage[] = [];
  if (system !== undefined) {
    if (typeof system !== 'string') throw invalid('system', 'a string', system);
    history.push({ role: 'system', content: system });
  }
  if (messages === undefined) return history;
  if (!Array.isArray(messages)) throw invalid('messages', 'an array of {role, content}', messages);
  for (const [i, message] of messages.entries()) {
    if (typeof message?.role !== 'string')
      throw invalidArgument(`messages[${i}].role`, 'a string', message?.role);
    if (typeof message.content !== 'string')
      throw invalidArgument(`messages[${i}].content`, 'a string', message.content);
    history.push({ ...message });
  }
  return history;
}

const CHAT_CURE =
  ', begin another chat, or let the oldest text fall out with the option context (--window on the command line)';

/** The history as the model's template writes it, with the beginning-of-text token exactly once where one is due. */
async function chatTokens(
  engine: Engine,
  template: string,
  messages: readonly ChatMessage[],
  signal: AbortSignal | undefined,
): Promise<Uint32Array> {
  const { tokenizer } = engine;
  const text = renderChat(template, messages, {
    bosToken: tokenizer.bos === undefined ? '' : tokenizer.tokenText(tokenizer.bos),
    eosToken: tokenizer.eos === undefined ? '' : tokenizer.tokenText(tokenizer.eos),
    addGenerationPrompt: true,
  });
  const tokens = await tokenizer.encode(text, {
    addSpecial: false,
    parseSpecial: true,
    ...(signal ? { signal } : {}),
  });
  if (!tokenizer.addBos || tokenizer.bos === undefined || tokens[0] === tokenizer.bos) return tokens;
  const whole = new Uint32Array(tokens.length + 1);
  whole[0] = tokenizer.bos;
  whole.set(tokens, 1);
  return whole;
}

/** The cached sequence, back where its text and the prompt part, when it samples alike; otherwise a new one. */
function openSequence(
  engine: Engine,
  cache: Cache | undefined,
  prompt: Uint32Array,
  settings: GenerateSettings,
): { sequence: number; cachedTokens: number } {
  const dropped = droppedAt(settings.context, prompt.length);
  if (cache && engine.scheduler.isOpen(cache.sequence)) {
    const shared = sharedLength(cache.tokens, prompt);
    // A replay computes all of the prompt as one, by the policies of prompts.
    const replayable = engine.identity === undefined || engine.attention === undefined;
    // Of a text that has lost its middle, the sequence holds what comes after that.
    const held = dropped === 0 ? shared : shared - dropped - (settings.context?.sinks ?? 0);
    if (held > 0 && replayable && cache.key === cacheKey(settings, dropped)) {
      const cachedTokens = shared - dropped;
      engine.scheduler.rewind(cache.sequence, cachedTokens);
      return { sequence: cache.sequence, cachedTokens };
    }
    engine.scheduler.close(cache.sequence);
  }
  const { sampler } = settings;
  const seed = seedAt(sampler.seed, dropped);
  return { sequence: engine.scheduler.open({ ...sampler, seed }), cachedTokens: 0 };
}

/** How many tokens both begin with, of the prompt not all: something has to be fed. */
function sharedLength(tokens: Uint32Array, prompt: Uint32Array): number {
  const most = Math.min(tokens.length, prompt.length - 1);
  const parts = tokens.subarray(0, most).findIndex((token, i) => token !== prompt[i]);
  return parts < 0 ? most : parts;
}

function keepSequence(
  engine: Engine,
  sequence: number,
  record: GenerationRecord,
  settings: GenerateSettings,
): Cache | undefined {
  // How much it holds is not known without a drawn token, nor where computing failed.
  if (record.drawn.length === 0 || record.failed) engine.scheduler.close(sequence);
  if (!engine.scheduler.isOpen(sequence)) return undefined;
  // The last token was drawn but never fed.
  const tokens = Uint32Array.from([...record.prompt, ...record.drawn.view(record.drawn.length - 1)]);
  return { sequence, tokens, key: cacheKey(settings, record.context.droppedTokens) };
}

function isWorthKeeping(record: GenerationRecord, signal: AbortSignal | undefined): boolean {
  const finished: readonly FinishReason[] = ['stop', 'stop-string', 'length', 'context'];
  if (finished.includes(record.finishReason)) return true;
  return record.text.text() !== '' && (!record.failed || signal?.aborted === true);
}

/** What has to be the same, beside the text, for a sequence to be used again. */
function cacheKey({ sampler, context }: GenerateSettings, dropped: number): string {
  const sinks = dropped === 0 ? undefined : context?.sinks;
  return JSON.stringify({ ...sampler, seed: String(sampler.seed), dropped, sinks });
}

export function chatDisposed(): FrugalError {
  return disposed('The chat', 'Open another chat with model.chat');
}

function stillAnswering(): FrugalError {
  return new FrugalError('INVALID_ARGUMENT', 'The chat is still giving an earlier answer', {
    cure: 'Iterate that answer to its end (or break), or use one chat per conversation.',
  });
}
