import { onAbort } from '../abort.js';
import { type Chat, type ChatStart, chatDisposed, checkChat } from '../engine/chat.js';
import {
  checkBoolean,
  checkKnown,
  checkList,
  checkRecord,
  checkSignal,
  checkTokens,
  fieldsOf,
} from '../engine/check.js';
import type { EmbedOptions } from '../engine/embed.js';
import {
  type Completion,
  drain,
  emptyCompletion,
  followPieces,
  type Generation,
} from '../engine/generation.js';
import type { Model, ModelInfo } from '../engine/model.js';
import type { Session } from '../engine/session.js';
import { createDetokenization } from '../tokenizer/detokenizer.js';
import type { Line } from './connect.js';
import { plainOptions, plainValue } from './plain.js';
import type { Loaded, Opening, PlainCall, Taken } from './protocol.js';

/** A model in another thread, as if it were in this one. */
export function remoteModel(line: Line, { info: loaded, tables }: Loaded): Model {
  const { decode } = createDetokenization(tables);
  const info: ModelInfo = {
    ...loaded,
    get threads() {
      return line.threads ?? loaded.threads;
    },
  };

  /** A call that takes an input and options, and gives a promise. */
  async function call<T>(name: PlainCall, input: unknown, options: object): Promise<T> {
    const { signal, rest } = splitOptions(name, options);
    const id = line.nextId();
    return line.askAbortable(id, (host) => host.call(id, name, plainValue(input), rest), signal);
  }

  function embed(text: string, options?: EmbedOptions): Promise<Float32Array>;
  function embed(texts: readonly string[], options?: EmbedOptions): Promise<Float32Array[]>;
  function embed(input: unknown, options: EmbedOptions = {}): Promise<never> {
    return call('embed', input, options);
  }

  const model: Model = {
    info,
    backend: info.backend,
    generate: (prompt, options = {}) =>
      remoteGeneration(line, info, 'generate', options, (rest) => ({
        type: 'generate',
        args: [plainValue(prompt), rest],
      })),
    complete: (prompt, options) => drain(model.generate(prompt, options)),
    chat(options = {}) {
      line.assertLive();
      return remoteChat(line, info, checkChat(options, info));
    },
    session() {
      line.assertLive();
      return remoteSession(line);
    },
    embed,
    tokenize: (text, options = {}) => call('tokenize', text, options),
    detokenize(tokens, options = {}) {
      line.assertLive();
      checkKnown('detokenize', options, ['special']);
      const special = checkBoolean('special', options.special, false);
      checkList('tokens', tokens);
      if (tokens.length === 0) return '';
      return decode(checkTokens('tokens', tokens, info.vocabSize), { special });
    },
    score: (tokens, options = {}) =>
      iterate<Float32Array>(line, 'score', options, (rest) => ({
        type: 'score',
        args: [plainValue(tokens), rest],
      })),
    dispose: () => line.dispose(),
    [Symbol.asyncDispose]: () => model.dispose(),
  };
  return model;
}

/** The signal stays on this side; the other options are checked on the other. */
function splitOptions(call: string, options: object): { signal: AbortSignal | undefined; rest: object } {
  checkRecord(call, options);
  const { signal, ...rest }: { signal?: unknown } = fieldsOf(options);
  return { signal: checkSignal(signal), rest: plainOptions(rest) };
}

type Open = (options: object) => Opening;

/**
 * Walks an iteration of the thread, a step for each that is asked for.
 * @param onStep gets each reply
 */
async function* iterate<T>(
  line: Line,
  call: Opening['type'],
  options: object,
  open: Open,
  onStep: (taken: Taken) => void = () => {},
): AsyncGenerator<T, void, undefined> {
  const { signal, rest } = splitOptions(call, options);
  signal?.throwIfAborted();
  const id = line.nextId();
  const opening = open(rest);
  // Nothing has to be left before it is open.
  let over = true;
  const step = async (method: 'next' | 'return') => {
    // It is over if it fails, too.
    over = true;
    const taken = await line.ask<Taken>((host) => host[method](id), signal);
    over = taken.done;
    onStep(taken);
    return taken;
  };
  // It frees its sequence at once, even while the consumer is busy with a piece.
  // Before the opening is awaited, or an abort meanwhile would go unheard.
  const release = onAbort(signal, () => line.tell((host) => host.abort(id)));
  try {
    await line.ask((host) => host.open(id, opening));
    over = false;
    for (;;) {
      const taken = await step('next');
      if (taken.done) return;
      yield taken.value as T;
    }
  } finally {
    release();
    if (!over) await step('return');
  }
}

function remoteGeneration(
  line: Line,
  info: ModelInfo,
  call: 'generate' | 'send',
  options: object,
  open: Open,
  ended?: () => Promise<void>,
): Generation {
  let completion: Completion | undefined;
  const steps = iterate<string>(line, call, options, open, ({ done, value }) => {
    if (done) completion = value as Completion;
  });
  return followPieces(
    ended ? followedBy(steps, ended) : steps,
    () => completion ?? emptyCompletion(info.threads.decode),
  );
}

async function* followedBy(
  steps: AsyncGenerator<string, void, undefined>,
  ended: () => Promise<void>,
): AsyncGenerator<string, void, undefined> {
  try {
    yield* steps;
  } finally {
    await ended();
  }
}

function remoteChat(line: Line, info: ModelInfo, start: ChatStart): Chat {
  const chatId = line.nextId();
  let history = start.history;
  let isDisposed = false;
  const options = { ...plainOptions(start.defaults), messages: start.history };
  const opened = line.ask<void>((host) => host.chat(chatId, options));
  // Answers throw it.
  opened.catch(() => undefined);

  async function readHistory(): Promise<void> {
    // What the chat could not be opened for is thrown in place of what an answer says of a chat that is not there.
    await opened;
    if (!isDisposed) history = await line.ask((host) => host.history(chatId));
  }

  const chat: Chat = {
    get history() {
      return [...history];
    },
    send: (message, overrides = {}) =>
      remoteGeneration(
        line,
        info,
        'send',
        overrides,
        (rest) => {
          if (isDisposed) throw chatDisposed();
          return { type: 'send', target: chatId, args: [message, rest] };
        },
        readHistory,
      ),
    async dispose() {
      if (isDisposed) return;
      isDisposed = true;
      await release(line, chatId);
    },
    [Symbol.asyncDispose]: () => chat.dispose(),
  };
  return chat;
}

function remoteSession(line: Line): Session {
  const sessionId = line.nextId();
  let length = 0;
  line.tell((host) => host.session(sessionId));
  const session: Session = {
    get length() {
      return length;
    },
    logits: (tokens, options = {}) =>
      iterate<Float32Array>(
        line,
        'logits',
        options,
        (rest) => ({ type: 'logits', target: sessionId, args: [plainValue(tokens), rest] }),
        (taken) => {
          length = taken.length ?? length;
        },
      ),
    dispose: () => release(line, sessionId),
    [Symbol.asyncDispose]: () => session.dispose(),
  };
  return session;
}

/** What a disposed model had is freed already. */
async function release(line: Line, id: number): Promise<void> {
  await line.ask((host) => host.release(id)).catch(() => undefined);
}
