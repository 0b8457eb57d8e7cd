import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { loadNative } from '../../ts/backend/native.js';
import { type Isa, load, type Model } from '../../ts/index.js';
import {
  BAD_TOKEN,
  digestOf,
  digestsOf,
  GOLDEN_MODELS,
  type GoldenModel,
  optionsOf,
  readGolden,
  sourceOf,
  WOUNDED,
} from './golden.js';

const golden = readGolden();
const { isas } = await loadNative();
const absentIsas = (['avx2', 'avx-vnni', 'avx512', 'amx', 'neon'] as const).filter(
  (isa) => !isas.includes(isa),
);
if (absentIsas.length > 0) console.log(`not run, for want of the CPU: digests on ${absentIsas.join(', ')}`);

const THREADS = [1, 2, 3] as const;
const CHUNKS = [1, 7, 64] as const;
type Setting = readonly [threads: number, chunk: number];
const ALL: readonly Setting[] = THREADS.flatMap((threads) =>
  CHUNKS.map((chunk) => [threads, chunk] as const),
);
/** Each value once: for large models, and for what only other CPUs choose. */
const SOME: readonly Setting[] = [
  [1, 64],
  [2, 1],
  [3, 7],
];
const ONE: readonly Setting[] = [[2, 7]];

function settingsFor(model: GoldenModel, isa: Isa): readonly Setting[] {
  // The golden digests are the scalar reference's own, with other settings.
  if (isa === 'scalar') return ONE;
  return model.large || isa !== isas[0] ? SOME : ALL;
}

const present = GOLDEN_MODELS.filter(({ name, path }) => {
  if (path === undefined || existsSync(path)) return true;
  console.log(`not run, for want of ${path} (set FRUGAL_SHARED): the digests of ${name}`);
  return false;
});

/** All prompts at the same time, in shared steps. */
async function digestsAtOnce(model: Model, prompts: GoldenModel['prompts']): Promise<Record<string, string>> {
  const entries = Object.entries(prompts).map(
    async ([name, prompt]) => [name, await digestOf(model, prompt)] as const,
  );
  return Object.fromEntries(await Promise.all(entries));
}

describe.each(present)('$name', (entry) => {
  it.each(isas)(
    '%s gives the golden digests with any threads and chunks, two sequences at once',
    async (isa) => {
      const source = sourceOf(entry);
      for (const [threads, chunk] of settingsFor(entry, isa)) {
        await using model = await load(source, { isa, threads, chunk, ...optionsOf(entry) });
        expect(model.info.backend).toMatchObject({ isa, threads });
        const digests = await digestsAtOnce(model, entry.prompts);
        expect({ threads, chunk, ...digests }).toEqual({ threads, chunk, ...golden[entry.name] });
      }
    },
  );
});

it('pins every model and prompt, and no two alike', () => {
  const wanted = GOLDEN_MODELS.map(({ name, prompts }) => [name, Object.keys(prompts)]);
  expect(Object.entries(golden).map(([name, digests]) => [name, Object.keys(digests)])).toEqual(wanted);
  const digests = Object.values(golden).flatMap((each) => Object.values(each));
  expect(new Set(digests).size).toBe(digests.length);
});

/** Calls that go wrong in every way that leaves the model alive; each says what it must end with. */
const FAILURES: Readonly<Record<string, (model: Model) => Promise<void>>> = {
  'a prompt longer than the context': async (model) => {
    const prompt = new Array<number>(model.info.contextLength + 1).fill(3);
    await expect(model.complete(prompt)).rejects.toMatchObject({ code: 'CONTEXT_OVERFLOW' });
    await expect(digestOf(model, prompt)).rejects.toMatchObject({ code: 'CONTEXT_OVERFLOW' });
  },
  'an invalid option': async (model) => {
    await expect(model.complete([1], { temperature: -1 })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
    });
    await expect(digestOf(model, [model.info.vocabSize])).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  },
  'activations that are not numbers': async (model) => {
    const prompt = [...PROMPT.slice(0, 100), BAD_TOKEN, ...PROMPT.slice(0, 30)];
    await expect(digestOf(model, prompt)).rejects.toMatchObject({ code: 'NON_FINITE' });
    await expect(model.complete(prompt)).rejects.toMatchObject({ code: 'NON_FINITE' });
  },
  'an abort within the prompt': async (model) => {
    const stop = new AbortController();
    const running = model.complete(PROMPT, { signal: stop.signal });
    const scored = digestAborted(model, stop.signal);
    setImmediate(() => stop.abort());
    await expect(running).rejects.toMatchObject({ name: 'AbortError' });
    await expect(scored).rejects.toMatchObject({ name: 'AbortError' });
  },
  'an abort among generated tokens': async (model) => {
    const stop = new AbortController();
    const generation = model.generate(PROMPT, { signal: stop.signal, ignoreEnd: true, seed: 1 });
    for (let i = 0; i < 3; i += 1) expect((await generation.next()).done).toBe(false);
    stop.abort();
    await expect(generation.next()).rejects.toMatchObject({ name: 'AbortError' });
  },
  'a loop that is left': async (model) => {
    for await (const _ of model.generate(PROMPT, { ignoreEnd: true, seed: 1 })) break;
    for await (const _ of model.score(PROMPT)) break;
  },
};

const PROMPT = WOUNDED.prompts.long ?? [];

async function digestAborted(model: Model, signal: AbortSignal): Promise<void> {
  for await (const _ of model.score(PROMPT, { signal }))
    await new Promise((resolve) => setTimeout(resolve, 1));
}

describe.each(isas)('on %s the digests stay', (isa) => {
  const open = () =>
    load(sourceOf(WOUNDED), { isa, threads: 2, chunk: 7, contextLength: WOUNDED.contextLength });

  it.each(Object.keys(FAILURES))('after %s', async (name) => {
    await using model = await open();
    await FAILURES[name]?.(model);
    expect(await digestsOf(model, WOUNDED.prompts)).toEqual(golden[WOUNDED.name]);
  });

  it('beside calls that fail, are aborted, generate and embed', async () => {
    await using model = await open();
    const banned = { [BAD_TOKEN]: Number.NEGATIVE_INFINITY };
    const company = [
      ...Object.values(FAILURES).map((fail) => fail(model)),
      model.complete(PROMPT.slice(0, 20), { maxTokens: 60, ignoreEnd: true, seed: 2, logitBias: banned }),
      model.embed('once upon a time'),
    ];
    expect(await digestsAtOnce(model, WOUNDED.prompts)).toEqual(golden[WOUNDED.name]);
    await Promise.all(company);
  });

  it('token by token in a session, as in a prompt', async () => {
    await using model = await open();
    const hash = createHash('sha256');
    await using session = model.session();
    for (const token of WOUNDED.prompts.short ?? []) {
      for await (const row of session.logits([token]))
        hash.update(new Uint8Array(row.buffer, row.byteOffset, row.byteLength));
    }
    expect(hash.digest('hex')).toBe(golden[WOUNDED.name]?.short);
  });
});
