// Run by Deno: loads a model of over 4 GiB, and writes one line of JSON: what computes, and the digest of a prompt.
import { load } from '../../dist/deno.js';
import { digestOf } from './suite.ts';

const { path, options, prompt } = JSON.parse(process.argv[2] ?? '{}');
const model = await load(path, options);
const digest = await digestOf(model, prompt);
console.log(JSON.stringify({ variant: model.backend.variant, reason: model.backend.reason, digest }));
await model.dispose();
