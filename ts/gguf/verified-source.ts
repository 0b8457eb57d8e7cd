import { FrugalError } from '../errors.js';
import { readExactly } from './read-exactly.js';
import { createSha256 } from './sha256.js';
import type { ByteSource } from './source.js';

/** Bytes that nobody asked for are read so many at a time: the padding between tensors, and the rest of the file. */
const GAP_BYTES = 1 << 20;

/**
 * Hashes a file while it is read, and compares in `finish`, which throws `SOURCE_CHECKSUM`. Reads should be in the order
 * of the file: what is skipped is read in addition.
 * @param expected the SHA-256 of the file, or of each part of a split model in order; without it, anything is right
 * @param digests where `finish` puts what it found, by part
 * @param parts how many parts are open, with this one: each sibling is the next
 */
export function verifiedSource(
  inner: ByteSource,
  expected: readonly string[] | undefined,
  digests: string[] = [],
  parts = { opened: 0 },
): ByteSource {
  const part = parts.opened++;
  const hash = createSha256();
  let hashed = 0;
  let turn: Promise<unknown> = Promise.resolve();

  /** Runs `step` after those of reads that began earlier, whichever ends first. */
  function inTurn<T>(step: () => Promise<T>): Promise<T> {
    const result = turn.then(step);
    turn = result.catch(() => {});
    return result;
  }

  async function closeGap(end: number, signal?: AbortSignal): Promise<void> {
    while (hashed < end) {
      const bytes = await readExactly(inner, hashed, Math.min(GAP_BYTES, end - hashed), signal);
      hash.update(bytes);
      hashed += bytes.length;
    }
  }

  async function add(bytes: Uint8Array, offset: number, signal?: AbortSignal): Promise<void> {
    if (offset + bytes.length <= hashed) return;
    await closeGap(offset, signal);
    hash.update(bytes.subarray(hashed - offset));
    hashed = offset + bytes.length;
  }

  const { readInto, sibling } = inner;
  return {
    name: inner.name,
    size: inner.size,
    read(offset, length, signal) {
      const reading = readExactly(inner, offset, length, signal);
      reading.catch(() => {});
      return inTurn(async () => {
        const bytes = await reading;
        await add(bytes, offset, signal);
        return bytes;
      });
    },
    ...(readInto && {
      readInto(target, offset, signal) {
        const reading = readInto.call(inner, target, offset, signal);
        reading.catch(() => {});
        return inTurn(async () => {
          await reading;
          await add(target, offset, signal);
        });
      },
    }),
    ...(sibling && {
      sibling: async (name, signal) =>
        verifiedSource(await sibling.call(inner, name, signal), expected, digests, parts),
    }),
    async finish(signal) {
      await closeGap(inner.size, signal);
      const got = hash.hex();
      digests[part] = got;
      const wanted = expected ? expected[part]?.toLowerCase() : got;
      if (got !== wanted) throw checksumError(inner.name, wanted ?? 'none', got);
      await inner.finish?.(signal);
    },
    discard: async () => inner.discard?.(),
    close: () => inner.close(),
  };
}

function checksumError(name: string, expected: string, got: string): FrugalError {
  return new FrugalError(
    'SOURCE_CHECKSUM',
    `${name}: the SHA-256 of the file is ${got}, expected ${expected}`,
    {
      cure: 'Download the file again, or correct the checksum if another version of the file is wanted.',
      data: { source: name, expected, got },
    },
  );
}
