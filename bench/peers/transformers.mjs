// Runs in the folder that the package is installed in. Arguments: folder of a model in its format (ONNX), prompt tokens,
// generated tokens, threads. Prints one JSON object.

import { basename, dirname } from 'node:path';
import { AutoModelForCausalLM, env, Tensor } from '@huggingface/transformers';

const [folder, prompt, generate, threads] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = dirname(folder);
const model = await AutoModelForCausalLM.from_pretrained(basename(folder), {
  session_options: { intraOpNumThreads: Number(threads) },
});

async function run(length, wanted) {
  const ids = new Tensor(
    'int64',
    BigInt64Array.from({ length }, (_, i) => BigInt(20 + ((i * 37) % 200))),
    [1, length],
  );
  const mask = new Tensor('int64', new BigInt64Array(length).fill(1n), [1, length]);
  const began = performance.now();
  await model.generate({ inputs: ids, attention_mask: mask, max_new_tokens: wanted, min_new_tokens: wanted });
  return performance.now() - began;
}

await run(16, 2);
const first = await run(Number(prompt), 1);
const [one, many] = [await run(1, 1), await run(1, Number(generate) + 1)];
console.log(
  JSON.stringify({
    prefill: (Number(prompt) * 1000) / first,
    decode: (Number(generate) * 1000) / (many - one),
  }),
);
