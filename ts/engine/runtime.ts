import type { Backend } from '../backend/types.js';
import type { WasmOptions } from '../backend/wasm/variant.js';
import type { Runtime } from './source.js';

/** Imported when used, so that runtimes without files or native code can load this module. */
export const runtime: Runtime = {
  openFile: async (path) => (await import('../gguf/file-source.js')).openFile(path),
  loadNative: async () => (await import('../backend/native.js')).loadNative(),
  loadWasm,
  openEnergyMeter: async (options) => (await import('../energy/meter.js')).openEnergyMeter(options),
};

/** Node where WebAssembly is wanted, or nothing else can be had. */
async function loadWasm(options: WasmOptions): Promise<Backend> {
  const { nodeHost } = await import('../backend/wasm/host-node.js');
  return (await import('../backend/wasm.js')).loadWasm(nodeHost, options);
}
