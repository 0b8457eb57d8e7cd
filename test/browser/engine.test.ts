import { readFileSync } from 'node:fs';
import type { ServerResponse } from 'node:http';
import type { Browser } from 'playwright-core';
import { describe, expect, it } from 'vitest';
import { isFrugalError, type LoadOptions, load } from '../../ts/index.js';
import { GOLDEN_MODELS, readGolden } from '../contract/golden.js';
import { hostileFiles } from '../gguf/hostile.js';
import { hasChromium, sendFile, serve } from './browser.js';
import { engineSites, STORIES } from './engine-sites.js';

const golden = readGolden();

// Generous: machines that are shared take their time over dozens of loads.
describe.runIf(hasChromium)('the engine in Chromium', { timeout: 240_000 }, () => {
  const { sites, withPage, browser } = engineSites();

  it.each(['isolated', 'plain'] as const)('%s: the page stays free while the model writes', async (kind) => {
    await withPage(kind, async (run) => {
      await run('open', '/stories.gguf');
      // A machine that is busy with something else may hold the page up, but hardly every time.
      let seen = await run('watch', '/stories.gguf', 100);
      for (let tries = 1; tries < 5 && seen.task > 0; tries++)
        seen = await run('watch', '/stories.gguf', 100);
      console.log(
        `${kind}: longest delay of a timer ${seen.delay.toFixed(1)} ms, longest task ${seen.task} ms, ` +
          `over ${seen.tokens} tokens`,
      );
      expect(seen).toMatchObject({ tokens: 100, task: 0 });
      // If a page that is held up were not seen, the line above would prove nothing.
      expect((await run('watch', '/stories.gguf', 20, 80)).task).toBeGreaterThanOrEqual(50);
    });
  });

  it.each(['isolated', 'plain'] as const)('%s: an abort ends within a token', async (kind) => {
    await withPage(kind, async (run) => {
      await run('open', '/stories.gguf');
      const { after, reason } = await run('abort', '/stories.gguf');
      expect(reason).toBe('enough');
      expect(after).toBeLessThanOrEqual(1);
      await using here = await load(STORIES);
      const { text } = await here.complete('The moon', { temperature: 0, maxTokens: 20, ignoreEnd: true });
      expect(await run('complete', '/stories.gguf', 'The moon', 20)).toBe(text);
    });
  });

  it.each(['isolated', 'plain'] as const)(
    '%s: experts are read from the URL, and from its copy in the browser when the server is gone',
    async (kind) => {
      const site = sites[kind];
      await using here = await load(STORIES);
      const options = { contextLength: 512, expertMemory: Math.floor(here.info.expertBytes / 3) };
      const prompt = GOLDEN_MODELS.find(({ name }) => name === 'stories-moe')?.prompts.short ?? [];
      await withPage(kind, async (run) => {
        const digest = async (cache: boolean) => {
          await run('openUrl', '/stories.gguf', { ...options, cache });
          const loaded = site?.requests.length ?? 0;
          const found = await run('digest', '/stories.gguf', prompt);
          if (cache) expect(await run('remove', '/stories.gguf')).toBe('CACHE_BUSY');
          await run('close', '/stories.gguf');
          expect(found).toBe(golden['stories-moe']?.short);
          return (site?.requests.length ?? 0) - loaded;
        };
        expect(await digest(false)).toBeGreaterThan(0);
        expect(await digest(true)).toBe(0);
        site?.answers.set('/stories.gguf', ({ socket }) => socket.destroy());
        expect(await digest(true)).toBe(0);
        expect(await run('remove', '/stories.gguf')).toBe(true);
        site?.answers.clear();
      });
    },
  );

  it.each([false, true])('headers go with each request, with the cache %s', async (cache) => {
    await withPage('plain', async (run, _, site) => {
      const path = '/stories.gguf';
      site.answers.set(path, (request, response) => {
        if (request.headers.authorization === 'Bearer secret')
          sendFile(request, response, path, site.files.get(path));
        else response.writeHead(401).end();
      });
      const headers = { Authorization: 'Bearer secret' };
      await run('openUrl', path, { cache, headers });
      await run('close', path);
      expect(await run('refusal', path)).toMatchObject({ code: 'SOURCE_READ' });
      site.answers.clear();
    });
  });

  it('a server of another origin is read where it and the page allow that; what is lacking is named', async () => {
    const allow = { 'Access-Control-Allow-Origin': '*' };
    const expose = { ...allow, 'Access-Control-Expose-Headers': 'Content-Range' };
    const headers = { Authorization: 'Bearer secret' };
    const files = new Map([['/stories.gguf', readFileSync(STORIES)]]);
    await withPage('open', async (run) => {
      const from = async (sent: Readonly<Record<string, string>>, options: LoadOptions = {}) => {
        const other = await serve(files, sent);
        const outcome = await run('refusal', `${other.url}/stories.gguf`, undefined, options);
        await other.close();
        return outcome;
      };
      const lacks = (name: string) => ({ code: 'SOURCE_READ', cure: expect.stringContaining(name) });
      expect(await from({})).toMatchObject(lacks('Access-Control-Allow-Origin.'));
      expect(await from(allow)).toMatchObject(lacks('Access-Control-Expose-Headers: Content-Range'));
      for (const cache of [false, true]) {
        expect(await from(expose, { cache })).toEqual({ message: 'loaded' });
        expect(await from(expose, { cache, headers })).toMatchObject(
          lacks('Access-Control-Allow-Headers with Authorization'),
        );
        const allowed = { ...expose, 'Access-Control-Allow-Headers': 'authorization' };
        expect(await from(allowed, { cache, headers })).toEqual({ message: 'loaded' });
      }
    });
    const other = await serve(files, expose);
    await withPage('plain', async (run) => {
      const refused = await run('refusal', `${other.url}/stories.gguf`);
      expect(refused).toMatchObject({ code: 'SOURCE_READ', cure: expect.stringContaining('connect-src') });
    });
    await other.close();
  });

  it.each([
    ['plain', 'frugal-worker.js'],
    ['plain', 'relaxed-simd.wasm'],
    ['isolated', 'thread-web.js'],
  ] as const)(
    '%s: without %s the load is refused by name, and an abort ends one that waits for it',
    async (kind, name) => {
      await withPage(kind, async (run, page, site) => {
        const held: ServerResponse[] = [];
        try {
          site.answers.set(`/${name}`, (_, response) => void response.writeHead(404).end());
          const missing = { code: 'BACKEND_UNAVAILABLE', message: expect.stringContaining('cannot be') };
          expect(await run('refusal', 'stories.gguf')).toMatchObject(missing);
          site.answers.set(`/${name}`, (_, response) => void held.push(response));
          expect(await run('refusal', 'stories.gguf', 100)).toEqual({ message: 'enough' });
          await expect.poll(() => page.workers()).toEqual([]);
        } finally {
          site.answers.clear();
          for (const response of held) response.destroy();
        }
        expect(await run('refusal', 'stories.gguf')).toEqual({ message: 'loaded' });
      });
    },
  );

  it('a policy that forbids WebAssembly is named', async () => {
    await withPage('plain', async (run, _, site) => {
      site.answers.set('/frugal-worker.js', (request, response) => {
        response.setHeader('Content-Security-Policy', "default-src 'self'");
        sendFile(request, response, '/frugal-worker.js', site.files.get('/frugal-worker.js'));
      });
      const found = await run('refusal', 'stories.gguf');
      site.answers.clear();
      expect(found).toMatchObject({ code: 'BACKEND_UNAVAILABLE', message: expect.stringContaining('olicy') });
    });
  });

  it('hostile files end as they do natively', async () => {
    const site = sites.plain;
    if (site === undefined) throw new Error('no site');
    await withPage('plain', async (run) => {
      let number = 0;
      let tried = 0;
      for (const { name, bytes } of hostileFiles(1, 2600)) {
        number += 1;
        if (number % 20 !== 0) continue;
        tried += 1;
        site.files.set('/hostile.gguf', bytes);
        expect([name, await run('outcome', '/hostile.gguf')]).toEqual([name, await nativeOutcome(bytes)]);
      }
      expect(tried).toBe(130);
    });
  });

  it('50 loads and disposals give their memory back', async () => {
    await withPage('isolated', async (run, page) => {
      const cycle = async (count: number) => {
        for (let i = 0; i < count; i++) {
          await run('open', '/stories.gguf', { threads: 2 });
          await run('complete', '/stories.gguf', 'A', 2);
          await run('close', '/stories.gguf');
        }
        await page.requestGC();
        return rendererBytes(browser());
      };
      const before = await cycle(10);
      const after = await cycle(50);
      console.log(
        `renderers after 10 loads: ${(before / 2 ** 20).toFixed(0)} MiB, after 60: ${(after / 2 ** 20).toFixed(0)} MiB`,
      );
      // A model takes some 20 MiB, its worker as much again: one that stayed of ten would show.
      expect(after - before).toBeLessThan(100 * 2 ** 20);
      expect(page.workers()).toEqual([]);
    });
  });
});

async function nativeOutcome(bytes: Uint8Array): Promise<string> {
  try {
    await using model = await load(new Blob([Uint8Array.from(bytes)]), { threads: 1 });
    try {
      await model.complete([1, 2, 3], { maxTokens: 2, ignoreEnd: true, temperature: 0 });
      return 'loaded';
    } catch (error) {
      return isFrugalError(error) ? `loaded, ${error.code}` : `${error}`;
    }
  } catch (error) {
    return isFrugalError(error) ? error.code : `${error}`;
  }
}

/** Resident bytes of all processes that run pages. */
async function rendererBytes(browser: Browser): Promise<number> {
  const session = await browser.newBrowserCDPSession();
  const { processInfo } = await session.send('SystemInfo.getProcessInfo');
  await session.detach();
  return processInfo
    .filter(({ type }) => type === 'renderer')
    .map(({ id }) => Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${id}/status`, 'utf8'))?.[1]) * 1024)
    .reduce((sum, bytes) => sum + bytes, 0);
}
