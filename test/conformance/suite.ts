/**
 * What every backend must do in every runtime, as plain functions without a test runner. Each checks what holds
 * everywhere and gives what must be the same everywhere.
 */
import type { LoadOptions, Model, ModelSource } from '../../ts/portable.js';

export interface Api {
  load(source: ModelSource, options?: LoadOptions): Promise<Model>;
}

export interface PinnedModel {
  readonly name: string;
  readonly source: ModelSource;
  readonly settings: LoadOptions;
  readonly prompts: Readonly<Record<string, readonly number[]>>;
}

export interface Fixtures {
  /** A small model with a chat template. */
  readonly model: Blob;
  /** A small mixture of experts. */
  readonly mixture: Blob;
  /** Models whose logits are pinned. */
  readonly pinned: readonly PinnedModel[];
  /** For every load. */
  readonly options: LoadOptions;
}

export type Outcome = { readonly value: unknown } | { readonly failure: string };
type Case = (api: Api, fixtures: Fixtures) => Promise<unknown>;

const PROMPT = [3, 14, 15, 9, 26, 5, 35, 8, 97, 93, 23, 84, 62, 64];

export const CASES: Readonly<Record<string, Case>> = {
  'load says what computes and how much it takes': withModel(async (model) => {
    const { backend, packedBytes, vocabSize } = model.info;
    check(backend.threads >= 1 && backend.isa.length > 0, 'a backend');
    check((backend.kind === 'wasm') === (backend.variant !== undefined), 'a variant for WebAssembly alone');
    return { packedBytes, vocabSize };
  }),
  'load reports its progress': async ({ load }, { model, options }) => {
    const phases = new Set<string>();
    const loaded = await load(model, { ...options, onProgress: ({ phase }) => phases.add(phase) });
    await loaded.dispose();
    return [...phases];
  },
  'load refuses damaged files': async ({ load }, { model, options }) => {
    const codes: string[] = [];
    for (const bytes of [0, 3, 100, 1000, model.size - 1]) {
      codes.push(await codeOf(load(model.slice(0, bytes), options)));
    }
    return codes;
  },
  'load refuses options, and ends when aborted': async ({ load }, { model, options }) => {
    const signal = AbortSignal.abort(new Error('enough'));
    const aborted = await load(model, { ...options, signal }).catch((error: Error) => error.message);
    return [aborted, await codeOf(load(model, { ...options, chunk: 0 }))];
  },
  'tokenize and detokenize': withModel(async (model) => {
    const tokens = await model.tokenize('the end of it all');
    return { tokens: [...tokens], text: model.detokenize(tokens) };
  }),
  'complete repeats itself with a seed': withModel(async (model) => {
    const options = { seed: 7, maxTokens: 24, ignoreEnd: true };
    const [first, second] = [await model.complete(PROMPT, options), await model.complete(PROMPT, options)];
    check(String(first.tokens) === String(second.tokens), 'the same tokens twice');
    return { tokens: [...first.tokens], text: first.text, finish: first.finishReason };
  }),
  'generate gives pieces that make up the text': withModel(async (model) => {
    const generation = model.generate(PROMPT, { seed: 7, maxTokens: 24, ignoreEnd: true });
    let text = '';
    for await (const piece of generation) text += piece;
    check(text === (await generation.result).text, 'the pieces are the text');
    return text;
  }),
  'calls at the same time give what they give alone': withModel(async (model) => {
    const one = (seed: number) =>
      model.complete(PROMPT.slice(seed), { seed, maxTokens: 12, ignoreEnd: true });
    const together = await Promise.all([one(1), one(2), one(3)]);
    const alone = [await one(1), await one(2), await one(3)];
    const tokens = (list: typeof alone) => list.map((each) => [...each.tokens]);
    check(JSON.stringify(tokens(together)) === JSON.stringify(tokens(alone)), 'the same tokens');
    return tokens(alone);
  }),
  'chat says what a fresh one of the same history does': withModel(async (model) => {
    // Answers of bytes that are no text are read again as other tokens, from which on the cache is of no use.
    const options = { seed: 3, maxTokens: 8, repetitionPenalty: 1.2, ignoreEnd: true };
    const chat = model.chat(options);
    const turns: unknown[] = [];
    for (const text of ['hello', 'and you?', 'why']) {
      const fresh = model.chat({ ...options, messages: chat.history });
      const answers = [chat.send(text), fresh.send(text)];
      for (const answer of answers) for await (const _ of answer);
      const [kept, anew] = await Promise.all(answers.map(({ result }) => result));
      const tokens = [...(kept?.tokens ?? [])];
      check(String(tokens) === String(anew?.tokens), 'the same tokens');
      turns.push(tokens, kept?.usage.cachedTokens);
      await fresh.dispose();
    }
    await chat.dispose();
    return turns;
  }),
  'chat remembers what was said': withModel(async (model) => {
    const chat = model.chat({ seed: 3, maxTokens: 8 });
    for (const text of ['hello', 'and you?']) for await (const _ of chat.send(text));
    return chat.history;
  }),
  'embed gives unit vectors': withModel(async (model) => {
    const vectors = await model.embed(['one', 'two words']);
    for (const vector of vectors) {
      check(Math.abs(Math.hypot(...vector) - 1) < 1e-4, 'a length of 1');
    }
    return vectors.map((vector) => [...vector]);
  }),
  'score gives a row for each token, which add up to 1': withModel(async (model) => {
    const rows: number[][] = [];
    for await (const row of model.score(PROMPT, { logProbabilities: true })) rows.push([...row]);
    check(rows.length === PROMPT.length, 'as many rows as tokens');
    for (const row of rows) {
      const sum = row.reduce((total, x) => total + Math.exp(x), 0);
      check(Math.abs(sum - 1) < 1e-4, 'probabilities');
    }
    return rows.map((row) => row[5]);
  }),
  'an abort ends a generation within a token, and frees its cache': withModel(async (model) => {
    const stop = new AbortController();
    const generation = model.generate(PROMPT, { ignoreEnd: true, maxTokens: 200, signal: stop.signal });
    await generation.next();
    stop.abort(new Error('enough'));
    const end = await generation.next().catch((error: Error) => error.message);
    check(end === 'enough', 'the reason of the abort');
    const { usage } = await model.complete([1, 2], { maxTokens: 1, ignoreEnd: true });
    return usage.kvBytes;
  }),
  'errors of a call leave the model as it was': withModel(async (model) => {
    const tooLong = new Array<number>(model.info.contextLength + 1).fill(3);
    const codes = [
      await codeOf(model.complete(tooLong)),
      await codeOf(model.complete(PROMPT, { temperature: -1 })),
      await codeOf(model.complete([model.info.vocabSize])),
    ];
    const { tokens } = await model.complete(PROMPT, { temperature: 0, maxTokens: 4, ignoreEnd: true });
    return { codes, tokens: [...tokens] };
  }),
  'dispose ends what runs, and every call after it': async ({ load }, { model, options }) => {
    const loaded = await load(model, options);
    const running = codeOf(loaded.complete(PROMPT, { ignoreEnd: true }));
    await loaded.dispose();
    await loaded.dispose();
    return [await running, await codeOf(loaded.complete(PROMPT)), await codeOf(loaded.embed('x'))];
  },
  'two models do not disturb each other': async ({ load }, { model, options }) => {
    const [a, b] = await Promise.all([load(model, options), load(model, options)]);
    const run = (of: Model) => of.complete(PROMPT, { seed: 9, maxTokens: 8, ignoreEnd: true });
    const [first, second] = await Promise.all([run(a), run(b)]);
    await a.dispose();
    const third = await run(b);
    await b.dispose();
    check(String(first.tokens) === String(second.tokens), 'the same tokens in both');
    check(String(first.tokens) === String(third.tokens), 'the same tokens when the other is gone');
    return [...first.tokens];
  },
  'experts that stay in the file change nothing': async ({ load }, { mixture, options }) => {
    const whole = await load(mixture, options);
    const { expertBytes, packedBytes } = whole.info;
    const wanted = await digestOf(whole, PROMPT);
    await whole.dispose();
    const some = await load(mixture, { ...options, expertMemory: expertBytes / 2 });
    check(some.info.packedBytes === packedBytes - expertBytes / 2, 'half of the experts in memory');
    check((await digestOf(some, PROMPT)) === wanted, 'the same digest with half of the experts');
    const stop = new AbortController();
    const aborted = some.complete(PROMPT, { maxTokens: 100, ignoreEnd: true, signal: stop.signal });
    stop.abort(new Error('enough'));
    const end = await aborted.catch((error: Error) => error.message);
    const { usage } = await some.complete(PROMPT, { maxTokens: 1, ignoreEnd: true, expertUsage: true });
    check((await digestOf(some, PROMPT)) === wanted, 'the same digest after an abort');
    await some.dispose();
    check((usage.experts?.reads ?? 0) > 0, 'experts that were read');
    return [end, wanted];
  },
  'sparse attention by content keeps the same everywhere': async ({ load }, { model, options }) => {
    const prompt = Array.from({ length: 230 }, (_, i) => (i * 37) % 200);
    const of: Record<string, string> = {};
    for (const policy of ['antidiagonal', 'vertical-slash', 'lsh', 'quest'] as const) {
      const attention = { prefill: { policy, keep: 0.3, minTokens: 64 } };
      for (const kvCache of ['f16', 'q8_0'] as const) {
        const loaded = await load(model, { ...options, attention, kvCache });
        of[`${policy}, ${kvCache}`] = await digestOf(loaded, prompt);
        await loaded.dispose();
      }
      check(of[`${policy}, f16`] !== of[`${policy}, q8_0`], 'other results with another cache');
    }
    return of;
  },
  'logits are the pinned ones, bit by bit': async ({ load }, { pinned, options }) => {
    const digests: Record<string, Record<string, string>> = {};
    for (const { name, source, settings, prompts } of pinned) {
      const model = await load(source, { ...options, ...settings });
      const of: Record<string, string> = {};
      for (const [prompt, tokens] of Object.entries(prompts)) of[prompt] = await digestOf(model, tokens);
      digests[name] = of;
      await model.dispose();
    }
    return digests;
  },
};

/** Runs all cases, one after the other. */
export async function runCases(api: Api, fixtures: Fixtures): Promise<Record<string, Outcome>> {
  const outcomes: Record<string, Outcome> = {};
  for (const [name, run] of Object.entries(CASES)) {
    outcomes[name] = await run(api, fixtures).then(
      (value) => ({ value }),
      (error) => ({ failure: error instanceof Error ? (error.stack ?? error.message) : String(error) }),
    );
  }
  return outcomes;
}

function withModel(use: (model: Model) => Promise<unknown>): Case {
  return async ({ load }, { model, options }) => {
    const loaded = await load(model, options);
    try {
      return await use(loaded);
    } finally {
      await loaded.dispose();
    }
  };
}

function check(holds: boolean, what: string): void {
  if (!holds) throw new Error(`expected ${what}`);
}

async function codeOf(call: Promise<unknown>): Promise<string> {
  return call.then(
    () => 'no error',
    (error) => String((error as { code?: unknown }).code ?? error),
  );
}

/** SHA-256 over the raw bits (float32, little-endian) of all rows of logits, in order. */
export async function digestOf(model: Model, tokens: readonly number[]): Promise<string> {
  const rows: Uint8Array[] = [];
  for await (const row of model.score(tokens)) rows.push(new Uint8Array(row.slice().buffer));
  const bytes = new Uint8Array(rows.reduce((sum, row) => sum + row.length, 0));
  let at = 0;
  for (const row of rows) {
    bytes.set(row, at);
    at += row.length;
  }
  const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
  return [...hash].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}
