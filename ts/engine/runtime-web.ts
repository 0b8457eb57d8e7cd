import { webHost } from '../backend/wasm/host-web.js';
import { loadWasm } from '../backend/wasm.js';
import { FrugalError } from '../errors.js';
import type { Runtime } from './source.js';

/** Browsers, and what bundlers make for them: no files, no native code. */
export const webRuntime: Runtime = {
  async openFile(path) {
    throw new FrugalError('SOURCE_READ', `${path} is a path, and there are no files here`, {
      cure: 'Give a URL, a Blob or a File.',
      data: { path },
    });
  },
  loadWasm: (options) => loadWasm(webHost, options),
};
