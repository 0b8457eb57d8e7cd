import type { Endpoint } from 'comlink';
import { loadWith } from '../engine/load.js';
import { denoRuntime } from '../engine/runtime-deno.js';
import { serveModel } from './host.js';

const scope: unknown = globalThis;
serveModel(scope as Endpoint, (source, options) => loadWith(denoRuntime, source, options));
