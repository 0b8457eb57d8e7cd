import { FrugalError } from '../errors.js';
import type { ByteSource } from './source.js';
import { checkRange, sourceError } from './source-error.js';

export interface UrlOptions {
  /** Stops the opening; each read takes its own signal. */
  readonly signal?: AbortSignal;
  /** Sent with each request, such as `Authorization`. */
  readonly headers?: Readonly<Record<string, string>>;
}

const RANGE_CURE =
  'Serve the file from a server that answers range requests (status 206, with the Content-Range header ' +
  'exposed to other origins where they ask), or download it and open the local file.';

/** What all requests to one URL have in common. */
interface Remote {
  readonly url: URL;
  /** For messages: the URL without user, password and query, which may hold secrets. */
  readonly name: string;
  readonly headers: Readonly<Record<string, string>>;
}

/**
 * Opens a URL whose server answers range requests. The size comes from a first request for one byte.
 * @throws FrugalError `SOURCE_READ` when the server cannot be reached, has no such file or ignores ranges
 * @throws the reason of `options.signal` once it is aborted
 */
export async function openUrl(url: string | URL, options: UrlOptions = {}): Promise<ByteSource> {
  const remote = createRemote(url, options.headers ?? {});
  const response = await request(remote, 0, 1, options.signal);
  try {
    const size = sizeOf(remote, response);
    return urlSource(remote, size, response.headers.get('etag'));
  } finally {
    await discard(response);
  }
}

function createRemote(url: string | URL, headers: Readonly<Record<string, string>>): Remote {
  const parsed = URL.canParse(String(url)) ? new URL(String(url)) : undefined;
  if (parsed === undefined || !/^https?:$/.test(parsed.protocol)) {
    throw new FrugalError('INVALID_ARGUMENT', `"${url}" is not an http or https URL`, {
      cure: 'Give an absolute URL that begins with http:// or https://.',
      data: { url: String(url) },
    });
  }
  return { url: parsed, name: `${parsed.origin}${parsed.pathname}`, headers };
}

function urlSource(remote: Remote, size: number, etag: string | null): ByteSource {
  return {
    name: remote.name,
    size,
    async read(offset, length, signal) {
      signal?.throwIfAborted();
      checkRange(remote.name, size, offset, length);
      if (length === 0) return new Uint8Array(0);
      const response = await request(remote, offset, length, signal);
      try {
        checkAnswer(remote, response, { offset, length, size, etag });
        return await readBody(remote, response, offset, length, signal);
      } finally {
        await discard(response);
      }
    },
    sibling(name, signal) {
      const url = new URL(remote.url);
      url.pathname = url.pathname.slice(0, url.pathname.lastIndexOf('/') + 1) + name;
      return openUrl(url, { headers: remote.headers, ...(signal === undefined ? {} : { signal }) });
    },
    async close() {
      // Each request ends by itself.
    },
  };
}

async function request(
  remote: Remote,
  offset: number,
  length: number,
  signal?: AbortSignal,
): Promise<Response> {
  const range = `bytes=${offset}-${offset + length - 1}`;
  try {
    return await fetch(remote.url, {
      headers: { ...remote.headers, Range: range, 'Accept-Encoding': 'identity' },
      ...(signal === undefined ? {} : { signal }),
    });
  } catch (cause) {
    throw failed(remote, `the request for ${range} failed`, cause, signal);
  }
}

/** The total size, from the answer to a request for the first byte. */
function sizeOf(remote: Remote, response: Response): number {
  // The answer to any range of an empty file: there is no first byte.
  if (response.status === 416 && response.headers.get('content-range') === 'bytes */0') return 0;
  checkStatus(remote, response);
  const { first, last, size } = contentRange(remote, response);
  if (first === 0 && last === 0) return size;
  throw sourceError(
    remote.name,
    `asked for bytes 0 to 0, the server sent ${response.headers.get('content-range')}`,
    RANGE_CURE,
  );
}

function checkStatus(remote: Remote, response: Response): void {
  if (response.status === 206) return;
  if (response.status === 200) {
    throw sourceError(remote.name, 'the server ignores range requests', RANGE_CURE, { status: 200 });
  }
  throw sourceError(
    remote.name,
    `the server answered with status ${response.status} ${response.statusText}`.trimEnd(),
    'Check the URL, and that it may be read without a login or with the headers given.',
    { status: response.status },
  );
}

function contentRange(remote: Remote, response: Response): { first: number; last: number; size: number } {
  const header = response.headers.get('content-range');
  const [first, last, size] = (/^bytes (\d+)-(\d+)\/(\d+)$/.exec(header ?? '') ?? []).slice(1).map(Number);
  if (first !== undefined && last !== undefined && size !== undefined && Number.isSafeInteger(size)) {
    return { first, last, size };
  }
  throw sourceError(
    remote.name,
    header === null
      ? 'the server sent a range without the Content-Range header'
      : `the server sent the Content-Range "${header}", which gives no size`,
    RANGE_CURE,
  );
}

interface Asked {
  readonly offset: number;
  readonly length: number;
  readonly size: number;
  readonly etag: string | null;
}

function checkAnswer(remote: Remote, response: Response, asked: Asked): void {
  checkStatus(remote, response);
  const got = contentRange(remote, response);
  if (got.size !== asked.size || response.headers.get('etag') !== asked.etag) {
    throw sourceError(
      remote.name,
      'the file changed on the server while it was being read',
      'Open the model again.',
      { size: asked.size, newSize: got.size },
    );
  }
  if (got.first === asked.offset && got.last === asked.offset + asked.length - 1) return;
  throw sourceError(
    remote.name,
    `asked for bytes ${asked.offset} to ${asked.offset + asked.length - 1}, the server sent ` +
      `${got.first} to ${got.last}`,
    RANGE_CURE,
    { offset: asked.offset, length: asked.length },
  );
}

/** Reads a body of exactly `length` bytes, and no more of one that is longer. */
async function readBody(
  remote: Remote,
  response: Response,
  offset: number,
  length: number,
  signal?: AbortSignal,
): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  let filled = 0;
  try {
    for await (const chunk of chunks(response)) {
      if (filled + chunk.length <= length) bytes.set(chunk, filled);
      filled += chunk.length;
      if (filled > length) break;
    }
  } catch (cause) {
    throw failed(remote, `the transfer broke off at offset ${offset + filled}`, cause, signal);
  }
  if (filled === length) return bytes;
  throw sourceError(
    remote.name,
    `asked for ${length} bytes at offset ${offset}, the server sent ${filled > length ? 'more' : filled}`,
    RANGE_CURE,
    { offset, length },
  );
}

/** The body's chunks; an async iterator over the stream itself is not to be had in every browser. */
async function* chunks(response: Response): AsyncGenerator<Uint8Array> {
  const reader = response.body?.getReader();
  if (reader === undefined) return;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.releaseLock();
  }
}

/** Ends the transfer of a body that nobody reads, so that the connection does not stay busy. */
async function discard(response: Response): Promise<void> {
  // A body that has failed cannot be cancelled either, and its failure is already known.
  await response.body?.cancel().catch(() => undefined);
}

function failed(remote: Remote, problem: string, cause: unknown, signal?: AbortSignal): unknown {
  if (signal?.aborted) return signal.reason;
  const reason = cause instanceof Error ? cause.message : String(cause);
  return sourceError(
    remote.name,
    `${problem}: ${reason}`,
    'Check the address and the network connection, then try again.',
    {},
    cause,
  );
}
