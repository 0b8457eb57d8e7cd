import { type FrugalError, invalidArgument } from '../errors.js';
import { parsePartName } from './part-name.js';
import { releaseBytes } from './release.js';
import type { ByteSource } from './source.js';
import { checkRange, sourceError } from './source-error.js';

/**
 * Reads a Blob or a File of the browser.
 * @param givenName for messages; by default the File's own name, or `blob`
 * @throws FrugalError `INVALID_ARGUMENT`
 */
export function blobSource(blob: Blob, givenName?: string): ByteSource {
  if (typeof blob?.slice !== 'function' || typeof blob.size !== 'number')
    throw invalidArgument('blob', 'a Blob or a File', blob);
  const name = givenName ?? nameOf(blob);
  return {
    name,
    size: blob.size,
    async read(offset, length, signal) {
      signal?.throwIfAborted();
      checkRange(name, blob.size, offset, length);
      const bytes = await readBlob(blob.slice(offset, offset + length), name, offset);
      signal?.throwIfAborted();
      return bytes;
    },
    async readInto(target, offset, signal) {
      signal?.throwIfAborted();
      checkRange(name, blob.size, offset, target.length);
      await readBlobInto(target, blob.slice(offset, offset + target.length), name, offset);
      signal?.throwIfAborted();
    },
    async close() {
      // A Blob holds nothing that must be given back.
    },
  };
}

/**
 * Reads the parts of a split model, Files in any order.
 * @throws FrugalError `SOURCE_READ` where a file is not named as a part, is one of another model, or the first is not there
 */
export function partsSource(parts: readonly Blob[]): ByteSource {
  const files = parts.map((file) => ({ file, name: nameOf(file), place: parsePartName(nameOf(file)) }));
  const stray = files.find(({ place }) => place === undefined);
  if (stray !== undefined) throw strange(stray.name, 'is not named as a part of a split model');
  const first = files.find(({ place }) => place?.part === 1);
  if (first === undefined)
    throw strange(files.map(({ name }) => name).join(', '), 'the first part of the model is not there');
  const { stem, count } = first.place ?? {};
  const other = files.find(({ place }) => place?.stem !== stem || place?.count !== count);
  if (other !== undefined) throw strange(other.name, `is no part of the model of ${first.name}`);
  return {
    ...blobSource(first.file),
    async sibling(name) {
      const found = files.find((part) => part.name === name);
      if (found === undefined) throw strange(name, 'is not among the parts given');
      return blobSource(found.file);
    },
  };
}

function strange(name: string, problem: string): FrugalError {
  const cure = 'Give one model: its File, or a list of all its parts (NAME-00001-of-00003.gguf and so on).';
  return sourceError(name, problem, cure);
}

/** A File's own name, or `blob`. */
export function nameOf(blob: Blob): string {
  return 'name' in blob && typeof blob.name === 'string' ? blob.name : 'blob';
}

async function readBlob(slice: Blob, name: string, offset: number): Promise<Uint8Array> {
  try {
    return new Uint8Array(await slice.arrayBuffer());
  } catch (cause) {
    throw unreadable(name, offset, cause);
  }
}

/** Piece by piece, each given back at once: whole reads leave their bytes to the collector, in some runtimes twice. */
async function readBlobInto(target: Uint8Array, slice: Blob, name: string, offset: number): Promise<void> {
  let filled = 0;
  try {
    const reader = slice.stream().getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      target.set(value, filled);
      filled += value.length;
      releaseBytes(value);
    }
  } catch (cause) {
    throw unreadable(name, offset, cause);
  }
  if (filled !== target.length)
    throw unreadable(name, offset, new Error(`${filled} bytes came where ${target.length} were asked for`));
}

function unreadable(name: string, offset: number, cause: unknown): FrugalError {
  const reason = cause instanceof Error ? cause.message : String(cause);
  return sourceError(
    name,
    `cannot be read at offset ${offset}: ${reason}`,
    'Choose the file again: it may have changed since.',
    { offset },
    cause,
  );
}
