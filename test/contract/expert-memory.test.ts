import { copyFile, truncate, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { loadNative } from '../../ts/backend/native.js';
import { lacking, type WasmVariant } from '../../ts/backend/wasm/variant.js';
import { blobSource } from '../../ts/gguf/blob-source.js';
import type { ByteSource } from '../../ts/gguf/source.js';
import { type ExpertUsage, type LoadOptions, load, type Model, type ModelSource } from '../../ts/index.js';
import { load as loadInWorker } from '../../ts/worker/node.js';
import { answerRange, withServer } from '../gguf/server.js';
import { withFolder } from '../gguf/sources.js';
import { writeGguf } from '../gguf/writer.js';
import { digestOf, GOLDEN_MODELS, readGolden, tokens } from './golden.js';
import { type MixtureOptions, mixtureSpec } from './mixture-model.js';
import { randomModelSpec, VOCABULARY } from './random-model.js';

const { isas } = await loadNative();

type Load = (source: ModelSource, options?: LoadOptions) => Promise<Model>;

const onWasm =
  (variant: WasmVariant, inner: Load): Load =>
  (source, options) =>
    inner(source, { backend: 'wasm', variant, ...options });

/** What runs models here, each with whatever reads experts for it. */
const relaxed: WasmVariant[] = lacking(undefined).relaxed === undefined ? ['relaxed-simd-threads'] : [];
const ENGINES: ReadonlyArray<readonly [string, Load]> = [
  ['native code', load],
  ...(['simd128', 'simd128-threads', ...relaxed] as const).map(
    (variant) => [variant, onWasm(variant, load)] as const,
  ),
  ['native code in a worker', loadInWorker],
  ['simd128-threads in a worker', onWasm('simd128-threads', loadInWorker)],
];

const STORIES = GOLDEN_MODELS.find(({ name }) => name === 'stories-moe');
const PATH = STORIES?.path ?? '';
const PROMPTS = STORIES?.prompts ?? {};
const GOLDEN = readGolden()['stories-moe'];
/** Stories have 6 layers of 8 experts. */
const EXPERTS = 8;

const digests = async (model: Model) =>
  Object.fromEntries(
    await Promise.all(
      Object.entries(PROMPTS).map(async ([name, prompt]) => [name, await digestOf(model, prompt)] as const),
    ),
  );

async function infoOfStories(): Promise<Model['info']> {
  await using model = await load(PATH);
  return model.info;
}
const INFO = await infoOfStories();
/** Bytes of so many experts of each layer. */
const slots = (count: number) => (INFO.expertBytes / EXPERTS) * count;

/** Experts of two layers: Q8_0 and Q4_0. */
const MIXTURE: MixtureOptions = {
  seed: 50,
  blocks: 2,
  width: 64,
  heads: 2,
  kvHeads: 2,
  headDim: 32,
  feedForward: 128,
  contextLength: 256,
  types: ['Q8_0', 'Q4_0'],
  experts: 6,
  topK: 3,
};
const PROMPT = tokens(51, 60, VOCABULARY);
const mixture = () => new Blob([writeGguf(mixtureSpec(MIXTURE)).bytes]);

async function usageOf(model: Model, prompt = PROMPT): Promise<ExpertUsage> {
  const { usage } = await model.complete(prompt, { maxTokens: 1, temperature: 0, expertUsage: true });
  if (!usage.experts) throw new Error('no usage of experts was reported');
  return usage.experts;
}

describe.each(isas)('on %s experts that are read on demand', (isa) => {
  it.each([1, 3, 5])('%i of 8 in memory: golden digests, with any threads and chunks', async (count) => {
    for (const [threads, chunk] of [
      [1, 64],
      [3, 7],
      [2, 1],
    ] as const) {
      if (isa === 'scalar' && chunk !== 7) continue;
      const options = { isa, threads, chunk, contextLength: 512, expertMemory: slots(count) };
      await using model = await load(PATH, options);
      expect(model.info.packedBytes).toBe(INFO.packedBytes - slots(EXPERTS - count));
      expect({ threads, chunk, ...(await digests(model)) }).toEqual({ threads, chunk, ...GOLDEN });
    }
  });

  it('the same from a Blob', async () => {
    await using whole = await load(mixture(), { isa });
    const wanted = await digestOf(whole, PROMPT);
    for (const share of [0.2, 0.7]) {
      const expertMemory = Math.floor(whole.info.expertBytes * share);
      await using model = await load(mixture(), { isa, chunk: 13, expertMemory });
      expect(await Promise.all([digestOf(model, PROMPT), digestOf(model, PROMPT)])).toEqual([wanted, wanted]);
    }
  });
});

describe.each(ENGINES)('by %s, the memory for experts', (_, load) => {
  it('changes no digest, whatever fits into it', async () => {
    for (const [count, threads, chunk] of [
      [1, 2, 64],
      [5, 3, 7],
    ] as const) {
      const options = { threads, chunk, contextLength: 512, expertMemory: slots(count) };
      await using model = await load(PATH, options);
      expect(model.info.packedBytes).toBe(INFO.packedBytes - slots(EXPERTS - count));
      expect({ count, ...(await digests(model)) }).toEqual({ count, ...GOLDEN });
    }
  });

  it('is filled from a URL, with ranges', async () => {
    const { bytes } = writeGguf(mixtureSpec(MIXTURE));
    await using whole = await load(new Blob([bytes]));
    const wanted = await digestOf(whole, PROMPT);
    await withServer(new Map([['mixture.gguf', bytes]]), answerRange, async (url, requests) => {
      await using model = await load(`${url}/mixture.gguf`, { chunk: 13, expertMemory: share(2) });
      const before = requests.length;
      expect(await digestOf(model, PROMPT)).toBe(wanted);
      expect(requests.length).toBeGreaterThan(before);
    });
  });

  it('counts hits: none at first, then the experts that fit', async () => {
    for (const count of [2, 3, 6]) {
      const source = mixture();
      // One step, whatever the default: each counts what it reads.
      await using model = await load(source, { expertMemory: share(count), chunk: PROMPT.length });
      const first = await usageOf(model);
      const used = first.layers.map(({ tokens }) => tokens.filter((each) => each > 0).length);
      const fits = used.map((each) => Math.min(each, count)).reduce((sum, each) => sum + each, 0);
      // With room for all experts they are in memory from the start.
      expect(first.hits).toBe(count === MIXTURE.experts ? first.reads : 0);
      const second = await usageOf(model);
      expect(second).toMatchObject({ reads: first.reads, hits: fits });
    }
  });

  it('refuses less than one expert of each layer takes, and says how much that is', async () => {
    const refusal = load(mixture(), { expertMemory: share(1) - 1 });
    await expect(refusal).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(refusal).rejects.toThrow(`takes ${share(1)}`);
    await using model = await load(mixture(), { expertMemory: share(1) });
    expect((await usageOf(model)).layers).toHaveLength(2);
  });

  it.each([0, -1, Number.NaN, Number.POSITIVE_INFINITY, '1GiB'])('refuses %s', async (expertMemory) => {
    const refusal = load(mixture(), { expertMemory: expertMemory as number });
    await expect(refusal).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      data: { field: 'expertMemory' },
    });
  });

  it.each([0.5, 1.5, 2 ** 53])('refuses %d and says what it may be', async (expertMemory) => {
    await expect(load(mixture(), { expertMemory })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: `expertMemory must be a whole number of bytes from 1 to ${Number.MAX_SAFE_INTEGER}, got ${expertMemory}`,
    });
  });

  it('of info.expertBytes holds all experts, also where packed ones take more than in the file', async () => {
    const odd = new Blob([writeGguf(mixtureSpec({ ...MIXTURE, width: 96, feedForward: 96 })).bytes]);
    await using whole = await load(odd);
    const { expertBytes, packedBytes } = whole.info;
    for (const [expertMemory, all] of [
      [expertBytes, true],
      [expertBytes - 1, false],
    ] as const) {
      await using model = await load(odd, { expertMemory });
      const { reads, hits } = await usageOf(model);
      expect([model.info.packedBytes === packedBytes, hits === reads]).toEqual([all, all]);
    }
  });

  it('is noted to have no effect on a dense model', async () => {
    const dense = new Blob([writeGguf(randomModelSpec({ ...MIXTURE, architecture: 'llama' })).bytes]);
    await using model = await load(dense, { expertMemory: 1 });
    expect(model.info.notes.join()).toContain('expertMemory has no effect');
    expect((await model.complete(PROMPT, { maxTokens: 2 })).tokens.length).toBeGreaterThan(0);
  });
});

/** Bytes of so many experts of each layer of the mixture; there is no padding in these shapes. */
function share(count: number): number {
  const stacks = mixtureSpec(MIXTURE).tensors.filter(({ name }) => `${name}`.includes('_exps'));
  return (count * stacks.reduce((sum, { data }) => sum + (data?.length ?? 0), 0)) / MIXTURE.experts;
}

describe.each(ENGINES)('by %s, a file that changes while experts are in it', (_, load) => {
  const few = { expertMemory: slots(2), contextLength: 512, chunk: 8 };

  it('may be deleted', async () => {
    await withFolder(async (folder) => {
      const path = join(folder, 'model.gguf');
      await copyFile(PATH, path);
      await using model = await load(path, few);
      await unlink(path);
      expect(await digests(model)).toEqual(GOLDEN);
    });
  });

  it.each([0.5, 1.5])(
    'is refused when its length is now %f of what it was, call after call',
    async (factor) => {
      await withFolder(async (folder) => {
        const path = join(folder, 'model.gguf');
        await copyFile(PATH, path);
        await using model = await load(path, few);
        const bytes = model.info.weightBytes;
        await model.complete(PROMPTS.short ?? [], { maxTokens: 2 });
        await truncate(path, Math.round(bytes * factor));
        for (let i = 0; i < 3; i += 1) {
          const call = model.complete(PROMPTS.long ?? [], { maxTokens: 2 });
          await expect(call).rejects.toMatchObject({ code: 'SOURCE_READ' });
          await expect(call).rejects.toThrow(path);
        }
        await using other = await load(PATH, few);
        expect(await digests(other)).toEqual(GOLDEN);
      });
    },
  );
});

interface Watched {
  readonly source: ByteSource;
  /** Reads from now on fail, or wait. */
  fail: boolean;
  wait: Promise<void> | undefined;
  reads: number;
  closed: number;
}

function watched(): Watched {
  const inner = blobSource(mixture());
  const state: Watched = {
    source: {
      name: 'watched',
      size: inner.size,
      async read(offset, length) {
        state.reads += 1;
        await state.wait;
        if (state.fail) throw new Error('the disk is gone');
        return inner.read(offset, length);
      },
      async close() {
        state.closed += 1;
      },
    },
    fail: false,
    wait: undefined,
    reads: 0,
    closed: 0,
  };
  return state;
}

describe.each(ENGINES)('by %s, a source that JavaScript reads', (_, load) => {
  const few = { expertMemory: share(2), chunk: 16 };

  it('stays open until the model is disposed of, and only where experts are read later', async () => {
    const whole = watched();
    await using model = await load(whole.source);
    expect(whole.closed).toBeGreaterThan(0);
    const wanted = await digestOf(model, PROMPT);
    const later = watched();
    const demanding = await load(later.source, few);
    expect(later.closed).toBe(0);
    expect(await digestOf(demanding, PROMPT)).toBe(wanted);
    await demanding.dispose();
    expect(later.closed).toBeGreaterThan(0);
  });

  it('may fail: the call rejects with its error, and the next gives what it always gave', async () => {
    const state = watched();
    await using model = await load(state.source, few);
    const wanted = await digestOf(model, PROMPT);
    state.fail = true;
    await expect(digestOf(model, PROMPT)).rejects.toThrow('the disk is gone');
    state.fail = false;
    expect(await Promise.all([digestOf(model, PROMPT), digestOf(model, PROMPT.slice(9))])).toContain(wanted);
  });

  it('may be slow: an abort rejects at once, and others go on', async () => {
    const state = watched();
    await using model = await load(state.source, few);
    const wanted = await digestOf(model, PROMPT);
    let release = () => {};
    state.wait = new Promise((resolve) => {
      release = resolve;
    });
    const stop = new AbortController();
    const aborted = model.complete(PROMPT, { signal: stop.signal });
    const other = digestOf(model, PROMPT);
    const before = state.reads;
    await expect.poll(() => state.reads).toBeGreaterThan(before);
    stop.abort();
    await expect(aborted).rejects.toMatchObject({ name: 'AbortError' });
    release();
    state.wait = undefined;
    expect(await other).toBe(wanted);
  });

  it('may never answer: an abort frees what its call took, and later calls are as ever', async () => {
    const state = watched();
    await using model = await load(state.source, few);
    const wanted = await digestOf(model, PROMPT);
    const kvBytes = async () => (await model.complete([1, 2], { maxTokens: 1 })).usage.kvBytes;
    const before = await kvBytes();
    for (let i = 0; i < 3; i += 1) {
      state.wait = new Promise(() => {});
      const stop = new AbortController();
      const aborted = model.complete(PROMPT, { signal: stop.signal });
      const reads = state.reads;
      await expect.poll(() => state.reads).toBeGreaterThan(reads);
      stop.abort();
      await expect(aborted).rejects.toMatchObject({ name: 'AbortError' });
      state.wait = undefined;
      expect(await kvBytes()).toBe(before);
    }
    expect(await digestOf(model, PROMPT)).toBe(wanted);
  });

  it('may never answer: it does not hold up disposal', async () => {
    const state = watched();
    const model = await load(state.source, few);
    const before = state.reads;
    state.wait = new Promise(() => {});
    const running = model.complete(PROMPT);
    const ended = expect(running).rejects.toMatchObject({ code: 'DISPOSED' });
    await expect.poll(() => state.reads).toBeGreaterThan(before);
    await model.dispose();
    await ended;
    expect(state.closed).toBeGreaterThan(0);
  });
});
