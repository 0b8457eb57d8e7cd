import { randomBytes } from 'node:crypto';
import { access, constants, type FileHandle, open, realpath, rename, rm, stat } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { FrugalError } from '../errors.js';

/** A file that appears under its name only when it is complete. */
export interface OutputFile {
  write(bytes: Uint8Array, offset: number): Promise<void>;
  /** Gives the file its size and its name. */
  finish(size: number): Promise<void>;
  /** Removes what was written. Does nothing after `finish`. */
  abandon(): Promise<void>;
}

/** An output written from its beginning to its end. */
export interface OutputStream {
  write(bytes: Uint8Array): Promise<void>;
}

/**
 * Creates a temporary file beside `path`, which replaces whatever is there when it is finished: the file
 * itself, where `path` is a link to it, and with the permissions it had.
 * @param inputs files that must not be replaced
 * @throws FrugalError `OUTPUT_WRITE`, `INVALID_ARGUMENT` when `path` is one of `inputs`
 */
export async function createOutput(path: string, inputs: readonly string[]): Promise<OutputFile> {
  const named = resolve(path);
  const mode = await checkTarget(path, named, inputs);
  const target = mode === undefined ? named : await writing(path, () => realpath(named));
  const temporary = `${target}.${randomBytes(6).toString('hex')}.part`;
  const handle = await writing(path, () => open(temporary, 'wx'));
  if (mode !== undefined) await handle.chmod(mode).catch(() => undefined);
  let isOpen = true;
  const close = async () => {
    if (isOpen) await handle.close();
    isOpen = false;
  };
  return {
    write: (bytes, offset) => writing(path, () => writeAll(handle, bytes, offset)),
    async finish(size) {
      await writing(path, async () => {
        await handle.truncate(size);
        await handle.sync();
        await close();
        await rename(temporary, target);
      });
    },
    async abandon() {
      // What went wrong before is what the caller must know.
      await close().catch(() => undefined);
      await rm(temporary, { force: true }).catch(() => undefined);
    },
  };
}

/**
 * Writes with `body` what takes the name `path` only when it is complete; devices, pipes and what the caller
 * has open (`/dev/stdout`, redirected or not) are written in place.
 * @param inputs files that must not be replaced
 * @throws FrugalError as `createOutput` does, and whatever `body` throws
 */
export async function writeOutput<T>(
  path: string,
  inputs: readonly string[],
  body: (output: OutputStream) => Promise<T>,
): Promise<T> {
  const found = await stat(path).catch(() => undefined);
  const inPlace = OPEN_ALREADY.test(resolve(path)) || found?.isFile() === false;
  const output = inPlace ? await openInPlace(path, inputs) : await createOutput(path, inputs);
  let size = 0;
  try {
    const result = await body({
      async write(bytes) {
        await output.write(bytes, size);
        size += bytes.length;
      },
    });
    await output.finish(size);
    return result;
  } finally {
    await output.abandon();
  }
}

/** Names of what the caller has open, where a new file of that name would not arrive. */
const OPEN_ALREADY = /^\/(dev\/(stdout|stderr|fd\/\d+)|proc\/(self|\d+)\/fd\/\d+)$/;

/** What is written piece after piece and stays whatever it is. */
async function openInPlace(path: string, inputs: readonly string[]): Promise<OutputFile> {
  await refuseInputs(path, inputs);
  const handle = await writing(path, () => open(path, 'w'));
  let isOpen = true;
  const close = async () => {
    if (isOpen) await handle.close();
    isOpen = false;
  };
  return {
    write: (bytes) => writing(path, () => writeAll(handle, bytes, null)),
    finish: () => writing(path, close),
    abandon: () => close().catch(() => undefined),
  };
}

/** Gives the permissions of the file that will be replaced; undefined where there is none. */
async function checkTarget(
  path: string,
  target: string,
  inputs: readonly string[],
): Promise<number | undefined> {
  const found = await stat(target).catch(() => undefined);
  if (found === undefined) {
    await writing(path, () => realpath(dirname(target)));
    return undefined;
  }
  if (!found.isFile()) throw outputError(path, 'there is something that is no regular file');
  await refuseInputs(path, inputs);
  await writing(path, () => access(target, constants.W_OK));
  return found.mode & 0o777;
}

/**
 * Whether a file may be written without destroying what is read.
 * @param inputs paths, and addresses, which no file is
 * @throws FrugalError `INVALID_ARGUMENT` when `path` is one of `inputs`, under whatever name
 */
export async function refuseInputs(path: string, inputs: readonly string[]): Promise<void> {
  const target = await identity(path);
  if (target === undefined) return;
  for (const input of inputs) {
    if ((await identity(input)) !== target) continue;
    throw new FrugalError('INVALID_ARGUMENT', `${path} is a file that is read, ${input}`, {
      cure: 'Give another path for the new file.',
      data: { path, input },
    });
  }
}

/** What tells one regular file from all others, by links too; undefined where there is none. */
async function identity(path: string): Promise<string | undefined> {
  const found = await stat(path, { bigint: true }).catch(() => undefined);
  return found?.isFile() ? `${found.dev} ${found.ino}` : undefined;
}

/** @param offset null for what has no places, such as a pipe */
async function writeAll(handle: FileHandle, bytes: Uint8Array, offset: number | null): Promise<void> {
  let written = 0;
  while (written < bytes.length) {
    const left = bytes.length - written;
    const place = offset === null ? null : offset + written;
    written += (await handle.write(bytes, written, left, place)).bytesWritten;
  }
}

/**
 * Does something to the file that is written.
 * @throws FrugalError `OUTPUT_WRITE` with the path and what the system said
 */
async function writing<T>(path: string, action: () => Promise<T>): Promise<T> {
  try {
    return await action();
  } catch (cause) {
    throw outputError(path, cause instanceof Error ? cause.message : String(cause), cause);
  }
}

function outputError(path: string, reason: string, cause?: unknown): FrugalError {
  return new FrugalError('OUTPUT_WRITE', `${path} cannot be written: ${reason}`, {
    cure: 'Give the path of a file in a folder that exists and may be written, on a disk with room for it.',
    data: { path },
    cause,
  });
}
