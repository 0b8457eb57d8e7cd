import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { describe, expect, it } from 'vitest';
import type { GenerateOptions } from '../../ts/engine/options.js';
import { BOS, collect, createFakeModel, END_OF_TURN } from './fake.js';

const CONTEXT = { sinks: 3, window: 17 };
const FULL = CONTEXT.sinks + CONTEXT.window;
const HALF = 9;
const PROMPT = [BOS, 10, 20, 30, 40];

/** A token, not an end, that depends on all tokens before it and on their places. */
const mixed = (tokens: readonly number[]) => tokens.reduce((hash, token) => (hash * 31 + token) % 251, 7);

/** What the definition says, token by token: halves of the window go from behind the sinks until the rest fits. */
function keep(text: readonly number[], { sinks, window } = CONTEXT): number[] {
  const kept = [...text];
  while (kept.length > sinks + window) kept.splice(sinks, Math.ceil(window / 2));
  return kept;
}

function continued(prompt: readonly number[], count: number): number[] {
  const text = [...prompt];
  for (let i = 0; i < count; i++) text.push(mixed(keep(text)));
  return text.slice(prompt.length);
}

describe('a window on an endless text', () => {
  it('goes on past the context, in one sequence at a time that never holds more', async () => {
    let most = 0;
    const seeds = new Set<bigint | undefined>();
    const { model, backend } = createFakeModel({
      next: mixed,
      beforeStep: () => {
        expect(backend.sequences.size).toBe(1);
        for (const { sampler } of backend.sequences.values()) seeds.add(sampler?.seed);
        most = Math.max(most, backend.kvBytes());
      },
    });
    const { tokens, finishReason, usage } = await model.complete(PROMPT, {
      context: CONTEXT,
      maxTokens: 3000,
    });
    expect([...tokens]).toEqual(continued(PROMPT, 3000));
    expect(finishReason).toBe('length');
    expect(most).toBe((FULL - 1) * 10);
    const switches = Math.ceil((PROMPT.length + 2999 - FULL) / HALF);
    expect(usage).toMatchObject({ promptTokens: 5, completionTokens: 3000, cachedTokens: 0 });
    expect(usage.context).toEqual({
      droppedTokens: switches * HALF,
      switches,
      recomputedTokens: switches * (FULL - HALF),
    });
    expect(seeds.size).toBe(switches + 1);
    expect(backend.sequences.size).toBe(0);
  });

  it('keeps no more of a long text than its tokens and characters', async () => {
    setFlagsFromString('--expose-gc');
    const gc: () => void = runInNewContext('gc');
    const used = () => {
      gc();
      const { heapUsed, arrayBuffers } = process.memoryUsage();
      return heapUsed + arrayBuffers;
    };
    const { model, backend } = createFakeModel({ next: mixed });
    const generation = model.generate(PROMPT, { context: CONTEXT, maxTokens: 60_000 });
    let [count, before] = [0, 0];
    for await (const _ of generation) {
      backend.steps.length = 0;
      count += 1;
      if (count === 10_000) before = used();
      if (count === 59_000) break;
    }
    const perToken = (used() - before) / (59_000 - 10_000);
    console.log(`a token of a text without end keeps ${perToken.toFixed(1)} bytes`);
    // Four and half as much in room, and its characters; a list of numbers and a chain of pieces take over 50.
    expect(perToken).toBeLessThan(20);
    const { tokens, text } = await generation.result;
    expect(tokens.length).toBeGreaterThanOrEqual(59_000);
    expect(new TextEncoder().encode(text).length).toBeGreaterThan(50_000);
  });

  it.each([1, 2, 15, 16, 17, 18, 24, 25, 26, 60, 150])(
    'continues a prompt of %i more tokens as the text it is',
    async (more) => {
      const seeds: unknown[] = [];
      const { model, backend } = createFakeModel({
        next: mixed,
        beforeStep: () => {
          seeds.push([...backend.sequences.values()].map(({ sampler }) => sampler?.seed));
        },
      });
      const options = { context: CONTEXT, seed: 5 };
      const whole = await model.complete(PROMPT, { ...options, maxTokens: more + 30 });
      const last = seeds.at(-1);
      const rest = await model.complete([...PROMPT, ...whole.tokens.slice(0, more)], {
        ...options,
        maxTokens: 30,
      });
      expect([...rest.tokens]).toEqual([...whole.tokens.slice(more)]);
      expect(seeds.at(-1)).toEqual(last);
      expect(rest.usage.promptTokens).toBe(PROMPT.length + more);
      expect(rest.usage.context?.droppedTokens).toBe(whole.usage.context?.droppedTokens);
    },
  );

  it('changes nothing while the text fits', async () => {
    const { model } = createFakeModel({ next: mixed });
    const plain = await model.complete(PROMPT, { maxTokens: 15 });
    const within = await model.complete(PROMPT, { maxTokens: 15, context: { window: 60 } });
    expect([...within.tokens]).toEqual([...plain.tokens]);
    expect(within.usage.context).toEqual({ droppedTokens: 0, switches: 0, recomputedTokens: 0 });
    expect(plain.usage).not.toHaveProperty('context');
  });

  it('finds stop strings that lie across a switch', async () => {
    const next = (tokens: readonly number[]) => 97 + (mixed(tokens) % 26);
    const options: GenerateOptions = { context: CONTEXT, maxTokens: 60 };
    const { text } = await createFakeModel({ next }).model.complete(PROMPT, options);
    for (let at = FULL - PROMPT.length - 4; at < FULL - PROMPT.length + 3; at++) {
      const stop = text.slice(at, at + 4);
      const stopped = await createFakeModel({ next }).model.complete(PROMPT, { ...options, stop });
      expect(stopped).toMatchObject({ text: text.slice(0, text.indexOf(stop)), finishReason: 'stop-string' });
    }
  });

  it('frees everything when it is aborted within a switch, or at its edge', async () => {
    for (const late of [false, true]) {
      const abort = new AbortController();
      const { model, backend } = createFakeModel({
        next: mixed,
        beforeStep: (batch) => {
          // The kept tokens, in the new sequence; without the prompt.
          if (!late && backend.steps.length > 1 && (batch[0]?.tokens.length ?? 0) > 1)
            abort.abort(new Error('enough'));
        },
      });
      const pieces = model.generate(PROMPT, { context: CONTEXT, signal: abort.signal });
      const consume = async () => {
        let count = 0;
        for await (const _ of pieces) {
          count += 1;
          if (late && count === FULL - PROMPT.length + 1) abort.abort(new Error('enough'));
        }
      };
      await expect(consume()).rejects.toThrow('enough');
      expect(backend.sequences.size).toBe(0);
    }
  });

  it('opens no sequence for a disposed model, and frees those of loops that are left', async () => {
    const { model, backend } = createFakeModel({ next: (tokens) => 97 + (mixed(tokens) % 26) });
    let count = 0;
    for await (const _ of model.generate(PROMPT, { context: CONTEXT })) if (++count === 500) break;
    expect(backend.sequences.size).toBe(0);
    const pieces = model.generate(PROMPT, { context: CONTEXT });
    for (let i = 0; i < FULL - PROMPT.length + 1; i++) await pieces.next();
    await model.dispose();
    await expect(collect(pieces)).rejects.toMatchObject({ code: 'DISPOSED' });
    expect(backend.sequences.size).toBe(0);
  });

  it.each([
    { context: 5, message: /context must be an object/ },
    { context: [], message: /context must be an object with window and sinks, got an array of 0/ },
    { context: new Map(), message: /context must be an object with window and sinks, got a Map object/ },
    { context: {}, message: /context.window must be a number of tokens/ },
    { context: { window: 15 }, message: /context.window must be .* 16/ },
    { context: { window: Number.NaN }, message: /context.window/ },
    { context: { window: 20.5 }, message: /context.window/ },
    { context: { window: 20, sinks: -1 }, message: /context.sinks/ },
    { context: { window: 20, sinks: Number.NaN }, message: /context.sinks/ },
    { context: { window: 97 }, message: /context.sinks \+ context.window must be at most 100/ },
    { context: { window: 20, sink: 4 }, message: /no option "sink"/ },
  ])('refuses $context', async ({ context, message }) => {
    const { model, backend } = createFakeModel({ chatTemplate: 'x' });
    const options = { context } as unknown as GenerateOptions;
    const refusal = expect.objectContaining({
      code: 'INVALID_ARGUMENT',
      message: expect.stringMatching(message),
      cure: expect.not.stringContaining('as The'),
    });
    await expect(model.complete('hi', options)).rejects.toEqual(refusal);
    expect(() => model.chat(options)).toThrow(refusal);
    expect(backend.sequences.size).toBe(0);
  });
});

const TEMPLATE =
  '{% for m in messages %}[{{ m.role }}]{{ m.content }}<|end|>{% endfor %}' +
  '{% if add_generation_prompt %}[assistant]{% endif %}';

describe('a chat in a window', () => {
  // Five letters, then the end of the turn.
  const next = (tokens: readonly number[]) => {
    const open = tokens.lastIndexOf(']'.charCodeAt(0));
    return open >= 0 && tokens.length - open > 5 ? END_OF_TURN : 97 + (mixed(tokens) % 26);
  };
  const context = { sinks: 4, window: 80 };

  it('goes on when its history is longer than any context, and keeps it', async () => {
    const { model, backend } = createFakeModel({ next, chatTemplate: TEMPLATE });
    const chat = model.chat({ context, seed: 1 });
    const used: boolean[] = [];
    for (let turn = 0; turn < 40; turn++) {
      const said = chat.history;
      const answer = chat.send(`turn ${turn}`);
      const text = (await collect(answer)).join('');
      const { usage, finishReason } = await answer.result;
      used.push(usage.cachedTokens > 0);
      expect(finishReason).toBe('stop');
      expect(backend.kvBytes()).toBeLessThanOrEqual(84 * 10);
      // The cache makes no difference.
      const fresh = model.chat({ context, seed: 1, messages: said });
      expect((await collect(fresh.send(`turn ${turn}`))).join('')).toBe(text);
      await fresh.dispose();
    }
    expect(chat.history).toHaveLength(80);
    expect(used.filter((each) => each).length).toBeGreaterThan(5);
    expect(used.filter((each) => !each).length).toBeGreaterThan(5);
    await chat.dispose();
    expect(backend.sequences.size).toBe(0);
  });

  it('is refused without one', async () => {
    const { model } = createFakeModel({ next, chatTemplate: TEMPLATE });
    const messages = [{ role: 'user', content: 'long '.repeat(30) }];
    await expect(collect(model.chat({ messages }).send('x'))).rejects.toMatchObject({
      code: 'CONTEXT_OVERFLOW',
    });
    expect(await collect(model.chat({ messages, context }).send('x'))).not.toEqual([]);
  });

  it('frees the sequence that has taken over when it is disposed in the middle of an answer', async () => {
    const letters = (tokens: readonly number[]) => 97 + (mixed(tokens) % 26);
    for (let pieces = 1; pieces < 20; pieces++) {
      const { model, backend } = createFakeModel({ next: letters, chatTemplate: TEMPLATE });
      const chat = model.chat({ context: { window: 16 }, maxTokens: 100 });
      const answer = chat.send('hello');
      for (let i = 0; i < pieces; i++) await answer.next();
      expect(backend.sequences.size).toBe(1);
      await chat.dispose();
      expect(backend.sequences.size).toBe(0);
      await expect(collect(answer)).rejects.toMatchObject({ code: 'DISPOSED' });
      expect(backend.sequences.size).toBe(0);
    }
  });
});
