import { settled } from '../abort.js';
import { show } from '../errors.js';
import type { ByteSource } from './source.js';
import { sourceError } from './source-error.js';

/**
 * Reads from a source that may be the user's own, and so may give anything.
 * @throws FrugalError `SOURCE_READ` unless it gives exactly the bytes asked for; what its `read` throws; the reason of
 *   `signal` once it is aborted
 */
export async function readExactly(
  source: ByteSource,
  offset: number,
  length: number,
  signal?: AbortSignal,
): Promise<Uint8Array> {
  // It may never answer, and not listen to the signal.
  const bytes: unknown = await settled(Promise.resolve(source.read(offset, length, signal)), signal);
  if (isBytes(bytes) && bytes.length === length) return bytes;
  const got = isBytes(bytes) ? `${bytes.length} bytes` : show(bytes);
  throw sourceError(
    source.name ?? 'the source',
    `read gave ${got} where ${length} bytes at offset ${offset} were asked for`,
    'The read of a source must give a promise of a Uint8Array with exactly the bytes asked for.',
    { offset, length, got },
  );
}

/** Those of another realm too. */
function isBytes(value: unknown): value is Uint8Array {
  return Object.prototype.toString.call(value) === '[object Uint8Array]';
}
