// Loads every hostile file and generates from those that load. Prints the name of each file before it is touched.
import { writeFileSync, writeSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { runnerImport } from 'vite';
import { isFrugalError, load as loadNative } from '../../../dist/index.js';
import { load as loadWasm } from '../../../dist/wasm.js';
import { args, report, status } from './process.mjs';

const { module } = await runnerImport(resolve(import.meta.dirname, '../../gguf/hostile.ts'));
const load = args.variant === undefined ? loadNative : loadWasm;
const options = args.variant === undefined ? { threads: 2 } : { variant: args.variant, threads: 2 };
const failures = [];
const list = [];
const outcomes = {};
let slowest = { ms: 0 };
let files = 0;
let largestGrowth = { bytes: 0 };

/** An error's code, `loaded` with the code of a generation that failed, or undefined for what must not be. */
async function outcomeOf(source) {
  let model;
  try {
    model = await load(source, options);
  } catch (error) {
    return isFrugalError(error) ? error.code : failed('load', error);
  }
  try {
    const { tokens } = await model.complete([1, 2, 3], { maxTokens: 2, ignoreEnd: true, temperature: 0 });
    return tokens.length > 0 ? 'loaded' : failed('generation', new Error('no tokens'));
  } catch (error) {
    return isFrugalError(error) ? `loaded, ${error.code}` : failed('generation', error);
  } finally {
    await model.dispose();
  }
}

function failed(what, error) {
  failures.push(`${what}: ${error.stack}`);
  return `${what} failed`;
}

/** A slow file gets another try, since the machine may have had other things to do. */
async function timed(source) {
  let best = Number.POSITIVE_INFINITY;
  let outcome;
  for (let i = 0; i < 3 && best >= args.limitMs; i += 1) {
    const start = performance.now();
    outcome = await outcomeOf(source);
    best = Math.min(best, performance.now() - start);
  }
  return { outcome, ms: best };
}

async function tryFile({ name, bytes }) {
  writeSync(1, `${name}\n`);
  files += 1;
  const source = args.folder === undefined ? new Blob([bytes]) : join(args.folder, `${files % 8}.gguf`);
  if (args.folder !== undefined) writeFileSync(source, bytes);
  const peak = status('VmHWM');
  const { outcome, ms } = await timed(source);
  const bytesGrown = status('VmHWM') - peak;
  if (bytesGrown > largestGrowth.bytes) largestGrowth = { name, bytes: bytesGrown };
  if (ms > slowest.ms) slowest = { name, ms };
  list.push(`${name}: ${outcome}`);
  outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
  if (['INTERNAL', 'loaded, INTERNAL'].includes(outcome)) failures.push(`${name}: ${outcome}`);
}

/** The good model that the hostile ones are made of, so that what follows measures the files alone. */
async function warmUp() {
  const { module: tiny } = await runnerImport(resolve(import.meta.dirname, '../../gguf/tiny-llama.ts'));
  for (let i = 0; i < 20; i += 1) await outcomeOf(new Blob([tiny.tinyLlama().bytes]));
}

await warmUp();
globalThis.gc();
const before = status('VmRSS');
let number = 0;
for (const file of module.hostileFiles(args.seed, args.count)) {
  if (number % args.every === 0) await tryFile(file);
  number += 1;
  if (number % 50 === 0) globalThis.gc();
}
const peakGrowth = status('VmHWM') - before;
report({ files, outcomes, failures, ...(args.list ? { list } : {}), slowest, largestGrowth, peakGrowth });
