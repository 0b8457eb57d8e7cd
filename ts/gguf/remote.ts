import { FrugalError, isFrugalError, show } from '../errors.js';
import { sourceError } from './source-error.js';

export const RANGE_CURE =
  'Serve the file from a server that answers range requests (status 206 with the Content-Range header, which one of ' +
  "another origin than the page's has to expose: Access-Control-Expose-Headers: Content-Range), or download it and open " +
  'the local file.';

/** Statuses that pass by themselves. */
const BUSY: ReadonlySet<number> = new Set([408, 425, 429, 500, 502, 503, 504]);

/** Whether a failure is the answer of a server that may soon give another. */
export function isBusy(error: unknown): boolean {
  return isFrugalError(error) && typeof error.data.status === 'number' && BUSY.has(error.data.status);
}

/** What all requests to one URL have in common. */
export interface Remote {
  readonly url: URL;
  /** For messages: the URL without user, password and query, which may hold secrets. */
  readonly name: string;
  readonly headers: RequestHeaders;
}

/** Which version of which file the server has. */
export interface RemoteFile {
  readonly size: number;
  /** The ETag and the date of the last change, as far as the server tells them. */
  readonly version: string;
}

/** A failure that another attempt may mend: it is thrown inside, and `error` is what the caller gets in the end. */
export class Interrupted extends Error {
  readonly error: unknown;

  constructor(error: unknown) {
    super('interrupted');
    this.error = error;
  }
}

/** What each request says beside the range it asks for, by name. */
export type RequestHeaders = Readonly<Record<string, string>>;

/** A header's name, and text that may be its value (RFC 9110, 5.1 and 5.5). */
const HEADER_NAME = /^[!#$%&'*+.^_`|~0-9a-z-]+$/i;
const HEADER_VALUE = /^[\t\x20-\x7e\x80-\xff]*$/;
/** What the engine sends itself. */
const OWN_HEADERS: ReadonlySet<string> = new Set(['range', 'accept-encoding']);

/** @throws FrugalError `INVALID_ARGUMENT`, never with a value, which may be secret */
export function checkHeaders(headers: unknown): RequestHeaders {
  if (headers === undefined) return {};
  if (typeof headers !== 'object' || headers === null || Symbol.iterator in headers)
    throw invalidHeaders(`headers must be an object of names and texts, got ${show(headers)}`);
  for (const [name, value] of Object.entries(headers)) {
    if (!HEADER_NAME.test(name)) throw invalidHeaders(`${show(name)} is no name of a header`, name);
    if (OWN_HEADERS.has(name.toLowerCase()))
      throw invalidHeaders(`the header ${name} is sent by the engine itself`, name);
    if (typeof value !== 'string') throw invalidHeaders(`the header ${name} must be a text`, name);
    if (!HEADER_VALUE.test(value))
      throw invalidHeaders(`the header ${name} holds characters that headers cannot have`, name);
  }
  return { ...headers };
}

function invalidHeaders(problem: string, header?: string): FrugalError {
  return new FrugalError('INVALID_ARGUMENT', problem, {
    cure: "Pass headers as { Authorization: 'Bearer ...' }: names with texts of one line.",
    data: { field: 'headers', ...(header !== undefined && { header }) },
  });
}

/** @throws FrugalError `INVALID_ARGUMENT` */
export function createRemote(url: string | URL, headers: unknown): Remote {
  const parsed = URL.canParse(String(url)) ? new URL(String(url)) : undefined;
  if (parsed === undefined || !/^https?:$/.test(parsed.protocol)) {
    throw new FrugalError('INVALID_ARGUMENT', `"${url}" is not an http or https URL`, {
      cure: 'Give an absolute URL that begins with http:// or https://.',
      data: { url: String(url) },
    });
  }
  return { url: parsed, name: `${parsed.origin}${parsed.pathname}`, headers: checkHeaders(headers) };
}

/** @throws Interrupted when the server cannot be reached or is busy */
export async function requestRange(
  remote: Remote,
  offset: number,
  length: number,
  signal?: AbortSignal,
): Promise<Response> {
  const range = `bytes=${offset}-${offset + length - 1}`;
  let response: Response;
  try {
    response = await fetch(remote.url, {
      headers: { ...remote.headers, Range: range, 'Accept-Encoding': 'identity' },
      // Browsers let requests to one URL wait for each other at their cache, and would fill it with the model.
      cache: 'no-store',
      ...(signal === undefined ? {} : { signal }),
    });
  } catch (cause) {
    throw interrupted(remote, `the request for ${range} failed`, cause, signal);
  }
  if (!BUSY.has(response.status)) return response;
  await discard(response);
  throw new Interrupted(statusError(remote, response));
}

/** What the server has, from its answer to a request for the first byte. */
export function describeFile(remote: Remote, response: Response): RemoteFile {
  const version = versionOf(response);
  // The answer to any range of an empty file: there is no first byte.
  if (response.status === 416 && response.headers.get('content-range') === 'bytes */0') {
    return { size: 0, version };
  }
  checkStatus(remote, response);
  const { first, size } = contentRange(remote, response);
  // Some servers take the end 0 for none and send all; the body is left unread. Other ranges are theirs to the byte.
  if (first === 0) return { size, version };
  throw sourceError(
    remote.name,
    `asked for the first byte, the server sent ${response.headers.get('content-range')}`,
    RANGE_CURE,
  );
}

function versionOf({ headers }: Response): string {
  return `${headers.get('etag') ?? ''} ${headers.get('last-modified') ?? ''}`.trim();
}

/** Refuses an answer that is not the range asked for, of the file that was opened. */
export function checkAnswer(
  remote: Remote,
  response: Response,
  file: RemoteFile,
  offset: number,
  length: number,
): void {
  checkStatus(remote, response);
  const got = contentRange(remote, response);
  if (got.size !== file.size || versionOf(response) !== file.version) {
    throw sourceError(
      remote.name,
      'the file changed on the server while it was being read',
      'Open the model again.',
      { size: file.size, newSize: got.size },
    );
  }
  if (got.first === offset && got.last === offset + length - 1) return;
  throw sourceError(
    remote.name,
    `asked for bytes ${offset} to ${offset + length - 1}, the server sent ${got.first} to ${got.last}`,
    RANGE_CURE,
    { offset, length },
  );
}

function checkStatus(remote: Remote, response: Response): void {
  if (response.status === 206) return;
  if (response.status === 200) {
    throw sourceError(remote.name, 'the server ignores range requests', RANGE_CURE, { status: 200 });
  }
  throw statusError(remote, response);
}

function statusError(remote: Remote, { status, statusText }: Response): FrugalError {
  return sourceError(
    remote.name,
    `the server answered with status ${status} ${statusText}`.trimEnd(),
    BUSY.has(status)
      ? 'Try again later: the server is busy or out of order.'
      : 'Check the URL, and that it may be read without a login or with the headers given as the option headers.',
    { status },
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

/** Ends the transfer of a body that nobody reads, so that the connection does not stay busy. */
export async function discard(response: Response): Promise<void> {
  // A body that has failed cannot be cancelled either, and its failure is already known.
  await response.body?.cancel().catch(() => undefined);
}

/** Node's own says only that fetching failed; what lies below it says why, in its message or at least its code. */
function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const { cause } = error;
  if (!(cause instanceof Error)) return error.message;
  const below = cause.message || String((cause as { code?: unknown }).code ?? cause.name);
  return `${error.message} (${below})`;
}

/** A network failure, or the reason of the signal when that was aborted. */
export function interrupted(remote: Remote, problem: string, cause: unknown, signal?: AbortSignal): unknown {
  if (signal?.aborted) return signal.reason;
  return new Interrupted(
    sourceError(
      remote.name,
      `${problem}: ${reasonOf(cause)}`,
      `Check the address and the network connection, then try again.${originCure(remote)}`,
      {},
      cause,
    ),
  );
}

/** What else may be wrong where a page asks a server of another origin: browsers do not tell which it is. */
function originCure({ url, headers }: Remote): string {
  const { location } = globalThis as { location?: Location };
  // Only pages have an origin that servers allow or not: Deno's workers are at a file's address.
  if (!location?.origin.startsWith('http') || location.origin === url.origin) return '';
  const names = Object.keys(headers).join(', ');
  return (
    ` If they are right, the server does not allow ${location.origin} to read it: it has to send ` +
    `Access-Control-Allow-Origin${names && `, and Access-Control-Allow-Headers with ${names}`}. ` +
    "Or the page's own policy does not (connect-src)."
  );
}
