import { createHash } from 'node:crypto';
import type { ServerResponse } from 'node:http';
import { resolve } from 'node:path';
import type { Browser, Page } from 'playwright-core';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { createRandom } from '../gguf/random.js';
import { bundle, hasChromium, launchChromium, type Site, sendFile, serve } from './browser.js';
import type { Calls } from './cache-page.js';

const MIB = 1 << 20;
const random = createRandom(5);
/** Three segments and a piece. */
const BYTES = new Uint8Array(25 * MIB + 1234);
for (let i = 0; i < BYTES.length; i += 1 + Math.floor(random() * 5000)) BYTES[i] = Math.floor(random() * 256);
const digestOf = (offset: number, length: number) =>
  createHash('sha256')
    .update(BYTES.subarray(offset, offset + length))
    .digest('hex');

const HTML = '<!doctype html><title>cache</title><script type="module" src="/page.js"></script>';
const MODEL = '/model.gguf';

describe.runIf(hasChromium)('the cache of a page', () => {
  let browser: Browser;
  let site: Site;
  beforeAll(async () => {
    const page = await bundle(resolve(import.meta.dirname, 'cache-page.ts'));
    const html = new TextEncoder().encode(HTML);
    site = await serve(
      new Map([
        ['/', html],
        ['/page.js', page],
        [MODEL, BYTES],
      ]),
    );
    browser = await launchChromium();
  });
  afterAll(async () => {
    await browser?.close();
    await site?.close();
  });
  beforeEach(() => {
    site.requests.length = 0;
    site.answers.clear();
  });

  type Run = <K extends keyof Calls>(name: K, ...args: Parameters<Calls[K]>) => ReturnType<Calls[K]>;

  async function withCalls(inWorker: boolean, use: (run: Run, page: Page) => Promise<void>): Promise<void> {
    // Each context has storage of its own.
    const context = await browser.newContext();
    try {
      const page = await context.newPage();
      await page.goto(site.url);
      const run = (name: string, ...args: unknown[]) =>
        page.evaluate(
          ([call, values, worker]) => {
            const { calls } = globalThis as unknown as {
              calls: Record<string, (...a: unknown[]) => unknown>;
            };
            if (!worker) return calls[call]?.(...values);
            return new Promise((done) => {
              const thread = new Worker('/page.js', { type: 'module' });
              thread.onmessage = ({ data }) => {
                thread.terminate();
                done(data);
              };
              thread.postMessage([call, values]);
            });
          },
          [name, args, inWorker] as const,
        );
      await use(run as Run, page);
    } finally {
      await context.close();
    }
  }

  const bodies = () => site.requests.filter(({ path, range }) => path === MODEL && range !== 'bytes=0-0');

  /** Answers two requests, and forbids the others: the first segment is all that comes. */
  function allowTwo(): void {
    let count = 0;
    site.answers.set(MODEL, (request, response) => {
      count += 1;
      if (count <= 2) sendFile(request, response, MODEL, BYTES);
      else response.writeHead(403).end();
    });
  }

  it.each([
    ['a page', false],
    ['a worker', true],
  ])('of %s: what was downloaded once is read from there, listed and removed', async (_, inWorker) => {
    await withCalls(inWorker, async (run) => {
      const url = `${site.url}${MODEL}`;
      expect(await run('listCached')).toEqual([]);
      const across = [8 * MIB - 100, 1000] as const;
      expect(await run('read', `${url}?key=secret`, ...across)).toBe(digestOf(...across));
      expect(bodies()).toHaveLength(4);
      const entry = { name: url, size: BYTES.length, cachedBytes: BYTES.length };
      expect(await run('listCached')).toEqual([entry]);
      expect(await run('read', url, 0, BYTES.length)).toBe(digestOf(0, BYTES.length));
      expect(bodies()).toHaveLength(4);
      expect(await run('removeCached', `${url}?key=other`)).toBe(true);
      expect(await run('removeCached', url)).toBe(false);
      expect(await run('listCached')).toEqual([]);
    });
  });

  it('what was left off goes on with what is missing', async () => {
    await withCalls(true, async (run) => {
      const url = `${site.url}${MODEL}`;
      allowTwo();
      expect(await run('read', url, 0, 10)).toBe('SOURCE_READ');
      expect(await run('listCached')).toMatchObject([{ cachedBytes: 8 * MIB }]);
      site.answers.clear();
      site.requests.length = 0;
      expect(await run('read', url, 0, BYTES.length)).toBe(digestOf(0, BYTES.length));
      expect(bodies()).toHaveLength(3);
    });
  });

  it('loads at the same time download once', async () => {
    await withCalls(true, async (run) => {
      const url = `${site.url}${MODEL}`;
      const expected = digestOf(0, BYTES.length);
      const reads = [1, 2, 3].map(() => run('read', url, 0, BYTES.length));
      expect(await Promise.all(reads)).toEqual([expected, expected, expected]);
      expect(bodies()).toHaveLength(4);
      expect(await run('listCached')).toMatchObject([{ cachedBytes: BYTES.length }]);
      expect(await run('removeCached', url)).toBe(true);
      // Of what failed or was left off, nothing keeps the next one out.
      allowTwo();
      expect(await run('read', url, 0, 10)).toBe('SOURCE_READ');
      site.answers.clear();
      expect(await run('read', url, 0, BYTES.length)).toBe(expected);
    });
  });

  it('an address as it was loaded is one to remove', async () => {
    await withCalls(false, async (run) => {
      await run('read', `${site.url}${MODEL}`, 0, 10);
      expect(await run('removeCached', MODEL.slice(1))).toBe(true);
    });
  });

  it.each([
    ['a page', false],
    ['a worker', true],
  ])('of %s: a file is not removed while it is loaded or read', async (_, inWorker) => {
    await withCalls(inWorker, async (run) => {
      const busy = 'CACHE_BUSY';
      expect(await run('removals', `${site.url}${MODEL}`)).toEqual([busy, busy, busy, true, false]);
    });
  });

  it('a dropped connection is taken up again', async () => {
    await withCalls(false, async (run) => {
      let dropped = 0;
      site.answers.set(MODEL, (request, response) => {
        const [, from = '', to = ''] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '') ?? [];
        if (dropped === 3 || Number(to) - Number(from) < MIB)
          return sendFile(request, response, MODEL, BYTES);
        dropped += 1;
        const length = Number(to) + 1 - Number(from);
        response.writeHead(206, {
          'Content-Range': `bytes ${from}-${to}/${BYTES.length}`,
          'Content-Length': length,
          ETag: '"one"',
        });
        const part = BYTES.subarray(Number(from), Number(from) + 200_000);
        response.write(part, () => request.socket.end());
      });
      expect(await run('read', `${site.url}${MODEL}`, 0, BYTES.length)).toBe(digestOf(0, BYTES.length));
      expect(dropped).toBe(3);
    });
  });

  it('a file that changed on the server is downloaded anew, and nothing of the old one is kept', async () => {
    await withCalls(false, async (run) => {
      const url = `${site.url}${MODEL}`;
      await run('read', url, 0, 10);
      const other = BYTES.slice(0, 9 * MIB).fill(7);
      site.answers.set(MODEL, (request, response) => {
        response.setHeader('ETag', '"two"');
        sendFile(request, response, MODEL, other);
      });
      const expected = createHash('sha256').update(other).digest('hex');
      expect(await run('read', url, 0, other.length)).toBe(expected);
      expect(await run('listCached')).toEqual([{ name: url, size: other.length, cachedBytes: other.length }]);
    });
  });

  it('without a network a complete model is read, and a part of one is not', async () => {
    await withCalls(false, async (run) => {
      const url = `${site.url}${MODEL}`;
      const gone = (request: { socket: { destroy(): void } }) => request.socket.destroy();
      allowTwo();
      expect(await run('read', url, 0, 10)).toBe('SOURCE_READ');
      site.answers.set(MODEL, gone);
      expect(await run('read', url, 0, 10)).toBe('SOURCE_READ');
      site.answers.clear();
      await run('read', url, 0, 10);
      site.answers.set(MODEL, gone);
      expect(await run('read', url, 0, BYTES.length)).toBe(digestOf(0, BYTES.length));
    });
  });

  it.each([false, true])(
    'nothing takes a file away from who reads it (in a worker: %s)',
    async (inWorker) => {
      await withCalls(inWorker, async (run) => {
        const [url, changed] = [`${site.url}${MODEL}`, `${site.url}${MODEL}?changed`];
        site.answers.set(MODEL, (request, response) => {
          if (request.url?.endsWith('?changed')) response.setHeader('ETag', '"two"');
          sendFile(request, response, MODEL, BYTES);
        });
        const head = digestOf(0, 10);
        expect(await run('replacement', url, changed)).toEqual([head, 'CACHE_BUSY', head, head, '0 left']);
      });
    },
  );

  it('what came for another query is used where the server says that it is the same, and only then', async () => {
    await withCalls(false, async (run) => {
      const [first, second] = ['a', 'b'].map((query) => `${site.url}${MODEL}?file=${query}`);
      const whole = digestOf(0, BYTES.length);
      await run('read', first ?? '', 0, 10);
      site.requests.length = 0;
      expect(await run('read', second ?? '', 0, BYTES.length)).toBe(whole);
      expect(bodies()).toHaveLength(0);
      site.answers.set(MODEL, (_, response) => response.writeHead(503).end());
      expect(await run('read', second ?? '', 0, 10)).toBe('SOURCE_READ');
      expect(await run('read', first ?? '', 0, BYTES.length)).toBe(whole);
      // One that tells no version.
      site.answers.set(MODEL, ({ headers }, response) => {
        const [from = 0, to = 0] = (headers.range ?? '').slice('bytes='.length).split('-').map(Number);
        response.setHeader('Content-Range', `bytes ${from}-${to}/${BYTES.length}`);
        response.writeHead(206).end(BYTES.subarray(from, to + 1));
      });
      await run('read', first ?? '', 0, 10);
      site.requests.length = 0;
      expect(await run('read', second ?? '', 0, BYTES.length)).toBe(whole);
      expect(bodies().length).toBeGreaterThan(0);
    });
  });

  it.each([503, 429])('a server that answers %i keeps nobody from a complete model', async (status) => {
    await withCalls(false, async (run) => {
      const url = `${site.url}${MODEL}`;
      await run('read', url, 0, 10);
      site.requests.length = 0;
      site.answers.set(MODEL, (_, response) => response.writeHead(status).end());
      expect(await run('read', url, 0, BYTES.length)).toBe(digestOf(0, BYTES.length));
      expect(site.requests).toHaveLength(1);
      site.answers.set(MODEL, (_, response) => response.writeHead(401).end());
      expect(await run('read', url, 0, 10)).toBe('SOURCE_READ');
    });
  });

  it('a version that does not fit, whatever its size, leaves the one before it, and what is listed', async () => {
    await withCalls(false, async (run) => {
      const url = `${site.url}${MODEL}`;
      const huge = (_: unknown, response: ServerResponse) =>
        response.writeHead(206, { 'Content-Range': 'bytes 0-0/1000000000000000', ETag: '"h"' }).end('G');
      site.answers.set(MODEL, huge);
      expect(await run('read', url, 0, 10)).toBe('CACHE_QUOTA');
      expect(await run('listCached')).toEqual([]);
      site.answers.clear();
      await run('read', url, 0, 10);
      site.answers.set(MODEL, huge);
      expect(await run('read', url, 0, 10)).toBe('CACHE_QUOTA');
      const entry = { name: url, size: BYTES.length, cachedBytes: BYTES.length };
      expect(await run('listCached')).toEqual([entry]);
      site.answers.clear();
      site.requests.length = 0;
      expect(await run('read', url, 0, BYTES.length)).toBe(digestOf(0, BYTES.length));
      expect(bodies()).toEqual([]);
    });
  });

  it('a stored size beyond all bounds is listed at once, and one that is none counts as no file', async () => {
    await withCalls(false, async (run) => {
      const url = `${site.url}${MODEL}`;
      await run('read', url, 0, 10);
      await run('storeSize', 1e15);
      expect(await run('listCached')).toEqual([{ name: url, size: 1e15, cachedBytes: 24 * MIB }]);
      for (const size of [-5, 1.5, 2 ** 53]) {
        await run('storeSize', size);
        expect(await run('listCached')).toEqual([]);
      }
      expect(await run('read', url, 0, BYTES.length)).toBe(digestOf(0, BYTES.length));
      expect(await run('removeCached', url)).toBe(true);
    });
  });

  it('a model that does not fit is refused by its size', async () => {
    await withCalls(false, async (run, page) => {
      const session = await page.context().newCDPSession(page);
      await session.send('Storage.overrideQuotaForOrigin', { origin: site.url, quotaSize: 20 * MIB });
      expect(await run('read', `${site.url}${MODEL}`, 0, 10)).toBe('CACHE_QUOTA');
    });
  });
});
