import { parentPort } from 'node:worker_threads';
import nodeEndpoint from 'comlink/dist/esm/node-adapter.mjs';
import { load } from '../engine/index.js';
import { serveModel } from './host.js';

if (parentPort) serveModel(nodeEndpoint(parentPort), load);
