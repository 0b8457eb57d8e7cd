import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import nodeEndpoint from 'comlink/dist/esm/node-adapter.mjs';
import type { LoadOptions } from '../engine/load.js';
import type { Model } from '../engine/model.js';
import type { ModelSource } from '../engine/source.js';
import { loadInThread, type Thread } from './connect.js';

/**
 * Loads a model in a thread of its own, and gives the same `Model` as without one: the calling thread stays free
 * whatever the model does. Disposing the model ends the thread.
 * @throws FrugalError as `load` does
 */
export function load(source: ModelSource, options: LoadOptions = {}): Promise<Model> {
  return loadInThread(startThread, source, options);
}

function startThread(): Thread {
  const worker = new Worker(entry(), { name: 'frugal', execArgv: [] });
  worker.unref();
  return {
    endpoint: nodeEndpoint(worker),
    onFailure(listener) {
      worker.on('error', listener);
      worker.on('exit', (code) => listener(new Error(`it ended with code ${code}`)));
    },
    setBusy: (busy) => (busy ? worker.ref() : worker.unref()),
    terminate: () => worker.terminate(),
  };
}

/** The compiled thread; Node cannot run the source, which tests import. */
function entry(): URL {
  const source = new URL('../../dist/worker/node-thread.js', import.meta.url);
  const isSource = import.meta.url.endsWith('.ts') && existsSync(fileURLToPath(source));
  return isSource ? source : new URL('./node-thread.js', import.meta.url);
}

export * from '../common.js';
export { openFile } from '../gguf/file-source.js';
