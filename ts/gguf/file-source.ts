import type { Stats } from 'node:fs';
import { type FileHandle, open, stat } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { invalidArgument } from '../errors.js';
import type { ByteSource } from './source.js';
import { checkRange, sourceError } from './source-error.js';

/** The system reads at most 2 GiB in one call. */
const MAX_READ = 1024 * 1024 * 1024;
const UNCHANGED = 'Leave the file as it is while it is in use.';

/**
 * Opens a local file. Its size is taken once, here.
 * @throws FrugalError `SOURCE_READ` when it does not exist, is no regular file or may not be read; `INVALID_ARGUMENT`
 */
export async function openFile(path: string): Promise<ByteSource> {
  if (typeof path !== 'string') throw invalidArgument('path', 'a path', path);
  const absolute = resolve(path);
  let handle: FileHandle | undefined;
  try {
    // Opening a pipe would wait for its writer.
    if ((await stat(absolute)).isFile()) {
      handle = await open(absolute, 'r');
      return fileSource(handle, absolute, await handle.stat());
    }
  } catch (cause) {
    await handle?.close();
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw sourceError(
      path,
      `cannot be opened: ${reason}`,
      'Give the path of a file that exists and may be read.',
      { path: absolute },
      cause,
    );
  }
  throw sourceError(path, 'is not a regular file', 'Give the path of a model file.', { path: absolute });
}

function fileSource(handle: FileHandle, path: string, opened: Stats): ByteSource {
  const { size } = opened;
  let closing: Promise<void> | undefined;
  async function readInto(target: Uint8Array, offset: number, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    checkRange(path, size, offset, target.length);
    await fill(handle, path, target, offset, signal);
    const { size: now, mtimeMs } = await handle.stat();
    if (now === size && mtimeMs === opened.mtimeMs) return;
    throw sourceError(path, 'was changed while it was open', UNCHANGED, { offset, size, newSize: now });
  }
  return {
    name: path,
    path,
    size,
    readInto,
    async read(offset, length, signal) {
      checkRange(path, size, offset, length);
      const bytes = new Uint8Array(length);
      await readInto(bytes, offset, signal);
      return bytes;
    },
    async checkPath() {
      const now = await stat(path).catch(() => undefined);
      // One that is gone was not replaced.
      if (now === undefined) return;
      const same = (['dev', 'ino', 'size', 'mtimeMs'] as const).every(
        (field) => now[field] === opened[field],
      );
      if (!same) throw sourceError(path, 'was replaced or changed while the model was loaded', UNCHANGED);
    },
    sibling: (name) => openFile(join(dirname(path), name)),
    close() {
      closing ??= handle.close();
      return closing;
    },
  };
}

async function fill(
  handle: FileHandle,
  path: string,
  bytes: Uint8Array,
  offset: number,
  signal?: AbortSignal,
): Promise<void> {
  let filled = 0;
  while (filled < bytes.length) {
    const length = Math.min(bytes.length - filled, MAX_READ);
    const { bytesRead } = await readSome(handle, path, bytes, filled, length, offset + filled);
    signal?.throwIfAborted();
    if (bytesRead === 0) {
      throw sourceError(
        path,
        `ended at offset ${offset + filled}: the file became shorter while it was open`,
        UNCHANGED,
        { offset: offset + filled },
      );
    }
    filled += bytesRead;
  }
}

async function readSome(
  handle: FileHandle,
  path: string,
  bytes: Uint8Array,
  at: number,
  length: number,
  offset: number,
): Promise<{ bytesRead: number }> {
  try {
    return await handle.read(bytes, at, length, offset);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw sourceError(
      path,
      `cannot be read at offset ${offset}: ${reason}`,
      'Check the disk, and that the file is still open.',
      { offset, length },
      cause,
    );
  }
}
