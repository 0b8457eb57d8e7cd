import { resolve } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { engineOf } from '../../ts/engine/model.js';
import { seedAt } from '../../ts/engine/window.js';
import {
  type Completion,
  type GenerateOptions,
  type LoadOptions,
  load,
  type Model,
  replay,
} from '../../ts/index.js';

const STORIES = resolve(import.meta.dirname, '../../models/stories-moe-q8_0.gguf');
const PROMPT = 'Once upon a time there was a';
const CONTEXT = { sinks: 4, window: 120 };
const HALF = 60;
const OPTIONS: GenerateOptions = {
  context: CONTEXT,
  seed: 11,
  ignoreEnd: true,
  repetitionPenalty: 1.3,
  frequencyPenalty: 0.1,
  penaltyWindow: 80,
};

describe('text without end by real kernels', { timeout: 120_000 }, () => {
  let model: Model;
  let prompt: Uint32Array;
  let whole: Completion;
  const kvBytes = new Set<number>();

  beforeAll(async () => {
    model = await load(STORIES, { threads: 1, provenance: true });
    prompt = await model.tokenize(PROMPT);
    const { scheduler } = engineOf(model);
    const generation = model.generate(prompt, { ...OPTIONS, maxTokens: 3000, expertUsage: true });
    for await (const _ of generation) kvBytes.add(scheduler.kvBytes());
    whole = await generation.result;
  }, 120_000);
  afterAll(() => model?.dispose());

  it('goes on past the trained context in the memory of one small sequence', async () => {
    expect(whole).toMatchObject({ finishReason: 'length', usage: { completionTokens: 3000 } });
    expect(model.info.contextLength).toBeLessThan(3000);
    const filling = model.generate(prompt, { ...OPTIONS, maxTokens: 124 - prompt.length + 1 });
    let most = 0;
    for await (const _ of filling) most = Math.max(most, engineOf(model).scheduler.kvBytes());
    expect(Math.max(...kvBytes)).toBe(most);
    expect(engineOf(model).scheduler.kvBytes()).toBe(0);
  });

  it('gives after each switch what a context of the kept tokens gives', async () => {
    const text = [...prompt, ...whole.tokens];
    const { context: _, ...plain } = OPTIONS;
    for (const switches of [1, 2, 17, 46]) {
      const dropped = switches * HALF;
      const length = 124 + 1 + dropped - HALF;
      const kept = [...text.slice(0, 4), ...text.slice(4 + dropped, length)];
      const seed = seedAt(11n, dropped);
      const fresh = await model.complete(kept, { ...plain, seed, maxTokens: HALF });
      expect([...fresh.tokens]).toEqual(text.slice(length, length + HALF));
    }
  });

  it('draws other random numbers in each window', async () => {
    // Where every token is as likely as any other, only the random numbers choose.
    const even = { context: { sinks: 0, window: 32 }, temperature: 100, topK: 0, topP: 1, minP: 0 };
    const { tokens } = await model.complete(prompt, {
      ...even,
      seed: 3,
      ignoreEnd: true,
      maxTokens: 16 * 40,
    });
    const blocks = new Set(Array.from({ length: 40 }, (_, i) => tokens.slice(i * 16, i * 16 + 16).join()));
    expect(blocks.size).toBe(40);
  });

  it.each<LoadOptions>([
    { threads: 2, chunk: 7 },
    { isa: 'scalar', chunk: 64 },
    { backend: 'wasm', chunk: 13 },
  ])('is the same text with %o', async (options) => {
    await using other = await load(STORIES, options);
    const { tokens } = await other.complete(prompt, { ...OPTIONS, maxTokens: 140 });
    expect([...tokens]).toEqual([...whole.tokens.slice(0, 140)]);
  });

  it('is the same text with a Q8_0 cache, in 34 bytes where F16 takes 64', async () => {
    const settings: LoadOptions[] = [
      { threads: 2, chunk: 7 },
      { backend: 'wasm', chunk: 64 },
    ];
    const texts: string[] = [];
    for (const options of settings) {
      await using other = await load(STORIES, { ...options, kvCache: 'q8_0' });
      expect(other.info.kvBytesPerToken).toBe((model.info.kvBytesPerToken * 34) / 64);
      const { tokens, usage } = await other.complete(prompt, { ...OPTIONS, maxTokens: 300 });
      expect(usage.kvBytes).toBeLessThanOrEqual((Math.max(...kvBytes) * 34) / 64);
      texts.push(tokens.join());
    }
    expect(texts[1]).toBe(texts[0]);
    expect(texts[0]).not.toBe(whole.tokens.slice(0, 300).join());
  });

  it('is the same text beside others', async () => {
    const runs = [1, 2, 3].map(() => model.complete(prompt, { ...OPTIONS, maxTokens: 400 }));
    for (const { tokens } of await Promise.all(runs)) {
      expect([...tokens]).toEqual([...whole.tokens.slice(0, 400)]);
    }
  });

  it('counts the experts of all sequences', async () => {
    const { experts, context } = whole.usage;
    const [layer] = model.info.expertLayers;
    const computed = prompt.length + 2999 + (context?.recomputedTokens ?? 0);
    const routed = experts?.layers[0]?.tokens.reduce((sum, count) => sum + count, 0);
    expect(routed).toBe(computed * (layer?.topK ?? 0));
  });

  it('is confirmed by its record', async () => {
    const { provenance } = await model.complete(prompt, { ...OPTIONS, maxTokens: 300 });
    expect(provenance?.settings.context).toEqual(CONTEXT);
    expect(await replay(model, JSON.parse(JSON.stringify(provenance)))).toMatchObject({ confirmed: true });
  });
});
