import { FrugalError } from '../errors.js';
import type { Thread } from './connect.js';

/** Chromium keeps some of a worker's own workers for ever when it ends right after it has ended them. */
const GRACE_MS = 100;

/**
 * A Web Worker as a thread.
 * @throws FrugalError `BACKEND_UNAVAILABLE` if `start` throws
 */
export function webThread(start: () => Worker): Thread {
  const worker = startWorker(start);
  return {
    endpoint: worker,
    onFailure(listener) {
      worker.addEventListener('error', (event) => {
        event.preventDefault();
        listener(event.message || unavailable('its script cannot be loaded'));
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

function startWorker(start: () => Worker): Worker {
  try {
    return start();
  } catch (cause) {
    throw unavailable(cause instanceof Error ? cause.message : String(cause), cause);
  }
}

function unavailable(why: string, cause?: unknown): FrugalError {
  return new FrugalError('BACKEND_UNAVAILABLE', `The engine's worker cannot be started: ${why}`, {
    cure:
      "In a page, serve the files of the package's folder dist/browser beside your bundle, from the page's own origin and with its " +
      "Cross-Origin-Embedder-Policy header, and let the page's policy allow its own workers (worker-src).",
    cause,
  });
}
