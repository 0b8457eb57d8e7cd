import type { LoadOptions } from '../engine/load.js';
import type { Model } from '../engine/model.js';
import type { ModelSource } from '../engine/source.js';
import { loadInThread } from './connect.js';
import { webThread } from './web-thread.js';

/**
 * Loads a model in a worker, and gives the same `Model` as without one: the calling thread stays free whatever the
 * model does. Disposing the model ends the worker.
 * @throws FrugalError as `load` does
 */
export function load(source: ModelSource, options: LoadOptions = {}): Promise<Model> {
  return loadInThread(startThread, source, options);
}

const startThread = () =>
  webThread(() => new Worker(new URL('./deno-worker.js', import.meta.url), { type: 'module' }));

export * from '../common.js';
export { openFile } from '../gguf/file-source.js';
