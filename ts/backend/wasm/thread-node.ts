import { parentPort } from 'node:worker_threads';
import { createServer } from './serve.js';

const serve = createServer((message, transfer) => parentPort?.postMessage(message, transfer));
parentPort?.on('message', (message) => void serve(message));
