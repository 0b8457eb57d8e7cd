// Runs in the folder that the package is installed in. Arguments: model, prompt tokens, generated tokens, threads, setting
// ("default" or "best"). Prints one JSON object.

import { getLlama, LlamaLogLevel } from 'node-llama-cpp';

const [modelPath, prompt, generate, threads, setting] = process.argv.slice(2);
const [promptTokens, count, cores] = [prompt, generate, threads].map(Number);
const best = setting === 'best';
const llama = await getLlama({
  gpu: false,
  build: 'never',
  logLevel: LlamaLogLevel.error,
  maxThreads: cores,
  progressLogs: false,
});
const began = performance.now();
const model = await llama.loadModel({ modelPath, gpuLayers: 0 });
const loadMs = performance.now() - began;
const context = await model.createContext({
  contextSize: promptTokens + count + 8,
  threads: cores,
  ...(best && { batchSize: promptTokens, flashAttention: true }),
});

/** Milliseconds to the first token, and tokens per second after it. */
async function run(tokens, wanted) {
  const sequence = context.getSequence();
  const start = performance.now();
  let first = 0;
  let made = 0;
  for await (const _ of sequence.evaluate(tokens, { temperature: 0, yieldEogToken: true })) {
    if (made === 0) first = performance.now();
    if (made++ === wanted) break;
  }
  const end = performance.now();
  sequence.dispose();
  return { firstMs: first - start, decode: (wanted * 1000) / (end - first) };
}

const ids = (length) => Array.from({ length }, (_, i) => 20 + ((i * 37) % 200));
await run(ids(16), 2);
const prefill = await run(ids(promptTokens), 0);
const decode = await run(ids(1), count);
console.log(
  JSON.stringify({ prefill: (promptTokens * 1000) / prefill.firstMs, decode: decode.decode, loadMs }),
);
process.exit(0);
