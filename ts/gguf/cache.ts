import { FrugalError, isFrugalError } from '../errors.js';
import type { RemoteFile } from './remote.js';
import { sourceError } from './source-error.js';

/** What is stored of one address: `file.json`, and the file in segments named by their number. */
export interface CacheFolder {
  readonly folder: FileSystemDirectoryHandle;
  readonly name: string;
  readonly file: RemoteFile | undefined;
  /** The hash of the query of the address that it came from: the name has none, as it may be secret or change with each call. */
  readonly query: string;
  /** The segments that are there, by number. */
  readonly segments: Map<number, File>;
  /** What the files hold, those of no use too: a new version takes the place of all of them. */
  readonly heldBytes: number;
}

/** A download resumes at a segment. A file system writes one at a time and as a whole. */
export const SEGMENT_BYTES = 8 << 20;

export function segmentCount(size: number): number {
  return Math.ceil(size / SEGMENT_BYTES);
}

const ROOT = 'frugal-models';
const ABOUT = 'file.json';
const SEGMENT_NAME = /^(0|[1-9]\d*)$/;

/** @throws FrugalError `CACHE_UNAVAILABLE` outside browsers, and on pages that may not store anything */
export async function openRoot(): Promise<FileSystemDirectoryHandle> {
  const storage = typeof navigator === 'object' ? navigator.storage : undefined;
  if (typeof storage?.getDirectory !== 'function') {
    throw unavailable('there is no file system of the page (OPFS) here');
  }
  try {
    return await (await storage.getDirectory()).getDirectoryHandle(ROOT, { create: true });
  } catch (cause) {
    throw unavailable(`the file system of the page (OPFS) cannot be opened: ${reasonOf(cause)}`, cause);
  }
}

/** Removes the folder of an address. */
export async function removeFolder(name: string): Promise<boolean> {
  const root = await openRoot();
  try {
    await root.removeEntry(await keyOf(name), { recursive: true });
    return true;
  } catch (cause) {
    if (cause instanceof DOMException && cause.name === 'NotFoundError') return false;
    throw storageError(name, cause);
  }
}

/** A folder in use, in all pages and workers of a site. The end of the page or worker ends it too. */
export interface FolderLock {
  /** From now on this one reads the folder, so that no other empties it. */
  read(): Promise<void>;
  /** Removes the folder, unless others read it: what they have open would be gone. */
  discard(): Promise<void>;
  /** All is stored: lets the next load in. */
  filled(): void;
  /** This one reads the folder no more, which may be removed. */
  close(): void;
}

/**
 * One load at a time fills a folder: the next one waits, and finds what is stored. None removes it meanwhile.
 * @throws FrugalError `CACHE_UNAVAILABLE`; the reason of `signal`
 */
export async function lockFolder(name: string, signal?: AbortSignal): Promise<FolderLock> {
  await openRoot();
  const wait = signal ? { signal } : {};
  const leave = await holdLock(useLock(name), { mode: 'shared', ...wait });
  try {
    const filled = await holdLock(`${ROOT} ${name}`, wait);
    let reading = () => {};
    return {
      async read() {
        reading = await holdLock(readLock(name), { mode: 'shared', ...wait });
      },
      async discard() {
        reading();
        await whenFree(readLock(name), () => removeFolder(name));
      },
      filled,
      close() {
        reading();
        filled();
        leave();
      },
    };
  } catch (error) {
    leave();
    throw error;
  }
}

/** How long others have to go: browsers pass the end of a lock on a little later. */
const PATIENCE_MS = 1000;

/** The name of the lock that says that what is stored is read. Loads that wait for it to be filled do not have it yet. */
export const readLock = (name: string) => `${ROOT} read ${name}`;

/**
 * Does something while nobody else holds a lock.
 * @returns what that gives; undefined, and nothing is done, where somebody goes on holding it
 */
export async function whenFree<T>(lock: string, act: () => Promise<T>): Promise<T | undefined> {
  const patience = AbortSignal.timeout(PATIENCE_MS);
  const release = await holdLock(lock, { signal: patience }).catch((cause: unknown) => {
    if (!patience.aborted) throw cause;
  });
  if (release === undefined) return undefined;
  try {
    return await act();
  } finally {
    release();
  }
}

/** The name of the lock that says that a folder is in use. */
export const useLock = (name: string) => `${ROOT} in use ${name}`;

/**
 * Waits for a lock of the site.
 * @returns what gives it back
 * @throws the reason of the signal
 */
async function holdLock(lock: string, options: LockOptions): Promise<() => void> {
  // Absent in some browsers that have the file system.
  const locks = navigator.locks as LockManager | undefined;
  if (locks === undefined) return () => {};
  return new Promise((resolve, reject) => {
    const held = () => new Promise<void>((release) => resolve(release));
    locks.request(lock, options, held).catch(reject);
  });
}

export async function openFolder(name: string): Promise<CacheFolder> {
  const root = await openRoot();
  try {
    const opened = await readFolder(await root.getDirectoryHandle(await keyOf(name), { create: true }));
    return { ...opened, name };
  } catch (cause) {
    throw storageError(name, cause);
  }
}

/** Makes a folder ready for another version of its file. */
export async function startFolder(
  opened: CacheFolder,
  file: RemoteFile,
  query: string,
): Promise<CacheFolder> {
  const { folder, name } = opened;
  try {
    for await (const key of folder.keys()) await folder.removeEntry(key);
    const about = await folder.getFileHandle(ABOUT, { create: true });
    const writable = await about.createWritable();
    await writable.write(JSON.stringify({ name, ...file, query, segmentBytes: SEGMENT_BYTES }));
    await writable.close();
  } catch (cause) {
    throw storageError(name, cause);
  }
  return { folder, name, file, query, segments: new Map(), heldBytes: 0 };
}

/** @throws FrugalError `CACHE_QUOTA` when the rest of the file does not fit in what the browser allows */
export async function checkQuota({ name, heldBytes }: CacheFolder, size: number): Promise<void> {
  const needed = size - heldBytes;
  const { quota = Number.POSITIVE_INFINITY, usage = 0 } = await navigator.storage.estimate();
  if (needed > quota - usage) throw quotaError(name, needed, quota - usage);
}

/** The failure of a call of the file system. */
export function storageError(name: string, cause: unknown): unknown {
  if (isFrugalError(cause)) return cause;
  if (cause instanceof DOMException && cause.name === 'QuotaExceededError') return quotaError(name);
  return sourceError(
    name,
    `the copy in the browser failed: ${reasonOf(cause)}`,
    'Load it again; if that fails too, use removeCached, or load without cache.',
    {},
    cause,
  );
}

function quotaError(name: string, needed?: number, available?: number): FrugalError {
  const amounts =
    needed === undefined ? '' : `: ${needed} bytes are needed, and ${Math.max(0, available ?? 0)} are left`;
  return new FrugalError('CACHE_QUOTA', `${name} does not fit in the browser's storage${amounts}`, {
    cure: 'Free storage (listCached and removeCached), or load without cache.',
    data: { source: name, needed, available },
  });
}

function unavailable(problem: string, cause?: unknown): FrugalError {
  return new FrugalError('CACHE_UNAVAILABLE', `Models cannot be kept: ${problem}`, {
    cure: 'Load without cache. Browsers have it on https pages, outside private windows.',
    cause,
  });
}

export async function readFolder(folder: FileSystemDirectoryHandle): Promise<CacheFolder> {
  const files = new Map<string, File>();
  for await (const [key, handle] of folder.entries()) {
    if (handle.kind === 'file') files.set(key, await (handle as FileSystemFileHandle).getFile());
  }
  const about = parseAbout(await files.get(ABOUT)?.text());
  files.delete(ABOUT);
  const heldBytes = [...files.values()].reduce((sum, { size }) => sum + size, 0);
  const segments = new Map<number, File>();
  if (about === undefined) return { folder, name: '', file: undefined, query: '', segments, heldBytes };
  const { name, size, version, query } = about;
  // Over the files, not over the numbers: the size is what some server said, and may be of any length.
  for (const [key, stored] of files) {
    const number = SEGMENT_NAME.test(key) ? Number(key) : Number.POSITIVE_INFINITY;
    if (number >= segmentCount(size)) continue;
    if (stored.size === Math.min(SEGMENT_BYTES, size - number * SEGMENT_BYTES)) segments.set(number, stored);
  }
  return { folder, name, file: { size, version }, query, segments, heldBytes };
}

/** A description that was cut off, or that another version of this package wrote, counts as none. */
function parseAbout(
  text: string | undefined,
): (RemoteFile & Pick<CacheFolder, 'name' | 'query'>) | undefined {
  try {
    const about: unknown = JSON.parse(text ?? '');
    if (typeof about !== 'object' || about === null) return undefined;
    const { name, size, version, query, segmentBytes } = about as Record<string, unknown>;
    if (typeof name !== 'string' || typeof version !== 'string' || typeof query !== 'string')
      return undefined;
    if (typeof size !== 'number' || !Number.isSafeInteger(size) || size < 0) return undefined;
    return segmentBytes === SEGMENT_BYTES ? { name, size, version, query } : undefined;
  } catch {
    return undefined;
  }
}

export function storedBytes(segments: ReadonlyMap<number, File>): number {
  return [...segments.values()].reduce((sum, { size }) => sum + size, 0);
}

/** Names in the file system are short and plain, addresses are not. */
export async function keyOf(name: string): Promise<string> {
  const digest = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(name));
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, '0')).join('');
}

function reasonOf(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause);
}
