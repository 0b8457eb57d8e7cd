import { execFile } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { resolve } from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { createTokenizer, type Tokenizer } from '../../ts/tokenizer/index.js';
import { openInlineEncoder } from '../../ts/tokenizer/inline-encoder.js';
import { byteLevel, metadataOf, randomNumbers, randomText, sentencePiece, type Values } from './fixtures.js';

const ROOT = resolve(import.meta.dirname, '../..');
const LONG = 'The quick brown fox jumps over the lazy dog, 12345 times. '.repeat(3600);

/** More tokens than are built without a thread. */
const large: Values = byteLevel(
  ['t h', 'th e', 'Ġ the', 'o w'],
  Array.from({ length: 3000 }, (_, i) => ({ text: `<token ${i}>` })),
);
const small: Values = byteLevel(['t h', 'th e', 'Ġ the']);

const create = (values: Values): Promise<Tokenizer> => createTokenizer(metadataOf(values));

/** Threads of this process, where the system tells (Linux). */
const threadCount = (): number | undefined =>
  existsSync('/proc/self/task') ? readdirSync('/proc/self/task').length : undefined;

/** The longest time, in milliseconds, that other work had to wait while `work` was done; best of `tries`. */
async function longestWait(work: () => Promise<unknown>, tries: number): Promise<number> {
  let best = Number.POSITIVE_INFINITY;
  for (let i = 0; i < tries; i++) {
    let worst = 0;
    let last = performance.now();
    const tick = (): void => {
      const now = performance.now();
      worst = Math.max(worst, now - last);
      last = now;
    };
    const timer = setInterval(tick, 1);
    await work();
    tick();
    clearInterval(timer);
    best = Math.min(best, worst);
  }
  return best;
}

test('the compiled thread is there to be tested', () => {
  expect(existsSync(resolve(ROOT, 'dist/tokenizer/worker.js')), 'run npm run build first').toBe(true);
});

test('other work never waits 10 ms for loading or encoding', async () => {
  const words = Array.from({ length: 120_000 }, (_, i) => ({ text: `<token ${i}>` }));
  const metadata = metadataOf(byteLevel(['t h', 'th e'], words));
  let tokenizer = await createTokenizer(metadata);
  const reload = async (): Promise<void> => {
    await tokenizer.dispose();
    tokenizer = await createTokenizer(metadata);
  };
  expect(await longestWait(reload, 6)).toBeLessThan(10);
  expect(await longestWait(() => tokenizer.encode(LONG), 6)).toBeLessThan(10);
  await tokenizer.dispose();
});

test('a small vocabulary starts a thread for a long text only, and agrees with itself', async () => {
  const before = threadCount();
  const tokenizer = await create(small);
  await tokenizer.encode('the fox');
  expect(threadCount()).toBe(before);
  expect(await longestWait(() => tokenizer.encode(LONG), 6)).toBeLessThan(10);
  const inline = await createTokenizer(metadataOf(small), { openEncoder: openInlineEncoder });
  const random = randomNumbers(3);
  for (const length of [10, 399, 400, 401, 5000]) {
    const text = randomText(random, length);
    expect(await tokenizer.encode(text)).toEqual(await inline.encode(text));
  }
  await tokenizer.dispose();
});

test('calls at once are answered each with its own', async () => {
  const tokenizer = await create(large);
  const texts = Array.from({ length: 50 }, (_, i) => `text number ${i} ${'the '.repeat(i)}`);
  const all = await Promise.all(texts.map((text) => tokenizer.encode(text)));
  expect(all.map((ids) => tokenizer.decode(ids))).toEqual(texts);
  await tokenizer.dispose();
});

test('an aborted call rejects with the reason and harms no other', async () => {
  const tokenizer = await create(large);
  const stop = new AbortController();
  const aborted = tokenizer.encode(LONG, { signal: stop.signal });
  const other = tokenizer.encode('the fox');
  stop.abort(new Error('enough'));
  await expect(aborted).rejects.toThrow('enough');
  expect(tokenizer.decode(await other)).toBe('the fox');
  await expect(tokenizer.encode('a', { signal: stop.signal })).rejects.toThrow('enough');
  await expect(
    createTokenizer(metadataOf(large), { signal: AbortSignal.abort(new Error('no')) }),
  ).rejects.toThrow('no');
  const loading = new AbortController();
  const load = createTokenizer(metadataOf(large), { signal: loading.signal });
  setImmediate(() => loading.abort(new Error('too late')));
  await expect(load).rejects.toThrow('too late');
  await tokenizer.dispose();
});

test('without a thread a long text lets others have their turn, and hears of an abort', async () => {
  const tokenizer = await createTokenizer(metadataOf(large), { openEncoder: openInlineEncoder });
  const text = LONG.repeat(4);
  let turns = 0;
  const timer = setInterval(() => {
    turns += 1;
  }, 1);
  const tokens = await tokenizer.encode(text);
  clearInterval(timer);
  expect(turns).toBeGreaterThan(10);
  expect(tokenizer.decode(tokens)).toBe(text);
  const stop = new AbortController();
  setTimeout(() => stop.abort(new Error('enough')), 5);
  await expect(tokenizer.encode(text, { signal: stop.signal })).rejects.toThrow('enough');
  const pending = tokenizer.encode(text);
  await Promise.all([
    expect(pending).rejects.toMatchObject({ code: 'DISPOSED' }),
    new Promise((resolve) => setTimeout(resolve, 1)).then(() => tokenizer.dispose()),
  ]);
});

test('slices of a SentencePiece text have the tokens of the whole', async () => {
  const words = ['▁t', 'he', '▁the', 'o', 'x', '▁o', '▁▁'].map((text, i) => ({ text, score: -i }));
  // With a token across words nothing can be cut.
  const values = [words, [...words, { text: 'q▁q', score: -99 }]].map((each) => sentencePiece(each));
  const [sliced, whole] = await Promise.all(values.map(create));
  const random = randomNumbers(4);
  const text = Array.from({ length: 2000 }, () => `${randomText(random, 5)} the ox  `).join('');
  expect(await sliced?.encode(text)).toEqual(await whole?.encode(text));
  await Promise.all([sliced?.dispose(), whole?.dispose()]);
});

test('a long text that nobody wants any more is left', { timeout: 60_000 }, async () => {
  const tokenizer = await create(large);
  const word = 'the'.repeat(200_000);
  const timed = async (work: () => Promise<unknown>): Promise<number> => {
    const began = performance.now();
    await work();
    return performance.now() - began;
  };
  const whole = await timed(() => tokenizer.encode(word));
  const stop = new AbortController();
  const aborted = Promise.allSettled([1, 2, 3].map(() => tokenizer.encode(word, { signal: stop.signal })));
  await new Promise((resolve) => setTimeout(resolve, 20));
  stop.abort(new Error('enough'));
  await aborted;
  // All three took three times as long as one.
  expect(await timed(() => tokenizer.encode('the fox'))).toBeLessThan(whole / 2);
  await tokenizer.dispose();
});

test.each(['large', 'small'])(
  'a disposed tokeniser (%s) rejects calls under way and later ones',
  async (size) => {
    const tokenizer = await create(size === 'large' ? large : small);
    const pending = tokenizer.encode(LONG);
    const rejected = expect(pending).rejects.toMatchObject({ code: 'DISPOSED' });
    await tokenizer.dispose();
    await rejected;
    for (const text of ['a', LONG]) {
      await expect(tokenizer.encode(text)).rejects.toMatchObject({ code: 'DISPOSED' });
    }
    await tokenizer.dispose();
    expect(tokenizer.decode([0x41])).toBe('A');
  },
);

test('200 tokenisers come and go without a trace', { timeout: 120_000 }, async () => {
  const cycle = async (values: Values): Promise<void> => {
    const tokenizer = await create(values);
    await tokenizer.encode('the fox');
    await tokenizer.dispose();
  };
  for (let i = 0; i < 20; i++) await cycle(large);
  const threads = threadCount();
  const memory = process.memoryUsage().rss;
  for (let i = 0; i < 200; i++) await cycle(i % 2 === 0 ? large : small);
  if (threads === undefined) console.warn('not run: counting threads, which this system does not show');
  else expect(threadCount()).toBe(threads);
  expect(process.memoryUsage().rss - memory).toBeLessThan(32 * 2 ** 20);
});

const run = promisify(execFile);
const script = (body: string): string[] => [
  '--input-type=module',
  '-e',
  `import { createTokenizer } from './dist/tokenizer/index.js';
   import { GgufMetadata, StringArray } from './dist/gguf/index.js';
   const join = (texts) => new StringArray(new TextEncoder().encode(texts.join('')),
     Uint32Array.from([0, ...texts.map((text, i) => texts.slice(0, i + 1).join('').length)]));
   const tokens = Array.from({ length: 3000 }, (_, i) => String.fromCharCode(97 + i % 26) + i);
   const text = (value) => ({ kind: 'string', value: new TextEncoder().encode(value) });
   const metadata = new GgufMetadata('x', new Map([
     ['tokenizer.ggml.model', text('gpt2')], ['tokenizer.ggml.tokens', { kind: 'array[string]', value: join(tokens) }],
     ['tokenizer.ggml.merges', { kind: 'array[string]', value: join([]) }]]));
   const tokenizer = await createTokenizer(metadata);
   ${body}`,
];

test('an idle tokeniser does not keep the process alive, one at work does', { timeout: 60_000 }, async () => {
  const options = { cwd: ROOT, timeout: 30_000 };
  await expect(run(process.execPath, script("console.log('built')"), options)).resolves.toMatchObject({
    stdout: 'built\n',
    stderr: '',
  });
  const work = "console.log((await tokenizer.encode('a'.repeat(1e6))).length)";
  await expect(run(process.execPath, script(work), options)).resolves.toMatchObject({
    stdout: '0\n',
    stderr: '',
  });
});

test('answers that come while a tokeniser is disposed do not end the process', async () => {
  const late = `
    const calls = Array.from({ length: 3 }, () => tokenizer.encode('a b c '.repeat(200)).catch(({ code }) => code));
    for (const end = performance.now() + 200; performance.now() < end; );
    await tokenizer.dispose();
    console.log(...(await Promise.all(calls)));`;
  await expect(run(process.execPath, script(late), { cwd: ROOT, timeout: 30_000 })).resolves.toMatchObject({
    stdout: 'DISPOSED DISPOSED DISPOSED\n',
    stderr: '',
  });
});
