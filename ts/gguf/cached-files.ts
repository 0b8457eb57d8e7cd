import { FrugalError } from '../errors.js';
import { resolveAddress } from './address.js';
import { openRoot, readFolder, removeFolder, storedBytes, useLock, whenFree } from './cache.js';

// Apart from `cache`, whose types are the browser's: programs for Node have none of these.

/** A model in the browser's own file system (OPFS). */
export interface CachedFile {
  /** The address that it came from, without its query: what `removeCached` takes. */
  readonly name: string;
  readonly size: number;
  /** Bytes that have been stored; less than `size` where a download was left off, which the next load goes on with. */
  readonly cachedBytes: number;
}

/** Models that have been stored, in no order. @throws FrugalError `CACHE_UNAVAILABLE` */
export async function listCached(): Promise<CachedFile[]> {
  const found: CachedFile[] = [];
  for await (const handle of (await openRoot()).values()) {
    if (handle.kind !== 'directory') continue;
    const { name, file, segments } = await readFolder(handle as FileSystemDirectoryHandle);
    if (file !== undefined) found.push({ name, size: file.size, cachedBytes: storedBytes(segments) });
  }
  return found;
}

/**
 * Removes a stored model, unless a load fills it or a model reads its experts from it.
 * @param name as `listCached` gives it, or the address that was loaded
 * @returns whether there was one
 * @throws FrugalError `CACHE_UNAVAILABLE`, `CACHE_BUSY`
 */
export async function removeCached(name: string): Promise<boolean> {
  await openRoot();
  const whole = resolveAddress(name);
  const address = URL.canParse(whole) ? new URL(whole) : undefined;
  const stored = address === undefined ? name : `${address.origin}${address.pathname}`;
  const removed = await whenFree(useLock(stored), () => removeFolder(stored));
  if (removed === undefined) throw busy(stored);
  return removed;
}

function busy(name: string): FrugalError {
  return new FrugalError('CACHE_BUSY', `${name} is being loaded, or a model reads its experts from it`, {
    cure: 'End the load (its signal aborts it) or dispose of the model, then remove the file.',
    data: { source: name },
  });
}
