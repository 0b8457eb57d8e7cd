// dist/browser: the package as browsers and bundlers take it, a few files beside each other that need no other.

import { copyFileSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { build } from 'esbuild';
import { ROOT } from './steps.mjs';

const OUT = join(ROOT, 'dist', 'browser');
const WASM = join(ROOT, 'bindings', 'wasm', 'pkg');

/** What only Node runs is left out, and the .wasm files lie beside the scripts. */
const forBrowsers = {
  name: 'for browsers',
  setup({ onLoad }) {
    onLoad({ filter: /node-encoder\.js$/ }, () => ({ contents: 'export {};' }));
    onLoad({ filter: /backend\/wasm\.js$/ }, ({ path }) => ({
      contents: readFileSync(path, 'utf8').replaceAll('../../bindings/wasm/pkg/', './'),
    }));
  },
};

export async function buildBrowser() {
  rmSync(OUT, { recursive: true, force: true });
  mkdirSync(OUT, { recursive: true });
  await build({
    entryPoints: {
      index: join(ROOT, 'dist', 'browser.js'),
      'frugal-worker': join(ROOT, 'dist', 'worker', 'frugal-worker.js'),
      'wasm-thread-web': join(ROOT, 'dist', 'backend', 'wasm-thread-web.js'),
    },
    outdir: OUT,
    bundle: true,
    minify: true,
    format: 'esm',
    target: 'es2023',
    legalComments: 'none',
    logLevel: 'warning',
    plugins: [forBrowsers],
  });
  for (const name of readdirSync(WASM)) {
    if (name.endsWith('.wasm')) copyFileSync(join(WASM, name), join(OUT, name));
  }
}
