// Imported before anything can end the thread: one that ends amid an import leaves its file open.
import '../backend/native.js';
import '../backend/wasm.js';
import '../backend/wasm/host-node.js';
import { parentPort } from 'node:worker_threads';
import nodeEndpoint from 'comlink/dist/esm/node-adapter.mjs';
import { load } from '../engine/index.js';
import { serveModel } from './host.js';

if (parentPort) serveModel(nodeEndpoint(parentPort), load);
