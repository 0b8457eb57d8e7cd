// Reports the peak of resident memory after importing the package, and after loading and running a model.
import { openAsBlob } from 'node:fs';
import { loadNative } from '../../../dist/backend/native.js';
import { nodeHost } from '../../../dist/backend/wasm/host-node.js';
import { loadWasm as loadModule } from '../../../dist/backend/wasm.js';
import { load as loadHere } from '../../../dist/index.js';
import { load as loadWasm } from '../../../dist/wasm.js';
import { args, report, status } from './process.mjs';

const { variant, expertMemory } = args;
// The code itself, compiled, belongs to the process.
await (variant === undefined ? loadNative() : loadModule(nodeHost, { variant }));
const load = variant === undefined ? loadHere : loadWasm;
if (args.path === undefined) {
  report({ peak: status('VmHWM') });
} else {
  const source = args.blob ? await openAsBlob(args.path) : args.path;
  const model = await load(source, {
    threads: 2,
    ...(variant ? { variant } : {}),
    ...(expertMemory ? { expertMemory } : {}),
  });
  const loaded = status('VmHWM');
  const prompt = Array.from({ length: 300 }, (_, i) => i % model.info.vocabSize);
  const { usage } = await model.complete(prompt, { maxTokens: 4, ignoreEnd: true });
  report({ loaded, ran: status('VmHWM'), kvBytes: usage.kvBytes, packedBytes: model.info.packedBytes });
  await model.dispose();
}
