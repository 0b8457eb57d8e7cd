import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { onAbort } from '../abort.js';
import { FrugalError } from '../errors.js';
import type { Reply, Request } from './protocol.js';
import { disposed } from './refuse.js';
import type { Encoder, OpenEncoder, VocabularyData, VocabularyFacts } from './types.js';

/** Up to these sizes building and encoding take a few milliseconds: less than a thread takes to start. */
const SMALL = { tokens: 2048, merges: 2048, text: 400 };

/**
 * Encodes without holding the calling thread for more than milliseconds: on a thread of its own, which each
 * vocabulary has to itself, so that ending it frees all there is. Small vocabularies start it only for a
 * long text.
 */
export const openNodeEncoder: OpenEncoder = async (data, signal) => {
  const entry = findEntry();
  if (entry === undefined) return (await import('./inline-encoder.js')).openInlineEncoder(data, signal);
  return isSmall(data) ? openSmallEncoder(entry, data, signal) : openThread(entry, data, signal);
};

/** The compiled worker; Node cannot run the source, which tests import. */
function findEntry(): URL | undefined {
  const isSource = import.meta.url.endsWith('.ts');
  const entry = new URL(isSource ? '../../dist/tokenizer/worker.js' : './worker.js', import.meta.url);
  return isSource && !existsSync(fileURLToPath(entry)) ? undefined : entry;
}

function isSmall(data: VocabularyData): boolean {
  return data.tokens.offsets.length <= SMALL.tokens && data.merges.offsets.length <= SMALL.merges;
}

async function openSmallEncoder(entry: URL, data: VocabularyData, signal?: AbortSignal): Promise<Encoder> {
  const { openInlineEncoder } = await import('./inline-encoder.js');
  const inline = await openInlineEncoder(data, signal);
  let thread: Promise<Encoder> | undefined;
  return {
    facts: inline.facts,
    async encode(text, flags, encodeSignal) {
      if (text.length <= SMALL.text) return inline.encode(text, flags, encodeSignal);
      thread ??= openThread(entry, data);
      return (await thread).encode(text, flags, encodeSignal);
    },
    async dispose() {
      await inline.dispose();
      thread ??= Promise.reject(disposed());
      // A thread that never opened has been reported to the call that wanted it.
      await thread.then((opened) => opened.dispose()).catch(() => undefined);
    },
  };
}

type Answer<T extends Reply['type']> = Extract<Reply, { type: T }>;
type Ask = <T extends Reply['type']>(
  request: WithoutId<Request>,
  type: T,
  signal?: AbortSignal,
) => Promise<Answer<T>>;
type WithoutId<T> = T extends { id: number } ? Omit<T, 'id'> : never;

async function openThread(entry: URL, data: VocabularyData, signal?: AbortSignal): Promise<Encoder> {
  signal?.throwIfAborted();
  const { ask, end } = startThread(entry);
  let facts: VocabularyFacts;
  try {
    ({ facts } = await ask({ type: 'build', data }, 'built', signal));
  } catch (error) {
    await end();
    throw error;
  }
  return {
    facts,
    async encode(text, flags, encodeSignal) {
      // Those after it would wait until a long text that nobody wants is done.
      const unwanted = new Int32Array(new SharedArrayBuffer(4));
      const release = onAbort(encodeSignal, () => Atomics.store(unwanted, 0, 1));
      try {
        const { tokens } = await ask({ type: 'encode', text, flags, unwanted }, 'encoded', encodeSignal);
        return tokens;
      } finally {
        release();
      }
    },
    dispose: end,
  };
}

interface Pending {
  resolve(reply: Reply): void;
  reject(reason: unknown): void;
}

/** A thread and the calls that wait for it. It keeps the process alive only while there are any. */
function startThread(entry: URL): { ask: Ask; end: () => Promise<void> } {
  const worker = new Worker(entry, {
    name: 'frugal tokenizer',
    execArgv: [],
    // The default is meant for servers: it would triple the memory that a vocabulary takes.
    resourceLimits: { maxYoungGenerationSizeMb: 4 },
  });
  worker.unref();
  const started = new Promise<void>((resolve) => {
    for (const event of ['message', 'exit']) worker.once(event, () => resolve());
  });
  const pending = new Map<number, Pending>();
  let lastId = 0;
  let ended: unknown;
  const settle = (id: number): Pending | undefined => {
    const call = pending.get(id);
    pending.delete(id);
    // An answer that nobody waits for any more says nothing of what keeps the process alive: the thread may be ending.
    if (call !== undefined && pending.size === 0) worker.unref();
    return call;
  };
  const fail = (reason: unknown): void => {
    ended ??= reason;
    for (const id of [...pending.keys()]) settle(id)?.reject(ended);
  };
  worker.on('message', (reply: Reply) => {
    if (reply.type === 'failed') settle(reply.id)?.reject(toError(reply.error));
    else settle(reply.id)?.resolve(reply);
  });
  worker.on('error', (cause) => fail(threadFailed(cause)));
  worker.on('exit', () => fail(threadFailed(undefined)));
  let ending: Promise<unknown> | undefined;
  return {
    async ask(request, type, signal) {
      signal?.throwIfAborted();
      if (ended !== undefined) throw ended;
      const id = ++lastId;
      const release = onAbort(signal, () => settle(id)?.reject(signal?.reason));
      try {
        const reply = await new Promise<Reply>((resolve, reject) => {
          pending.set(id, { resolve, reject });
          worker.ref();
          worker.postMessage({ ...request, id } satisfies Request);
        });
        if (!isReply(reply, type)) throw threadFailed(new Error(`${reply.type} instead of ${type}`));
        return reply;
      } finally {
        release();
      }
    },
    async end() {
      fail(disposed());
      worker.ref();
      // A thread that ends amid its imports leaves their files open.
      ending ??= started.then(() => worker.terminate());
      await ending;
    },
  };
}

function isReply<T extends Reply['type']>(reply: Reply, type: T): reply is Answer<T> {
  return reply.type === type;
}

function toError({ code, message, cure, data }: Extract<Reply, { type: 'failed' }>['error']): FrugalError {
  return new FrugalError(code, message, { cure, data });
}

function threadFailed(cause: unknown): FrugalError {
  const detail = cause instanceof Error ? `: ${cause.message}` : '';
  return new FrugalError('INTERNAL', `The tokeniser's thread ended unexpectedly${detail}`, {
    cure: 'Load the model again; if it happens again, please report it with the model and the text.',
    cause,
  });
}
