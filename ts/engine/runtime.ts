import type { Runtime } from './source.js';

/** Imported when used, so that runtimes without files or native code can load this module. */
export const runtime: Runtime = {
  openFile: async (path) => (await import('../gguf/file-source.js')).openFile(path),
  loadNative: async () => (await import('../backend/native.js')).loadNative(),
  openEnergyMeter: async (options) => (await import('../energy/meter.js')).openEnergyMeter(options),
};
