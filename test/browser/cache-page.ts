/** What the tests of the cache use in the page, and in a worker of it. */
import { isFrugalError } from '../../ts/errors.js';
import { listCached, removeCached } from '../../ts/gguf/cached-files.js';
import { openCached } from '../../ts/gguf/cached-source.js';

async function digest(bytes: Uint8Array): Promise<string> {
  const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', Uint8Array.from(bytes)));
  return Array.from(hash, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** Opens a URL with the cache and reads it; gives the digest of a stretch, or an error's code. */
async function read(url: string, offset: number, length: number): Promise<string> {
  try {
    const source = await openCached(url, { retryMs: 5 });
    try {
      const bytes = await source.read(offset, length);
      await source.finish?.();
      return await digest(bytes);
    } finally {
      await source.close();
    }
  } catch (error) {
    if (isFrugalError(error)) return error.code;
    throw error;
  }
}

/** What removing a file comes to while it is filled, while it is open, and when it is closed. */
async function removals(url: string): Promise<(boolean | string)[]> {
  const remove = () => removeCached(url).catch((error) => (isFrugalError(error) ? error.code : `${error}`));
  const source = await openCached(url);
  const outcomes = [await remove()];
  await source.read(0, 10);
  await source.finish?.();
  outcomes.push(await remove());
  // Another one that is open meanwhile.
  const second = await openCached(url);
  await second.close();
  outcomes.push(await remove());
  await source.close();
  return [...outcomes, await remove(), await remove()];
}

/** What stays open while its file is discarded, and while the server has another one at `changed`. */
async function replacement(url: string, changed: string): Promise<string[]> {
  const source = await openCached(url);
  await source.read(0, 10);
  await source.finish?.();
  const other = await openCached(url);
  await other.discard?.();
  await other.close();
  const outcomes = [await digest(await source.read(0, 10))];
  outcomes.push(await read(changed, 0, 10), await digest(await source.read(0, 10)));
  await source.close();
  outcomes.push(await read(changed, 0, 10));
  const last = await openCached(changed);
  await last.discard?.();
  await last.close();
  return [...outcomes, `${(await listCached()).length} left`];
}

/** Changes the size that is stored of each file, as damage or an earlier version of this package would. */
async function storeSize(size: number): Promise<void> {
  const root = await (await navigator.storage.getDirectory()).getDirectoryHandle('frugal-models');
  for await (const folder of root.values()) {
    const handle = await (folder as FileSystemDirectoryHandle).getFileHandle('file.json');
    const about = JSON.parse(await (await handle.getFile()).text());
    const writable = await handle.createWritable();
    await writable.write(JSON.stringify({ ...about, size }));
    await writable.close();
  }
}

export const calls = { read, listCached, removeCached, removals, replacement, storeSize };
export type Calls = typeof calls;
Object.assign(globalThis, { calls });

if (typeof document === 'undefined') {
  addEventListener('message', ({ data }: MessageEvent<[keyof Calls, unknown[]]>) => {
    const call = calls[data[0]] as (...args: unknown[]) => Promise<unknown>;
    call(...data[1]).then((result) => postMessage(result));
  });
}
