// Reports the peak of resident memory after importing the package, and after loading and running a model.
import { openAsBlob, writeFileSync } from 'node:fs';
import { loadNative } from '../../../dist/backend/native.js';
import { nodeHost } from '../../../dist/backend/wasm/host-node.js';
import { loadWasm as loadModule } from '../../../dist/backend/wasm.js';
import { load as loadHere } from '../../../dist/index.js';
import { load as loadWasm } from '../../../dist/wasm.js';
import { args, report, status } from './process.mjs';

const { variant, expertMemory } = args;
const memories = [];
keepMemories();
// The code itself, compiled, belongs to the process.
await (variant === undefined ? loadNative() : loadModule(nodeHost, { variant }));
const load = variant === undefined ? loadHere : loadWasm;
if (args.path === undefined) {
  report({ peak: status('VmHWM') });
} else {
  const baseline = args.after === undefined ? undefined : await loadBefore(args.after);
  const source = args.blob ? await openAsBlob(args.path) : args.path;
  const model = await load(source, {
    threads: 2,
    // What a step takes is to be the same with experts in their file and without.
    chunk: 256,
    ...(variant ? { variant } : {}),
    ...(expertMemory ? { expertMemory } : {}),
  });
  const loaded = status('VmHWM');
  const prompt = Array.from({ length: 300 }, (_, i) => i % model.info.vocabSize);
  const { usage } = await model.complete(prompt, { maxTokens: 4, ignoreEnd: true });
  const memory = Math.max(0, ...memories.map(({ buffer }) => buffer.byteLength));
  const { packedBytes } = model.info;
  report({ baseline, loaded, ran: status('VmHWM'), memory, kvBytes: usage.kvBytes, packedBytes });
  await model.dispose();
}

/** Lets the process have all code, compiled, that loading another model runs: what it then takes. */
async function loadBefore(path) {
  const model = await load(await openAsBlob(path), { threads: 2, variant });
  await model.complete('Once', { maxTokens: 4 });
  await model.dispose();
  // The peak is counted anew from here on.
  writeFileSync('/proc/self/clear_refs', '5');
  return status('VmHWM');
}

/** Has `memories` hold the memory of each instance that is made. */
function keepMemories() {
  WebAssembly.Instance = new Proxy(WebAssembly.Instance, {
    construct(Instance, [module, imports]) {
      const instance = new Instance(module, imports);
      const { memory } = instance.exports;
      if (memory instanceof WebAssembly.Memory) memories.push(memory);
      return instance;
    },
  });
}
