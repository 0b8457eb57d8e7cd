import { createHash } from 'node:crypto';
import { copyFile, mkdtemp, open, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { load, type Model, type Provenance } from '../../ts/engine/index.js';
import { replay } from '../../ts/engine/replay.js';
import { VERSION } from '../../ts/version.js';
import { frugal } from '../cli/program.js';

const ROOT = resolve(import.meta.dirname, '../..');
const MODEL = join(ROOT, 'models/stories-moe-q8_0.gguf');
const SETTINGS = {
  maxTokens: 30,
  seed: 12345678901234567890n,
  temperature: 0.9,
  logitBias: { 40: -Infinity },
};
let folder = '';
let model: Model;
let record: Provenance;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'frugal-provenance-'));
  model = await load(MODEL, { provenance: true, contextLength: 128 });
  const { provenance } = await model.complete('Once upon a time', SETTINGS);
  if (!provenance) throw new Error('no record');
  // As it is read from a file.
  record = JSON.parse(JSON.stringify(provenance));
});
afterAll(async () => {
  await model?.dispose();
  await rm(folder, { recursive: true });
});

/** The record with other fields; made when the test runs, as the record is. */
const altered = (changes: { readonly [K in keyof Provenance]?: Partial<Provenance[K]> }) => () => {
  const copy: Record<string, unknown> = { ...record };
  for (const [part, fields] of Object.entries(changes))
    copy[part] = { ...Object(copy[part]), ...Object(fields) };
  return copy;
};
const NO_HASH = '0'.repeat(64);

describe('a provenance record', () => {
  it('names the file, the version and the settings', async () => {
    const manifest = JSON.parse(await readFile(join(ROOT, 'package.json'), 'utf8'));
    expect(VERSION).toBe(manifest.version);
    const sha256 = createHash('sha256')
      .update(await readFile(MODEL))
      .digest('hex');
    expect(record).toMatchObject({
      engine: { name: 'frugal', version: VERSION },
      model: { sha256: [sha256], contextLength: 128 },
      settings: { seed: '12345678901234567890', temperature: 0.9, topK: 40, logitBias: { 40: null } },
      output: { finishReason: 'length' },
    });
    const words = Buffer.from(Uint32Array.from(record.prompt.tokens).buffer);
    expect(record.prompt.sha256).toBe(createHash('sha256').update(words).digest('hex'));
  });

  it('is made only where it was asked for', async () => {
    await using plain = await load(MODEL);
    expect(await plain.complete('Once', { maxTokens: 2 })).not.toHaveProperty('provenance');
    expect(await replay(plain, record)).toMatchObject({ confirmed: false, differs: 'model' });
  });

  it('is confirmed by other kernels, threads and chunks', async () => {
    await using other = await load(MODEL, {
      ...{ provenance: true, contextLength: 128, isa: 'scalar', threads: 1, chunk: 3 },
    } as const);
    expect(await replay(other, record)).toMatchObject({ confirmed: true });
  });

  it('made by native code is confirmed by WebAssembly', async () => {
    await using other = await load(MODEL, { provenance: true, contextLength: 128, backend: 'wasm' });
    expect(await replay(other, record)).toMatchObject({
      confirmed: true,
      detail: expect.stringContaining('made by wasm'),
    });
  });

  it('of a generation that was left early is confirmed as far as it goes', async () => {
    const generation = model.generate('Lily and', { seed: 3, maxTokens: 50 });
    let pieces = 0;
    for await (const _ of generation) if (++pieces === 5) break;
    const { provenance } = await generation.result;
    expect(provenance?.output.finishReason).toBe('cancelled');
    expect(await replay(model, provenance)).toMatchObject({ confirmed: true });
  });

  it('of a chat covers the turns before', async () => {
    await using chatty = await load(MODEL, {
      provenance: true,
      contextLength: 128,
      chatTemplate: '{% for m in messages %}{{ m.content }} {% endfor %}',
    });
    const chat = chatty.chat({ temperature: 0.5, seed: 1, maxTokens: 8 });
    for (const text of ['One day', 'a fox']) {
      const turn = chat.send(text);
      for await (const _ of turn);
      expect(await replay(chatty, (await turn.result).provenance)).toMatchObject({ confirmed: true });
    }
  });
});

describe('a record of a model with sparse attention', () => {
  const attention = { decode: { policy: 'window', window: 20, sinks: 0 } } as const;
  const chatTemplate = '{% for m in messages %}{{ m.content }}{% endfor %}';

  it('says which policies it had, and is refused without them', async () => {
    await using sparse = await load(MODEL, { provenance: true, contextLength: 128, attention });
    const { provenance } = await sparse.complete('Once upon a time', { seed: 3, maxTokens: 100 });
    expect(provenance?.model.attention).toEqual(attention);
    expect(await replay(sparse, provenance)).toMatchObject({ confirmed: true });
    expect(await replay(model, provenance)).toMatchObject({ confirmed: false, differs: 'plan' });
    const wrong = { ...provenance, model: { ...provenance?.model, attention: { decode: 'all' } } };
    await expect(replay(sparse, wrong)).rejects.toMatchObject({ code: 'RECORD_INVALID' });
  });

  it('covers the turns of a chat', async () => {
    await using chatty = await load(MODEL, { provenance: true, attention, chatTemplate });
    // Without provenance the second turn would go on from the first one's cache.
    const chat = chatty.chat({ seed: 3, maxTokens: 100 });
    for (const text of ['Once upon a time there was a dog', ' Then']) {
      const turn = chat.send(text);
      for await (const _ of turn);
      expect(await replay(chatty, (await turn.result).provenance)).toMatchObject({ confirmed: true });
    }
  });
});

describe('a record that was altered is refused, with what was', () => {
  it.each([
    ['model', altered({ model: { sha256: [NO_HASH] } })],
    ['plan', altered({ model: { planSha256: NO_HASH } })],
    ['prompt', altered({ prompt: { tokens: [5, 6] } })],
    ['prompt', altered({ prompt: { sha256: NO_HASH } })],
    ['output', altered({ output: { tokens: [5, 6] } })],
    ['output', altered({ output: { text: 'Once' } })],
    ['output', altered({ settings: { seed: '1' } })],
    ['output', altered({ output: { finishReason: 'stop' } })],
    ['model', altered({ model: { name: 'another' } })],
    ['model', altered({ model: { architecture: 'another' } })],
  ])('%s', async (differs, alter) => {
    expect(await replay(model, alter())).toMatchObject({ confirmed: false, differs });
  });

  it.each([[null], [{}], [{ format: 'frugal-provenance', formatVersion: 2 }]])(
    'what is no record: %o',
    async (value) => {
      await expect(replay(model, value)).rejects.toMatchObject({ code: 'RECORD_INVALID' });
    },
  );

  it.each([
    ['engine.name', altered({ engine: { name: 'another' as never } })],
    ['backend', () => ({ ...record, backend: null })],
    ['model.contextLength', altered({ model: { contextLength: 0 } })],
    ['settings.topK', altered({ settings: { topK: undefined as never } })],
    ['settings.logitBias', altered({ settings: { logitBias: [1] as never } })],
    ['output.finishReason', altered({ output: { finishReason: undefined as never } })],
  ])('what %s cannot be', async (field, alter) => {
    await expect(replay(model, alter())).rejects.toMatchObject({ code: 'RECORD_INVALID', data: { field } });
  });

  it('another type of cache', async () => {
    await using other = await load(MODEL, { provenance: true, contextLength: 128, kvCache: 'q8_0' });
    expect(await replay(other, record)).toMatchObject({ confirmed: false, differs: 'plan' });
    const unknown = altered({ model: { kvCache: 'q4_0' as never } })();
    await expect(replay(model, unknown)).rejects.toMatchObject({
      code: 'RECORD_INVALID',
      message: expect.stringContaining('model.kvCache'),
    });
  });

  it('but not one from before there were other types', async () => {
    const { kvCache, ...before } = record.model;
    expect(kvCache).toBe('f16');
    expect(await replay(model, { ...record, model: before })).toMatchObject({ confirmed: true });
  });
});

describe('frugal replay', () => {
  const path = (name: string) => join(folder, name);

  it('confirms what frugal run wrote, and refuses it with another model', async () => {
    const run = ['run', MODEL, '-p', 'Once', '-n', '12', '--seed', '7', '--provenance', path('record.json')];
    expect((await frugal(run)).code).toBe(0);
    const confirmed = await frugal(['replay', path('record.json'), '-t', '1']);
    expect(confirmed.stdout).toMatch(/^confirmed: the same 12 tokens/);
    expect(confirmed.code).toBe(0);
    await copyFile(MODEL, path('other.gguf'));
    const file = await open(path('other.gguf'), 'r+');
    const { size } = await file.stat();
    await file.write(Uint8Array.of(1), 0, 1, size - 1000);
    await file.close();
    const refused = await frugal(['replay', path('record.json'), '-m', path('other.gguf'), '--json']);
    expect(JSON.parse(refused.stdout)).toMatchObject({ confirmed: false, differs: 'model' });
    expect(refused.code).toBe(1);
  });

  it('takes the policies of attention from the record', async () => {
    const attention = '{"decode":{"policy":"window","window":5,"sinks":0}}';
    const run = ['run', MODEL, '-p', 'Once', '-n', '90', '--seed', '7', '--attention', attention];
    expect((await frugal([...run, '--provenance', path('sparse.json')])).code).toBe(0);
    const confirmed = await frugal(['replay', path('sparse.json')]);
    expect(confirmed.stdout).toMatch(/^confirmed: the same \d+ tokens/);
  });

  it('takes the type of the cache from the record', async () => {
    const run = ['run', MODEL, '-p', 'Once', '-n', '12', '--seed', '7', '--kv-cache', 'q8_0'];
    expect((await frugal([...run, '--provenance', path('q8.json')])).code).toBe(0);
    expect(JSON.parse(await readFile(path('q8.json'), 'utf8')).model.kvCache).toBe('q8_0');
    const confirmed = await frugal(['replay', path('q8.json'), '--backend', 'wasm']);
    expect(confirmed.stdout).toMatch(/^confirmed: the same 12 tokens, made by wasm/);
  });

  it('says in one line what is wrong with a file', async () => {
    await writeFile(path('broken.json'), '{');
    const { code, stderr } = await frugal(['replay', path('broken.json')]);
    expect(code).toBe(1);
    expect(stderr).toMatch(/^frugal: RECORD_INVALID: .* is not JSON\. .*\n$/);
  });
});
