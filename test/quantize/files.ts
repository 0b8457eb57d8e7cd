import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll } from 'vitest';
import { openFile } from '../../ts/gguf/file-source.js';
import { type GgufModel, openGguf } from '../../ts/gguf/index.js';
import { createRandom } from '../gguf/random.js';

/** A folder that goes away after the tests of a file. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'frugal-quantize-'));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

let files = 0;

/** Writes a file of its own folder, so that what else appears there can be seen. */
export function writeFile(
  folder: string,
  bytes: Uint8Array,
  name = 'in.gguf',
): { path: string; folder: string } {
  files += 1;
  const own = mkdtempSync(join(folder, `${files}-`));
  const path = join(own, name);
  writeFileSync(path, bytes);
  return { path, folder: own };
}

export function filesIn(folder: string): string[] {
  return readdirSync(folder).sort();
}

/** Opens a GGUF file for as long as `body` runs. */
export async function withGguf<T>(path: string, body: (model: GgufModel) => Promise<T> | T): Promise<T> {
  const model = await openGguf(await openFile(path));
  try {
    return await body(model);
  } finally {
    await model.close();
  }
}

/** The bytes of every tensor by name. */
export async function tensorData(path: string): Promise<Map<string, { type: string; bytes: Uint8Array }>> {
  const file = readFileSync(path);
  return withGguf(
    path,
    (model) =>
      new Map(
        [...model.tensors.values()].map(({ name, type, offset, bytes }) => [
          name,
          { type, bytes: new Uint8Array(file.subarray(offset, offset + bytes)) },
        ]),
      ),
  );
}

/** Numbers of about normal distribution. */
export function randomFloats(seed: number, count: number, deviation = 1): Float32Array {
  const random = createRandom(seed);
  const one = () => random() + random() + random() + random() - 2;
  return Float32Array.from({ length: count }, () => deviation * Math.sqrt(3) * one());
}

export function bytesOf(values: Float32Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}
