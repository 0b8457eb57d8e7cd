import { type LoadOptions, loadWith } from './engine/load.js';
import type { Model } from './engine/model.js';
import { webRuntime } from './engine/runtime-web.js';
import type { ModelSource } from './engine/source.js';
import { resolveAddress } from './gguf/address.js';

/**
 * Loads a GGUF model; WebAssembly computes, on the calling thread and its workers. A page's own thread is better left
 * free: see `frugal/worker`.
 * @throws FrugalError as in Node
 */
export function load(source: ModelSource, options: LoadOptions = {}): Promise<Model> {
  return loadWith(webRuntime, typeof source === 'string' ? resolveAddress(source) : source, options);
}

export * from './portable.js';
