import { type LoadOptions, loadWith } from './engine/load.js';
import type { Model } from './engine/model.js';
import { runtime } from './engine/runtime.js';
import type { ModelSource } from './engine/source.js';

/**
 * `load` in Node without native code: WebAssembly computes, whatever else there is.
 * @throws FrugalError as `load` of `frugal` does
 */
export function load(source: ModelSource, options: LoadOptions = {}): Promise<Model> {
  const { loadNative: _, ...portable } = runtime;
  return loadWith(portable, source, options);
}

export { openFile } from './gguf/file-source.js';
export * from './portable.js';
