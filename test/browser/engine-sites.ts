import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import type { Browser, Page } from 'playwright-core';
import { afterAll, beforeAll } from 'vitest';
import { bundle, ISOLATED, launchChromium, openPage, type Site, serve, shippedFiles } from './browser.js';
import type { Calls } from './engine-page.js';

export const STORIES = resolve(import.meta.dirname, '../../models/stories-moe-q8_0.gguf');
export const CSP = {
  'Content-Security-Policy': "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'",
};
const HTML = '<!doctype html><title>engine</title><script type="module" src="/page.js"></script>';

/** Calls one of `engine-page.ts` in the page. */
export type Run = <K extends keyof Calls>(name: K, ...args: Parameters<Calls[K]>) => ReturnType<Calls[K]>;

export interface Sites {
  isolated: Site | undefined;
  plain: Site | undefined;
  /** Its pages may ask other sites. */
  open: Site | undefined;
}

export interface EngineSites {
  readonly sites: Sites;
  browser(): Browser;
  withPage(kind: keyof Sites, use: (run: Run, page: Page, site: Site) => Promise<void>): Promise<void>;
}

/** Has a suite's tests find Chromium, and sites that have the package, a page that runs it, and more files by path. */
export function engineSites(more: () => Iterable<[string, Uint8Array]> = () => []): EngineSites {
  let browser: Browser;
  const sites: Sites = { isolated: undefined, plain: undefined, open: undefined };
  beforeAll(async () => {
    const files = new Map([...(await siteFiles('engine-page.ts')), ...more()]);
    sites.isolated = await serve(files, { ...ISOLATED, ...CSP });
    sites.plain = await serve(files, CSP);
    sites.open = await serve(files, ISOLATED);
    browser = await launchChromium();
  });
  afterAll(async () => {
    await browser?.close();
    await Promise.all(Object.values(sites).map((site: Site | undefined) => site?.close()));
  });

  async function withPage(kind: keyof Sites, use: (run: Run, page: Page, site: Site) => Promise<void>) {
    const site = sites[kind];
    if (site === undefined) throw new Error('no site');
    const page = await openPage(browser, site);
    const run = (name: string, ...args: unknown[]) =>
      page.evaluate(
        ([call, values]) =>
          (globalThis as unknown as { calls: Record<string, (...a: unknown[]) => unknown> }).calls[call]?.(
            ...values,
          ),
        [name, args] as const,
      );
    try {
      await page.waitForFunction(() => 'calls' in globalThis);
      site.requests.length = 0;
      await use(run as Run, page, site);
    } finally {
      await page.close();
    }
  }
  return { sites, withPage, browser: () => browser };
}

/** The files of the sites, with their own copy of what the package ships; `page` is the page's program, beside this file. */
export async function siteFiles(page: string): Promise<Map<string, Uint8Array>> {
  const files = new Map<string, Uint8Array>([
    ['/', new TextEncoder().encode(HTML)],
    ['/page.js', await bundle(resolve(import.meta.dirname, page))],
    ['/stories.gguf', readFileSync(STORIES)],
    ...shippedFiles(),
  ]);
  // The package as it is without a worker, which finds its modules there.
  for (const [path, bytes] of shippedFiles())
    if (path.endsWith('.wasm')) files.set(`/dist/wasm${path}`, bytes);
  return files;
}
