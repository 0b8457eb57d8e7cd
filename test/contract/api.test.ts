import { existsSync, readFileSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { join, resolve } from 'node:path';
import { describe, expect, it } from 'vitest';
import { loadNative } from '../../ts/backend/native.js';
import { type LoadOptions, load, type Model, type ModelSource } from '../../ts/index.js';
import { frugal } from '../cli/program.js';
import { withFolder } from '../gguf/sources.js';
import { tinyLlama, tinyLlamaSpec } from '../gguf/tiny-llama.js';
import { type TensorSpec, writeGguf, writeSplit } from '../gguf/writer.js';
import { digestOf, SHARED, tokens } from './golden.js';
import { randomModelSpec, VOCABULARY } from './random-model.js';

const { isas } = await loadNative();
const STORIES = resolve(SHARED, 'models/stories260K.gguf');
const present = existsSync(STORIES);
if (!present) console.log(`not run, for want of ${STORIES} (set FRUGAL_SHARED): the published text`);

const TINY = tinyLlama().bytes;
const IDS = tokens(8, 130, VOCABULARY);

async function withModel<T>(
  source: ModelSource,
  options: LoadOptions,
  use: (model: Model) => Promise<T>,
): Promise<T> {
  await using model = await load(source, options);
  return await use(model);
}

const digest = (source: ModelSource, options: LoadOptions = {}) =>
  withModel(source, options, (model) => digestOf(model, IDS));

/** Every instruction set, with different threads and chunks for each. */
const SETTINGS: readonly LoadOptions[] = isas.flatMap((isa) => [
  { isa, threads: 1, chunk: 64 },
  { isa, threads: 2, chunk: 5 },
]);

/** What `use` gives with each of the settings; all must be the same. */
async function everywhere<T>(source: ModelSource, use: (model: Model) => Promise<T>): Promise<T> {
  const results: T[] = [];
  for (const options of SETTINGS) results.push(await withModel(source, options, use));
  const [first, ...rest] = results;
  if (first === undefined) throw new Error('no instruction set');
  rest.forEach((result, i) => {
    expect([SETTINGS[i + 1], result]).toEqual([SETTINGS[i + 1], first]);
  });
  return first;
}

describe.runIf(present)('the published text', () => {
  const story = present
    ? readFileSync(resolve(SHARED, 'models/README.md'), 'utf8')
        .split('\n')
        .flatMap((line) => (line.startsWith('> ') ? [line.slice(2)] : []))
        .join('\n')
    : '';
  const prompt = 'Once upon a time';

  it('comes from every instruction set', async () => {
    const text = await everywhere(STORIES, async (model) => {
      const room = (await model.tokenize(story)).length - (await model.tokenize(prompt)).length;
      return (await model.complete(prompt, { temperature: 0, maxTokens: room })).text;
    });
    expect(prompt + text).toBe(story);
    expect(story.length).toBeGreaterThan(500);
  });

  it('comes from the program', async () => {
    const count = await withModel(STORIES, {}, async (model) => (await model.tokenize(story)).length);
    const room = String(count - (await withModel(STORIES, {}, (model) => model.tokenize(prompt))).length);
    const { stdout, code } = await frugal([
      'run',
      STORIES,
      '-p',
      prompt,
      '--temp',
      '0',
      '-n',
      room,
      '--echo',
    ]);
    expect({ code, stdout: stdout.trimEnd() }).toEqual({ code: 0, stdout: story });
  });
});

describe('what a model gives does not depend on what computes it', () => {
  const source = new Blob([TINY]);

  it('sampled text with a seed', async () => {
    const options = { seed: 11, maxTokens: 40, repetitionPenalty: 1.2, ignoreEnd: true, minP: 0, topK: 0 };
    const complete = async (model: Model, seed: number) => [
      ...(await model.complete(IDS, { ...options, seed })).tokens,
    ];
    const first = await everywhere(source, (model) => complete(model, 11));
    expect(first).toHaveLength(40);
    expect(await withModel(source, {}, (model) => complete(model, 12))).not.toEqual(first);
  });

  it('embeddings, alone or among others', async () => {
    const texts = ['once upon a time', 'the end', 'and so on to the end of it all'];
    const all = await everywhere(source, (model) => model.embed(texts));
    expect(all.map((vector) => vector.length)).toEqual([64, 64, 64]);
    expect(all[0]).not.toEqual(all[1]);
    await withModel(source, {}, async (model) => {
      for (const [i, text] of texts.entries()) expect(await model.embed(text)).toEqual(all[i]);
    });
  });

  it('scores, as one prompt or token by token', async () => {
    await withModel(source, { chunk: 16 }, async (model) => {
      await using session = model.session();
      let i = 0;
      for await (const row of model.score(IDS)) {
        const token = IDS[i] ?? 0;
        for await (const single of session.logits([token], { rows: 'last' })) expect(single).toEqual(row);
        i += 1;
      }
      expect(i).toBe(IDS.length);
    });
  });
});

it('a conversation follows the template in the metadata of the file', async () => {
  const template =
    '{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}';
  const { bytes } = tinyLlama({
    metadata: [{ key: 'tokenizer.chat_template', kind: 'string', value: template }],
  });
  await withModel(new Blob([bytes]), {}, async (model) => {
    expect(model.info.hasChatTemplate).toBe(true);
    const options = { seed: 3, maxTokens: 12, ignoreEnd: true };
    await using chat = model.chat({ ...options, system: 'a' });
    const asked = async (text: string, rendered: string) => {
      let answer = '';
      for await (const piece of chat.send(text)) answer += piece;
      const prompt = await model.tokenize(rendered, { addSpecial: false, parseSpecial: true });
      expect(answer).toBe((await model.complete(prompt, options)).text);
      return answer;
    };
    const first = await asked('the one', '<s>system: a\nuser: the one\nassistant:');
    await asked('on', `<s>system: a\nuser: the one\nassistant: ${first}\nuser: on\nassistant:`);
    expect(chat.history.map(({ role }) => role)).toEqual([
      'system',
      'user',
      'assistant',
      'user',
      'assistant',
    ]);
  });
});

describe('the same model from another place gives the same logits', () => {
  it('file, Blob, split files and http', async () => {
    await withFolder(async (folder) => {
      const path = join(folder, 'model.gguf');
      await writeFile(path, TINY);
      const expected = await digest(path);
      expect(await digest(new Blob([TINY]))).toBe(expected);

      const parts = writeSplit('split', tinyLlamaSpec(), [5, 13]);
      for (const [name, bytes] of parts) await writeFile(join(folder, name), bytes);
      expect(await digest(join(folder, 'split-00001-of-00003.gguf'))).toBe(expected);

      await withServer(new Map([['model.gguf', TINY], ...parts]), async (url) => {
        expect(await digest(`${url}/model.gguf`)).toBe(expected);
        expect(await digest(new URL(`${url}/split-00001-of-00003.gguf`))).toBe(expected);
      });
    });
  });

  it('a file of version 2 and one aligned otherwise', async () => {
    const expected = await digest(new Blob([TINY]));
    expect(await digest(new Blob([tinyLlama({ version: 2 }).bytes]))).toBe(expected);
    expect(await digest(new Blob([tinyLlama({ alignment: 256 }).bytes]))).toBe(expected);
  });
});

/** Keys that are zero give zero, whatever type says so: then the other matrices must not notice the type. */
it.each(['Q8_0', 'Q4_0', 'BF16', 'F32'] as const)('%s keys among F16 queries and values', async (type) => {
  const spec = randomModelSpec({
    architecture: 'llama',
    seed: 400,
    blocks: 2,
    width: 64,
    heads: 4,
    kvHeads: 2,
    headDim: 32,
    feedForward: 96,
    contextLength: 256,
    types: ['F16'],
  });
  const zeroKeys =
    (of: 'F16' | typeof type) =>
    (tensor: TensorSpec): TensorSpec => {
      if (!String(tensor.name).endsWith('attn_k.weight')) return tensor;
      const { name, shape } = tensor;
      // Q4_0 blocks of zero bytes have the scale zero, so they are zero as well.
      return { name, shape, type: of };
    };
  const of = (kind: 'F16' | typeof type) =>
    digest(new Blob([writeGguf({ ...spec, tensors: spec.tensors.map(zeroKeys(kind)) }).bytes]));
  expect(await of(type)).toBe(await of('F16'));
});

/** A server of ranges, as static hosts are. */
async function withServer(
  files: ReadonlyMap<string, Uint8Array>,
  use: (url: string) => Promise<void>,
): Promise<void> {
  const server = createServer((request, response) => {
    const bytes = files.get((request.url ?? '').slice(1));
    const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '');
    if (bytes === undefined || range === null) {
      response.writeHead(404).end();
      return;
    }
    const start = Number(range[1]);
    const end = Math.min(Number(range[2]) + 1, bytes.length);
    const headers = {
      'content-range': `bytes ${start}-${end - 1}/${bytes.length}`,
      'content-length': end - start,
    };
    response.writeHead(206, headers).end(bytes.subarray(start, end));
  });
  await new Promise<void>((ready) => server.listen(0, '127.0.0.1', ready));
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('no port');
  try {
    await use(`http://127.0.0.1:${address.port}`);
  } finally {
    server.closeAllConnections();
    await new Promise((closed) => server.close(closed));
  }
}
