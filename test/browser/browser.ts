import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { join, resolve } from 'node:path';
import { type BuildOptions, build } from 'esbuild';
import { type Browser, chromium, type Page } from 'playwright-core';

export const CHROMIUM = process.env.FRUGAL_CHROMIUM ?? '/usr/bin/chromium';
export const hasChromium = existsSync(CHROMIUM);
if (!hasChromium) console.log(`not run, for want of ${CHROMIUM} (set FRUGAL_CHROMIUM): tests in a browser`);

export function launchChromium(args: readonly string[] = []): Promise<Browser> {
  // Chromium has no sandbox of its own for root.
  return chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox', ...args] });
}

export interface Site {
  readonly url: string;
  /** Paths asked for, in order, with the range where there was one. */
  readonly requests: Array<{ readonly path: string; readonly range: string | undefined }>;
  /** Answers for a path, in place of the file. */
  readonly answers: Map<string, (request: IncomingMessage, response: ServerResponse) => void>;
  readonly files: Map<string, Uint8Array>;
  close(): Promise<void>;
}

const TYPES: Readonly<Record<string, string>> = {
  html: 'text/html; charset=utf-8',
  js: 'text/javascript',
  css: 'text/css',
  wasm: 'application/wasm',
};

/** Serves `files` from this machine, with the headers given on each; ranges are answered. */
export async function serve(
  files: Map<string, Uint8Array>,
  headers: Readonly<Record<string, string>> = {},
): Promise<Site> {
  const requests: Site['requests'] = [];
  const answers: Site['answers'] = new Map();
  const server = createServer((request, response) => {
    const path = new URL(request.url ?? '/', 'http://site').pathname;
    requests.push({ path, range: request.headers.range });
    for (const [name, value] of Object.entries(headers)) response.setHeader(name, value);
    const answer = answers.get(path);
    if (answer) answer(request, response);
    else sendFile(request, response, path, files.get(path));
  });
  await new Promise<void>((ready) => server.listen(0, '127.0.0.1', ready));
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('no port');
  return {
    url: `http://127.0.0.1:${address.port}`,
    requests,
    answers,
    files,
    async close() {
      server.closeAllConnections();
      await new Promise((closed) => server.close(closed));
    },
  };
}

export function sendFile(
  request: IncomingMessage,
  response: ServerResponse,
  path: string,
  bytes: Uint8Array | undefined,
): void {
  if (bytes === undefined) {
    response.writeHead(404).end();
    return;
  }
  response.setHeader(
    'Content-Type',
    TYPES[path === '/' ? 'html' : (path.split('.').at(-1) ?? '')] ?? 'application/octet-stream',
  );
  const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '') ?? [];
  if (from === undefined || to === undefined) {
    response.end(bytes);
    return;
  }
  const last = Math.min(Number(to), bytes.length - 1);
  response.setHeader('Content-Range', `bytes ${from}-${last}/${bytes.length}`);
  if (!response.hasHeader('ETag')) response.setHeader('ETag', '"one"');
  response.writeHead(206).end(bytes.subarray(Number(from), last + 1));
}

export const ISOLATED = {
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Embedder-Policy': 'require-corp',
};

/** What the package ships for browsers, by its path on a site. */
export function shippedFiles(): Map<string, Uint8Array> {
  const folder = resolve(import.meta.dirname, '../../dist/browser');
  return new Map(readdirSync(folder).map((name) => [`/${name}`, readFileSync(join(folder, name))]));
}

/** One file of JavaScript for a browser. */
export async function bundle(entry: string, options: BuildOptions = {}): Promise<Uint8Array> {
  const { outputFiles } = await build({
    entryPoints: [entry],
    bundle: true,
    format: 'esm',
    write: false,
    ...options,
  });
  const [file] = outputFiles ?? [];
  if (file === undefined) throw new Error(`nothing was made of ${entry}`);
  return file.contents;
}

/** A page of the site; what goes wrong in it fails the test. */
export async function openPage(browser: Browser, site: Site, path = '/'): Promise<Page> {
  const page = await browser.newPage();
  page.on('pageerror', (error) => console.log('page error:', error));
  page.on('console', (message) => console.log('page:', message.text()));
  await page.goto(`${site.url}${path}`);
  return page;
}
