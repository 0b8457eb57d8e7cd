import { describe, expect, it } from 'vitest';
import { logProbabilities, logProbability, mostLikely } from '../../ts/engine/probability.js';
import { createPace } from '../../ts/yield.js';
import { collect, createFakeModel, VOCAB, WIDTH } from './fake.js';
import { watchEventLoop } from './watch.js';

describe('score', () => {
  it('yields a row of logits for each token', async () => {
    const { model, backend } = createFakeModel({ next: (tokens) => (tokens.at(-1) ?? 0) + 1 });
    const rows = await collect(model.score([5, 9, 7]));
    expect(rows.map((row) => [row.length, row.indexOf(2)])).toEqual([
      [VOCAB, 6],
      [VOCAB, 10],
      [VOCAB, 8],
    ]);
    expect(backend.sequences.size).toBe(0);
  });

  it('yields log-probabilities that sum to one', async () => {
    const { model } = createFakeModel();
    for (const row of await collect(model.score([1, 2], { logProbabilities: true }))) {
      expect(row.reduce((sum, value) => sum + Math.exp(value), 0)).toBeCloseTo(1, 5);
      expect(Math.max(...row)).toBeCloseTo(Math.log(Math.E ** 2 / (Math.E ** 2 + VOCAB - 1)), 5);
    }
  });

  it('computes no further than it is asked, and frees the sequence when left', async () => {
    const { model, backend } = createFakeModel({ limits: { chunk: 2 } });
    for await (const _ of model.score([1, 2, 3, 4, 5, 6, 7, 8])) break;
    expect(backend.steps).toHaveLength(1);
    expect(backend.sequences.size).toBe(0);
  });

  it('rejects with the reason of its signal', async () => {
    const { model, backend } = createFakeModel({ limits: { chunk: 1 } });
    const stop = new AbortController();
    const rows = model.score([1, 2, 3], { signal: stop.signal });
    await rows.next();
    stop.abort();
    await expect(rows.next()).rejects.toMatchObject({ name: 'AbortError' });
    expect(backend.sequences.size).toBe(0);
  });

  it('refuses more tokens than the context holds', async () => {
    const { model, backend } = createFakeModel({ contextLength: 2 });
    await expect(collect(model.score([1, 2, 3]))).rejects.toMatchObject({ code: 'CONTEXT_OVERFLOW' });
    expect(backend.steps).toEqual([]);
  });
});

describe('session', () => {
  it('refuses a call beside another, which goes on', async () => {
    const { model } = createFakeModel({ next: (tokens) => (tokens.at(-1) ?? 0) + 1, limits: { chunk: 2 } });
    const session = model.session();
    const first = collect(session.logits([1, 2, 3]));
    await expect(collect(session.logits([4]))).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    expect((await first).map((row) => row.indexOf(2))).toEqual([2, 3, 4]);
    expect(session.length).toBe(3);
  });

  it('goes on where it was, for all rows or the last', async () => {
    const { model, backend } = createFakeModel({ next: (tokens) => tokens.length });
    const session = model.session();
    expect((await collect(session.logits([1, 2]))).map((row) => row.indexOf(2))).toEqual([1, 2]);
    expect((await collect(session.logits([3, 4, 5], { rows: 'last' }))).map((row) => row.indexOf(2))).toEqual(
      [5],
    );
    expect(session.length).toBe(5);
    await session.dispose();
    expect(backend.sequences.size).toBe(0);
    await expect(collect(session.logits([1]))).rejects.toMatchObject({
      code: 'DISPOSED',
      message: 'The session is disposed',
      cure: expect.stringContaining('model.session'),
    });
  });
});

describe('embed', () => {
  // The fake's hidden state of a token is [token, position + 1, 1, 0]; a text begins with token 256.
  it.each([
    [{ pooling: 'mean', normalize: false } as const, [(256 + 97 + 98) / 3, 2, 1, 0]],
    [{ pooling: 'last', normalize: false } as const, [98, 3, 1, 0]],
  ])('pools with %o', async (options, expected) => {
    const { model } = createFakeModel({ limits: { chunk: 2 } });
    const vector = await model.embed('ab', options);
    expect([...vector]).toEqual(expected.map((value) => Math.fround(value)));
  });

  it('gives vectors of length 1 by default', async () => {
    const { model } = createFakeModel();
    const vector = await model.embed('some text');
    expect(vector).toHaveLength(WIDTH);
    expect(Math.hypot(...vector)).toBeCloseTo(1, 6);
  });

  it('keeps the order of many texts, and frees their sequences', async () => {
    const { model, backend } = createFakeModel();
    const texts = Array.from({ length: 30 }, (_, i) => 'x'.repeat((i * 7) % 13));
    const vectors = await model.embed(texts, { normalize: false, pooling: 'last' });
    expect(vectors.map((vector) => vector[1])).toEqual(texts.map((text) => text.length + 1));
    expect(backend.sequences.size).toBe(0);
    expect(await model.embed([])).toEqual([]);
  });

  it('ends all texts at the first failure', async () => {
    const { model, backend } = createFakeModel({ contextLength: 10 });
    const texts = ['a', 'b', 'much too long for it', ...new Array<string>(50).fill('c')];
    await expect(model.embed(texts)).rejects.toMatchObject({ code: 'CONTEXT_OVERFLOW' });
    expect(backend.sequences.size).toBe(0);
    expect(backend.steps.length).toBeLessThan(10);
  });

  it.each([
    [3, {}, 'input must be'],
    [['a', 3], {}, 'input must be'],
    ['a', { pooling: 'max' }, 'pooling must be one of mean, last, got "max"'],
  ])('%o, %o: %s', async (input, options, message) => {
    const { model } = createFakeModel();
    await expect(model.embed(input as string, options as object)).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining(message),
    });
  });
});

describe('probabilities', () => {
  it('are exact in the cases that are known', async () => {
    const row = Float32Array.of(0, Math.log(3), Number.NEGATIVE_INFINITY);
    expect([...(await logProbabilities(row, createPace()))].map((value) => Math.exp(value))).toEqual([
      expect.closeTo(0.25, 6),
      expect.closeTo(0.75, 6),
      0,
    ]);
    expect(await logProbability(Float32Array.of(1000, 1000), 0, createPace())).toBeCloseTo(-Math.LN2, 12);
  });

  it('the most likely of equals is the lowest', () => {
    expect(mostLikely(Float32Array.of(1, 5, 5, 2))).toBe(1);
  });

  it('of large vocabularies leave the event loop free', async () => {
    const row = Float32Array.from({ length: 262_144 }, (_, i) => i % 17);
    const pace = createPace();
    await logProbability(row, 0, pace);
    const watch = watchEventLoop();
    for (let i = 0; i < 20; i++) await logProbability(row, i, pace);
    expect(watch.stop()).toBeLessThan(10);
  });
});

describe('the event loop', () => {
  it('is never held for long by generations', async () => {
    const { model } = createFakeModel({ contextLength: 4000 });
    await model.complete('warm up', { maxTokens: 50 });
    const watch = watchEventLoop();
    await Promise.all(Array.from({ length: 8 }, () => model.complete('hi', { maxTokens: 500 })));
    expect(watch.stop()).toBeLessThan(10);
  });
});
