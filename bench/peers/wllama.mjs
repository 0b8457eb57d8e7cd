// wllama in Chromium, on an isolated page of a local server. Runs in the folder that the package is installed in.
// Arguments: model, prompt tokens, generated tokens, threads, Chromium's path, the folder of playwright-core.
// Prints one JSON object.

import { createReadStream, statSync } from 'node:fs';
import { createServer } from 'node:http';
import { extname, join } from 'node:path';
import { pathToFileURL } from 'node:url';

const [model, prompt, generate, threads, executablePath, playwright] = process.argv.slice(2);
const { chromium } = (await import(pathToFileURL(join(playwright, 'index.js')).href)).default;

const TYPES = { '.js': 'text/javascript', '.wasm': 'application/wasm', '.html': 'text/html' };
const PAGE = '<!doctype html><title>wllama</title>';

const server = createServer((request, response) => {
  const { pathname } = new URL(request.url, 'http://localhost');
  const headers = {
    'Cross-Origin-Opener-Policy': 'same-origin',
    'Cross-Origin-Embedder-Policy': 'require-corp',
    'Content-Type': TYPES[extname(pathname)] ?? 'application/octet-stream',
  };
  if (pathname === '/index.html') return response.writeHead(200, headers).end(PAGE);
  const file = pathname === '/model.gguf' ? model : join(process.cwd(), 'node_modules', pathname);
  try {
    response.writeHead(200, { ...headers, 'Content-Length': statSync(file).size });
    createReadStream(file).pipe(response);
  } catch {
    response.writeHead(404).end();
  }
});
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
const base = `http://127.0.0.1:${server.address().port}`;

/** Runs in the page. */
async function measure({ promptTokens, count, cores }) {
  const { Wllama } = await import('/@wllama/wllama/esm/index.js');
  const engine = new Wllama({ default: '/@wllama/wllama/esm/wasm/wllama.wasm' }, { suppressNativeLog: true });
  const began = performance.now();
  const bytes = await (await fetch('/model.gguf')).blob();
  await engine.loadModel([bytes], {
    n_ctx: promptTokens + count + 64,
    n_threads: cores,
    n_batch: promptTokens,
    n_gpu_layers: 0,
  });
  const loadMs = performance.now() - began;
  const run = async (length, wanted) => {
    const start = performance.now();
    const times = [];
    // Each begins otherwise: the engine keeps the beginning of the prompt before.
    const text = Array.from({ length }, (_, i) => String.fromCharCode(97 + ((i * 7 + length) % 26))).join('');
    const stream = await engine.createCompletion({
      ...{ prompt: text, max_tokens: wanted, temperature: 0, ignore_eos: true, stream: true },
    });
    for await (const _ of stream) times.push(performance.now());
    return { firstMs: times[0] - start, decode: ((times.length - 1) * 1000) / (times.at(-1) - times[0]) };
  };
  await run(4, 1);
  const first = await run(promptTokens, 1);
  const rest = await run(1, count + 1);
  return {
    prefill: (promptTokens * 1000) / first.firstMs,
    decode: rest.decode,
    loadMs,
    threads: engine.getNumThreads(),
  };
}

const browser = await chromium.launch({ executablePath, args: ['--no-sandbox'] });
try {
  const page = await browser.newPage();
  await page.goto(`${base}/index.html`);
  const sizes = { promptTokens: Number(prompt), count: Number(generate), cores: Number(threads) };
  const result = await page.evaluate(measure, sizes);
  console.log(JSON.stringify({ ...result, browser: browser.version() }));
} finally {
  await browser.close();
  server.close();
  server.closeAllConnections();
}
