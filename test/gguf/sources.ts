import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ByteSource } from '../../ts/gguf/source.js';

/** A source in memory that counts what is asked of it. */
export interface CountingSource extends ByteSource {
  readonly counts: { reads: number; bytes: number; closed: number };
}

export function memorySource(bytes: Uint8Array, name = 'memory.gguf'): CountingSource {
  return largeSource(bytes, bytes.length, name);
}

/**
 * A source of `size` bytes that begins with `start` and goes on with zeros, made as they are asked for.
 * Asking for what is not there is the reader's mistake, and no FrugalError.
 */
export function largeSource(start: Uint8Array, size: number, name = 'large.gguf'): CountingSource {
  const counts = { reads: 0, bytes: 0, closed: 0 };
  return {
    name,
    size,
    counts,
    async read(offset, length) {
      if (offset < 0 || length < 0 || offset + length > size) throw new Error(`read of ${offset}+${length}`);
      counts.reads += 1;
      counts.bytes += length;
      const bytes = new Uint8Array(length);
      bytes.set(start.subarray(offset, offset + length));
      return bytes;
    },
    async close() {
      counts.closed += 1;
    },
  };
}

/** Runs `use` with a temporary folder that is gone afterwards. */
export async function withFolder<T>(use: (folder: string) => Promise<T>): Promise<T> {
  const folder = await mkdtemp(join(tmpdir(), 'frugal-gguf-'));
  try {
    return await use(folder);
  } finally {
    await rm(folder, { recursive: true });
  }
}
