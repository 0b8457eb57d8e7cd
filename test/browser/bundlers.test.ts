import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { build } from 'esbuild';
import type { Browser } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { load } from '../../ts/index.js';
import { withFolder } from '../gguf/sources.js';
import { hasChromium, ISOLATED, launchChromium, openPage, serve } from './browser.js';

const ROOT = resolve(import.meta.dirname, '../..');
const STORIES = join(ROOT, 'models/stories-moe-q8_0.gguf');
const OPTIONS = { temperature: 0, maxTokens: 12 };

const HTML =
  '<!doctype html><title>app</title><p id="text"></p><script type="module" src="./app.js"></script>';
/** An app as people write it. */
const appOf = (entry: string) => `
import { load } from '${entry}';

const model = await load('stories.gguf');
const { text } = await model.complete('The moon', ${JSON.stringify(OPTIONS)});
document.querySelector('#text').textContent = text;
document.title = model.info.backend.variant;
await model.dispose();
`;

/** Builds of the app by each bundler, as its manual says; gives the folder to serve. */
const BUILDS: Readonly<Record<string, (folder: string) => Promise<string>>> = {
  async Vite(folder) {
    const vite = join(ROOT, 'node_modules/vite/bin/vite.js');
    const env = { ...process.env, NODE_OPTIONS: '' };
    execFileSync(process.execPath, [vite, 'build'], { cwd: folder, env, stdio: 'pipe' });
    return join(folder, 'dist');
  },
  async esbuild(folder) {
    const entryPoints = ['app.js'];
    await build({ absWorkingDir: folder, entryPoints, bundle: true, format: 'esm', outdir: 'out' });
    // It leaves the files that scripts name by their address to others.
    cpSync(join(folder, 'node_modules/frugal/dist/browser'), join(folder, 'out'), { recursive: true });
    writeFileSync(join(folder, 'out/index.html'), HTML);
    return join(folder, 'out');
  },
};

function filesIn(folder: string): Map<string, Uint8Array> {
  const entries = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) =>
    entry.isFile(),
  );
  return new Map(
    entries.map((entry) => {
      const path = join(entry.parentPath, entry.name);
      const name = path.slice(folder.length).replaceAll('\\', '/');
      return [name === '/index.html' ? '/' : name, readFileSync(path)];
    }),
  );
}

describe.runIf(hasChromium)('an app made by a bundler', () => {
  let browser: Browser;
  let expected: string;
  beforeAll(async () => {
    browser = await launchChromium();
    await using model = await load(STORIES);
    expected = (await model.complete('The moon', OPTIONS)).text;
  });
  afterAll(() => browser?.close());

  const kinds = Object.keys(BUILDS).flatMap((name) => [
    [name, 'frugal', 'relaxed-simd-threads'],
    // On the page's own thread, which may not wait.
    [name, 'frugal/wasm', 'relaxed-simd'],
  ]);
  it.each(kinds)('%s with %s runs, and downloads one build of the engine', async (name, entry, variant) => {
    await withFolder(async (folder) => {
      writeFileSync(join(folder, 'package.json'), '{ "type": "module" }');
      writeFileSync(join(folder, 'index.html'), HTML);
      writeFileSync(join(folder, 'app.js'), appOf(entry));
      mkdirSync(join(folder, 'node_modules'));
      symlinkSync(ROOT, join(folder, 'node_modules/frugal'));
      const files = filesIn((await BUILDS[name]?.(folder)) ?? '');
      files.set('/stories.gguf', readFileSync(STORIES));
      const site = await serve(files, ISOLATED);
      try {
        const page = await openPage(browser, site);
        await page.waitForFunction(() => document.title !== 'app', undefined, { timeout: 30_000 });
        expect(await page.textContent('#text')).toBe(expected);
        expect(await page.title()).toBe(variant);
        expect(site.requests.filter(({ path }) => path.endsWith('.wasm'))).toHaveLength(1);
        await page.close();
      } finally {
        await site.close();
      }
    });
  });
});
