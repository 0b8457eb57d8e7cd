import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import type { StepEntry } from '../../ts/backend/types.js';
import { createScheduler } from '../../ts/engine/scheduler.js';
import { FrugalError } from '../../ts/errors.js';
import { collect, createFakeBackend, createFakeModel } from './fake.js';

const count = (batch: readonly StepEntry[]): number =>
  batch.reduce((sum, { tokens }) => sum + tokens.length, 0);

describe('several generations at once', () => {
  it('gives each the text that it gives alone', async () => {
    const prompts = ['a', 'bcd', 'a much longer prompt than the others have', 'xy'];
    const alone = createFakeModel();
    const expected: string[] = [];
    for (const prompt of prompts) expected.push((await alone.model.complete(prompt, { maxTokens: 12 })).text);
    const together = createFakeModel();
    const texts = await Promise.all(
      prompts.map((prompt) => together.model.complete(prompt, { maxTokens: 12 })),
    );
    expect(texts.map(({ text }) => text)).toEqual(expected);
    expect(together.backend.sequences.size).toBe(0);
  });

  it('merges their tokens in shared steps', async () => {
    const { model, backend } = createFakeModel();
    await Promise.all(['a', 'b', 'c', 'd'].map((prompt) => model.complete(prompt, { maxTokens: 10 })));
    // Ten tokens each: alone that would be forty steps.
    expect(backend.steps.length).toBeLessThanOrEqual(12);
    expect(backend.steps.at(-1)).toHaveLength(4);
  });

  it('never exceeds the tokens of a step, and keeps generating beside a long prompt', async () => {
    const { model, backend } = createFakeModel({
      contextLength: 2000,
      limits: { maxStepTokens: 128, chunk: 128 },
    });
    const short = model.generate('a', { maxTokens: 200 });
    await short.next();
    const long = model.complete('x'.repeat(1000), { maxTokens: 1 });
    const rest = collect(short);
    await long;
    await rest;
    expect(Math.max(...backend.steps.map(count))).toBeLessThanOrEqual(128);
    const mixed = backend.steps.filter((batch) => batch.length === 2 && count(batch) > 2);
    expect(mixed.length).toBeGreaterThan(10);
    expect(Math.max(...mixed.map(count))).toBeLessThanOrEqual(65);
  });

  it('never asks for more rows of logits than a step may have', async () => {
    const { model, backend } = createFakeModel({ maxLogitRows: 3 });
    const tokens = Array.from({ length: 50 }, (_, i) => i);
    const [rows, ...texts] = await Promise.all([
      collect(model.score(tokens)),
      ...['a', 'b', 'c', 'd', 'e'].map((prompt) => model.complete(prompt, { maxTokens: 20 })),
    ]);
    expect(rows).toHaveLength(50);
    for (const { finishReason } of texts) expect(finishReason).toBe('length');
    expect(backend.sequences.size).toBe(0);
  });

  it('gives a prompt whose blocks need a whole step its turn beside a text that goes on', async () => {
    const limits = { maxStepTokens: 8, chunk: 8, block: 8 };
    const { model, backend } = createFakeModel({ contextLength: 1000, maxLogitRows: 8, limits });
    const text = model.generate('a', { maxTokens: 400, ignoreEnd: true });
    await text.next();
    const rest = collect(text);
    const scored = await collect(model.score(Array.from({ length: 60 }, (_, i) => i)));
    expect(scored).toHaveLength(60);
    const steps = backend.steps.length;
    await rest;
    // Not only once the text had ended.
    expect(backend.steps.length - steps).toBeGreaterThan(100);
  });

  it('refuses what no step has room for, and goes on', async () => {
    const { model, backend } = createFakeModel({ limits: { maxStepTokens: 4, chunk: 4, block: 8 } });
    const beside = model.complete('a', { maxTokens: 20, ignoreEnd: true });
    await expect(model.complete('a long prompt', { maxTokens: 2 })).rejects.toMatchObject({
      code: 'INTERNAL',
    });
    expect((await beside).tokens).toHaveLength(20);
    expect(await model.complete('abc', { maxTokens: 2 })).toMatchObject({ finishReason: 'length' });
    expect(backend.sequences.size).toBe(0);
  });

  it('lets long prompts take turns', async () => {
    const { model, backend } = createFakeModel({ limits: { maxStepTokens: 8, chunk: 8 } });
    const done: number[] = [];
    const run = async (i: number, length: number) => {
      await model.complete('x'.repeat(length), { maxTokens: 1 });
      done.push(i);
    };
    await Promise.all([run(0, 90), run(1, 10), run(2, 10)]);
    expect(done.at(-1)).toBe(0);
    expect(backend.sequences.size).toBe(0);
  });

  it('does not let a crowd of generating sequences starve a prompt', async () => {
    const { model } = createFakeModel({ contextLength: 1000, limits: { maxStepTokens: 4, chunk: 4 } });
    const stop = new AbortController();
    const crowd = Array.from({ length: 10 }, () =>
      model.complete('a', { signal: stop.signal }).catch((error: unknown) => error),
    );
    expect(await model.complete('a prompt', { maxTokens: 2 })).toMatchObject({ finishReason: 'length' });
    stop.abort();
    await Promise.all(crowd);
  });

  it('pauses a sequence whose consumer is slow, and no other', async () => {
    const { model, backend } = createFakeModel();
    const slow = model.generate('slow');
    await slow.next();
    const [held] = [...backend.sequences.values()];
    const length = held?.tokens.length;
    await model.complete('fast', { maxTokens: 50 });
    await sleep(20);
    expect(held?.tokens.length).toBe(length);
    await slow.return();
  });
});

describe('failures in a shared step', () => {
  const failure = new FrugalError('NON_FINITE', 'a NaN', { cure: 'none' });

  it('reach only the generation that causes them', async () => {
    const { model, backend } = createFakeModel({
      beforeStep(batch) {
        for (const { sequence } of batch) {
          if ((backend.sequences.get(sequence)?.tokens.length ?? 0) > 20) throw failure;
        }
      },
    });
    const bad = model.complete('this prompt is long enough to fail', { maxTokens: 10 });
    const good = [model.complete('a', { maxTokens: 10 }), model.complete('b', { maxTokens: 10 })];
    await expect(bad).rejects.toBe(failure);
    for (const completion of good) expect(await completion).toMatchObject({ finishReason: 'length' });
    expect(backend.sequences.size).toBe(0);
  });

  it('an aborted generation leaves the text of the others as it is', async () => {
    const { model: alone } = createFakeModel();
    const expected = (await alone.complete('keep', { maxTokens: 30 })).text;
    const stop = new AbortController();
    const { model, backend } = createFakeModel({
      beforeStep(batch) {
        if (batch.length === 2 && backend.steps.length > 5) stop.abort();
      },
    });
    const aborted = model.complete('drop', { signal: stop.signal });
    const kept = model.complete('keep', { maxTokens: 30 });
    await expect(aborted).rejects.toMatchObject({ name: 'AbortError' });
    expect((await kept).text).toBe(expected);
    expect(backend.sequences.size).toBe(0);
  });
});

describe('the scheduler', () => {
  const limits = { maxStepTokens: 8, chunk: 8 };

  it('refuses a second request of a sequence that is at work', async () => {
    const scheduler = createScheduler(createFakeBackend(), limits);
    const sequence = scheduler.open();
    const first = scheduler.run(sequence, Uint32Array.of(1), 'none');
    await expect(scheduler.run(sequence, Uint32Array.of(2), 'none')).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
    });
    expect(await first).toEqual({ consumed: 1 });
  });

  it('rejects all requests of a model that has crashed and takes no number of threads any more', async () => {
    const crash = new Error('crashed');
    const backend = createFakeBackend({ beforeStep: () => Promise.reject(crash) });
    const begin = () => {
      if (backend.steps.length > 0) throw crash;
      return () => {};
    };
    const choice = { prefill: 2, decode: 1, reason: 'given' };
    const limits = { maxStepTokens: 64, chunk: 64 };
    const scheduler = createScheduler(backend, limits, { choice, begin, fix() {} });
    const runs = [1, 2].map(() => scheduler.run(scheduler.open(undefined), Uint32Array.of(1), 'none'));
    const rejected = { status: 'rejected', reason: crash };
    expect(await Promise.allSettled(runs)).toEqual([rejected, rejected]);
    await scheduler.dispose();
    expect(backend.disposed).toBe(true);
  });

  it('rejects the request of a sequence that is closed under it', async () => {
    const backend = createFakeBackend();
    const scheduler = createScheduler(backend, limits);
    const sequence = scheduler.open();
    const running = scheduler.run(sequence, Uint32Array.of(1), 'none');
    scheduler.close(sequence);
    scheduler.close(sequence);
    await expect(running).rejects.toMatchObject({ code: 'DISPOSED' });
    expect(backend.sequences.size).toBe(0);
  });
});
