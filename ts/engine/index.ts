import { type LoadOptions, loadWith } from './load.js';
import type { Model } from './model.js';
import { runtime } from './runtime.js';
import type { ModelSource } from './source.js';

/**
 * Loads a GGUF model.
 * @param source a path, a URL, a Blob, a list of all Files of a split model, or a `ByteSource`; closed when the load ends, or with
 *   `expertMemory` when the model is disposed of
 * @throws FrugalError any code under "The file" and "The model", `INVALID_ARGUMENT`, `OUT_OF_MEMORY`,
 * `BACKEND_UNAVAILABLE`; on abort the signal's reason
 */
export function load(source: ModelSource, options: LoadOptions = {}): Promise<Model> {
  return loadWith(runtime, source, options);
}

export * from './api.js';
