// Arguments: model, threads, bytes of experts in memory ("all": no limit). Prints one JSON object.

import { load } from '../../dist/index.js';
import { promptIds } from '../lib/measure.mjs';

const [file, threads, limit] = process.argv.slice(2);
const model = await load(file, {
  threads: Number(threads),
  ...(limit === 'all' ? {} : { expertMemory: Number(limit) }),
});
// Drawn at random, the same in every run: the likeliest tokens of random weights soon repeat, and so would their experts.
const options = { temperature: 1, seed: 1, ignoreEnd: true, expertUsage: true };
await model.complete(promptIds(16), { ...options, maxTokens: 64 });
const { usage } = await model.complete(promptIds(1), { ...options, maxTokens: 193 });
console.log(
  JSON.stringify({
    decode: usage.decodeTokensPerSecond,
    hits: usage.experts.hits / usage.experts.reads,
    peakBytes: process.resourceUsage().maxRSS * 1024,
  }),
);
await model.dispose();
