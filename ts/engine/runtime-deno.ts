import { webHost } from '../backend/wasm/host-web.js';
import { loadWasm } from '../backend/wasm.js';
import { openFile } from '../gguf/file-source.js';
import type { Runtime } from './source.js';

/** Deno: files, and all else as in a browser. */
export const denoRuntime: Runtime = {
  openFile,
  loadWasm: (options) => loadWasm(webHost, options),
};
