import { describe, expect, it } from 'vitest';
import { answering, BOS, collect, createFakeModel, END_OF_TURN } from './fake.js';

const TEMPLATE =
  '{% for m in messages %}[{{ m.role }}]{{ m.content }}<|end|>{% endfor %}' +
  '{% if add_generation_prompt %}[assistant]{% endif %}';

/** Answers "yes" to everything: counts the tokens since the last end of turn but one. */
function yes(tokens: readonly number[]): number {
  const text = String.fromCharCode(...tokens.filter((token) => token < BOS));
  const answer = text.slice(text.lastIndexOf('[assistant]') + '[assistant]'.length);
  return 'yes'.charCodeAt(answer.length) || END_OF_TURN;
}

const textOf = (tokens: readonly number[]): string =>
  tokens.map((token) => ['<s>', '</s>', '<|end|>'][token - BOS] ?? String.fromCharCode(token)).join('');

describe('chat', () => {
  it("formats the conversation with the model's template, with one beginning-of-text token", async () => {
    const { model, backend } = createFakeModel({ next: yes, chatTemplate: TEMPLATE });
    const chat = model.chat({ system: 'Be kind.' });
    expect((await collect(chat.send('Hi'))).join('')).toBe('yes');
    const [sequence] = [...backend.sequences.values()];
    expect(textOf(sequence?.tokens ?? [])).toBe('<s>[system]Be kind.<|end|>[user]Hi<|end|>[assistant]yes');
    await chat.dispose();
  });

  it('does not add a second beginning-of-text token to a template that has one', async () => {
    const { model, backend } = createFakeModel({ next: yes, chatTemplate: `{{ bos_token }}${TEMPLATE}` });
    await collect(model.chat().send('Hi'));
    expect([...backend.sequences.values()][0]?.tokens.filter((token) => token === BOS)).toHaveLength(1);
  });

  it('remembers what was said', async () => {
    const { model } = createFakeModel({ next: yes, chatTemplate: TEMPLATE });
    const chat = model.chat({ messages: [{ role: 'user', content: 'before' }] });
    await collect(chat.send('one'));
    await collect(chat.send('two'));
    expect(chat.history.map(({ role, content }) => `${role}: ${content}`)).toEqual([
      'user: before',
      'user: one',
      'assistant: yes',
      'user: two',
      'assistant: yes',
    ]);
  });

  it('computes only what is new in a turn', async () => {
    const { model, backend } = createFakeModel({ next: yes, chatTemplate: TEMPLATE });
    const chat = model.chat({ seed: 1 });
    await collect(chat.send('one'));
    const held = [...backend.sequences.values()][0]?.tokens.length;
    const second = chat.send('two');
    await collect(second);
    const { usage } = await second.result;
    expect(usage.cachedTokens).toBe(held);
    const [only] = [...backend.sequences.values()];
    expect(textOf(only?.tokens ?? [])).toBe(
      '<s>[user]one<|end|>[assistant]yes<|end|>[user]two<|end|>[assistant]yes',
    );
    await chat.dispose();
    expect(backend.sequences.size).toBe(0);
  });

  it('computes only what follows the first change where a template alters earlier answers', async () => {
    const last = TEMPLATE.replace('m.content', "m.content[-1:] if m.role == 'assistant' else m.content");
    const { model, backend } = createFakeModel({ next: yes, chatTemplate: last });
    const chat = model.chat({ seed: 1 });
    await collect(chat.send('one'));
    const second = chat.send('two');
    expect((await collect(second)).join('')).toBe('yes');
    const shared = '<s>[user]one<|end|>[assistant]'.length - '<s><|end|>'.length + 2;
    expect((await second.result).usage.cachedTokens).toBe(shared);
    const [only, ...others] = [...backend.sequences.values()];
    expect(others).toEqual([]);
    expect(textOf(only?.tokens ?? [])).toBe(
      '<s>[user]one<|end|>[assistant]s<|end|>[user]two<|end|>[assistant]yes',
    );
    await chat.dispose();
    expect(backend.sequences.size).toBe(0);
  });

  it('starts a new sequence when the sampling changes or the history no longer fits the cache', async () => {
    const { model, backend } = createFakeModel({ next: yes, chatTemplate: TEMPLATE });
    const chat = model.chat();
    await collect(chat.send('one'));
    const second = chat.send('two', { temperature: 0 });
    await collect(second);
    expect((await second.result).usage.cachedTokens).toBe(0);
    expect(backend.sequences.size).toBe(1);
  });

  it('keeps a turn that was left or aborted after some text, and none without', async () => {
    const { model, backend } = createFakeModel({ next: yes, chatTemplate: TEMPLATE });
    const chat = model.chat();
    for await (const _ of chat.send('left')) break;
    expect(chat.history.at(-1)).toEqual({ role: 'assistant', content: 'y' });
    const stop = new AbortController();
    const answer = chat.send('aborted', { signal: stop.signal });
    await answer.next();
    stop.abort();
    await expect(answer.next()).rejects.toMatchObject({ name: 'AbortError' });
    expect(chat.history.map(({ content }) => content)).toEqual(['left', 'y', 'aborted', 'y']);
    await expect(collect(chat.send('never', { signal: stop.signal }))).rejects.toBeDefined();
    expect(chat.history).toHaveLength(4);
    expect((await collect(chat.send('on'))).join('')).toBe('yes');
    await chat.dispose();
    expect(backend.sequences.size).toBe(0);
  });

  it('takes the options of an answer in the place of its own, undefined as left out, null as wrong', async () => {
    const { model } = createFakeModel({ next: yes, chatTemplate: TEMPLATE });
    const chat = model.chat({ maxTokens: 2, seed: 5 });
    const send = async (options: object) => {
      const answer = chat.send('one', options);
      await collect(answer);
      const { text, seed } = await answer.result;
      return { text, seed };
    };
    expect(await send({ maxTokens: undefined, seed: undefined })).toEqual({ text: 'ye', seed: 5 });
    expect(await send(Object.create({ maxTokens: 1, seed: 7 }))).toEqual({ text: 'y', seed: 7 });
    await expect(send({ seed: null })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await chat.dispose();
  });

  it('stays as it was when an answer fails', async () => {
    let fail = true;
    const { model, backend } = createFakeModel({
      next: yes,
      chatTemplate: TEMPLATE,
      beforeStep() {
        if (fail && backend.steps.length > 3) throw new Error('broken');
      },
    });
    const chat = model.chat();
    await expect(collect(chat.send('one'))).rejects.toThrow('broken');
    expect(chat.history).toEqual([]);
    fail = false;
    expect((await collect(chat.send('two'))).join('')).toBe('yes');
  });

  it('gives one answer at a time', async () => {
    const { model } = createFakeModel({ next: yes, chatTemplate: TEMPLATE });
    const chat = model.chat();
    const first = chat.send('one');
    await first.next();
    await expect(collect(chat.send('two'))).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await collect(first);
    expect(await collect(chat.send('three'))).not.toEqual([]);
  });

  it('refuses what does not fit', async () => {
    const { model, backend } = createFakeModel({ chatTemplate: TEMPLATE, contextLength: 30 });
    const chat = model.chat();
    await expect(collect(chat.send('a message that is too long'))).rejects.toMatchObject({
      code: 'CONTEXT_OVERFLOW',
      cure: expect.stringContaining('the option context (--window'),
    });
    expect(backend.steps).toEqual([]);
  });

  it('ends with DISPOSED when disposed under an answer', async () => {
    const { model, backend } = createFakeModel({ next: yes, chatTemplate: TEMPLATE });
    const chat = model.chat();
    const answer = chat.send('one');
    await answer.next();
    await chat[Symbol.asyncDispose]();
    expect(backend.sequences.size).toBe(0);
    const error = {
      code: 'DISPOSED',
      message: 'The chat is disposed',
      cure: 'Open another chat with model.chat, and dispose it only after its last use.',
    };
    await expect(answer.next()).rejects.toMatchObject(error);
    await expect(collect(chat.send('two'))).rejects.toMatchObject(error);
    expect((await model.complete('hi', { maxTokens: 1 })).usage.promptTokens).toBe(3);
  });

  it('ends so too when a step of the answer is under way', async () => {
    const { model } = createFakeModel({ next: yes, chatTemplate: TEMPLATE });
    const chat = model.chat();
    const answer = chat.send('one');
    await answer.next();
    const piece = answer.next();
    await chat.dispose();
    await expect(piece).rejects.toMatchObject({ code: 'DISPOSED', message: 'The chat is disposed' });
  });

  it('needs a template', () => {
    const { model } = createFakeModel({ next: answering(0, '') });
    expect(() => model.chat()).toThrow(expect.objectContaining({ code: 'TEMPLATE_MISSING' }));
  });

  it.each([
    [{ system: 1 }, 'system must be a string, got 1'],
    [{ messages: 'x' }, 'messages must be an array'],
    [{ messages: [{ role: 'user' }] }, 'messages[0].content must be a string, got undefined'],
    [{ temperature: -1 }, 'temperature must be'],
    [{ tools: [] }, 'chat has no option "tools"'],
  ])('the options %o: %s', (options, message) => {
    const { model } = createFakeModel({ chatTemplate: TEMPLATE });
    expect(() => model.chat(options as object)).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringContaining(message) }),
    );
  });
});
