import { existsSync, readFileSync, renameSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { load, type Model } from '../../ts/engine/index.js';
import { withFolder } from '../gguf/sources.js';
import { tinyLlama } from '../gguf/tiny-llama.js';
import { collect } from './fake.js';
import { watchEventLoop } from './watch.js';

const MODELS = resolve(process.env.FRUGAL_SHARED ?? '../shared', 'models');
const STORIES = `${MODELS}/stories260K.gguf`;
const present = existsSync(STORIES);
if (!present)
  console.log(`not run: generation with real weights, for want of ${STORIES} (set FRUGAL_SHARED)`);

/** The quoted lines of the models' README: the continuation of "Once upon a time" as published. */
function publishedStory(): string {
  const lines = readFileSync(`${MODELS}/README.md`, 'utf8').split('\n');
  const quoted = lines.filter((line) => line.startsWith('> ')).map((line) => line.slice(2));
  return quoted.join('\n');
}

const TEMPLATE = '{% for m in messages %}{{ m.content }} {% endfor %}';
const PROMPT = 'Once upon a time';

describe.runIf(present)('a real model', () => {
  let model: Model;
  beforeAll(async () => {
    model = await load(STORIES, { chatTemplate: TEMPLATE });
  });
  afterAll(() => model?.dispose());

  it('continues "Once upon a time" greedily with exactly the published text', async () => {
    const story = publishedStory();
    expect(story.length).toBeGreaterThan(500);
    const room = (await model.tokenize(story)).length - (await model.tokenize(PROMPT)).length;
    const { text } = await model.complete(PROMPT, { temperature: 0, maxTokens: room });
    expect(PROMPT + text).toBe(story);
  });

  it('streams the very text that complete gives, and repeats it with the seed', async () => {
    const first = await model.complete(PROMPT, { maxTokens: 60 });
    const pieces = await collect(model.generate(PROMPT, { maxTokens: 60, seed: first.seed }));
    expect(pieces.join('')).toBe(first.text);
    expect(pieces.length).toBeGreaterThan(10);
  });

  it('gives several generations at once the text of each alone, also beside aborted ones', async () => {
    const prompts = [PROMPT, 'Lily', 'The big dog said to the little cat that', 'A'];
    const options = (seed: number) => ({ seed, maxTokens: 60, repetitionPenalty: 1.1 });
    const alone: string[] = [];
    for (const [i, prompt] of prompts.entries()) alone.push((await model.complete(prompt, options(i))).text);
    const stop = new AbortController();
    const aborted = prompts.map((prompt) => model.complete(prompt, { signal: stop.signal }));
    const failures = Promise.allSettled(aborted);
    const running = prompts.map((prompt, i) => model.complete(prompt, options(i)));
    setTimeout(() => stop.abort(), 5);
    expect((await Promise.all(running)).map(({ text }) => text)).toEqual(alone);
    for (const { status } of await failures) expect(status).toBe('rejected');
  });

  it('ends with context when its context is full', async () => {
    const completion = await model.complete(PROMPT, { temperature: 0, ignoreEnd: true });
    const { promptTokens, completionTokens } = completion.usage;
    expect(completion.finishReason).toBe('context');
    // The last token is drawn but needs no place.
    expect(promptTokens + completionTokens - 1).toBe(model.info.contextLength);
  });

  it('never gives a banned token', async () => {
    const { tokens } = await model.complete(PROMPT, { temperature: 0, maxTokens: 20 });
    const [first = 0] = tokens;
    const banned = await model.complete(PROMPT, {
      temperature: 0,
      maxTokens: 20,
      logitBias: { [first]: Number.NEGATIVE_INFINITY },
    });
    expect([...banned.tokens]).not.toContain(first);
  });

  it('answers the same in a chat with its cache and without', async () => {
    const options = { seed: 7, maxTokens: 30 };
    const chat = model.chat(options);
    const first = (await collect(chat.send(PROMPT))).join('');
    const second = chat.send('Then');
    const answer = (await collect(second)).join('');
    expect((await second.result).usage.cachedTokens).toBeGreaterThan(0);
    const messages = [
      { role: 'user', content: PROMPT },
      { role: 'assistant', content: first },
    ];
    const fresh = model.chat({ ...options, messages });
    expect((await collect(fresh.send('Then'))).join('')).toBe(answer);
    await Promise.all([chat.dispose(), fresh.dispose()]);
  });

  it('embeds a text the same whatever the chunks, and similar texts alike', async () => {
    const small = await load(STORIES, { chunk: 3, threads: 1 });
    const text = 'The dog played in the park with a red ball.';
    const vector = await model.embed(text);
    expect([...(await small.embed(text))]).toEqual([...vector]);
    const [near, far] = await model.embed(['The dog played in the park with a big ball.', '12345']);
    const dot = (other: Float32Array | undefined) =>
      vector.reduce((sum, value, i) => sum + value * (other?.[i] ?? 0), 0);
    expect(dot(near)).toBeGreaterThan(dot(far));
    await small.dispose();
  });

  it('scores with rows whose greatest value is the greedy token', async () => {
    const prompt = await model.tokenize(PROMPT);
    const { tokens } = await model.complete(prompt, { temperature: 0, maxTokens: 10 });
    const rows = await collect(model.score([...prompt, ...tokens]));
    const greedy = rows.slice(prompt.length - 1, -1).map((row) => row.indexOf(Math.max(...row)));
    expect(greedy).toEqual([...tokens]);
  });

  it('ends with DISPOSED when disposed in the middle, and gives its memory back', async () => {
    const other = await load(STORIES);
    const running = [other.complete(PROMPT), other.complete('Lily'), collect(other.score([1, 2, 3]))];
    const outcomes = Promise.allSettled(running);
    await other.dispose();
    for (const outcome of await outcomes) {
      expect(outcome).toMatchObject({ status: 'rejected', reason: { code: 'DISPOSED' } });
    }
  });

  it.each<[string, () => Promise<unknown>]>([
    [
      'generations',
      () => Promise.all(['A', 'B', 'C'].map((prompt) => model.complete(prompt, { maxTokens: 200 }))),
    ],
    ['embeddings', () => model.embed(new Array<string>(20).fill('The dog played in the park. '.repeat(10)))],
    ['log-probabilities', () => collect(model.score(new Array(500).fill(9), { logProbabilities: true }))],
    ['tokenizing', () => model.tokenize('Once upon a time '.repeat(20_000))],
  ])('does not hold the event loop: %s', async (_name, work) => {
    await work();
    const watch = watchEventLoop();
    await work();
    expect(watch.stop()).toBeLessThan(10);
  });

  it('keeps no cache of ended generations', async () => {
    const { usage } = await model.complete(PROMPT, { maxTokens: 5 });
    const stop = new AbortController();
    const aborted = model.generate(PROMPT, { signal: stop.signal });
    await aborted.next();
    stop.abort();
    await expect(aborted.next()).rejects.toMatchObject({ name: 'AbortError' });
    const again = await model.complete(PROMPT, { maxTokens: 5 });
    expect(again.usage.kvBytes).toBe(usage.kvBytes);
    expect(usage.kvBytes).toBeGreaterThan(0);
  });
});

it('refuses a file that another takes the place of while its weights are loaded', () =>
  withFolder(async (folder) => {
    const [path, other] = [join(folder, 'model.gguf'), join(folder, 'other.gguf')];
    for (const file of [path, other]) await writeFile(file, tinyLlama().bytes);
    let replaced = false;
    const onProgress = ({ phase }: { phase: string }) => {
      if (phase !== 'weights' || replaced) return;
      replaced = true;
      renameSync(other, path);
    };
    await expect(load(path, { backend: 'native', onProgress })).rejects.toMatchObject({
      code: 'SOURCE_READ',
      message: expect.stringContaining('was replaced or changed while the model was loaded'),
    });
    await (await load(path, { backend: 'native' })).dispose();
  }));

it('embeds as the file says, and refuses what it cannot do', async () => {
  const embedded = async (poolingType: number | undefined) => {
    const key = 'llama.pooling_type';
    const metadata = poolingType === undefined ? [] : [{ key, kind: 'uint32', value: poolingType } as const];
    await using model = await load(new Blob([tinyLlama({ metadata }).bytes]), { backend: 'native' });
    const [mean, last] = await Promise.all(
      (['mean', 'last'] as const).map((pooling) => model.embed('the end', { pooling })),
    );
    expect(mean).not.toEqual(last);
    return { mean, last, own: await model.embed('the end').catch((error) => error) };
  };
  for (const type of [undefined, 0, 1]) {
    const { own, mean } = await embedded(type);
    expect(own).toEqual(mean);
  }
  const { own, last } = await embedded(3);
  expect(own).toEqual(last);
  expect((await embedded(4)).own).toMatchObject({
    code: 'UNSUPPORTED_FEATURE',
    message: expect.stringContaining('llama.pooling_type to 4'),
  });
});
