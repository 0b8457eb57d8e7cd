import { execFile } from 'node:child_process';
import { existsSync, openAsBlob } from 'node:fs';
import { mkdir, readdir, readFile, readlink, symlink, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { FrugalError, type LoadEvent, load as loadHere, type Model } from '../../ts/index.js';
import { load } from '../../ts/worker/node.js';
import { digestOf, tokens } from '../contract/golden.js';
import { VOCABULARY } from '../contract/random-model.js';
import { memorySource, withFolder } from '../gguf/sources.js';
import { tinyLlama, tinyLlamaSpec } from '../gguf/tiny-llama.js';
import { writeSplit } from '../gguf/writer.js';

const template =
  '{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}';
const TINY = tinyLlama({
  metadata: [{ key: 'tokenizer.chat_template', kind: 'string', value: template }],
}).bytes;
const STORIES = resolve(import.meta.dirname, '../../models/stories-moe-q8_0.gguf');
const IDS = tokens(1, 60, VOCABULARY);

let there: Model;
let here: Model;
beforeAll(async () => {
  const source = new Blob([TINY]);
  [there, here] = await Promise.all([load(source, { threads: 2 }), loadHere(source, { threads: 2 })]);
});
afterAll(async () => {
  await Promise.all([there.dispose(), here.dispose()]);
});

const both = async (use: (model: Model) => Promise<unknown>) => {
  const outcome = (model: Model) =>
    use(model).catch((error: unknown) =>
      error instanceof FrugalError
        ? { code: error.code, message: error.message, cure: error.cure, data: error.data }
        : Promise.reject(error),
    );
  const expected = await outcome(here);
  expect(await outcome(there)).toEqual(expected);
  return expected;
};

describe('a model in a worker gives what one without gives', () => {
  it('facts', () => {
    expect(there.info).toEqual(here.info);
  });

  it('pieces of text, and what they came to', async () => {
    await both(async (model) => {
      const generation = model.generate(IDS, { seed: 5, maxTokens: 20, ignoreEnd: true });
      const pieces: string[] = [];
      for await (const piece of generation) pieces.push(piece);
      const { usage, ...rest } = await generation.result;
      expect(usage.decodeMs).toBeGreaterThan(0);
      return { pieces, ...rest, promptTokens: usage.promptTokens };
    });
  });

  it('text beyond its context, in a window', async () => {
    await both(async (model) => {
      const options = { seed: 5, maxTokens: 60, ignoreEnd: true, context: { window: 24 } };
      const { tokens, text, finishReason, usage } = await model.complete(IDS, options);
      expect(usage.context?.switches).toBeGreaterThan(3);
      return { tokens, text, finishReason, context: usage.context };
    });
    await both((model) => model.complete(IDS, { context: { window: 1e6 } }));
  });

  it('completions, embeddings, tokens and text', async () => {
    const text = 'the end of it all';
    await both(async (model) => (await model.complete(text, { temperature: 0, maxTokens: 9 })).text);
    await both((model) => model.embed(text, { pooling: 'last' }));
    await both((model) => model.embed([text, 'once'], { normalize: false }));
    await both((model) => model.tokenize(text, { addSpecial: false }));
    await both(async (model) => model.detokenize(await model.tokenize(text)));
    await both(async (model) => model.detokenize(IDS, { special: true }));
  });

  it('logits, by score and in a session', async () => {
    await both((model) => digestOf(model, IDS));
    await both(async (model) => {
      await using session = model.session();
      const rows: Float32Array[] = [];
      for await (const row of session.logits(IDS.slice(0, 9))) rows.push(row);
      expect(session.length).toBe(9);
      for await (const row of session.logits(IDS.slice(9, 12), { rows: 'last' })) rows.push(row);
      expect(session.length).toBe(12);
      return rows;
    });
  });

  it('conversations, their history and what is kept of an answer left early', async () => {
    const conversation = await both(async (model) => {
      await using chat = model.chat({ system: 'a', seed: 3, maxTokens: 12, ignoreEnd: true });
      const answers: string[] = [];
      for await (const piece of chat.send('one')) answers.push(piece);
      for await (const piece of chat.send('two')) {
        answers.push(piece);
        break;
      }
      const last = chat.send('three', { maxTokens: 3 });
      for await (const piece of last) answers.push(piece);
      const { cachedTokens } = (await last.result).usage;
      return { answers, cachedTokens, history: chat.history };
    });
    expect(conversation).toMatchObject({ history: { length: 7 } });
  });

  it('answers to proxies, as reactive frameworks make them', async () => {
    const reactive = <T extends object>(value: T) => new Proxy(value, {});
    await both(async (model) => {
      const messages = reactive([reactive({ role: 'user', content: 'one' })]);
      await using chat = model.chat({
        messages,
        stop: reactive(['zz']),
        seed: 3,
        maxTokens: 5,
        ignoreEnd: true,
      });
      for await (const _ of chat.send('two', { logitBias: reactive({ 3: 1 }) }));
      expect(chat.history).toHaveLength(3);
      return chat.history;
    });
    await both(async (model) => (await model.complete(reactive([...IDS]), { seed: 5, maxTokens: 5 })).text);
  });

  it('options that are inherited', async () => {
    const options = { maxTokens: 4, seed: 3, logitBias: Object.create({ 3: 2 }) };
    await both(async (model) => (await model.complete('a', Object.create(options))).text);
  });

  it('a generation that is left before it began', async () => {
    await both(async (model) => {
      const generation = model.generate('a');
      await generation.return();
      return (await generation.result).finishReason;
    });
  });
});

describe('a Q8_0 cache in a worker', () => {
  it('gives the logits of one without', async () => {
    const options = { threads: 1, kvCache: 'q8_0' } as const;
    await using small = await load(new Blob([TINY]), options);
    await using same = await loadHere(new Blob([TINY]), options);
    expect(small.info.kvCache).toBe('q8_0');
    const digest = await digestOf(small, IDS);
    expect(digest).toBe(await digestOf(same, IDS));
    expect(digest).not.toBe(await digestOf(there, IDS));
  });

  it('is refused under another name', async () => {
    const loading = load(new Blob([TINY]), { kvCache: 'q8' as never });
    await expect(loading).rejects.toMatchObject({ code: 'INVALID_ARGUMENT', data: { field: 'kvCache' } });
  });
});

describe('errors of a worker are those of the model', () => {
  const wrong: Readonly<Record<string, (model: Model) => Promise<unknown>>> = {
    'an unknown option': (model) => model.complete('a', { maxToken: 3 } as never),
    'a value out of range': (model) => model.complete('a', { temperature: -1 }),
    'a prompt that is none': (model) => model.complete({ length: 0 } as never),
    'a prompt too long': (model) => model.complete(new Array(model.info.contextLength + 1).fill(3)),
    'a token that is none': async (model) => model.detokenize([VOCABULARY]),
    'a function to read': async (model) => model.detokenize((() => 1) as never),
    'a list as options': (model) => model.complete('a', [] as never),
    'a Map as options of an answer': async (model) => {
      for await (const _ of model.chat().send('one', new Map() as never));
    },
    'an unknown option that is inherited': (model) => model.embed('a', Object.create({ pool: 'last' })),
    'no tokens to read': async (model) => model.detokenize(undefined as never),
    'no tokens to score': (model) => digestOf(model, null as never),
    'a wrong token to score': (model) => digestOf(model, [VOCABULARY]),
    'an embedding of nothing': (model) => model.embed(3 as never),
    'a signal that is none': (model) => model.tokenize('a', { signal: 3 as never }),
    'a wrong default of a chat': async (model) => model.chat({ topP: 3 }),
    'a message that is none': async (model) => {
      for await (const _ of model.chat().send(7 as never));
    },
  };
  it.each(Object.entries(wrong))('%s', async (_, call) => {
    expect(await both(call)).toMatchObject({ code: expect.any(String) });
  });

  it('data that cannot be sent', async () => {
    const error = await there.complete('a', { logitBias: { 1: (() => 1) as never } }).catch((e) => e);
    expect(error).toMatchObject({ code: 'INVALID_ARGUMENT', data: { field: 'logitBias' } });
  });

  it('data of a chat that cannot be sent, from its answers', async () => {
    const message = { role: 'user', content: 'one', edit: () => {} };
    await using chat = there.chat({ messages: [message] });
    const refusal = { code: 'INVALID_ARGUMENT', message: expect.stringContaining('worker') };
    for (const text of ['two', 'three']) await expect(chat.send(text).next()).rejects.toMatchObject(refusal);
  });

  it('options of a load that are none', async () => {
    const loadings = [load, loadHere].map(
      (open) => (options: unknown) =>
        open(new Blob([TINY]), options as never).catch(({ code, message, cure }) => ({
          code,
          message,
          cure,
        })),
    );
    for (const options of [null, 'x', [1]]) {
      const [got, expected] = await Promise.all(loadings.map((refusal) => refusal(options)));
      expect(got).toEqual(expected);
      expect(got).toMatchObject({ code: 'INVALID_ARGUMENT' });
    }
  });

  it('a file that is refused', async () => {
    const refusal = (loading: Promise<Model>) =>
      loading.catch(({ code, message, cure }) => ({ code, message, cure }));
    for (const source of [new Blob([TINY.slice(0, 3000)]), 'none.gguf', 'ftp://host/x.gguf']) {
      expect(await refusal(load(source))).toEqual(await refusal(loadHere(source)));
    }
    expect(await refusal(load(new Blob([TINY]), { thread: 2 } as never))).toMatchObject({
      code: 'INVALID_ARGUMENT',
    });
  });
});

describe('loading in a worker', () => {
  const same = async (loading: Promise<Model>) => {
    await using model = await loading;
    expect(await digestOf(model, IDS)).toBe(await digestOf(here, IDS));
  };

  it('from a path, a file URL and sources of one’s own', () =>
    withFolder(async (folder) => {
      const path = join(folder, 'model.gguf');
      await writeFile(path, TINY);
      await same(load(path));
      await same(load(new URL(`file://${path}`)));
      const source = memorySource(TINY);
      await same(load(source));
      expect(source.counts.closed).toBe(1);
    }));

  it('from the parts of a source of one’s own', async () => {
    const parts = [...writeSplit('model', tinyLlamaSpec(), [10])].map(([name, bytes]) =>
      memorySource(bytes, name),
    );
    const [first, second] = parts;
    if (first === undefined || second === undefined) throw new Error('no parts');
    await using model = await load({ ...first, sibling: async () => second });
    expect(model.info.vocabSize).toBe(VOCABULARY);
    expect(parts.map(({ counts }) => counts.closed)).toEqual([1, 1]);
  });

  it('from the Files of a split model, in any order, and not from others', async () => {
    const parts = [...writeSplit('model', tinyLlamaSpec(), [10])].map(
      ([name, bytes]) => new File([Uint8Array.from(bytes)], name),
    );
    for (const open of [load, loadHere]) {
      await using model = await open(parts.toReversed());
      expect(model.info.vocabSize).toBe(VOCABULARY);
      const refusals = [
        [parts.slice(1), 'SOURCE_READ', 'the first part'],
        [parts.slice(0, 1), 'GGUF_SPLIT', 'model-00002-of-00002.gguf'],
        [[...parts, new File([], 'other.gguf')], 'SOURCE_READ', 'other.gguf'],
        [[], 'INVALID_ARGUMENT', 'source'],
      ] as const;
      for (const [files, code, message] of refusals)
        await expect(open(files)).rejects.toMatchObject({ code, message: expect.stringContaining(message) });
    }
  });

  it('names a source of one’s own that does not give the bytes asked for', async () => {
    const source = { ...memorySource(TINY, 'own.gguf'), read: async () => undefined as never };
    const error = { code: 'SOURCE_READ', message: expect.stringContaining('own.gguf: read gave undefined') };
    await expect(load(source)).rejects.toMatchObject(error);
  });

  it('ends with the very error that a source of one’s own throws', async () => {
    const reason = new RangeError('no such bytes');
    const source = { ...memorySource(TINY), read: () => Promise.reject(reason) };
    await expect(load(source)).rejects.toBe(reason);
  });

  it('tells its progress before it is done, in order', async () => {
    const seen: LoadEvent[] = [];
    await (await load(new Blob([TINY]), { onProgress: (event) => seen.push(event) })).dispose();
    expect([...new Set(seen.map(({ phase }) => phase))]).toEqual(['header', 'tokenizer', 'weights']);
    expect(seen.at(-1)).toMatchObject({ loaded: seen.at(-1)?.total });
  });

  it('ends with what its listener throws, and with the reason of its signal', async () => {
    const onProgress = () => {
      throw new Error('no more');
    };
    await expect(load(new Blob([TINY]), { onProgress })).rejects.toThrow('no more');
    const signal = AbortSignal.abort(new Error('never'));
    await expect(load(new Blob([TINY]), { signal })).rejects.toBe(signal.reason);
    const stop = new AbortController();
    const slow = { ...memorySource(TINY), read: () => new Promise<never>(() => {}) };
    setTimeout(() => stop.abort(new Error('enough')), 20);
    await expect(load(slow, { signal: stop.signal })).rejects.toThrow('enough');
  });
});

it('an abort ends a generation within a token, with the reason of the signal', async () => {
  const stop = new AbortController();
  const reason = new Error('stopped');
  const generation = there.generate(IDS, { signal: stop.signal, ignoreEnd: true, seed: 1 });
  await generation.next();
  const pending = generation.next();
  stop.abort(reason);
  let more = 0;
  const end = (async () => {
    for (let taken = await pending; !taken.done; taken = await generation.next()) more += 1;
  })();
  await expect(end).rejects.toBe(reason);
  await expect(generation.result).rejects.toBe(reason);
  expect(more).toBeLessThanOrEqual(1);
  await expect(there.embed('a', { signal: stop.signal })).rejects.toBe(reason);
  await both(async (model) => (await model.complete(IDS, { seed: 2, maxTokens: 3 })).text);
});

it('any value may be the reason of an abort', async () => {
  const stop = new AbortController();
  const pending = there.complete(IDS, { signal: stop.signal, ignoreEnd: true });
  stop.abort(null);
  await expect(pending).rejects.toBe(null);
});

it.runIf(existsSync('/proc/self/fd'))('aborted loads leave no file open', { timeout: 60_000 }, async () => {
  const scripts = async () => {
    const fds = await readdir('/proc/self/fd');
    const links = await Promise.all(fds.map((fd) => readlink(`/proc/self/fd/${fd}`).catch(() => '')));
    return links.filter((link) => link.endsWith('.js')).length;
  };
  const before = await scripts();
  for (let i = 0; i < 24; i++) {
    const signal = AbortSignal.timeout((i * 7) % 150);
    await load(STORIES, { threads: 1, signal }).then(
      (model) => model.dispose(),
      () => undefined,
    );
  }
  expect(await scripts()).toBe(before);
});

it('an abort right after a call, before the thread has heard of that, is heard as well', async () => {
  const reason = new Error('at once');
  const calls: Readonly<Record<string, (signal: AbortSignal) => Promise<unknown>>> = {
    complete: (signal) => there.complete(IDS, { signal, ignoreEnd: true, maxTokens: 30 }),
    score: (signal) => there.score(IDS, { signal }).next(),
    logits: (signal) => there.session().logits(IDS, { signal }).next(),
    send: (signal) => there.chat().send('one', { signal }).next(),
    embed: (signal) => there.embed('a', { signal }),
  };
  for (const [name, call] of Object.entries(calls)) {
    const stop = new AbortController();
    const called = call(stop.signal);
    stop.abort(reason);
    await expect(called, name).rejects.toBe(reason);
  }
});

it('an aborted answer leaves the conversation usable, with what it had', async () => {
  await both(async (model) => {
    const stop = new AbortController();
    await using chat = model.chat({ seed: 3, maxTokens: 30, ignoreEnd: true });
    const answer = chat.send('one', { signal: stop.signal });
    let text = '';
    for (let i = 0; i < 3; i++) text += (await answer.next()).value;
    stop.abort(new Error('enough'));
    await expect(answer.next()).rejects.toThrow('enough');
    expect(chat.history.at(-1)).toEqual({ role: 'assistant', content: text });
    for await (const piece of chat.send('two')) text += piece;
    return text;
  });
});

describe('disposing', () => {
  it('ends all calls with DISPOSED, and those after it', async () => {
    const model = await load(new Blob([TINY]), { threads: 2 });
    const chat = model.chat();
    const generation = model.generate(IDS, { ignoreEnd: true });
    await generation.next();
    const running = [model.complete(IDS, { ignoreEnd: true }), model.score(IDS).next()];
    const ended = Promise.allSettled(running);
    await model.dispose();
    await model.dispose();
    for (const outcome of await ended) expect(outcome).toMatchObject({ reason: { code: 'DISPOSED' } });
    const after = [generation.next(), model.embed('a'), chat.send('x').next()];
    for (const call of after) await expect(call).rejects.toMatchObject({ code: 'DISPOSED' });
    expect(() => model.detokenize([1])).toThrow('disposed');
    expect(() => model.chat()).toThrow('disposed');
    await chat.dispose();
  });
});

it('has what the package has in browsers, errors above all', async () => {
  const [inNode, inBrowsers] = await Promise.all([
    import('../../ts/worker/node.js'),
    import('../../ts/browser.js'),
  ]);
  expect(Object.keys(inNode)).toEqual(expect.arrayContaining(Object.keys(inBrowsers)));
  expect(inNode.FrugalError).toBe(FrugalError);
});

it('takes paths in Deno, too', () =>
  withFolder(async (folder) => {
    const root = resolve(import.meta.dirname, '../..');
    const program = `
      import { isFrugalError, load, openFile } from 'frugal/worker';
      const lengths = [];
      for (const source of ['tiny.gguf', new URL('tiny.gguf', import.meta.url), await openFile('tiny.gguf')]) {
        const model = await load(source);
        lengths.push((await model.complete([1, 2], { maxTokens: 3, ignoreEnd: true })).tokens.length);
        await model.dispose();
      }
      console.log(lengths.join(), isFrugalError(await load('none.gguf').catch((error) => error)));`;
    await mkdir(join(folder, 'node_modules'));
    await symlink(root, join(folder, 'node_modules/frugal'));
    await writeFile(join(folder, 'package.json'), '{ "type": "module" }');
    await writeFile(join(folder, 'tiny.gguf'), TINY);
    await writeFile(join(folder, 'main.js'), program);
    const flags = ['run', '--allow-read', '--node-modules-dir=manual', 'main.js'];
    const deno = join(root, 'node_modules/.bin/deno');
    const { stdout } = await promisify(execFile)(deno, flags, { cwd: folder, timeout: 60_000 });
    expect(stdout).toBe('3,3,3 true\n');
  }));

it('a generation ends with the very error that the source of its experts throws, and the next goes on', async () => {
  const memory = memorySource(new Uint8Array(await readFile(STORIES)));
  const reason = new RangeError('the disk is gone');
  let gone = false;
  const read: typeof memory.read = (...range) => (gone ? Promise.reject(reason) : memory.read(...range));
  await using model = await load({ ...memory, read }, { expertMemory: 2e6 });
  const options = { maxTokens: 5, ignoreEnd: true, temperature: 0 };
  const { text } = await model.complete('Once', options);
  gone = true;
  await expect(model.complete('Twice upon', options)).rejects.toBe(reason);
  gone = false;
  expect((await model.complete('Once', options)).text).toBe(text);
});

it('a source of one’s own that experts are read from keeps the process alive no longer than calls do', async () => {
  const program = `
    import { openAsBlob } from 'node:fs';
    import { blobSource } from 'frugal';
    import { load } from 'frugal/worker';
    const blob = blobSource(await openAsBlob(process.argv[1]));
    const source = { name: 'own', size: blob.size, read: (...range) => blob.read(...range), close: async () => {} };
    const model = await load(source, { expertMemory: 2e6 });
    const { tokens } = await model.complete('Once', { maxTokens: 5, ignoreEnd: true });
    console.log(tokens.length);`;
  const flags = ['--input-type=module', '--eval', program, STORIES];
  const cwd = resolve(import.meta.dirname, '../..');
  const { stdout } = await promisify(execFile)(process.execPath, flags, { cwd, timeout: 60_000 });
  expect(stdout).toBe('5\n');
});

it('takes sources that cannot be copied to a thread: Buffers that their owner keeps, and Blobs of files', async () => {
  const kept = Buffer.from(await readFile(STORIES));
  const before = Buffer.from(kept);
  const own = {
    name: 'own',
    size: kept.length,
    read: async (offset: number, length: number) => kept.subarray(offset, offset + length),
    close: async () => {},
  };
  const blob = await openAsBlob(STORIES);
  const texts: string[] = [];
  for (const source of [STORIES, own, blob]) {
    await using model = await load(source, { expertMemory: 2e6 });
    texts.push((await model.complete('Once', { maxTokens: 5, ignoreEnd: true, temperature: 0 })).text);
  }
  expect(new Set(texts).size).toBe(1);
  expect(kept.equals(before)).toBe(true);
});

it('says how many threads compute once that has been measured', async () => {
  await using model = await load(STORIES);
  const { prefill, reason } = model.info.threads;
  const { usage } = await model.complete('Once', { maxTokens: 40, ignoreEnd: true, seed: 1 });
  const { threads } = model.info;
  expect(threads.decode).toBe(usage.threads);
  expect(threads.prefill).toBe(prefill);
  if (prefill > 1) {
    expect(reason).toBe('all, until the first tokens are measured');
    expect(threads.reason).toMatch(/^fewest within 3% of the fastest of .* tokens\/s$/);
  }
});

it('the calling thread is free while the worker generates', async () => {
  expect(existsSync(STORIES)).toBe(true);
  await using model = await load(STORIES);
  let longest = 0;
  let last = performance.now();
  const timer = setInterval(() => {
    const now = performance.now();
    longest = Math.max(longest, now - last);
    last = now;
  }, 1);
  const { usage } = await model.complete('Once upon a time', { maxTokens: 60, ignoreEnd: true, seed: 1 });
  clearInterval(timer);
  console.log(
    `longest delay of a 1 ms timer over ${usage.completionTokens} tokens: ${longest.toFixed(1)} ms`,
  );
  expect(usage.completionTokens).toBe(60);
});
