import { describe, expect, it } from 'vitest';
import { FrugalError } from '../../ts/errors.js';
import { answering, BOS, collect, createFakeModel, END_OF_TURN, EOS } from './fake.js';

const code = (expected: string) => expect.objectContaining({ code: expected });

describe('generate', () => {
  it('yields pieces of text and gives the whole as its result', async () => {
    const { model, backend } = createFakeModel({ next: answering(3, 'hello') });
    const generation = model.generate('hi');
    expect(await collect(generation)).toEqual(['h', 'e', 'l', 'l', 'o']);
    const result = await generation.result;
    expect(result).toMatchObject({ text: 'hello', finishReason: 'stop' });
    expect([...result.tokens]).toEqual([...new TextEncoder().encode('hello')]);
    expect(result.usage).toMatchObject({
      promptTokens: 3,
      completionTokens: 5,
      cachedTokens: 0,
      kvBytes: 80,
    });
    expect(backend.sequences.size).toBe(0);
  });

  it('never yields half a character', async () => {
    const { model } = createFakeModel({ next: answering(2, 'aé漢😀') });
    expect(await collect(model.generate('x'))).toEqual(['a', 'é', '漢', '😀']);
  });

  it('ends an unfinished character as U+FFFD', async () => {
    const { model } = createFakeModel({ next: answering(2, '漢') });
    const completion = await model.complete('x', { maxTokens: 2 });
    expect(completion).toMatchObject({ text: '\ufffd', finishReason: 'length' });
  });

  it.each([
    { options: { maxTokens: 4 }, text: 'defg', finishReason: 'length', tokens: 4 },
    { options: { maxTokens: 0 }, text: '', finishReason: 'length', tokens: 0 },
    { options: { stop: 'gh' }, text: 'def', finishReason: 'stop-string', tokens: 5 },
    { options: { stop: ['zz', 'f'] }, text: 'de', finishReason: 'stop-string', tokens: 3 },
    { options: { stop: ['gx'], maxTokens: 4 }, text: 'defg', finishReason: 'length', tokens: 4 },
  ])('ends with $finishReason for $options', async ({ options, text, finishReason, tokens }) => {
    const { model, backend } = createFakeModel();
    const completion = await model.complete('hi', options);
    expect(completion).toMatchObject({ text, finishReason });
    expect(completion.usage.completionTokens).toBe(tokens);
    expect(backend.sequences.size).toBe(0);
  });

  it('takes what a class and a prototype give its options', async () => {
    class Options {
      get maxTokens() {
        return 4;
      }
      describe() {
        return 'four tokens';
      }
    }
    const { model } = createFakeModel();
    expect((await model.complete('hi', new Options())).text).toBe('defg');
    expect((await model.complete('hi', Object.create({ maxTokens: 2 }))).text).toBe('de');
  });

  it('names the stop string that was found', async () => {
    const { model } = createFakeModel();
    expect((await model.complete('hi', { stop: ['x', 'ef'] })).stopString).toBe('ef');
  });

  it('ends with context when the context is full, having filled it', async () => {
    const { model, backend } = createFakeModel({ contextLength: 8 });
    const completion = await model.complete('hi');
    expect(completion).toMatchObject({ text: 'defghi', finishReason: 'context' });
    expect(backend.steps.flat().reduce((sum, entry) => sum + entry.tokens.length, 0)).toBe(8);
  });

  it('takes a prompt that fills the context, and one token after it', async () => {
    const { model } = createFakeModel({ contextLength: 3 });
    expect(await model.complete('hi')).toMatchObject({ text: 'd', finishReason: 'context' });
  });

  it('refuses a longer prompt before any work', async () => {
    const { model, backend } = createFakeModel({ contextLength: 3 });
    await expect(model.complete('long')).rejects.toMatchObject({
      code: 'CONTEXT_OVERFLOW',
      data: { tokens: 5, contextLength: 3 },
    });
    expect(backend.steps).toEqual([]);
  });

  it('takes token ids as they are', async () => {
    const { model, backend } = createFakeModel();
    const prompt = [BOS, 104, 105];
    const fromIds = await model.complete(prompt, { maxTokens: 3, seed: 1 });
    const fromText = await model.complete('hi', { maxTokens: 3, seed: 1 });
    expect(fromIds.text).toBe(fromText.text);
    expect([...(backend.steps[0]?.[0]?.tokens ?? [])]).toEqual(prompt);
  });

  it('goes on after end tokens when told to', async () => {
    const { model } = createFakeModel({ next: (tokens) => (tokens.length === 3 ? EOS : 97) });
    expect(await model.complete('hi')).toMatchObject({ text: '', finishReason: 'stop' });
    const completion = await model.complete('hi', { ignoreEnd: true, maxTokens: 3 });
    expect([...completion.tokens]).toEqual([EOS, 97, 97]);
  });

  it('stops at every end token of the model', async () => {
    const { model } = createFakeModel({ next: answering(3, 'ok', END_OF_TURN) });
    expect(await model.complete('hi')).toMatchObject({ text: 'ok', finishReason: 'stop' });
  });

  it('feeds long prompts in chunks and asks for a token after the last', async () => {
    const { model, backend } = createFakeModel({ limits: { chunk: 7 } });
    await model.complete('0123456789012345678', { maxTokens: 1 });
    expect(backend.steps.map(([entry]) => [entry?.tokens.length, entry?.output])).toEqual([
      [7, 'none'],
      [7, 'none'],
      [6, 'sample'],
    ]);
  });

  it('reports the seed that it drew, and draws another each time', async () => {
    const { model, backend } = createFakeModel();
    const seen = await Promise.all([1, 2, 3].map(() => model.complete('hi', { maxTokens: 1 })));
    expect(new Set(seen.map(({ seed }) => seed)).size).toBe(3);
    const used: unknown[] = [];
    const { createSequence } = backend;
    backend.createSequence = (sampler) => {
      used.push(sampler?.seed);
      return createSequence(sampler);
    };
    const again = await model.complete('hi', { maxTokens: 1, seed: seen[0]?.seed ?? 0 });
    expect(used).toEqual([BigInt(seen[0]?.seed ?? -1)]);
    expect(again.seed).toBe(seen[0]?.seed);
  });

  it('does nothing before the first pull', async () => {
    const { model, backend } = createFakeModel();
    const generation = model.generate('hi');
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(backend.steps).toEqual([]);
    await generation.return();
    expect((await generation.result).finishReason).toBe('cancelled');
  });
});

describe('ending early', () => {
  it('frees the sequence on break, and tells what there was', async () => {
    const { model, backend } = createFakeModel();
    const generation = model.generate('hi');
    for await (const piece of generation) if (piece === 'f') break;
    expect(backend.sequences.size).toBe(0);
    expect(await generation.result).toMatchObject({ text: 'def', finishReason: 'cancelled' });
    expect(backend.steps).toHaveLength(3);
  });

  it('frees the sequence with await using', async () => {
    const { model, backend } = createFakeModel();
    {
      await using generation = model.generate('hi');
      await generation.next();
      expect(backend.sequences.size).toBe(1);
    }
    expect(backend.sequences.size).toBe(0);
  });

  it('does nothing when aborted before it begins', async () => {
    const { model, backend } = createFakeModel();
    const reason = new Error('no more');
    await expect(model.complete('hi', { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
    expect(backend.steps).toEqual([]);
  });

  it('frees the sequence at once when aborted in a step', async () => {
    const reason = new Error('enough');
    const controller = new AbortController();
    let sizeAfterAbort: number | undefined;
    const { model, backend } = createFakeModel({
      beforeStep() {
        if (backend.steps.length !== 3) return;
        controller.abort(reason);
        sizeAfterAbort = backend.sequences.size;
      },
    });
    const generation = model.generate('hi', { signal: controller.signal });
    await expect(collect(generation)).rejects.toBe(reason);
    expect(sizeAfterAbort).toBe(0);
    await expect(generation.result).rejects.toBe(reason);
  });

  it('frees the sequence at once when aborted while the consumer is busy', async () => {
    const { model, backend } = createFakeModel();
    const controller = new AbortController();
    const generation = model.generate('hi', { signal: controller.signal });
    await generation.next();
    expect(backend.sequences.size).toBe(1);
    controller.abort();
    expect(backend.sequences.size).toBe(0);
    await expect(generation.next()).rejects.toMatchObject({ name: 'AbortError' });
  });

  it.each(['an abort', 'dispose'])('%s under the last piece counts, as before', async (how) => {
    const { model } = createFakeModel({ next: answering(3, 'hello') });
    const controller = new AbortController();
    const generation = model.generate('hi', { signal: controller.signal, maxTokens: 5 });
    for (let i = 0; i < 5; i++) await generation.next();
    if (how === 'dispose') await model.dispose();
    else controller.abort();
    const ended = how === 'dispose' ? code('DISPOSED') : { name: 'AbortError' };
    await expect(generation.next()).rejects.toMatchObject(ended);
    await expect(generation.result).rejects.toMatchObject(ended);
  });

  it('lets any number of calls share a signal without a warning', async () => {
    const warnings: Error[] = [];
    const take = (warning: Error) => warnings.push(warning);
    process.on('warning', take);
    const { model } = createFakeModel();
    const controller = new AbortController();
    const { signal } = controller;
    const reason = new Error('all of them');
    const calls = Array.from({ length: 20 }, () => model.complete('hi', { signal }));
    const embeddings = model.embed(new Array(20).fill('some text'), { signal });
    const ends = Promise.allSettled([...calls, embeddings]);
    await new Promise(setImmediate);
    controller.abort(reason);
    for (const end of await ends) expect(end).toEqual({ status: 'rejected', reason });
    await new Promise(setImmediate);
    process.off('warning', take);
    expect(warnings).toEqual([]);
  });

  it('leaves no listener on the signal, however it ends', async () => {
    const { model } = createFakeModel();
    const { signal } = new AbortController();
    let listeners = 0;
    const { addEventListener, removeEventListener } = signal;
    signal.addEventListener = (...args: Parameters<AbortSignal['addEventListener']>) => {
      listeners += 1;
      addEventListener.apply(signal, args);
    };
    signal.removeEventListener = (...args: Parameters<AbortSignal['removeEventListener']>) => {
      listeners -= 1;
      removeEventListener.apply(signal, args);
    };
    await model.complete('hi', { signal, maxTokens: 5 });
    for await (const _ of model.generate('hi', { signal })) break;
    await model.embed(['a', 'b'], { signal });
    await collect(model.score([1, 2, 3], { signal }));
    expect(listeners).toBe(0);
  });

  it('passes on what the backend throws and frees the sequence', async () => {
    const failure = new FrugalError('NON_FINITE', 'a NaN', { cure: 'none' });
    const { model, backend } = createFakeModel({
      beforeStep() {
        if (backend.steps.length >= 2) throw failure;
      },
    });
    await expect(model.complete('hi')).rejects.toBe(failure);
    expect(backend.sequences.size).toBe(0);
  });
});

describe('dispose', () => {
  it('ends generations in flight with DISPOSED', async () => {
    const { model, backend } = createFakeModel();
    const running = [model.complete('one'), model.complete('two')];
    const paused = model.generate('three');
    await paused.next();
    await model.dispose();
    for (const completion of running) await expect(completion).rejects.toEqual(code('DISPOSED'));
    await expect(paused.next()).rejects.toEqual(code('DISPOSED'));
    expect(backend.disposed).toBe(true);
    expect(backend.sequences.size).toBe(0);
  });

  it('is idempotent and makes every call throw DISPOSED', async () => {
    const { model } = createFakeModel({ chatTemplate: 'x' });
    const chat = model.chat();
    const session = model.session();
    await Promise.all([model.dispose(), model.dispose(), model[Symbol.asyncDispose]()]);
    const calls: Array<() => unknown> = [
      () => model.complete('x'),
      () => model.chat(),
      () => model.session(),
      () => model.embed('x'),
      () => model.embed([]),
      () => model.tokenize('x'),
      () => model.detokenize([1]),
      () => collect(model.score([1])),
      () => collect(chat.send('x')),
      () => collect(session.logits([1])),
    ];
    for (const call of calls) await expect((async () => call())()).rejects.toEqual(code('DISPOSED'));
    await Promise.all([chat.dispose(), session.dispose()]);
  });
});

describe('wrong options', () => {
  it.each([
    [{ temperature: -1 }, 'temperature must be a number from 0 to 100, got -1'],
    [{ temperature: Number.NaN }, 'temperature must be a number from 0 to 100, got NaN'],
    [{ temperature: '1' }, 'temperature must be a number from 0 to 100, got "1"'],
    [{ topK: 1.5 }, 'topK must be an integer from 0 to 2147483647, got 1.5'],
    [{ topP: 0 }, 'topP must be a number above 0 and at most 1, got 0'],
    [{ topP: 1.1 }, 'topP must be a number above 0 and at most 1, got 1.1'],
    [{ minP: 1 }, 'minP must be a number of at least 0 and below 1, got 1'],
    [{ repetitionPenalty: 0 }, 'repetitionPenalty must be a number from 0.01 to 100, got 0'],
    [{ repetitionPenalty: 1e-46 }, 'repetitionPenalty must be a number from 0.01 to 100, got 1e-46'],
    [{ frequencyPenalty: 101 }, 'frequencyPenalty must be a number from -100 to 100, got 101'],
    [{ presencePenalty: null }, 'presencePenalty must be a number from -100 to 100, got null'],
    [{ penaltyWindow: -2 }, 'penaltyWindow must be an integer from -1 to 2147483647, got -2'],
    [{ seed: -1 }, 'seed must be an integer from 0 to 2^53 - 1, or a bigint from 0 to 2^64 - 1, got -1'],
    [{ seed: 1n << 64n }, 'seed must be'],
    [{ logitBias: { 260: 1 } }, 'A token of logitBias must be an integer from 0 to 259, got "260"'],
    [{ logitBias: { '': 1 } }, 'A token of logitBias must be an integer from 0 to 259, got ""'],
    [{ logitBias: { 1: Number.POSITIVE_INFINITY } }, 'logitBias[1] must be'],
    [
      { logitBias: new Map([[1, 2]]) },
      'logitBias must be an object from token ids to numbers, got a Map object',
    ],
    [{ logitBias: [1] }, 'logitBias must be an object from token ids to numbers, got an array of 1'],
    [{ maxTokens: -1 }, 'maxTokens must be an integer of at least 0, got -1'],
    [{ maxTokens: Number.POSITIVE_INFINITY }, 'maxTokens must be an integer of at least 0, got Infinity'],
    [{ stop: '' }, 'stop must be a non-empty string or a list of them, got ""'],
    [{ stop: new Array(1) }, 'stop must be a non-empty string or a list of them, got undefined'],
    [{ stop: ['a', 3] }, 'stop must be a non-empty string or a list of them, got 3'],
    [{ signal: {} }, 'signal must be an AbortSignal, got a Object object'],
    [{ addSpecial: 1 }, 'addSpecial must be true or false, got 1'],
    [{ max_tokens: 3 }, 'generate has no option "max_tokens"'],
    [null, 'The options of generate must be an object, got null'],
    [new Map([['topK', 1]]), 'The options of generate must be an object, got a Map object'],
    [{ context: [] }, 'context must be an object'],
    [Object.create({ topk: 3 }), 'generate has no option "topk"'],
    [
      new (class {
        get maxToken() {
          return 3;
        }
      })(),
      'generate has no option "maxToken"',
    ],
    [new Date(), 'The options of generate must be an object, got a Date object'],
    [AbortSignal.timeout(1e6), 'The options of generate must be an object, got a AbortSignal object'],
  ])('%o: %s', async (options, message) => {
    const { model, backend } = createFakeModel();
    const failure = await model.complete('x', options as object).catch((error: unknown) => error);
    expect(failure).toMatchObject({ code: 'INVALID_ARGUMENT', message: expect.stringContaining(message) });
    expect(backend.steps).toEqual([]);
  });

  it('and the cure of options that are none reads as a sentence', async () => {
    const { model } = createFakeModel();
    const cure = 'Pass an object as the options of generate, or leave them out.';
    await expect(model.complete('x', [] as object)).rejects.toMatchObject({ cure });
  });

  it.each([
    [undefined, 'prompt must be a string or an array of token ids, got undefined'],
    [[], 'prompt holds no tokens'],
    [[1, -1], 'prompt[1] must be an integer from 0 to 259, got -1'],
    [[1.5], 'prompt[0] must be an integer from 0 to 259, got 1.5'],
    [Uint32Array.of(260), 'prompt[0] must be an integer from 0 to 259, got 260'],
  ])('the prompt %o: %s', async (prompt, message) => {
    const { model } = createFakeModel();
    await expect(model.complete(prompt as number[])).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining(message),
    });
  });

  it('reads a list of tokens when it is called: it may be changed then', async () => {
    const { model, backend } = createFakeModel();
    const prompt = [5, 6, 7];
    const completion = model.complete(prompt, { maxTokens: 1 });
    prompt.fill(9);
    expect((await completion).usage.promptTokens).toBe(3);
    expect([...(backend.steps[0]?.[0]?.tokens ?? [])]).toEqual([5, 6, 7]);
  });

  it('allows -Infinity as a bias, which bans a token', async () => {
    const { model } = createFakeModel();
    const logitBias = { 3: Number.NEGATIVE_INFINITY };
    expect(await model.complete('x', { logitBias, maxTokens: 1 })).toMatchObject({ finishReason: 'length' });
  });
});
