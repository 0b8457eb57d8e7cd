import { describe, expect, it } from 'vitest';
import { hasChromium } from './browser.js';
import { expectConforming, suiteFiles } from './conforming.js';
import { engineSites } from './engine-sites.js';
import { expectGolden, goldenFiles } from './golden.js';

describe.runIf(hasChromium)('the engine in Chromium', () => {
  const { withPage } = engineSites(() => [...goldenFiles(), ...suiteFiles()]);

  const picks = [
    ['isolated', {}, 'relaxed-simd-threads'],
    ['isolated', { isa: 'simd128' }, 'simd128-threads'],
    ['isolated', { variant: 'relaxed-simd-memory64-threads' }, 'relaxed-simd-memory64-threads'],
    ['plain', {}, 'relaxed-simd'],
    ['plain', { isa: 'simd128' }, 'simd128'],
    ['plain', { variant: 'relaxed-simd-memory64' }, 'relaxed-simd-memory64'],
  ] as const;

  it.each(picks)(
    '%s, with %o: runs %s alone, which gives the golden digests',
    async (kind, options, variant) => {
      await withPage(kind, async (run, _, site) => {
        await expectGolden(run, variant, options, variant === 'relaxed-simd-threads');
        const fetched = site.requests.map(({ path }) => path).filter((path) => path.endsWith('.wasm'));
        expect(new Set(fetched)).toEqual(new Set([`/${variant}.wasm`]));
      });
    },
  );

  it.each(['isolated', 'plain'] as const)('%s: holds the suite as native code does', (kind) =>
    withPage(kind, (run) => expectConforming(run, {})),
  );
});
