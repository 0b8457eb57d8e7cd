import { type LoadOptions, loadWith } from './engine/load.js';
import type { Model } from './engine/model.js';
import { denoRuntime } from './engine/runtime-deno.js';
import type { ModelSource } from './engine/source.js';

/**
 * Loads a GGUF model; WebAssembly computes.
 * @throws FrugalError as in Node
 */
export function load(source: ModelSource, options: LoadOptions = {}): Promise<Model> {
  return loadWith(denoRuntime, source, options);
}

export { openFile } from './gguf/file-source.js';
export * from './portable.js';
