import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { runtime } from '../engine/runtime.js';
import { type ModelSource, openSource } from '../engine/source.js';
import { openGguf } from '../gguf/index.js';
import { sourceError } from '../gguf/source-error.js';
import { isSafetensors, openSafetensorsModel } from '../safetensors/index.js';
import { ggufModel } from './gguf-model.js';
import type { SourceModel } from './types.js';

/** Opens a GGUF or safetensors model, whichever it is. */
export async function openModel(source: ModelSource, signal?: AbortSignal): Promise<SourceModel> {
  const place = typeof source === 'string' ? await findInFolder(source) : source;
  const bytes = await openSource(runtime, place, { cache: false, signal });
  if (isSafetensors(bytes.name)) return openSafetensorsModel(bytes, signal);
  const gguf = await openGguf(bytes, signal === undefined ? {} : { signal });
  try {
    return ggufModel(gguf);
  } catch (error) {
    await gguf.close();
    throw error;
  }
}

/** The weights of a model's folder: the index of its parts, or the one file. */
async function findInFolder(path: string): Promise<string> {
  const found = await stat(path).catch(() => undefined);
  if (!found?.isDirectory()) return path;
  const names = (await readdir(path)).filter(isSafetensors);
  const indexes = names.filter((name) => name.endsWith('.index.json'));
  const [name, ...others] = indexes.length > 0 ? indexes : names;
  if (name !== undefined && others.length === 0) return join(path, name);
  const problem =
    name === undefined
      ? 'the folder holds no safetensors weights'
      : `the folder holds several models: ${[name, ...others].sort().slice(0, 8).join(', ')}`;
  throw sourceError(path, problem, 'Give the path of a GGUF or safetensors file.', { path });
}
