import type { ToThread } from './protocol.js';
import { createServer } from './serve.js';

/** The part of a worker's global scope that is used here. */
interface WorkerScope {
  postMessage(message: unknown, transfer: Transferable[]): void;
  onmessage: ((event: MessageEvent<ToThread>) => void) | null;
}

const scope = globalThis as unknown as WorkerScope;
const serve = createServer((message, transfer) => scope.postMessage(message, transfer));
scope.onmessage = ({ data }) => void serve(data);
