import { type Endpoint, proxy, type Remote, wrap } from 'comlink';
import { onAbort, settled } from '../abort.js';
import { checkRecord, checkSignal, fieldsOf, invalid } from '../engine/check.js';
import type { LoadOptions } from '../engine/load.js';
import type { Model } from '../engine/model.js';
import { disposed } from '../engine/scheduler.js';
import { checkOwnSource, isParts, type ModelSource } from '../engine/source.js';
import type { ThreadChoice } from '../engine/threads.js';
import { FrugalError, isFrugalError } from '../errors.js';
import { resolveAddress } from '../gguf/address.js';
import { plainOptions } from './plain.js';
import type { Host, Loaded, Reply } from './protocol.js';
import { remoteModel } from './remote-model.js';
import { unwrap } from './reply.js';
import { type OwnFailure, originalOf, sendSource } from './source-port.js';

/** A thread that `serveModel` runs in, as its runtime starts one. */
export interface Thread {
  readonly endpoint: Endpoint;
  /** Calls `listener` if the thread ends by itself; a FrugalError is what its calls then throw. */
  onFailure(listener: (cause: unknown) => void): void;
  /** Whether calls are under way: while there are none, the thread must not keep the process alive. */
  setBusy(busy: boolean): void;
  terminate(): unknown;
}

/** The calls of one thread. */
export interface Line {
  /** Numbers for calls, chats and sessions. */
  nextId(): number;
  /** How many threads the model computes with, where that has changed since it was loaded. */
  readonly threads: ThreadChoice | undefined;
  /**
   * Makes a call, and ends it when the thread ends.
   * @param signal its reason is what an aborted call rejects with
   */
  ask<T>(call: (host: Remote<Host>) => Promise<unknown>, signal?: AbortSignal): Promise<T>;
  /** As `ask`, for a call that `signal` aborts by its number. */
  askAbortable<T>(
    id: number,
    call: (host: Remote<Host>) => Promise<unknown>,
    signal: AbortSignal | undefined,
  ): Promise<T>;
  /** Makes a call that gives nothing; the calls after it find it done. None when the thread has ended. */
  tell(call: (host: Remote<Host>) => Promise<unknown>): void;
  /** @throws FrugalError `DISPOSED` */
  assertLive(): void;
  dispose(): Promise<void>;
}

/** How long a thread that was asked to end may take for its step before it is ended all the same. */
const LAST_STEP_MS = 1000;

/**
 * Loads a model in a thread of its own.
 * @throws FrugalError as `load` does; the thread is ended then
 */
export async function loadInThread(
  start: () => Thread,
  source: ModelSource,
  options: LoadOptions,
): Promise<Model> {
  checkRecord('load', options);
  const signal = checkSignal(options.signal);
  signal?.throwIfAborted();
  const { onProgress } = options;
  const { signal: _, onProgress: __, ...rest } = fieldsOf(options);
  if (onProgress !== undefined && typeof onProgress !== 'function')
    throw invalid('onProgress', 'a function', onProgress);
  const own: OwnFailure = { last: undefined };
  const sentOptions = plainOptions(rest);
  const sent = sendSource(checkSource(source), own);
  const line = openLine(start(), own);
  const stop = new AbortController();
  const release = onAbort(signal, () => stop.abort(signal?.reason));
  const report = proxy((event: Parameters<NonNullable<typeof onProgress>>[0]) => {
    try {
      onProgress?.(event);
    } catch (error) {
      // What the listener throws ends the load, as it does without a thread.
      stop.abort(error);
    }
  });
  try {
    const id = line.nextId();
    const load = (host: Remote<Host>) => host.load(id, sent, sentOptions, report);
    // A thread whose script or module does not come never answers.
    const loaded = await settled(line.askAbortable<Loaded>(id, load, stop.signal), stop.signal);
    return remoteModel(line, loaded);
  } catch (error) {
    await line.dispose();
    throw error;
  } finally {
    release();
  }
}

/** An address crosses as text. */
function checkSource(source: ModelSource): Exclude<ModelSource, URL> {
  if (source instanceof URL) return source.href;
  if (typeof source === 'string') return resolveAddress(source);
  if (source instanceof Blob || isParts(source)) return source;
  return checkOwnSource(source);
}

function openLine(thread: Thread, own: OwnFailure): Line {
  const host = wrap<Host>(thread.endpoint);
  const pending = new Set<(reason: unknown) => void>();
  let lastId = 0;
  let threads: ThreadChoice | undefined;
  let ended: { readonly reason: unknown } | undefined;
  let disposal: Promise<void> | undefined;

  const end = (reason: unknown): void => {
    ended ??= { reason };
    for (const reject of pending) reject(ended.reason);
    pending.clear();
    thread.setBusy(false);
  };
  thread.onFailure((cause) => end(threadFailed(cause)));

  /** The call's result, unless the thread ends before. */
  function track<T>(call: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      if (pending.size === 0) thread.setBusy(true);
      pending.add(reject);
      const settle = () => {
        if (pending.delete(reject) && pending.size === 0) thread.setBusy(false);
      };
      call.then(resolve, reject).finally(settle);
    });
  }

  async function shutDown(): Promise<void> {
    // One that has ended by itself does not answer.
    const finished = ended === undefined ? host.dispose().catch(() => undefined) : undefined;
    end(disposed('The model'));
    thread.setBusy(true);
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, LAST_STEP_MS);
    });
    await Promise.race([finished, late]);
    clearTimeout(timer);
    await thread.terminate();
  }

  async function ask<T>(call: (host: Remote<Host>) => Promise<unknown>, signal?: AbortSignal): Promise<T> {
    if (ended !== undefined) throw ended.reason;
    try {
      const reply = await track(call(host) as Promise<Reply<T>>);
      threads = reply.threads ?? threads;
      return unwrap(reply, signal);
    } catch (error) {
      throw isCloneError(error) ? invalidData(error) : originalOf(error, own);
    }
  }

  /** A failure of the call shows in those after it. */
  function tell(call: (host: Remote<Host>) => Promise<unknown>): void {
    if (ended === undefined) track(call(host)).catch(() => undefined);
  }

  return {
    nextId: () => ++lastId,
    get threads() {
      return threads;
    },
    ask,
    async askAbortable<T>(
      id: number,
      call: (host: Remote<Host>) => Promise<unknown>,
      signal: AbortSignal | undefined,
    ) {
      signal?.throwIfAborted();
      const release = onAbort(signal, () => tell((host) => host.abort(id)));
      try {
        return await ask<T>(call, signal);
      } finally {
        release();
      }
    },
    tell,
    assertLive() {
      if (ended !== undefined) throw ended.reason;
    },
    dispose() {
      disposal ??= shutDown();
      return disposal;
    },
  };
}

function isCloneError(error: unknown): error is DOMException {
  return error instanceof DOMException && error.name === 'DataCloneError';
}

function invalidData(cause: DOMException): FrugalError {
  return new FrugalError('INVALID_ARGUMENT', `An argument cannot be sent to the worker: ${cause.message}`, {
    cure: 'Pass plain data: strings, numbers, arrays, and objects of them.',
    cause,
  });
}

function threadFailed(cause: unknown): FrugalError {
  if (isFrugalError(cause)) return cause;
  const detail = cause instanceof Error ? cause.message : String(cause ?? 'it gave no reason');
  return new FrugalError('INTERNAL', `The worker ended unexpectedly: ${detail}`, {
    cure: 'Load the model again; if it happens again, please report it with the model and the call.',
    cause,
  });
}
