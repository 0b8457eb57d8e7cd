import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { load } from '../../ts/index.js';
import { ISOLATED, type Site, serve } from './browser.js';
import { expectConforming, suiteFiles } from './conforming.js';
import { CSP, STORIES, siteFiles } from './engine-sites.js';
import { expectGolden, goldenFiles } from './golden.js';
import { FIREFOX, openRemote, present, type Remote, WEBKIT } from './remote.js';

const BROWSERS = [
  { browser: FIREFOX, relaxed: true, best: 'relaxed-simd-threads', caches: true },
  // It has relaxed SIMD as little as a file system of the page's own, and is slow.
  { browser: WEBKIT, relaxed: false, best: 'simd128-threads', caches: false },
] as const;

describe.each(BROWSERS.filter(({ browser }) => present(browser)))(
  'the engine in $browser.name',
  ({ browser, relaxed, best, caches }) => {
    let site: Site;
    let remote: Remote;
    beforeAll(async () => {
      const files = new Map([...(await siteFiles('remote-page.ts')), ...goldenFiles(), ...suiteFiles()]);
      site = await serve(files, { ...ISOLATED, ...CSP });
      remote = openRemote(browser, site);
    });
    afterAll(async () => {
      await remote?.close();
      await site?.close();
    });

    it('picks the best module, which gives the golden digests', () =>
      expectGolden(remote.run, best, {}, relaxed));

    const others = ['simd128', ...(relaxed ? ['relaxed-simd-memory64-threads'] : [])];
    it.each(others)('%s gives the golden digests', (variant) =>
      expectGolden(remote.run, variant, { variant }, false),
    );

    it('holds the suite as native code does', () => expectConforming(remote.run, {}));

    it('writes what Node writes, of a file that it fetches in ranges', async () => {
      await using model = await load(STORIES);
      const prompt = 'The moon is';
      const { text } = await model.complete(prompt, { temperature: 0, maxTokens: 40, ignoreEnd: true });
      await remote.run('openUrl', '/stories.gguf', {});
      expect(await remote.run('complete', '/stories.gguf', prompt, 40)).toBe(text);
      await remote.run('close', '/stories.gguf');
    });

    it('stops within one token', async () => {
      await remote.run('open', '/stories.gguf');
      const { after, reason } = await remote.run('abort', '/stories.gguf');
      expect(after).toBeLessThanOrEqual(1);
      expect(reason).toBe('enough');
      await remote.run('close', '/stories.gguf');
    });

    it(caches ? 'keeps a model' : 'says that it cannot keep a model', async () => {
      const opened = () => remote.run('openUrl', '/stories.gguf', { cache: true });
      if (!caches) return expect(opened()).rejects.toThrow('Models cannot be kept');
      for (const fetched of [true, false]) {
        site.requests.length = 0;
        await opened();
        await remote.run('close', '/stories.gguf');
        const bodies = site.requests.filter(
          ({ path, range }) => path === '/stories.gguf' && range !== 'bytes=0-0',
        );
        expect(bodies.length > 0).toBe(fetched);
      }
      expect(await remote.run('remove', '/stories.gguf')).toBe(true);
    });
  },
);
