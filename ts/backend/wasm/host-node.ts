import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import type { Thread, ThreadListener, WasmHost } from './host.js';

/** The compiled entry; Node cannot run the source, which tests import. */
function threadEntry(): URL {
  const own = new URL('./thread-node.js', import.meta.url);
  return existsSync(fileURLToPath(own))
    ? own
    : new URL('../../../dist/backend/wasm/thread-node.js', import.meta.url);
}

export const nodeHost: WasmHost = {
  cores: availableParallelism(),
  unshared: undefined,
  isa: process.env.FRUGAL_ISA,
  compile: async (url) => WebAssembly.compile(await readFile(url)),
  startThread,
};

function startThread({ onMessage, onFailure }: ThreadListener): Thread {
  const worker = new Worker(threadEntry(), {
    name: 'frugal wasm',
    execArgv: [],
    // Its own heap holds next to nothing: the model is in the shared memory.
    resourceLimits: { maxYoungGenerationSizeMb: 4 },
  });
  worker.unref();
  worker.on('message', onMessage);
  worker.on('error', (error) => onFailure(error instanceof Error ? error.message : String(error)));
  worker.on('exit', () => onFailure('the thread has ended'));
  return {
    post: (message) => worker.postMessage(message),
    hold: (busy) => (busy ? worker.ref() : worker.unref()),
    end: async () => void (await worker.terminate()),
  };
}
