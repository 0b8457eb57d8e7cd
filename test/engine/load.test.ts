import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { describe, expect, it } from 'vitest';
import type { Backend, BackendOptions } from '../../ts/backend/types.js';
import { type LoadEvent, type LoadOptions, loadWith } from '../../ts/engine/load.js';
import type { ModelSource, Runtime } from '../../ts/engine/source.js';
import { FrugalError } from '../../ts/errors.js';
import { openFile } from '../../ts/gguf/file-source.js';
import type { ByteSource } from '../../ts/gguf/source.js';
import { createFakeBackend, type FakeBackend } from './fake.js';

const SHARED = resolve(process.env.FRUGAL_SHARED ?? '../shared');
const STORIES = `${SHARED}/models/stories260K.gguf`;
const present = existsSync(STORIES);
if (!present) console.log(`not run: loading, for want of ${STORIES} (set FRUGAL_SHARED)`);

interface Setup {
  readonly runtime: Runtime;
  readonly compiled: FakeBackend;
  readonly options: BackendOptions[];
  readonly opened: string[];
  open: number;
}

/** A runtime whose backend is the fake one and whose files are counted. */
function setUp(overrides: Partial<FakeBackend> = {}): Setup {
  const compiled = Object.assign(createFakeBackend(), overrides);
  const backend: Backend = {
    kind: 'native',
    isas: ['scalar'],
    tensorTypes: ['F32'],
    async compile(_plan, options) {
      setup.options.push(options);
      return compiled;
    },
  };
  const setup: Setup = {
    compiled,
    options: [],
    opened: [],
    open: 0,
    runtime: {
      loadNative: async () => backend,
      loadWasm: async () => ({ ...backend, kind: 'wasm' }),
      async openFile(path) {
        setup.opened.push(path);
        return counted(await openFile(path), setup);
      },
    },
  };
  return setup;
}

function counted(source: ByteSource, setup: Setup): ByteSource {
  setup.open += 1;
  let closed = false;
  return {
    ...source,
    read: (offset, length, signal) => source.read(offset, length, signal),
    async close() {
      if (!closed) setup.open -= 1;
      closed = true;
      await source.close();
    },
  };
}

describe.runIf(present)('load', () => {
  it.each<[string, () => Promise<ModelSource>]>([
    ['a path', async () => STORIES],
    ['a file URL', async () => pathToFileURL(STORIES)],
    ['a file URL as a string', async () => pathToFileURL(STORIES).href],
    ['a Blob', async () => new Blob([await readFile(STORIES)])],
    ['a ByteSource', async () => openFile(STORIES)],
  ])('takes %s', async (_name, source) => {
    const { runtime } = setUp();
    await using model = await loadWith(runtime, await source(), {});
    expect(model.info).toMatchObject({
      architecture: 'llama',
      vocabSize: 512,
      contextLength: 512,
      beginToken: 1,
      hasChatTemplate: false,
      chunk: 256,
    });
    expect([...(await model.tokenize('Once upon a time'))].length).toBeGreaterThan(1);
  });

  it('closes the file when it is done', async () => {
    const setup = setUp();
    const model = await loadWith(setup.runtime, STORIES, {});
    expect(setup.opened).toEqual([STORIES]);
    expect(setup.open).toBe(0);
    await model.dispose();
    expect(setup.compiled.disposed).toBe(true);
  });

  it('passes the settings of the backend on', async () => {
    const setup = setUp();
    const options = { threads: 3, isa: 'avx2', chunk: 1000, contextLength: 77 } as const;
    const model = await loadWith(setup.runtime, STORIES, options);
    expect(setup.options).toEqual([{ threads: 3, isa: 'avx2', maxStepTokens: 1000 }]);
    expect(model.info).toMatchObject({ contextLength: 77, chunk: 1000 });
    await model.dispose();
  });

  it('reports each phase from its beginning to its end', async () => {
    const events: LoadEvent[] = [];
    const { runtime } = setUp();
    const model = await loadWith(runtime, STORIES, { onProgress: (event) => events.push(event) });
    expect([...new Set(events.map(({ phase }) => phase))]).toEqual(['header', 'tokenizer', 'weights']);
    for (const phase of ['header', 'tokenizer', 'weights']) {
      const own = events.filter((event) => event.phase === phase);
      expect(own[0]?.loaded).toBe(0);
      expect(own.at(-1)?.loaded).toBe(own.at(-1)?.total);
    }
    await model.dispose();
  });

  it.each(['header', 'tokenizer', 'weights'] as const)(
    'frees everything when aborted at %s',
    async (phase) => {
      const setup = setUp();
      const stop = new AbortController();
      const reason = new Error('enough');
      const options: LoadOptions = {
        signal: stop.signal,
        onProgress: (event) => {
          if (event.phase === phase) stop.abort(reason);
        },
      };
      await expect(loadWith(setup.runtime, STORIES, options)).rejects.toBe(reason);
      expect(setup.open).toBe(0);
      expect(setup.compiled.disposed).toBe(setup.options.length > 0);
    },
  );

  it('frees everything when the weights cannot be read', async () => {
    const setup = setUp({
      loadTensors: async () => {
        throw new Error('the disk is gone');
      },
    });
    await expect(loadWith(setup.runtime, STORIES, {})).rejects.toThrow('the disk is gone');
    expect(setup.open).toBe(0);
    expect(setup.compiled.disposed).toBe(true);
  });

  it('takes a chat template in place of the missing one', async () => {
    const { runtime } = setUp();
    const model = await loadWith(runtime, STORIES, { chatTemplate: '{{ messages[0].content }}' });
    expect(model.info.hasChatTemplate).toBe(true);
    expect(model.chat().history).toEqual([]);
    await model.dispose();
  });
});

describe.runIf(present)('load takes', () => {
  const unbuilt = new FrugalError('BACKEND_UNAVAILABLE', 'The native addon cannot be loaded', {
    cure: 'Build it.',
  });

  it('WebAssembly, and says so, where the native addon cannot be loaded', async () => {
    const { runtime } = setUp();
    const loadNative = () => Promise.reject(unbuilt);
    const model = await loadWith({ ...runtime, loadNative }, STORIES, {});
    expect(model.info.notes.at(-1)).toMatch(
      /^WebAssembly computes.*native addon cannot be loaded.*Build it\./,
    );
    await model.dispose();
    await expect(loadWith({ ...runtime, loadNative }, STORIES, { backend: 'native' })).rejects.toBe(unbuilt);
  });

  it('WebAssembly without a word where it is wanted, and with the instruction set', async () => {
    const { runtime } = setUp();
    const asked: unknown[] = [];
    const loadWasm: Runtime['loadWasm'] = (options) => {
      asked.push(options);
      return runtime.loadWasm(options);
    };
    const model = await loadWith({ ...runtime, loadWasm }, STORIES, { backend: 'wasm', isa: 'scalar' });
    expect(model.info.notes).toEqual([]);
    expect(asked).toEqual([{ isa: 'scalar' }]);
    await model.dispose();
    const chosen = await loadWith({ ...runtime, loadWasm }, STORIES, { variant: 'simd128' });
    expect(asked[1]).toEqual({ variant: 'simd128' });
    await chosen.dispose();
  });
});

describe('load refuses', () => {
  it.each([
    ['', {}, 'source must be a path'],
    [undefined, {}, 'source must be a path'],
    [3, {}, 'source must be a path'],
    ['ftp://example.org/model.gguf', {}, 'source must be a path or a file:, http: or https: URL'],
    ['x', { threads: 0 }, 'threads must be auto or an integer from 1 to 1024, got 0'],
    ['x', { threads: 1.5 }, 'threads must be auto or an integer from 1 to 1024, got 1.5'],
    ['x', { contextLength: -1 }, 'contextLength must be an integer from 1 to 16777216, got -1'],
    [
      'x',
      { contextLength: 2 ** 24 + 1 },
      'contextLength must be an integer from 1 to 16777216, got 16777217',
    ],
    ['x', { kvCache: 'q4_0' }, 'kvCache must be one of f16, q8_0, got "q4_0"'],
    ['x', { kvCache: true }, 'kvCache must be one of f16, q8_0, got true'],
    ['x', { chunk: 0 }, 'chunk must be an integer from 1 to 65536, got 0'],
    [
      'x',
      { isa: 'sse' },
      'isa must be one of scalar, avx2, avx-vnni, avx512, amx, neon, simd128, relaxed-simd, got "sse"',
    ],
    ['x', { backend: 'cuda' }, 'backend must be one of auto, native, wasm, got "cuda"'],
    ['x', { onProgress: 1 }, 'onProgress must be a function, got 1'],
    ['file:///%zz', {}, 'source must be a path or the file: URL of a file of this machine'],
    ['file://[', {}, 'source must be a path or the file: URL of a file of this machine'],
    [
      new URL('file://elsewhere/a.gguf'),
      {},
      'source must be a path or the file: URL of a file of this machine',
    ],
    ['x', { sha256: new Array(1) }, 'sha256 must be 64 hexadecimal digits or a list of them, got undefined'],
    ['x', { backend: 'native', variant: 'simd128' }, 'variant must be left out with the backend native'],
    ['x', { chatTemplate: 1 }, 'chatTemplate must be a string, got 1'],
    ['x', { headers: 'Authorization' }, 'headers must be an object of names and texts, got "Authorization"'],
    ['x', { headers: new Headers() }, 'headers must be an object of names and texts, got a Headers object'],
    ['x', { headers: { 'a b': 'c' } }, '"a b" is no name of a header'],
    ['x', { headers: { Authorization: 3 } }, 'the header Authorization must be a text'],
    ['x', { headers: { Authorization: 'a\nb' } }, 'the header Authorization holds characters'],
    ['x', { headers: { range: 'bytes=0-9' } }, 'the header range is sent by the engine itself'],
    ['x', { context: 1 }, 'load has no option "context"'],
  ])('%o, %o: %s', async (source, options, message) => {
    const { runtime } = setUp();
    await expect(loadWith(runtime, source as string, options as object)).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining(message),
    });
  });

  it('the backend native where there is none', async () => {
    const { loadNative: _, ...portable } = setUp().runtime;
    const loading = loadWith(portable, STORIES, { backend: 'native' });
    await expect(loading).rejects.toMatchObject({ code: 'BACKEND_UNAVAILABLE' });
  });

  it('a file that is not there', async () => {
    const { runtime } = setUp();
    await expect(loadWith(runtime, '/no/such/model.gguf', {})).rejects.toMatchObject({ code: 'SOURCE_READ' });
  });

  it('to begin when aborted before', async () => {
    const setup = setUp();
    const signal = AbortSignal.abort(new Error('no'));
    await expect(loadWith(setup.runtime, STORIES, { signal })).rejects.toThrow('no');
    expect(setup.opened).toEqual([]);
  });
});
