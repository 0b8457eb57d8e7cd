/** What the tests of the cache use in the page, and in a worker of it. */
import { isFrugalError } from '../../ts/errors.js';
import { listCached, removeCached } from '../../ts/gguf/cache.js';
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

export const calls = { read, listCached, removeCached };
export type Calls = typeof calls;
Object.assign(globalThis, { calls });

if (typeof document === 'undefined') {
  addEventListener('message', ({ data }: MessageEvent<[keyof Calls, unknown[]]>) => {
    const call = calls[data[0]] as (...args: unknown[]) => Promise<unknown>;
    call(...data[1]).then((result) => postMessage(result));
  });
}
