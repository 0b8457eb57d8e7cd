// The package in Chromium, on an isolated page of a local server.

import { createReadStream, existsSync, statSync } from 'node:fs';
import { createServer } from 'node:http';
import { extname, join } from 'node:path';
import { ROOT } from '../../scripts/lib/steps.mjs';
import { within } from './child.mjs';

const PLACES = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];

/** @returns the path of a Chromium: the one named, else the system's; undefined where there is none */
export const findChromium = (named) =>
  [named, process.env.FRUGAL_CHROMIUM, ...PLACES].find((path) => path && existsSync(path));

const TYPES = { '.js': 'text/javascript', '.mjs': 'text/javascript', '.wasm': 'application/wasm' };
const HEADERS = {
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Embedder-Policy': 'require-corp',
};

async function serve(model) {
  const files = { '/model.gguf': model, '/measure.mjs': join(ROOT, 'bench', 'lib', 'measure.mjs') };
  const server = createServer((request, response) => {
    const { pathname } = new URL(request.url, 'http://localhost');
    if (pathname === '/') {
      response.writeHead(200, { ...HEADERS, 'Content-Type': 'text/html' });
      return response.end('<!doctype html><title>frugal</title>');
    }
    const file = files[pathname] ?? join(ROOT, 'dist', 'browser', pathname.slice(1));
    if (!existsSync(file)) return response.writeHead(404).end();
    const type = TYPES[extname(pathname)] ?? 'application/octet-stream';
    response.writeHead(200, { ...HEADERS, 'Content-Type': type, 'Content-Length': statSync(file).size });
    createReadStream(file).pipe(response);
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  return server;
}

/** Runs in the page. */
async function inPage({ sizes, threads }) {
  const { load } = await import('/index.js');
  const { measureModel } = await import('/measure.mjs');
  const blob = await (await fetch('/model.gguf')).blob();
  const model = await load(blob, { threads });
  const { backend, threads: used } = model.info;
  const result = await measureModel(model, sizes);
  await model.dispose();
  return { ...result, backend, threads: used };
}

/**
 * Measures a model in a browser of its own.
 * @param sizes as `measureModel` takes them; it is stopped after `limitMs`
 * @throws SetupError where that was not enough
 */
export async function measureInChromium(executablePath, model, { threads, limitMs, ...sizes }) {
  const { chromium } = await import('playwright-core');
  const server = await serve(model);
  const browser = await chromium.launch({ executablePath, args: ['--no-sandbox'] });
  try {
    const page = await browser.newPage();
    await page.goto(`http://127.0.0.1:${server.address().port}/`);
    const result = await within(page.evaluate(inPage, { sizes, threads }), limitMs);
    return { ...result, browser: browser.version() };
  } finally {
    await browser.close();
    server.close();
    server.closeAllConnections();
  }
}
