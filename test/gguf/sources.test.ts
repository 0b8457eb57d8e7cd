import { execFileSync } from 'node:child_process';
import { mkdir, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { load } from '../../ts/engine/index.js';
import { type ErrorCode, FrugalError } from '../../ts/errors.js';
import { blobSource, partsSource } from '../../ts/gguf/blob-source.js';
import { openFile } from '../../ts/gguf/file-source.js';
import { openGguf } from '../../ts/gguf/index.js';
import { openUrl } from '../../ts/gguf/url-source.js';
import { createTokenizer } from '../../ts/tokenizer/index.js';
import { load as loadInWorker } from '../../ts/worker/node.js';
import { type Answer, answerRange, withServer } from './server.js';
import { memorySource, withFolder } from './sources.js';
import { tinyLlama, tinyLlamaSpec } from './tiny-llama.js';
import { writeGguf, writeSplit } from './writer.js';

const MODEL = tinyLlama().bytes;

async function expectError(promise: Promise<unknown>, code: ErrorCode, named: string): Promise<FrugalError> {
  const error: unknown = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  if (!(error instanceof FrugalError)) throw new Error(`expected a FrugalError, got ${String(error)}`);
  expect([error.code, error.message]).toEqual([code, expect.stringContaining(named)]);
  return error;
}

describe('file', () => {
  test('a model is opened, read at any place and closed', () =>
    withFolder(async (folder) => {
      const path = join(folder, 'model.gguf');
      await writeFile(path, MODEL);
      const model = await openGguf(await openFile(path));
      const [source] = model.parts;
      if (source === undefined) throw new Error('no part');
      expect([source.size, source.path, model.tensors.size]).toEqual([MODEL.length, path, 21]);
      expect(await source.read(1000, 500)).toEqual(MODEL.slice(1000, 1500));
      await expectError(source.read(MODEL.length - 1, 2), 'SOURCE_READ', `${MODEL.length}`);
      await expectError(source.read(0, 2 ** 50), 'SOURCE_READ', 'asked for');
      await model.close();
      await model.close();
      await expectError(source.read(0, 1), 'SOURCE_READ', 'cannot be read');
    }));

  test('a missing file, a folder and a file that shrinks are refused by name', () =>
    withFolder(async (folder) => {
      await expectError(openFile(join(folder, 'none.gguf')), 'SOURCE_READ', 'none.gguf');
      await mkdir(join(folder, 'sub'));
      await expectError(openFile(join(folder, 'sub')), 'SOURCE_READ', 'regular file');
      if (process.platform !== 'win32') {
        // Opened, a pipe without a writer would never answer.
        execFileSync('mkfifo', [join(folder, 'pipe')]);
        await expectError(openFile(join(folder, 'pipe')), 'SOURCE_READ', 'regular file');
      }
      const path = join(folder, 'model.gguf');
      await writeFile(path, MODEL);
      const source = await openFile(path);
      await truncate(path, 100);
      await expectError(source.read(50, 100), 'SOURCE_READ', 'shorter');
      await source.close();
    }));

  test('an aborted signal stops the opening', () =>
    withFolder(async (folder) => {
      const path = join(folder, 'model.gguf');
      await writeFile(path, MODEL);
      const signal = AbortSignal.abort(new Error('enough'));
      await expect(openGguf(await openFile(path), { signal })).rejects.toThrow('enough');
    }));
});

describe('Blob', () => {
  test('a model is opened and read at any place', async () => {
    const model = await openGguf(blobSource(new File([MODEL], 'chosen.gguf')));
    const [source] = model.parts;
    if (source === undefined) throw new Error('no part');
    expect([source.name, source.size, model.tensors.size]).toEqual(['chosen.gguf', MODEL.length, 21]);
    expect(await source.read(1000, 500)).toEqual(MODEL.slice(1000, 1500));
    await expectError(source.read(MODEL.length, 1), 'SOURCE_READ', 'chosen.gguf');
  });

  test('a split model cannot be found from one of its parts', async () => {
    const [entry] = writeSplit('model', tinyLlamaSpec(), [10]);
    if (entry === undefined) throw new Error('no part');
    const opening = openGguf(blobSource(new Blob([entry[1]]), entry[0]));
    const error = await expectError(opening, 'GGUF_SPLIT', 'model-00002-of-00002.gguf');
    expect(error.cure).toMatch(/merge/);
  });
});

describe('split model', () => {
  const spec = tinyLlamaSpec();
  const first = 'model-00001-of-00003.gguf';

  /** Writes the parts, changed by `change`, and opens the one named `name`. */
  const open = (change: (parts: Map<string, Uint8Array>) => void, name = first) =>
    withFolder(async (folder) => {
      const parts = writeSplit('model', spec, [5, 12]);
      change(parts);
      for (const [file, bytes] of parts) await writeFile(join(folder, file), bytes);
      const model = await openGguf(await openFile(join(folder, name)));
      const data = new Map<string, Uint8Array>();
      for (const tensor of model.tensors.values()) {
        const part = model.parts[tensor.part];
        if (part !== undefined) data.set(tensor.name, await part.read(tensor.offset, tensor.bytes));
      }
      await model.close();
      return { model, data };
    });

  test('all tensors of all parts are found with their data', async () => {
    const { model, data } = await open(() => undefined);
    expect(model.parts).toHaveLength(3);
    expect([...model.tensors.values()].map((tensor) => tensor.part)).toEqual([
      ...Array(5).fill(0),
      ...Array(7).fill(1),
      ...Array(9).fill(2),
    ]);
    for (const { name, data: expected } of spec.tensors) expect(data.get(String(name))).toEqual(expected);
    expect(model.metadata.string('general.architecture')).toBe('llama');
  });

  const part = (changed: Record<string, number>, from = 12) =>
    writeGguf({
      tensors: spec.tensors.slice(from),
      metadata: Object.entries({ 'split.no': 2, 'split.count': 3, ...changed }).map(([key, value]) => ({
        key,
        kind: 'uint16',
        value,
      })),
    }).bytes;
  const third = 'model-00003-of-00003.gguf';
  const wrong: [string, (parts: Map<string, Uint8Array>) => void, ErrorCode, string][] = [
    ['a missing part', (parts) => parts.delete(third), 'GGUF_SPLIT', third],
    ['a part of another number', (parts) => parts.set(third, part({ 'split.no': 1 })), 'GGUF_SPLIT', third],
    ['a part of another count', (parts) => parts.set(third, part({ 'split.count': 4 })), 'GGUF_SPLIT', third],
    [
      'a part of another model',
      (parts) => parts.set(third, part({ 'split.tensors.count': 9 })),
      'GGUF_SPLIT',
      'another model',
    ],
    ['a part with tensors missing', (parts) => parts.set(third, part({}, 13)), 'GGUF_SPLIT', '20 tensors'],
    ['a part with an earlier tensor', (parts) => parts.set(third, part({}, 11)), 'GGUF_DUPLICATE', third],
    ['a part that is not split', (parts) => parts.set(third, MODEL), 'GGUF_SPLIT', '"split.no"'],
    ['a part cut short', (parts) => parts.set(third, part({}).slice(0, 900)), 'GGUF_TRUNCATED', third],
  ];
  test.each(wrong)('%s', async (_, change, code, named) => {
    await expectError(open(change), code, named);
  });

  test('opening another part than the first names the first', async () => {
    const error = await expectError(
      open(() => undefined, third),
      'GGUF_SPLIT',
      'part 3',
    );
    expect(error.cure).toContain(first);
  });

  const fileOf = ([name, bytes]: readonly [string, Uint8Array]) => new File([bytes.slice()], name);
  const listed = () => [...writeSplit('model', spec, [5, 12])].map(fileOf);

  test('a list of all Files is the model, in any order', async () => {
    const model = await openGguf(partsSource(listed().reverse()));
    expect([model.parts.length, model.tensors.size]).toEqual([3, 21]);
  });

  const stray = (name: string) => (files: File[]) => [...files, new File([], name)];
  test.each<[string, (files: File[]) => File[], ErrorCode, string]>([
    ['a part too few', (files) => files.slice(0, 2), 'GGUF_SPLIT', third],
    ['no first part', (files) => files.slice(1), 'SOURCE_READ', 'first part'],
    ['a file that is none', stray('notes.txt'), 'SOURCE_READ', 'notes.txt'],
    ['a part of another model', stray('other-00002-of-00003.gguf'), 'SOURCE_READ', 'other-00002'],
  ])('a list with %s is refused by name', async (_, change, code, named) => {
    const opening = async () => openGguf(partsSource(change(listed())));
    await expectError(opening(), code, named);
  });

  test('a first part under another name is refused', async () => {
    const renamed = (parts: Map<string, Uint8Array>) => parts.set('renamed.gguf', parts.get(first) ?? MODEL);
    await expectError(open(renamed, 'renamed.gguf'), 'GGUF_SPLIT', 'NAME-00001-of-00003.gguf');
    const other = 'model-00001-of-00004.gguf';
    const miscounted = (parts: Map<string, Uint8Array>) => parts.set(other, parts.get(first) ?? MODEL);
    await expectError(open(miscounted, other), 'GGUF_SPLIT', first);
  });
});

describe('URL', () => {
  const files = new Map([
    ['model.gguf', MODEL],
    ['empty.gguf', new Uint8Array(0)],
    ...writeSplit('parts', tinyLlamaSpec(), [7]),
  ]);

  test('a model is opened by ranges alone', () =>
    withServer(files, answerRange, async (url, requests) => {
      const model = await openGguf(await openUrl(`${url}/model.gguf?token=secret`));
      const [source] = model.parts;
      if (source === undefined) throw new Error('no part');
      expect([source.name, source.size, model.tensors.size]).toEqual([`${url}/model.gguf`, MODEL.length, 21]);
      expect(await source.read(1000, 500)).toEqual(MODEL.slice(1000, 1500));
      expect(requests).toEqual(['bytes=0-0', `bytes=0-${MODEL.length - 1}`, 'bytes=1000-1499']);
      await expectError(source.read(MODEL.length, 1), 'SOURCE_READ', 'model.gguf');
    }));

  test('the parts of a split model are found beside the first', () =>
    withServer(files, answerRange, async (url) => {
      const model = await openGguf(await openUrl(new URL(`${url}/parts-00001-of-00002.gguf`)));
      expect([model.parts.length, model.tensors.size]).toEqual([2, 21]);
    }));

  test('headers are sent with each request, of all parts, and without them the refusal says so', () => {
    const headers = { Authorization: 'Bearer secret' };
    const answer: Answer = (request, response, bytes) => {
      if (request.headers.authorization === headers.Authorization) answerRange(request, response, bytes);
      else response.writeHead(401).end();
    };
    return withServer(files, answer, async (url) => {
      const address = `${url}/parts-00001-of-00002.gguf`;
      for (const open of [load, loadInWorker]) {
        await using model = await open(address, { headers });
        expect(model.info.vocabSize).toBe(300);
        const error = await expectError(open(address), 'SOURCE_READ', 'status 401');
        expect(error.cure).toContain('option headers');
        const spoilt = open(address, { headers: { Authorization: 'secret\n' } });
        expect((await expectError(spoilt, 'INVALID_ARGUMENT', 'Authorization')).message).not.toContain(
          'secret',
        );
      }
      await expectError(
        openUrl(address, { headers: { '': 'x' } }),
        'INVALID_ARGUMENT',
        'no name of a header',
      );
    });
  });

  test('an empty file is opened as empty', () =>
    withServer(files, answerRange, async (url) => {
      const source = await openUrl(`${url}/empty.gguf`);
      expect(source.size).toBe(0);
      await expectError(openGguf(source), 'GGUF_TRUNCATED', 'magic');
    }));

  const head = (status: number, headers: Record<string, string>): Answer => {
    return (_, response, bytes) => response.writeHead(status, headers).end(bytes);
  };
  const refused: [string, string, Answer, string][] = [
    ['a server that ignores ranges', 'model.gguf', head(200, {}), 'ignores range requests'],
    ['a missing file', 'none.gguf', answerRange, '404'],
    ['a range without its place', 'model.gguf', head(206, {}), 'without the Content-Range'],
    ['a range of unknown size', 'model.gguf', head(206, { 'Content-Range': 'bytes 0-0/*' }), 'no size'],
    ['another range', 'model.gguf', head(206, { 'Content-Range': 'bytes 1-9/10' }), 'bytes 1-9/10'],
  ];
  test.each(refused)('%s', (_, file, answer, named) =>
    withServer(files, answer, async (url) => {
      const error = await expectError(openUrl(`${url}/${file}`), 'SOURCE_READ', named);
      expect(error.cure.length).toBeGreaterThan(20);
    }),
  );

  test('a server that is not there is said not to be', async () => {
    let url = '';
    await withServer(files, answerRange, async (gone) => {
      url = gone;
    });
    await expectError(openUrl(`${url}/model.gguf`), 'SOURCE_READ', 'ECONNREFUSED');
  });

  /** A server that is good for the first request and then answers as `later` says. */
  const afterOpening = (later: Answer): Answer => {
    let opened = false;
    return (request, response, bytes) => {
      (opened ? later : answerRange)(request, response, bytes);
      opened = true;
    };
  };
  const range = (length: number) => ({
    'Content-Range': `bytes 0-99/${MODEL.length}`,
    ETag: '"one"',
    'Content-Length': `${length}`,
  });
  const broken: [string, Answer, string][] = [
    [
      'a file that changed',
      (_, response, bytes) => {
        response.writeHead(206, { ...range(100), ETag: '"two"' }).end(bytes.subarray(0, 100));
      },
      'changed',
    ],
    [
      'too long a body',
      (_, response, bytes) => response.writeHead(206, range(200)).end(bytes.subarray(0, 200)),
      'more',
    ],
  ];
  test.each(broken)('%s', (_, later, named) =>
    withServer(files, afterOpening(later), async (url) => {
      const source = await openUrl(`${url}/model.gguf`);
      await expectError(source.read(0, 100), 'SOURCE_READ', named);
    }),
  );

  test('the signal ends a request that hangs', () =>
    withServer(
      files,
      afterOpening(() => undefined),
      async (url) => {
        const controller = new AbortController();
        const opening = openGguf(await openUrl(`${url}/model.gguf`), { signal: controller.signal });
        setTimeout(() => controller.abort(new Error('enough')), 20);
        await expect(opening).rejects.toThrow('enough');
      },
    ));

  test('what is no http URL, and an address where nobody listens', async () => {
    await expectError(openUrl('model.gguf'), 'INVALID_ARGUMENT', 'model.gguf');
    await expectError(openUrl('file:///model.gguf'), 'INVALID_ARGUMENT', 'file:');
    const closed = await withServer(files, answerRange, async (url) => url);
    await expectError(openUrl(`${closed}/model.gguf`), 'SOURCE_READ', 'failed');
  });
});

test.each([
  ['openFile', () => openFile(5 as never), 'path must be a path, got 5'],
  ['openGguf', () => openGguf(null as never), 'source must be an object with name, size, read and close'],
  ['blobSource', async () => blobSource(null as never), 'blob must be a Blob or a File, got null'],
  [
    'createTokenizer',
    () => createTokenizer(null as never),
    'metadata must be the metadata of an opened GGUF',
  ],
])('%s refuses what it cannot use', async (_, call, message) => {
  await expectError(call(), 'INVALID_ARGUMENT', message);
});

describe('a source of one’s own', () => {
  test.each([
    ['the header', 0],
    ['weights', 1],
  ])('that never gives %s holds up no abort', async (_, answered) => {
    const own = memorySource(MODEL, 'own.gguf');
    let [reads, closed] = [0, false];
    const read = (offset: number, length: number) =>
      reads++ < answered ? own.read(offset, length) : new Promise<never>(() => {});
    const close = async () => {
      closed = true;
    };
    const reason = new Error('enough');
    const stop = new AbortController();
    setTimeout(() => stop.abort(reason), 50);
    await expect(load({ ...own, read, close }, { signal: stop.signal })).rejects.toBe(reason);
    expect([reads > answered, closed]).toEqual([true, true]);
  });

  const WRONG = [
    ['nothing', () => undefined, 'undefined'],
    ['null', () => null, 'null'],
    ['what is no bytes', () => 'GGUF', '"GGUF"'],
    ['numbers that are no bytes', () => new Float32Array(9), 'a Float32Array object'],
    ['too few bytes', (bytes: Uint8Array) => bytes.subarray(1), 'bytes'],
    ['too many bytes', (bytes: Uint8Array) => new Uint8Array(bytes.length + 1), 'bytes'],
  ] as const;

  test.each(WRONG)('that gives %s for the header is refused by name', async (_, spoil, got) => {
    const own = memorySource(MODEL, 'own.gguf');
    const read = async (offset: number, length: number) => spoil(await own.read(offset, length)) as never;
    const error = await expectError(openGguf({ ...own, read }), 'SOURCE_READ', 'own.gguf: read gave');
    expect(error.message).toContain(got);
    expect(error.cure).toContain('Uint8Array');
    expect(error.data).toMatchObject({ source: 'own.gguf', offset: 0, length: MODEL.length });
  });

  test.each(WRONG)('that gives %s for weights, or at once, is refused by name', async (_, spoil, got) => {
    const own = memorySource(MODEL, 'own.gguf');
    const read = (offset: number, length: number) => {
      const bytes = MODEL.slice(offset, offset + length);
      return (offset === 0 ? bytes : spoil(bytes)) as never;
    };
    for (const options of [{}, { provenance: true }]) {
      const error = await expectError(load({ ...own, read }, options), 'SOURCE_READ', 'own.gguf: read gave');
      expect(error.message).toContain(got);
    }
  });

  test('without a read, a size or a close is refused before it is read', async () => {
    const own = memorySource(MODEL);
    for (const lack of ['read', 'size', 'close']) {
      const loading = load({ ...own, [lack]: undefined });
      await expectError(loading, 'INVALID_ARGUMENT', 'an object with name, size, read and close');
    }
    expect(own.counts.reads).toBe(0);
  });
});
