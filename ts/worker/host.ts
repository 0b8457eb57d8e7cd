import { type Endpoint, expose, type ProxyMethods, releaseProxy, transfer } from 'comlink';
import type { Chat } from '../engine/chat.js';
import type { LoadEvent, LoadOptions } from '../engine/load.js';
import { engineOf, type Model } from '../engine/model.js';
import type { Session } from '../engine/session.js';
import type { ModelSource } from '../engine/source.js';
import type { ThreadChoice } from '../engine/threads.js';
import { FrugalError } from '../errors.js';
import type { Host, Opening, Reply, Taken } from './protocol.js';
import { replyTo } from './reply.js';
import { receiveSource } from './source-port.js';

type Load = (source: ModelSource, options: LoadOptions) => Promise<Model>;

/** An iteration under way. */
interface Iteration {
  readonly steps: AsyncIterator<unknown, unknown, undefined>;
  /** What the last reply tells beside its value. */
  readonly end: (taken: IteratorResult<unknown, unknown>) => Taken | Promise<Taken>;
}

/** Offers one model, loaded by `load`, at the other end of `endpoint`. */
export function serveModel(endpoint: Endpoint, load: Load): void {
  let model: Model | undefined;
  let loading: Promise<unknown> | undefined;
  /** What the other side knows of the model's threads. */
  let told: ThreadChoice | undefined;
  const controllers = new Map<number, AbortController>();
  const iterations = new Map<number, Iteration>();
  const chats = new Map<number, Chat>();
  const sessions = new Map<number, Session>();

  const loaded = (): Model => {
    if (model !== undefined) return model;
    throw new FrugalError('INTERNAL', 'The thread has no model', { cure: 'Report this with the call.' });
  };
  const start = (id: number): AbortSignal => {
    const controller = new AbortController();
    controllers.set(id, controller);
    return controller.signal;
  };
  const withThreads = <T>(reply: Reply<T>): Reply<T> => {
    const threads = model?.info.threads;
    if (threads === undefined || threads === told) return reply;
    told = threads;
    return { ...reply, threads };
  };
  const signalOf = (id: number) => controllers.get(id)?.signal;

  function openIteration(id: number, opening: Opening): Iteration {
    const [input, options] = opening.args as [never, object];
    const settings = { ...options, signal: start(id) };
    if (opening.type === 'score') return rows(loaded().score(input, settings));
    if (opening.type === 'generate') return pieces(loaded().generate(input, settings));
    if (opening.type === 'send') {
      const chat = chats.get(opening.target);
      if (chat === undefined) throw gone('chat');
      return pieces(chat.send(input, settings));
    }
    const session = sessions.get(opening.target);
    if (session === undefined) throw gone('session');
    return rows(session.logits(input, settings), session);
  }

  /** A step, and what is to be forgotten when it was the last. */
  async function take(
    id: number,
    step: (iteration: Iteration) => Promise<IteratorResult<unknown, unknown>>,
  ): Promise<Reply<Taken>> {
    const iteration = iterations.get(id);
    const outcome = await replyTo(async () => {
      if (iteration === undefined) throw gone('iteration');
      return iteration.end(await step(iteration));
    }, signalOf(id));
    const reply = withThreads(outcome);
    if (reply.type === 'value' && !reply.value.done) {
      const { value } = reply.value;
      return value instanceof Float32Array ? transfer(reply, [value.buffer]) : reply;
    }
    iterations.delete(id);
    controllers.delete(id);
    return reply;
  }

  const host: Host = {
    async load(id, source, options, report) {
      const signal = start(id);
      const remote = report as typeof report & ProxyMethods;
      let told: unknown = Promise.resolve();
      const onProgress = (event: LoadEvent) => {
        told = remote(event);
      };
      const replying = replyTo(async () => {
        model = await load(receiveSource(source), { ...options, onProgress, signal });
        told = model.info.threads;
        return { info: model.info, tables: engineOf(model).tokenizer.tables };
      }, signal);
      loading = replying;
      const reply = await replying;
      controllers.delete(id);
      // All progress is told before the end is.
      await told;
      remote[releaseProxy]();
      return reply;
    },
    async call(id, name, input, options) {
      const settings = { ...options, signal: start(id) };
      const reply = await replyTo<unknown>(() => loaded()[name](input as never, settings), settings.signal);
      controllers.delete(id);
      return withThreads(reply);
    },
    chat: (id, options) => replyTo(() => void chats.set(id, loaded().chat(options))),
    history: (id) => replyTo(() => chats.get(id)?.history ?? []),
    session(id) {
      sessions.set(id, loaded().session());
    },
    release: (id) =>
      replyTo(async () => {
        await (chats.get(id) ?? sessions.get(id))?.dispose();
        chats.delete(id);
        sessions.delete(id);
      }),
    open: (id, opening) => replyTo(() => void iterations.set(id, openIteration(id, opening))),
    next: (id) => take(id, ({ steps }) => steps.next()),
    return: (id) =>
      take(id, async ({ steps }) => (await steps.return?.()) ?? { done: true, value: undefined }),
    abort(id) {
      controllers.get(id)?.abort();
    },
    async dispose() {
      // One that was aborted closes what it had opened.
      await loading;
      await model?.dispose();
    },
  };
  expose(host, endpoint);
}

function pieces(steps: ReturnType<Model['generate']>): Iteration {
  return {
    steps,
    async end({ done, value }) {
      if (!done) return { done: false, value };
      return { done: true, value: await steps.result };
    },
  };
}

function rows(steps: AsyncIterator<Float32Array, void, undefined>, session?: Session): Iteration {
  return {
    steps,
    end({ done, value }) {
      // Rows are parts of what a step gave, and cross one by one.
      const row = value instanceof Float32Array ? value.slice() : undefined;
      return { done: done === true, value: row, ...(session && { length: session.length }) };
    },
  };
}

function gone(what: string): FrugalError {
  return new FrugalError('DISPOSED', `The ${what} is gone`, { cure: 'Open another one.' });
}
