// Arguments: model, threads, prompt tokens, generated tokens, repetitions. Tells its parent when a prompt begins, when its
// first token is there, and when the last is; with the last comes what the engine says of itself.

import { load } from '../../dist/index.js';
import { promptIds } from '../lib/measure.mjs';

const [file, ...numbers] = process.argv.slice(2);
const [threads, prompt, generate, repetitions] = numbers.map(Number);
const model = await load(file, { threads });
const options = { temperature: 0, ignoreEnd: true };
await model.complete(promptIds(16), { ...options, maxTokens: 8 });
for (let i = 0; i < repetitions; i++) {
  const generation = model.generate(promptIds(prompt, i), { ...options, maxTokens: generate + 1 });
  process.send({ at: 'begin' });
  await generation.next();
  process.send({ at: 'first' });
  for await (const _ of generation);
  const { usage } = await generation.result;
  process.send({ at: 'end', prefillMs: usage.prefillMs, decodeMs: usage.decodeMs });
}
await model.dispose();
process.disconnect();
