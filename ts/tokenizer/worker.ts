import { parentPort } from 'node:worker_threads';
import { FrugalError } from '../errors.js';
import { buildCore, type Core } from './core.js';
import type { Reply, Request } from './protocol.js';
import type { ErrorData } from './types.js';

let core: Core | undefined;

parentPort?.postMessage({ id: 0, type: 'ready' } satisfies Reply);
parentPort?.on('message', (request: Request) => {
  const reply = answer(request);
  parentPort?.postMessage(reply, reply.type === 'encoded' ? [reply.tokens.buffer] : []);
});

function answer(request: Request): Reply {
  const { id } = request;
  try {
    if (request.type === 'build') {
      core = buildCore(request.data);
      return { id, type: 'built', facts: core.facts };
    }
    if (core === undefined) throw new Error('encode before build');
    const { text, flags, unwanted } = request;
    return { id, type: 'encoded', tokens: core.encode(text, flags, () => Atomics.load(unwanted, 0) !== 0) };
  } catch (error) {
    return { id, type: 'failed', error: toErrorData(error) };
  }
}

function toErrorData(error: unknown): ErrorData {
  if (error instanceof FrugalError) {
    return { code: error.code, message: error.message, cure: error.cure, data: error.data };
  }
  const message = `The tokeniser failed: ${error instanceof Error ? error.message : String(error)}`;
  return { code: 'INTERNAL', message, cure: 'Please report this with the model and the text.', data: {} };
}
