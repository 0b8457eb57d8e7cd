import { onAbort } from '../abort.js';
import { releaseBytes } from './release.js';
import {
  checkAnswer,
  createRemote,
  describeFile,
  discard,
  Interrupted,
  interrupted,
  isBusy,
  RANGE_CURE,
  type Remote,
  type RemoteFile,
  type RequestHeaders,
  requestRange,
} from './remote.js';
import type { ByteSource } from './source.js';
import { checkRange, sourceError } from './source-error.js';

export interface UrlOptions {
  /** Stops the opening; each read takes its own signal. */
  readonly signal?: AbortSignal;
  /** Sent with each request, such as `Authorization`. */
  readonly headers?: RequestHeaders;
  /** The wait before a transfer that broke off goes on, in milliseconds; it doubles each time. @default 250 */
  readonly retryMs?: number;
}

/** Failures in a row, without a byte between them, that end a read. */
export const ATTEMPTS = 6;
/** Those without any answer that end an opening: the address may be wrong, which is not to take long to say. */
const UNANSWERED_ATTEMPTS = 3;
const RETRY_MS = 250;
/** How long an answer may take to end once all that was asked for is there. */
const END_MS = 100;

/**
 * Opens a URL whose server answers range requests. The size comes from a first request for one byte. A transfer that
 * breaks off goes on where it ended; several reads may run at once.
 * @throws FrugalError `SOURCE_READ` when the server cannot be reached, has no such file or ignores ranges;
 * `INVALID_ARGUMENT`
 * @throws the reason of `options.signal` once it is aborted
 */
export async function openUrl(url: string | URL, options: UrlOptions = {}): Promise<ByteSource> {
  const remote = createRemote(url, options.headers);
  return urlSource(remote, await askRemote(remote, options), options.retryMs);
}

type RetryOptions = Pick<UrlOptions, 'retryMs' | 'signal'>;

/**
 * What the server has at a URL.
 * @throws FrugalError `SOURCE_READ` after as many `attempts`, or fewer where nobody answers
 */
export async function askRemote(
  remote: Remote,
  options: RetryOptions,
  attempts = ATTEMPTS,
): Promise<RemoteFile> {
  for (let failures = 1; ; failures++) {
    try {
      const response = await requestRange(remote, 0, 1, options.signal);
      try {
        return describeFile(remote, response);
      } finally {
        await discard(response);
      }
    } catch (failure) {
      const busy = failure instanceof Interrupted && isBusy(failure.error);
      await retry(failure, failures, busy ? attempts : Math.min(attempts, UNANSWERED_ATTEMPTS), options);
    }
  }
}

/** Waits before the next attempt, if another may mend the failure and is left. */
async function retry(
  failure: unknown,
  failures: number,
  attempts: number,
  { retryMs = RETRY_MS, signal }: RetryOptions,
): Promise<void> {
  if (!(failure instanceof Interrupted)) throw failure;
  if (failures >= attempts) throw failure.error;
  await wait(retryMs * 2 ** (failures - 1), signal);
}

function urlSource(remote: Remote, file: RemoteFile, retryMs = RETRY_MS): ByteSource {
  const readInto = async (target: Uint8Array, offset: number, signal?: AbortSignal): Promise<void> => {
    signal?.throwIfAborted();
    checkRange(remote.name, file.size, offset, target.length);
    let filled = 0;
    const take = (chunk: Uint8Array) => {
      target.set(chunk, filled);
      filled += chunk.length;
    };
    const range = { offset, length: target.length };
    await download(remote, file, range, take, { retryMs, ...(signal && { signal }) });
  };
  return {
    name: remote.name,
    size: file.size,
    readInto,
    async read(offset, length, signal) {
      checkRange(remote.name, file.size, offset, length);
      const bytes = new Uint8Array(length);
      await readInto(bytes, offset, signal);
      return bytes;
    },
    sibling(name, signal) {
      const url = siblingUrl(remote, name);
      return openUrl(url, { headers: remote.headers, retryMs, ...(signal === undefined ? {} : { signal }) });
    },
    async close() {
      // Each request ends by itself.
    },
  };
}

/** The address of a file beside this one. */
export function siblingUrl(remote: Remote, name: string): URL {
  const url = new URL(remote.url);
  url.pathname = url.pathname.slice(0, url.pathname.lastIndexOf('/') + 1) + name;
  return url;
}

/**
 * Transfers a range, asking again for what is missing when a transfer breaks off.
 * @param take gets the bytes as they come, and never more than were asked for; they are gone when it is done
 * @throws FrugalError `SOURCE_READ`
 */
export async function download(
  remote: Remote,
  file: RemoteFile,
  range: { readonly offset: number; readonly length: number },
  take: (chunk: Uint8Array<ArrayBuffer>) => void | Promise<void>,
  options: RetryOptions,
): Promise<void> {
  let done = 0;
  let failures = 0;
  const advance = async (chunk: Uint8Array<ArrayBuffer>) => {
    await take(chunk);
    done += chunk.length;
    failures = 0;
    releaseBytes(chunk);
  };
  while (done < range.length) {
    try {
      await transfer(remote, file, range.offset + done, range.length - done, advance, options.signal);
    } catch (failure) {
      failures += 1;
      await retry(failure, failures, ATTEMPTS, options);
    }
  }
}

/** One request for a range. */
async function transfer(
  remote: Remote,
  file: RemoteFile,
  offset: number,
  length: number,
  take: (chunk: Uint8Array<ArrayBuffer>) => Promise<void>,
  signal?: AbortSignal,
): Promise<void> {
  const response = await requestRange(remote, offset, length, signal);
  let got = 0;
  try {
    checkAnswer(remote, response, file, offset, length);
    for await (const chunk of chunks(remote, response, () => offset + got, offset + length, signal)) {
      got += chunk.length;
      if (got > length) break;
      await take(chunk);
    }
  } finally {
    await discard(response);
  }
  if (got === length) return;
  const problem = `asked for ${length} bytes at offset ${offset}, the server sent ${got > length ? 'more' : got}`;
  const error = sourceError(remote.name, problem, RANGE_CURE, { offset, length });
  throw got > length ? error : new Interrupted(error);
}

/**
 * The body's chunks; an async iterator over the stream itself is not to be had in every browser.
 * @param end the position where the body should end
 */
async function* chunks(
  remote: Remote,
  response: Response,
  position: () => number,
  end: number,
  signal?: AbortSignal,
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  const reader = response.body?.getReader();
  if (reader === undefined) return;
  let ending: ReturnType<typeof setTimeout> | undefined;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
      // A server that promised more than it sends never ends. One that ends a little later keeps its connection,
      // which to leave at once would close, and one that sends more at once is found out.
      if (position() === end) ending ??= setTimeout(() => reader.cancel().catch(() => undefined), END_MS);
    }
  } catch (cause) {
    throw interrupted(remote, `the transfer broke off at offset ${position()}`, cause, signal);
  } finally {
    clearTimeout(ending);
    reader.releaseLock();
  }
}

/** Waits, or rejects with the signal's reason. */
function wait(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const abort = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const release = onAbort(signal, abort);
    const timer = setTimeout(() => {
      release();
      resolve();
    }, ms);
    if (signal?.aborted) abort();
  });
}
