import type { LoadOptions } from '../engine/load.js';
import type { Model } from '../engine/model.js';
import type { ModelSource } from '../engine/source.js';
import { loadInThread, type Thread } from './connect.js';

/** Chromium keeps some of a worker's own workers for ever when it ends right after it has ended them. */
const GRACE_MS = 100;

/**
 * Loads a model in a worker, and gives the same `Model` as without one: the page stays free whatever the model does.
 * Disposing the model ends the worker.
 * @throws FrugalError as `load` does
 */
export function load(source: ModelSource, options: LoadOptions = {}): Promise<Model> {
  return loadInThread(startThread, source, options);
}

function startThread(): Thread {
  // Bundlers look for just this form.
  const worker = new Worker(new URL('./frugal-worker.js', import.meta.url), { type: 'module' });
  return {
    endpoint: worker,
    onFailure(listener) {
      worker.addEventListener('error', (event) => {
        event.preventDefault();
        listener(event.message || 'its script cannot be loaded');
      });
      worker.addEventListener('messageerror', () => listener('a message cannot be read'));
    },
    setBusy() {
      // A page's worker keeps nothing alive.
    },
    async terminate() {
      await new Promise((done) => setTimeout(done, GRACE_MS));
      worker.terminate();
    },
  };
}
