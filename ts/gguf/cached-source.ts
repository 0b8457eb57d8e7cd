import { settled } from '../abort.js';
import { FrugalError, isFrugalError } from '../errors.js';
import { blobSource } from './blob-source.js';
import {
  type CacheFolder,
  checkQuota,
  type FolderLock,
  keyOf,
  lockFolder,
  openFolder,
  readLock,
  SEGMENT_BYTES,
  segmentCount,
  startFolder,
  storageError,
  whenFree,
} from './cache.js';
import { createRemote, isBusy, type Remote, type RemoteFile } from './remote.js';
import type { ByteSource } from './source.js';
import { checkRange } from './source-error.js';
import { ATTEMPTS, askRemote, download, siblingUrl, type UrlOptions } from './url-source.js';

/** Segments that are downloaded at once: the one wanted, and those after it. */
const AT_ONCE = 4;

/**
 * Opens a URL whose file is kept in the browser: what is read is downloaded and stored on the way, the rest in `finish`.
 * A later opening reads what is stored, as long as the server has the same file; without a network or while
 * the server is busy, what is complete.
 * One that comes meanwhile waits until all is stored, or this one is closed; until then nothing removes the file.
 * @throws FrugalError `CACHE_UNAVAILABLE`, `CACHE_QUOTA`, `CACHE_BUSY`, `SOURCE_READ`
 */
export async function openCached(url: string | URL, options: UrlOptions = {}): Promise<ByteSource> {
  const remote = createRemote(url, options.headers);
  const lock = await lockFolder(remote.name, options.signal);
  try {
    const copy = await openCopy(remote, options);
    await lock.read();
    return cachedSource(remote, ...copy, options, lock);
  } catch (error) {
    lock.close();
    throw error;
  }
}

/** What the server has, and the folder for it with what is there already. */
async function openCopy(remote: Remote, options: UrlOptions): Promise<[RemoteFile, CacheFolder]> {
  const found = await openFolder(remote.name);
  // A query may name another file, or be what lets one in: the server's word on the version says which.
  const query = await keyOf(remote.url.search);
  const file = await currentFile(remote, found, query, options);
  // First of all: what does not fit leaves no trace, and the version before it as it is.
  await checkQuota(found, file.size);
  const same = found.file?.size === file.size && found.file.version === file.version;
  const known = found.query === query || file.version !== '';
  if (same && known) return [file, found];
  const started = await whenFree(readLock(remote.name), () => startFolder(found, file, query));
  if (started === undefined) throw busy(remote.name);
  return [file, started];
}

function busy(name: string): FrugalError {
  return new FrugalError(
    'CACHE_BUSY',
    `${name} is another file now, and a model reads its experts from the stored one`,
    {
      cure: 'Dispose of that model first, or load without cache.',
      data: { source: name },
    },
  );
}

async function currentFile(
  remote: Remote,
  { file, segments, query: stored }: CacheFolder,
  query: string,
  options: UrlOptions,
): Promise<RemoteFile> {
  const complete = file && stored === query && segments.size === segmentCount(file.size) ? file : undefined;
  try {
    // What can be had without the server does not wait for it.
    return await askRemote(remote, options, complete ? 1 : ATTEMPTS);
  } catch (error) {
    const unreachable = isFrugalError(error) && (error.data.status === undefined || isBusy(error));
    if (complete && unreachable) return complete;
    throw error;
  }
}

function cachedSource(
  remote: Remote,
  file: RemoteFile,
  stored: CacheFolder,
  options: UrlOptions,
  lock: FolderLock,
): ByteSource {
  const closing = new AbortController();
  const { signal } = closing;
  const downloads = new Map<number, Promise<ByteSource>>();

  function segment(number: number): Promise<ByteSource> {
    const known = downloads.get(number);
    if (known !== undefined) return known;
    const ready = stored.segments.get(number);
    const opened = ready
      ? Promise.resolve(blobSource(ready, remote.name))
      : fetchSegment(remote, file, stored, number, { ...options, signal });
    downloads.set(number, opened);
    // A failure is told to whoever waits for the segment; the next one who wants it tries again.
    opened.catch(() => downloads.delete(number));
    return opened;
  }

  /** The segment, with those after it on their way. */
  function want(number: number): Promise<ByteSource> {
    const wanted = segment(number);
    const end = Math.min(number + AT_ONCE, segmentCount(file.size));
    for (let next = number + 1; next < end; next++) segment(next);
    return wanted;
  }

  async function stop(): Promise<void> {
    closing.abort();
    await Promise.allSettled(downloads.values());
  }

  async function readInto(target: Uint8Array, offset: number, abort?: AbortSignal): Promise<void> {
    checkRange(remote.name, file.size, offset, target.length);
    let done = 0;
    while (done < target.length) {
      const at = offset + done;
      const number = Math.floor(at / SEGMENT_BYTES);
      const start = at - number * SEGMENT_BYTES;
      const part = await settled(want(number), abort);
      const length = Math.min(target.length - done, part.size - start);
      await part.readInto?.(target.subarray(done, done + length), start, abort);
      done += length;
    }
  }

  return {
    name: remote.name,
    size: file.size,
    readInto,
    async read(offset, length, abort) {
      checkRange(remote.name, file.size, offset, length);
      const bytes = new Uint8Array(length);
      await readInto(bytes, offset, abort);
      return bytes;
    },
    sibling(name, abort) {
      const { headers, retryMs } = options;
      return openCached(siblingUrl(remote, name), {
        ...(headers && { headers }),
        ...(retryMs !== undefined && { retryMs }),
        ...(abort && { signal: abort }),
      });
    },
    async finish(abort) {
      for (let number = 0; number < segmentCount(file.size); number++) await settled(want(number), abort);
      lock.filled();
    },
    async discard() {
      await stop();
      await lock.discard();
    },
    async close() {
      await stop();
      lock.close();
    },
  };
}

/** Downloads one segment into its file, which is there once it is whole. */
async function fetchSegment(
  remote: Remote,
  file: RemoteFile,
  { folder }: CacheFolder,
  number: number,
  options: UrlOptions,
): Promise<ByteSource> {
  const offset = number * SEGMENT_BYTES;
  const range = { offset, length: Math.min(SEGMENT_BYTES, file.size - offset) };
  try {
    const handle = await folder.getFileHandle(`${number}`, { create: true });
    const writable = await handle.createWritable();
    try {
      await download(remote, file, range, (chunk) => writable.write(chunk), options);
      await writable.close();
    } catch (error) {
      // What went wrong first is what counts.
      await writable.abort().catch(() => undefined);
      throw error;
    }
    return blobSource(await handle.getFile(), remote.name);
  } catch (cause) {
    if (options.signal?.aborted) throw options.signal.reason;
    throw storageError(remote.name, cause);
  }
}
