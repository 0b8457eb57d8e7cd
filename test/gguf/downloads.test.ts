import { createHash } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { FrugalError } from '../../ts/errors.js';
import { blobSource } from '../../ts/gguf/blob-source.js';
import { createSha256 } from '../../ts/gguf/sha256.js';
import type { ByteSource } from '../../ts/gguf/source.js';
import { openUrl } from '../../ts/gguf/url-source.js';
import { verifiedSource } from '../../ts/gguf/verified-source.js';
import { load, type Model } from '../../ts/index.js';
import { createRandom } from './random.js';
import { type Answer, answerRange, withServer } from './server.js';
import { tinyLlama, tinyLlamaSpec } from './tiny-llama.js';
import { writeSplit } from './writer.js';

const random = createRandom(1);
const BYTES = Uint8Array.from({ length: 300_000 }, () => Math.floor(random() * 256));
const MODEL = tinyLlama().bytes;
const FILES = new Map([
  ['bytes', BYTES],
  ['model.gguf', MODEL],
  ...writeSplit('parts', tinyLlamaSpec(), [7, 12]),
]);
const OPTIONS = { retryMs: 5 };

const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');

/** Sends the head of the whole answer and a part of its body, then drops the connection. */
const dropAfter =
  (count: number): Answer =>
  (request, response, bytes) => {
    const [from = 0, to = 0] = (request.headers.range ?? '').slice('bytes='.length).split('-').map(Number);
    const head = { 'Content-Range': `bytes ${from}-${to}/${bytes.length}`, 'Content-Length': to + 1 - from };
    response.writeHead(206, { ...head, ETag: '"one"' });
    // Ended in good order, so that what was written gets there first.
    response.write(bytes.subarray(from, from + Math.min(count, to + 1 - from)), () => request.socket.end());
  };

/** Answers each request by the next of `answers`, and by the last of them from then on. */
const inTurn = (...answers: Answer[]): Answer => {
  let next = 0;
  return (...call) => answers[Math.min(next++, answers.length - 1)]?.(...call);
};

const busy: Answer = (_, response) => response.writeHead(503).end();
const closed: Answer = (request) => request.socket.destroy();

const failure = (promise: Promise<unknown>): Promise<FrugalError> =>
  promise.then(
    () => Promise.reject(new Error('no error')),
    (error: unknown) => (error instanceof FrugalError ? error : Promise.reject(error)),
  );

describe('a transfer that breaks off', () => {
  test('goes on where it ended, and each byte is right', () =>
    withServer(FILES, inTurn(answerRange, dropAfter(100_000)), async (url, requests) => {
      const source = await openUrl(`${url}/bytes`, OPTIONS);
      expect(await source.read(7, 299_000)).toEqual(BYTES.slice(7, 299_007));
      expect(requests.slice(1)).toHaveLength(3);
      expect(requests.slice(1).map((range) => range.split('-')[1])).toEqual(Array(3).fill('299006'));
    }));

  test('is not needed of a server that sends all where the first byte is asked for, as that of Vite does', () => {
    const all: Answer = (_, response, bytes) => {
      const range = { 'Content-Range': `bytes 0-${bytes.length - 1}/${bytes.length}` };
      response.writeHead(206, { ...range, ETag: '"one"' }).end(bytes);
    };
    return withServer(FILES, inTurn(all, answerRange), async (url, requests) => {
      const source = await openUrl(`${url}/bytes`, OPTIONS);
      expect(source.size).toBe(BYTES.length);
      expect(await source.read(3, 500)).toEqual(BYTES.slice(3, 503));
      expect(requests).toHaveLength(2);
    });
  });

  test('goes on after answers of a busy server and refused requests', () =>
    withServer(FILES, inTurn(answerRange, busy, closed, busy, answerRange), async (url, requests) => {
      const source = await openUrl(`${url}/bytes`, OPTIONS);
      expect(await source.read(1000, 10)).toEqual(BYTES.slice(1000, 1010));
      expect(requests).toHaveLength(5);
    }));

  test('or does not begin is asked for again, by the opening too', () =>
    withServer(FILES, inTurn(busy, closed, busy, busy, answerRange), async (url, requests) => {
      expect((await openUrl(`${url}/bytes`, OPTIONS)).size).toBe(BYTES.length);
      expect(requests).toHaveLength(5);
    }));

  test.each<[string, number, Answer[], string]>([
    ['a server that stays busy', 6, [busy], '503'],
    ['an address where nobody answers', 3, [closed], 'failed'],
    ['a busy server that goes away', 5, [busy, busy, busy, busy, closed], 'failed'],
  ])('%s is given up by the opening after %i requests', (_, count, answers, named) =>
    withServer(FILES, inTurn(...answers), async (url, requests) => {
      const error = await failure(openUrl(`${url}/bytes`, OPTIONS));
      expect([error.code, error.message]).toEqual(['SOURCE_READ', expect.stringContaining(named)]);
      expect(requests).toHaveLength(count);
    }),
  );

  test('is whole once all bytes are there, though its length promises more', () => {
    const promising: Answer = (request, response, bytes) => {
      const [from = 0, to = 0] = (request.headers.range ?? '').slice('bytes='.length).split('-').map(Number);
      const head = {
        'Content-Range': `bytes ${from}-${to}/${bytes.length}`,
        'Content-Length': to + 501 - from,
      };
      // Left open, as a server does that keeps its connections.
      response.writeHead(206, { ...head, ETag: '"one"' }).write(bytes.subarray(from, to + 1));
    };
    return withServer(FILES, inTurn(answerRange, promising), async (url, requests) => {
      const source = await openUrl(`${url}/bytes`, OPTIONS);
      for (const [offset, length] of [
        [0, 1],
        [7, 299_000],
      ] as const) {
        expect(await source.read(offset, length)).toEqual(BYTES.slice(offset, offset + length));
      }
      expect(requests).toHaveLength(3);
    });
  });

  test('leaves its connection to the next, though its end comes a little later than its bytes', async () => {
    const ports = new Set<number | undefined>();
    const late: Answer = (request, response, bytes) => {
      ports.add(request.socket.remotePort);
      const [from = 0, to = 0] = (request.headers.range ?? '').slice('bytes='.length).split('-').map(Number);
      response.writeHead(206, { 'Content-Range': `bytes ${from}-${to}/${bytes.length}`, ETag: '"one"' });
      response.write(bytes.subarray(from, to + 1));
      setTimeout(() => response.end(), 5);
    };
    await withServer(FILES, late, async (url) => {
      const source = await openUrl(`${url}/bytes`, OPTIONS);
      for (let offset = 0; offset < 10_000; offset += 1000) await source.read(offset, 1000);
    });
    // Few, of eleven requests: the opening gives up its own, and the machine may be slow.
    expect(ports.size).toBeLessThan(7);
  });

  test('is given up when nothing comes any more', () =>
    withServer(FILES, inTurn(answerRange, dropAfter(0)), async (url, requests) => {
      const source = await openUrl(`${url}/bytes`, OPTIONS);
      const error = await failure(source.read(0, 1000));
      expect([error.code, error.message]).toEqual(['SOURCE_READ', expect.stringContaining('offset 0')]);
      expect(requests).toHaveLength(7);
    }));

  test('is not mixed with another version of the file', () => {
    const other: Answer = (request, response, bytes) => {
      response.setHeader('Last-Modified', 'Sat, 01 Jan 2000 00:00:00 GMT');
      answerRange(request, response, bytes);
    };
    return withServer(FILES, inTurn(answerRange, dropAfter(50), other), async (url) => {
      const source = await openUrl(`${url}/bytes`, OPTIONS);
      const error = await failure(source.read(0, 1000));
      expect(error.message).toContain('changed');
    });
  });

  test('ends at once when aborted while it waits', () =>
    withServer(FILES, inTurn(answerRange, dropAfter(0)), async (url) => {
      const source = await openUrl(`${url}/bytes`, { retryMs: 60_000 });
      const stop = new AbortController();
      setTimeout(() => stop.abort(new Error('enough')), 50);
      await expect(source.read(0, 10, stop.signal)).rejects.toThrow('enough');
    }));
});

test('memory that is used again is filled with the same bytes', () =>
  withServer(FILES, answerRange, async (url) => {
    const memory = new Uint8Array(1000);
    for (const source of [await openUrl(`${url}/bytes`), blobSource(new Blob([BYTES]))]) {
      for (const offset of [0, 5000]) {
        await source.readInto?.(memory.fill(0), offset);
        expect(memory).toEqual(BYTES.slice(offset, offset + 1000));
      }
      expect((await failure(Promise.resolve(source.readInto?.(memory, 299_500)))).code).toBe('SOURCE_READ');
    }
  }));

test('SHA-256 in pieces of any size is that of the platform', () => {
  for (const length of [0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 1000, 5000]) {
    const bytes = BYTES.subarray(0, length);
    const hash = createSha256();
    for (let at = 0; at < length; ) {
      const end = Math.min(length, at + 1 + Math.floor(random() * 150));
      hash.update(bytes.subarray(at, end));
      at = end;
    }
    expect(hash.hex()).toBe(sha256(bytes));
  }
});

describe('a checksum', () => {
  const source: ByteSource = blobSource(new Blob([BYTES]), 'some.gguf');

  test('covers bytes that nobody read, whatever order reads end in', async () => {
    const good = verifiedSource(source, [sha256(BYTES).toUpperCase()]);
    const slowFirst: ByteSource = {
      ...source,
      read: async (offset, length) => {
        await new Promise((done) => setTimeout(done, offset === 0 ? 20 : 0));
        return source.read(offset, length);
      },
    };
    const { readInto: _, ...withoutMemory } = verifiedSource(slowFirst, [sha256(BYTES)]);
    for (const each of [good, withoutMemory]) {
      await Promise.all([each.read(0, 5000), each.read(9000, 2_000), each.read(4000, 6000)]);
      await each.finish?.();
    }
  });

  test('that differs names what was expected and got', async () => {
    const checked = verifiedSource(source, [sha256(MODEL)]);
    await checked.read(100, 100);
    const error = await failure(Promise.resolve(checked.finish?.()));
    expect(error.code).toBe('SOURCE_CHECKSUM');
    expect(error.message).toContain(sha256(MODEL));
    expect(error.data).toEqual({ source: 'some.gguf', expected: sha256(MODEL), got: sha256(BYTES) });
  });
});

describe('loading from a URL', () => {
  const loaded = async (url: string, options: Parameters<typeof load>[1] = {}) => {
    await using model: Model = await load(url, options);
    const { tokens } = await model.complete([1, 2, 3], { temperature: 0, maxTokens: 8, ignoreEnd: true });
    return [...tokens];
  };

  test('with its checksum gives the model, alone and in parts', () =>
    withServer(FILES, answerRange, async (url) => {
      const expected = await loaded(`${url}/model.gguf`, { sha256: sha256(MODEL) });
      const parts = [...FILES].filter(([name]) => name.startsWith('parts')).map(([, bytes]) => sha256(bytes));
      const first = `${url}/parts-00001-of-00003.gguf`;
      expect(await loaded(first, { sha256: parts })).toEqual(expected);
      await using recorded = await load(first, { provenance: true });
      const { provenance } = await recorded.complete([1, 2, 3], { maxTokens: 1 });
      expect(provenance?.model.sha256).toEqual(parts);
      expect((await failure(loaded(first, { sha256: parts.toReversed() }))).code).toBe('SOURCE_CHECKSUM');
      const tooFew = await failure(loaded(first, { sha256: parts.slice(1) }));
      expect([tooFew.code, tooFew.message]).toEqual(['INVALID_ARGUMENT', expect.stringContaining('3 files')]);
    }));

  test('with a wrong checksum, or one that is none, is refused', () =>
    withServer(FILES, answerRange, async (url) => {
      const wrong = await failure(loaded(`${url}/model.gguf`, { sha256: sha256(BYTES) }));
      expect([wrong.code, wrong.data.got]).toEqual(['SOURCE_CHECKSUM', sha256(MODEL)]);
      expect((await failure(loaded(`${url}/model.gguf`, { sha256: 'abc' }))).code).toBe('INVALID_ARGUMENT');
    }));

  test('reads several ranges at once', () => {
    let open = 0;
    let most = 0;
    const slow: Answer = (request, response, bytes) => {
      open += 1;
      most = Math.max(most, open);
      setTimeout(() => {
        open -= 1;
        answerRange(request, response, bytes);
      }, 5);
    };
    return withServer(FILES, slow, async (url) => {
      await loaded(`${url}/model.gguf`);
      expect(most).toBe(4);
    });
  });

  test('over connections that drop gives the model all the same', () =>
    withServer(FILES, inTurn(answerRange, answerRange, dropAfter(9_000)), async (url, requests) => {
      const expected = await loaded(`${url}/model.gguf`, {});
      expect(requests.length).toBeGreaterThan(5);
      await withServer(FILES, answerRange, async (good) => {
        expect(await loaded(`${good}/model.gguf`)).toEqual(expected);
      });
    }));

  test('into the cache needs a browser', () =>
    withServer(FILES, answerRange, async (url) => {
      expect((await failure(loaded(`${url}/model.gguf`, { cache: true }))).code).toBe('CACHE_UNAVAILABLE');
    }));
});
