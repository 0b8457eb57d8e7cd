import { existsSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { GOLDEN_MODELS, type GoldenModel, optionsOf, readGolden } from '../contract/golden.js';
import { hasChromium } from './browser.js';
import { engineSites } from './engine-sites.js';

const golden = readGolden();
const bytesOf = ({ path, bytes }: GoldenModel) =>
  path === undefined ? (bytes?.() ?? new Uint8Array(0)) : readFileSync(path);
const present = GOLDEN_MODELS.filter(({ path }) => path === undefined || existsSync(path));
const pathOf = ({ name }: GoldenModel) => `/${encodeURIComponent(name)}`;

describe.runIf(hasChromium)('the engine in Chromium', () => {
  const { withPage } = engineSites(() => present.map((model) => [pathOf(model), bytesOf(model)]));

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
        // The large ones take a while on one thread.
        const models = present.filter(({ large }) => !large || variant === 'relaxed-simd-threads');
        for (const model of models) {
          const { name, prompts } = model;
          const path = pathOf(model);
          const settings = {
            ...options,
            ...optionsOf(model),
            ...(variant.endsWith('threads') && { threads: 2 }),
          };
          const backend = await run('open', path, settings);
          expect(backend).toMatchObject({ kind: 'wasm', variant });
          const digests: Record<string, string> = {};
          for (const [prompt, ids] of Object.entries(prompts))
            digests[prompt] = await run('digest', path, ids);
          expect({ name, ...digests }).toEqual({ name, ...golden[name] });
          await run('close', path);
        }
        const fetched = site.requests.map(({ path }) => path).filter((path) => path.endsWith('.wasm'));
        expect(new Set(fetched)).toEqual(new Set([`/${variant}.wasm`]));
      });
    },
  );
});
