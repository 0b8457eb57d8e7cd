// Repeats one thing many times and reports the level of memory, threads and descriptors on the way and at the end.
import { load as loadNative } from '../../../dist/index.js';
import { load as loadWasm } from '../../../dist/wasm.js';
import { args, descriptors, report, settle, status, threads } from './process.mjs';

const PROMPT = 'Once upon a time there was a little girl who had a dog. '.repeat(6);
const LONG_TEXT = PROMPT.repeat(3);
const { variant } = args;
const load = variant === undefined ? loadNative : loadWasm;
const options = { threads: 2, chunk: 16, ...(variant ? { variant } : {}) };

async function level() {
  await settle();
  return { rss: status('VmRSS'), threads: threads(), descriptors: descriptors() };
}

/** Runs `once` from 0 to `count` and takes the levels after `warm` and after all. */
async function repeat(once) {
  let warm;
  for (let i = 0; i < args.count; i += 1) {
    if (i === args.warm) warm = await level();
    await once(i);
  }
  return { warm, end: await level() };
}

const isAbort = (error) => {
  if (error.name !== 'AbortError') throw error;
};

/** Loads and disposes; every tenth model encodes on a thread of its own, every third has generated. */
async function loads() {
  return repeat(async (i) => {
    const model = await load(args.path, options);
    if (i % 10 === 0) await model.tokenize(LONG_TEXT);
    if (i % 3 === 0) await model.complete(PROMPT, { maxTokens: 2 });
    await model.dispose();
  });
}

/** Loads that are aborted or fail on the way. */
async function brokenLoads() {
  return repeat(async (i) => {
    const stop = new AbortController();
    const onProgress = ({ phase }) => {
      if (phase === ['header', 'tokenizer', 'weights'][i % 3]) stop.abort();
    };
    await load(args.path, { ...options, onProgress, signal: stop.signal }).then(
      () => Promise.reject(new Error('the load was not aborted')),
      isAbort,
    );
  });
}

/** Loads whose listener throws: each event of the first phases ends one of them. */
async function refusedLoads() {
  return repeat(async (i) => {
    let events = 0;
    const onProgress = () => {
      if (events++ === i % 7) throw new Error('enough');
    };
    await load(args.path, { ...options, onProgress }).then(
      () => Promise.reject(new Error('the load was not ended')),
      (error) => {
        if (error.message !== 'enough') throw error;
      },
    );
  });
}

/** Takes `pieces` pieces, then aborts: at once, or while the next step runs. */
async function abortAfter(model, pieces, inStep) {
  const stop = new AbortController();
  const generation = model.generate(PROMPT, { signal: stop.signal, ignoreEnd: true, seed: pieces });
  for (let i = 0; i < pieces; i += 1) await generation.next();
  if (inStep) setImmediate(() => stop.abort());
  else stop.abort();
  let end = await generation.next().catch(isAbort);
  while (end !== undefined) end = await generation.next().catch(isAbort);
}

/** One of the ways in which a generation ends early. */
async function leave(model, i) {
  const pieces = (i * 7) % 13;
  if (i % 4 < 2) return abortAfter(model, pieces, i % 4 === 0);
  if (i % 4 === 2) {
    for await (const _ of model.generate(PROMPT, { ignoreEnd: true })) break;
    return undefined;
  }
  const refused = model
    .complete(new Array(model.info.contextLength + 1).fill(1))
    .catch((error) => error.code);
  await abortAfter(model, pieces, true);
  if ((await refused) !== 'CONTEXT_OVERFLOW') throw new Error('a prompt that is too long was taken');
}

async function aborts() {
  const model = await load(args.path, options);
  const kvBytes = async () => (await model.complete('A', { maxTokens: 1 })).usage.kvBytes;
  const kvBefore = await kvBytes();
  const levels = await repeat((i) => leave(model, i));
  const kvAfter = await kvBytes();
  await model.dispose();
  return { ...levels, kvBefore, kvAfter };
}

/** Models that are disposed while they generate, score and encode. */
async function disposals() {
  return repeat(async (i) => {
    const model = await load(args.path, options);
    const running = [
      model.complete(PROMPT, { ignoreEnd: true }),
      model.complete('A', { ignoreEnd: true }),
      model.score(Array.from({ length: 300 }, (_, id) => id)).next(),
    ];
    const ended = Promise.allSettled(running);
    for (let turns = 0; turns < i % 7; turns += 1) await new Promise(setImmediate);
    await model.dispose();
    const [first] = await ended;
    if (first.status !== 'rejected' || first.reason.code !== 'DISPOSED')
      throw new Error(JSON.stringify(first));
  });
}

const before = await level();
const levels = await { loads, brokenLoads, refusedLoads, aborts, disposals }[args.scenario]();
report({ before, after: await level(), ...levels });
