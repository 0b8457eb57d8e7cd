// dist/browser: the package as browsers and bundlers take it, a few files beside each other that need no other.

import { copyFileSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { build } from 'esbuild';
import { ROOT } from './steps.mjs';
import { WASM_FOLDER, WASM_VARIANTS } from './wasm.mjs';

const OUT = join(ROOT, 'dist', 'browser');

/** The .wasm files lie beside the scripts. */
const forBrowsers = {
  name: 'for browsers',
  setup({ onLoad }) {
    onLoad({ filter: /backend\/wasm\.js$/ }, ({ path }) => ({
      contents: readFileSync(path, 'utf8').replace(/'..\/..\/dist\/wasm\/(?=[\w-]+\.wasm')/g, "'./"),
    }));
  },
};

export async function buildBrowser() {
  rmSync(OUT, { recursive: true, force: true });
  mkdirSync(OUT, { recursive: true });
  await build({
    entryPoints: {
      index: join(ROOT, 'dist', 'browser.js'),
      wasm: join(ROOT, 'dist', 'web.js'),
      'frugal-worker': join(ROOT, 'dist', 'worker', 'frugal-worker.js'),
      'thread-web': join(ROOT, 'dist', 'backend', 'wasm', 'thread-web.js'),
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
  for (const { name } of WASM_VARIANTS) {
    copyFileSync(join(ROOT, WASM_FOLDER, `${name}.wasm`), join(OUT, `${name}.wasm`));
  }
}
