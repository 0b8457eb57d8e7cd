import { type LoadOptions, loadWith } from './load.js';
import type { Model } from './model.js';
import { runtime } from './runtime.js';
import type { ModelSource } from './source.js';

/**
 * Loads a GGUF model.
 * @param source a path, a URL, a Blob, or a `ByteSource`; closed when the load ends
 * @throws FrugalError any code under "The file" and "The model", `INVALID_ARGUMENT`, `OUT_OF_MEMORY`,
 * `BACKEND_UNAVAILABLE`; on abort the signal's reason
 */
export function load(source: ModelSource, options: LoadOptions = {}): Promise<Model> {
  return loadWith(runtime, source, options);
}

export * from './api.js';
export { replay, type Verdict } from './replay.js';
