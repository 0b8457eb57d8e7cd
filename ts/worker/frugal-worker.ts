import type { Endpoint } from 'comlink';
import { loadWith } from '../engine/load.js';
import { webRuntime } from '../engine/runtime-web.js';
import { serveModel } from './host.js';

// The scope of a worker, which the library for pages takes for a window.
const scope: unknown = globalThis;
serveModel(scope as Endpoint, (source, options) => loadWith(webRuntime, source, options));
