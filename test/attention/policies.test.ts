import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { runInNewContext } from 'node:vm';
import { describe, expect, it } from 'vitest';
import type { AttentionOptions, AttentionPolicy } from '../../ts/attention/index.js';
import { checkAttention, POLICIES, sparsePlan } from '../../ts/attention/index.js';
import { loadNative } from '../../ts/backend/native.js';
import { lacking, WASM_VARIANTS, whyNot } from '../../ts/backend/wasm/variant.js';
import { load, type Model } from '../../ts/engine/index.js';
import { digestOf, tokens } from '../contract/golden.js';
import { randomModelSpec, VOCABULARY } from '../contract/random-model.js';
import { writeGguf } from '../gguf/writer.js';

const { isas } = await loadNative();
const lacks = lacking(undefined);
const variants = WASM_VARIANTS.filter((variant) => {
  const lack = lacks.simd ?? whyNot(lacks, variant);
  if (lack !== undefined) console.log(`not run: sparse attention under ${variant}: ${lack}`);
  return lack === undefined;
});

const SHAPE = {
  blocks: 2,
  width: 64,
  heads: 4,
  kvHeads: 2,
  headDim: 32,
  feedForward: 96,
  contextLength: 1024,
  types: ['Q8_0'],
} as const;

/** Two layers of random weights, and a prompt that reaches over eleven blocks and ends within one. */
const MODEL = new Blob([writeGguf(randomModelSpec({ ...SHAPE, architecture: 'qwen3', seed: 400 })).bytes]);
const PROMPT = tokens(31, 700, VOCABULARY);

const EACH: Record<AttentionPolicy['policy'], AttentionPolicy> = {
  dense: { policy: 'dense' },
  window: { policy: 'window', window: 90, sinks: 3 },
  longformer: { policy: 'longformer', window: 70, dilatedBlocks: 2, dilation: 3, globalTokens: 5 },
  bigbird: { policy: 'bigbird', window: 70, globalTokens: 5, randomBlocks: 2, seed: 7 },
  strided: { policy: 'strided', window: 70, stride: 4 },
  antidiagonal: { policy: 'antidiagonal', keep: 0.3, minTokens: 64, mass: 0.9 },
  'vertical-slash': { policy: 'vertical-slash', keep: 0.3, minTokens: 64 },
  lsh: { policy: 'lsh', keep: 0.3, minTokens: 64, rounds: 4 },
  quest: { policy: 'quest', keep: 0.3, minTokens: 64 },
  auto: { policy: 'auto', quality: 0.5, from: 256 },
};

const open = (attention: AttentionOptions, more: object = {}) =>
  load(MODEL, { backend: 'native', contextLength: 1024, attention, ...more });

const digest = async (attention: AttentionOptions, more: object = {}) => {
  await using model = await open(attention, more);
  return await digestOf(model, PROMPT);
};

const continued = async (model: Model) =>
  await model.complete(PROMPT, { maxTokens: 80, seed: 3, ignoreEnd: true });

describe('each policy', () => {
  const dense = digest({});

  it.each(POLICIES)('%s: one digest for every instruction set, number of threads and chunk', async (name) => {
    const policy = EACH[name];
    const attention = { prefill: policy, decode: policy };
    const want = await digest(attention, { threads: 2 });
    if (name === 'dense') expect(want).toBe(await dense);
    else expect(want).not.toBe(await dense);
    for (const isa of isas) expect(await digest(attention, { isa, threads: 1, chunk: 7 })).toBe(want);
    expect(await digest(attention, { threads: 3, chunk: 100 })).toBe(want);
  });

  it.each(POLICIES)('%s: the same text in any chunks and beside another', async (name) => {
    const attention = { decode: EACH[name], prefill: EACH[name] };
    await using model = await open(attention);
    const { tokens: want, usage } = await continued(model);
    expect(usage.attention?.options).toEqual(attention);
    expect(usage.attention?.layers).toHaveLength(2);
    if (name === 'dense') expect(usage.attention?.kept).toBe(1);
    else expect(usage.attention?.kept).toBeLessThan(1);
    await using other = await open(attention, { chunk: 33, threads: 1 });
    const both = await Promise.all([continued(other), continued(other)]);
    for (const { tokens } of both) expect(tokens).toEqual(want);
  });
});

const BY_CONTENT = ['antidiagonal', 'vertical-slash', 'lsh', 'quest', 'auto'] as const;

describe.each(variants)('under WebAssembly, %s', (variant) => {
  it.each(BY_CONTENT)('%s: the digest of the scalar reference, and its text', async (name) => {
    const attention = { prefill: EACH[name], decode: EACH[name] };
    const threads = variant.endsWith('-threads') ? 2 : 1;
    await using scalar = await open(attention, { isa: 'scalar', chunk: 64 });
    await using model = await open(attention, { backend: 'wasm', variant, threads, chunk: 100 });
    expect(model.info.backend).toMatchObject({ kind: 'wasm', variant });
    expect(await digestOf(model, PROMPT)).toBe(await digestOf(scalar, PROMPT));
    const [wanted, got] = [await continued(scalar), await continued(model)];
    expect(got.tokens).toEqual(wanted.tokens);
    expect(got.usage.attention).toEqual(wanted.usage.attention);
  });
});

it('a policy that keeps all blocks is the dense attention', async () => {
  const all = { keep: 1, minTokens: 0 };
  for (const policy of ['vertical-slash', 'lsh', 'quest'] as const)
    expect(await digest({ prefill: { policy, ...all } })).toBe(await digest({}));
  expect(await digest({ prefill: { policy: 'window', window: 2000 } })).toBe(await digest({}));
});

it.each(['window', 'quest'] as const)('%s: a text without a step has kept all', async (policy) => {
  await using model = await open({
    prefill: policy === 'window' ? { policy, window: 64 } : { policy },
  });
  const { usage } = await model.complete(PROMPT, { maxTokens: 0 });
  expect(usage.attention?.kept).toBe(1);
  for (const { kept } of usage.attention?.layers ?? []) expect(kept).toBe(1);
});

describe('a sliding window of the model', () => {
  const windowed = new Blob([
    writeGguf(
      randomModelSpec({
        ...SHAPE,
        architecture: 'gemma2',
        seed: 401,
        keys: { 'attention.sliding_window': 200 },
      }),
    ).bytes,
  ]);
  const openWindowed = (policy: AttentionPolicy, more: object = {}) => {
    const layers = [policy, { policy: 'dense' }] as const;
    const attention = { prefill: layers, decode: layers };
    return load(windowed, { backend: 'native', contextLength: 1024, attention, ...more });
  };
  const CONTENT = ['antidiagonal', 'vertical-slash', 'lsh', 'quest'] as const;

  it.each(CONTENT)('%s: a budget that the window fits in changes nothing', async (policy) => {
    await using dense = await openWindowed({ policy: 'dense' });
    await using model = await openWindowed({ policy, keep: 0, minTokens: 256 });
    expect(await digestOf(model, PROMPT)).toBe(await digestOf(dense, PROMPT));
    const { usage } = await continued(model);
    expect(usage.attention?.layers[0]).toEqual({ kept: 1, mass: 1 });
  });

  it.each(CONTENT)(
    '%s: chooses among the blocks in it, in any chunks, as the scalar reference',
    async (policy) => {
      const few: AttentionPolicy = { policy, keep: 0, minTokens: 128 };
      await using model = await openWindowed(few);
      await using other = await openWindowed(few, { isa: 'scalar', chunk: 7, threads: 1 });
      expect(await digestOf(model, PROMPT)).toBe(await digestOf(other, PROMPT));
      const [{ usage, tokens: text }, again] = [await continued(model), await continued(other)];
      expect(again.tokens).toEqual(text);
      // Two blocks and the queries' own, of four or five that a window of 200 reaches into.
      const [layer] = usage.attention?.layers ?? [];
      expect(layer?.kept).toBeGreaterThan(0.6);
      expect(layer?.kept).toBeLessThan(0.85);
    },
  );
});

it('all logits of a vocabulary of which few rows fit a step', async () => {
  const spec = randomModelSpec({
    architecture: 'llama',
    blocks: 1,
    width: 32,
    heads: 2,
    kvHeads: 1,
    headDim: 16,
    feedForward: 32,
    contextLength: 256,
    types: ['Q8_0'],
    seed: 402,
    tied: true,
  });
  // Gemma 3's: 63 rows of logits are 64 MiB, but prompts are cut after 64.
  const words = 262_208;
  const padded: Record<string, (i: number) => string | number> = {
    'tokenizer.ggml.tokens': (i) => `word ${i}`,
    'tokenizer.ggml.scores': () => 0,
    'tokenizer.ggml.token_type': () => 1,
  };
  const metadata = spec.metadata.map((entry) => {
    const more = padded[String(entry.key)];
    if (more === undefined || !('values' in entry)) return entry;
    return {
      ...entry,
      values: Array.from({ length: words }, (_, i) => entry.values[i] ?? more(i)),
    } as typeof entry;
  });
  const tensors = spec.tensors.map((tensor) =>
    tensor.name === 'token_embd.weight'
      ? { ...tensor, shape: [32, words], data: new Uint8Array(34 * words) }
      : tensor,
  );
  const file = new Blob([writeGguf({ ...spec, metadata, tensors }).bytes]);
  await using model = await load(file, { backend: 'native', attention: { prefill: { policy: 'auto' } } });
  const beside = model.complete(tokens(3, 5, VOCABULARY), { maxTokens: 40, ignoreEnd: true });
  let rows = 0;
  for await (const logits of model.score(tokens(2, 150, VOCABULARY))) rows += Number(logits.length === words);
  expect(rows).toBe(150);
  expect((await beside).tokens).toHaveLength(40);
});

it('layers may have policies of their own', async () => {
  const one = await digest({ prefill: [EACH.window, { policy: 'dense' }] });
  const other = await digest({ prefill: [{ policy: 'dense' }, EACH.window] });
  expect(new Set([one, other, await digest({ prefill: EACH.window }), await digest({})]).size).toBe(4);
  await expect(open({ prefill: [EACH.window, EACH.window, EACH.window] })).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
    message: expect.stringContaining('2 layers'),
  });
});

it('a short prompt is dense for policies with a least number of tokens', async () => {
  await using model = await open({ prefill: { policy: 'antidiagonal' }, decode: { policy: 'quest' } });
  await using dense = await open({});
  const short = PROMPT.slice(0, 300);
  expect(await digestOf(model, short)).toBe(await digestOf(dense, short));
});

it('usage and provenance report what was computed, whatever becomes of the object that was passed', async () => {
  const passed = { prefill: [{ policy: 'window', window: 64 }, { ...EACH.auto }], decode: { ...EACH.quest } };
  const before = structuredClone(passed);
  await using model = await open(passed as AttentionOptions, { provenance: true });
  passed.prefill.reverse();
  for (const policy of [...passed.prefill, passed.decode]) Object.assign(policy, { policy: 'dense' });
  const { usage, provenance } = await model.complete(PROMPT, { maxTokens: 1 });
  const reported = usage.attention?.options;
  expect(reported).toEqual(before);
  expect(provenance?.model.attention).toEqual(before);
  expect(reported?.prefill).toHaveLength(2);
  for (const part of [reported, reported?.prefill, reported?.decode, ...[reported?.prefill].flat()])
    expect(Object.isFrozen(part)).toBe(true);
});

describe('auto that begins beyond the context', () => {
  const AUTO: AttentionPolicy = { policy: 'auto' };
  const notes = async (attention: AttentionOptions, contextLength: number) => {
    await using model = await open(attention, { contextLength });
    return model.info.notes.filter((note) => note.startsWith('attention'));
  };

  it.each<[AttentionOptions, number, number]>([
    [{ prefill: AUTO }, 1024, 4096],
    [{ decode: AUTO }, 1024, 4096],
    [{ prefill: [EACH.window, { ...AUTO, from: 300 }], decode: { ...AUTO, from: 256 } }, 256, 256],
  ])('%j in a context of %i is noted', async (attention, contextLength, from) => {
    expect(await notes(attention, contextLength)).toEqual([
      `attention: auto begins at position ${from}, but the context holds ${contextLength} positions: pass a larger contextLength, or a smaller from`,
    ]);
  });

  it.each<[AttentionOptions, number]>([
    [{ prefill: { ...AUTO, from: 300 }, decode: { ...AUTO, from: 255 } }, 256],
    [{ prefill: [AUTO, { ...AUTO, from: 0 }] }, 256],
    [{ prefill: EACH.window, decode: EACH.quest }, 256],
  ])('%j in a context of %i is not', async (attention, contextLength) => {
    expect(await notes(attention, contextLength)).toEqual([]);
  });
});

describe('wrong options', () => {
  it.each([
    [{ prefill: { policy: 'guess' } }, /one of dense, window/],
    [{ prefill: { policy: 'window' } }, /attention\.prefill\.window/],
    [{ prefill: { policy: 'window', window: -1 } }, /attention\.prefill\.window/],
    [{ prefill: { policy: 'window', window: 10, size: 3 } }, /size/],
    [{ decode: { policy: 'quest', keep: Number.NaN } }, /attention\.decode\.keep/],
    [{ decode: { policy: 'antidiagonal', stride: 5 } }, /4, 8 or 16/],
    [{ decode: { policy: 'lsh', rounds: 9 } }, /attention\.decode\.rounds/],
    [{ decode: { policy: 'auto', quality: 2 } }, /attention\.decode\.quality/],
    [{ decode: { policy: 'antidiagonal', stride: 32 } }, /4, 8 or 16/],
    [{ decode: [{ policy: 'dense' }, { policy: 'lsh', keep: 2 }] }, /attention\.decode\[1\]\.keep/],
    [{ encode: { policy: 'dense' } }, /encode/],
    ['dense', /attention/],
    [[], /attention must be an object, got an array of 0/],
    [[{ policy: 'dense' }], /attention must be an object, got an array of 1/],
    [new Map(), /attention must be an object, got a Map object/],
    [{ prefill: 'auto' }, /such as \{ policy: 'auto' \}, got "auto"/],
    [{ decode: null }, /such as \{ policy: 'auto' \}/],
    [{ prefill: new Array(1).concat(EACH.dense) }, /attention\.prefill\[0\] must be .*, got undefined/],
  ])('%j is refused by name', (options, message) => {
    expect(() => checkAttention(options)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    expect(() => checkAttention(options)).toThrow(message);
  });

  it.each([
    [{ prefill: { policy: 'window' } }, /^Give the policy window its window: an integer from 1/],
    [{ prefill: { policy: 'window', window: 0 } }, /^Give the policy window its window: an integer from 1/],
    [{ decode: { policy: 'strided', window: 9 } }, /^Give the policy strided its stride/],
    [[], /^Pass \{ prefill, decode \} as attention, .* a list of one for each layer\.$/],
    [{ decode: {} }, /^Pass one of dense, .* as attention\.decode\.policy\.$/],
  ])('%j: the cure does not say to leave out what is needed', (options, cure) => {
    expect(() => checkAttention(options)).toThrow(
      expect.objectContaining({ cure: expect.stringMatching(cure) }),
    );
  });

  it('are not those that the README shows', () => {
    const readme = readFileSync(resolve(import.meta.dirname, '../../README.md'), 'utf8');
    const [, shown, other] = /^ {2}attention: (\{.*\}), \/\/ or (.*)$/m.exec(readme) ?? [];
    for (const text of [shown, other]) checkAttention(runInNewContext(`(${text})`));
    expect([shown, other]).toEqual([expect.stringContaining('policy'), expect.stringContaining('policy')]);
  });

  it('an empty list of policies is refused', () => {
    expect(() => sparsePlan({ prefill: [] }, 2)).toThrow(/2 layers/);
  });
});
