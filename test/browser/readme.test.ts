import { execFile } from 'node:child_process';
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { describe, expect, it } from 'vitest';
import { withFolder } from '../gguf/sources.js';
import { tinyLlama } from '../gguf/tiny-llama.js';
import { bundle, hasChromium, ISOLATED, launchChromium, serve, shippedFiles } from './browser.js';

const ROOT = resolve(import.meta.dirname, '../..');
const README = readFileSync(join(ROOT, 'README.md'), 'utf8');
const template = '{% for m in messages %}{{ m.content }}\n{% endfor %}';
const MODEL = tinyLlama({
  metadata: [{ key: 'tokenizer.chat_template', kind: 'string', value: template }],
}).bytes;
const LIMIT = { timeout: 60_000 };

/** The program under a heading of the README, as it stands there. */
function snippet(heading: string): string {
  const section = README.split(/^## /m).find((part) => part.startsWith(`${heading}\n`));
  const code = /^```js\n(.*?)^```$/ms.exec(section ?? '')?.[1];
  if (code === undefined) throw new Error(`the README has no program under ${heading}`);
  return code;
}

/** A project of somebody who uses the package, with a model file. */
async function withProject<T>(heading: string, use: (folder: string) => Promise<T>): Promise<T> {
  return withFolder(async (folder) => {
    mkdirSync(join(folder, 'node_modules'));
    symlinkSync(ROOT, join(folder, 'node_modules/frugal'));
    writeFileSync(join(folder, 'package.json'), '{ "type": "module" }');
    writeFileSync(join(folder, 'model.gguf'), MODEL);
    writeFileSync(join(folder, 'main.js'), snippet(heading));
    return use(folder);
  });
}

const run = promisify(execFile);

describe('the programs of the README run as they stand', () => {
  it('in Node', async () => {
    await withProject('In Node', async (folder) => {
      const env = { ...process.env, NODE_OPTIONS: '' };
      const { stdout } = await run(process.execPath, ['main.js'], { cwd: folder, env, ...LIMIT });
      expect(stdout).toMatch(/finishReason: '\w+/);
      expect(stdout).toMatch(/64 \{ kind: 'native'/);
    });
  });

  it('in Deno', async () => {
    await withProject('In Deno', async (folder) => {
      const deno = join(ROOT, 'node_modules/.bin/deno');
      const args = ['run', '--allow-read', '--node-modules-dir=manual', 'main.js'];
      const { stdout } = await run(deno, args, { cwd: folder, ...LIMIT });
      expect(stdout.length).toBeGreaterThan(20);
    });
  });

  it.runIf(hasChromium)('in a browser', async () => {
    await withProject('In a browser', async (folder) => {
      const app = await bundle(join(folder, 'main.js'), { logLevel: 'error' });
      const html =
        '<!doctype html><link rel="icon" href="data:,"><button id="stop"></button><p id="text"></p><script type="module" src="/app.js"></script>';
      const files = new Map([
        ['/', new TextEncoder().encode(html)],
        ['/app.js', app],
        ['/model.gguf', MODEL],
      ]);
      const site = await serve(new Map([...files, ...shippedFiles()]), ISOLATED);
      const browser = await launchChromium();
      try {
        const page = await browser.newPage();
        const said: string[] = [];
        page.on('console', (message) => said.push(message.text()));
        page.on('pageerror', (error) => said.push(`${error}`));
        await page.goto(site.url);
        await expect.poll(() => said.length, LIMIT).toBeGreaterThan(0);
        expect(said).toEqual([expect.stringContaining('kind: wasm')]);
        expect((await page.textContent('#text'))?.length).toBeGreaterThan(20);
      } finally {
        await browser.close();
        await site.close();
      }
    });
  });
});
