// The page: its files, made ready in memory, and a server for them.

import { readdirSync, readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { brotliCompressSync, constants } from 'node:zlib';
import { build } from 'esbuild';
import { ROOT, SetupError } from './steps.mjs';

const MODEL = 'stories-moe-q8_0.gguf';

const TYPES = {
  html: 'text/html; charset=utf-8',
  css: 'text/css',
  js: 'text/javascript',
  svg: 'image/svg+xml',
  wasm: 'application/wasm',
};

const HEADERS = {
  // Both make the page isolated, which shared memory and thus threads need.
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Embedder-Policy': 'require-corp',
  'Content-Security-Policy':
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; style-src 'self'; " +
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'",
  'Cache-Control': 'no-cache',
  'X-Content-Type-Options': 'nosniff',
};

/** All files of the page by name. */
export async function buildPage() {
  const files = new Map();
  for (const name of ['index.html', 'style.css', 'icon.svg']) {
    files.set(name, readFileSync(join(ROOT, 'page', name)));
  }
  const { outputFiles } = await build({
    entryPoints: [join(ROOT, 'page', 'page.ts')],
    alias: { frugal: join(ROOT, 'dist', 'browser', 'index.js') },
    bundle: true,
    minify: true,
    format: 'esm',
    target: 'es2023',
    write: false,
    outdir: 'page',
  });
  files.set('page.js', outputFiles[0].contents);
  const web = join(ROOT, 'dist', 'browser');
  for (const name of readdirSync(web)) {
    if (name !== 'index.js') files.set(name, readFileSync(join(web, name)));
  }
  files.set(MODEL, readFileSync(join(ROOT, 'models', MODEL)));
  return files;
}

/**
 * Serves files on this machine: compressed where the browser takes it, in ranges where it asks for them.
 * @param headers sent with each answer beside the type
 * @throws SetupError when the port is taken
 */
export async function servePage(files, port, headers = HEADERS) {
  const compressed = new Map();
  for (const [name, bytes] of files) {
    const type = name.split('.').at(-1);
    if (type in TYPES && type !== 'gguf') compressed.set(name, compress(bytes));
  }
  const server = createServer((request, response) => {
    const name = new URL(request.url, 'http://page').pathname.slice(1) || 'index.html';
    const bytes = files.get(name);
    if (bytes === undefined) return response.writeHead(404).end();
    response.setHeader('Content-Type', TYPES[name.split('.').at(-1)] ?? 'application/octet-stream');
    for (const [key, value] of Object.entries(headers)) response.setHeader(key, value);
    const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '');
    if (range !== null) return sendRange(response, bytes, Number(range[1]), Number(range[2]));
    const small = /\bbr\b/.test(request.headers['accept-encoding'] ?? '') && compressed.get(name);
    if (small) response.setHeader('Content-Encoding', 'br');
    return response.end(small || bytes);
  });
  await new Promise((ready, failed) => {
    server.once('error', (error) => failed(new SetupError(`port ${port} cannot be used: ${error.message}`)));
    server.listen(port, '127.0.0.1', ready);
  });
  return { url: `http://localhost:${server.address().port}/`, server };
}

function sendRange(response, bytes, first, to) {
  if (first >= bytes.length) {
    return response.writeHead(416, { 'Content-Range': `bytes */${bytes.length}` }).end();
  }
  const last = Math.min(to, bytes.length - 1);
  response.setHeader('Content-Range', `bytes ${first}-${last}/${bytes.length}`);
  return response.writeHead(206).end(bytes.subarray(first, last + 1));
}

/** Once, at the start: a moment's work for all files together. */
function compress(bytes) {
  const params = { [constants.BROTLI_PARAM_QUALITY]: 9 };
  return brotliCompressSync(bytes, { params });
}
