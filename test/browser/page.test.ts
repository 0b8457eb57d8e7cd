import { readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import type { Browser, Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { load } from '../../ts/index.js';
import { writeBigModel } from '../contract/big-model.js';
import { tinyLlama } from '../gguf/tiny-llama.js';
import { hasChromium, launchChromium } from './browser.js';

const STORIES = resolve(import.meta.dirname, '../../models/stories-moe-q8_0.gguf');
const PROMPT = 'The moon is';
/** Against what hangs, not what is slow, as all limits of tests. */
const PATIENCE_MS = 120_000;
const template = '{% for m in messages %}{{ m.content }} {% endfor %}';

interface Served {
  readonly url: string;
  readonly server: { close(): void; closeAllConnections(): void };
}

describe.runIf(hasChromium)('the page', () => {
  let browser: Browser;
  let served: Served;
  beforeAll(async () => {
    const place = resolve(import.meta.dirname, '../../scripts/lib/page.mjs');
    const { buildPage, servePage } = await import(place);
    served = await servePage(await buildPage(), 0);
    browser = await launchChromium();
  });
  afterAll(async () => {
    await browser?.close();
    served?.server.closeAllConnections();
    served?.server.close();
  });

  async function withPage(use: (page: Page) => Promise<void>, options = {}): Promise<void> {
    const context = await browser.newContext(options);
    const errors: unknown[] = [];
    try {
      const page = await context.newPage();
      page.setDefaultTimeout(PATIENCE_MS);
      page.on('pageerror', (error) => errors.push(error));
      page.on('console', (message) => {
        if (message.type() === 'error') errors.push(message.text());
      });
      await page.goto(served.url);
      await use(page);
      expect(errors).toEqual([]);
    } finally {
      await context.close();
    }
  }

  const ready = (page: Page) => page.getByText('Architecture').waitFor();
  const output = (page: Page) => page.getByRole('log');
  const finished = (page: Page) =>
    page
      .getByRole('status')
      .filter({ hasText: /Finished|Stopped/ })
      .waitFor();

  it('loads the embedded model, shows what it is and what runs it, and writes what Node writes', async () => {
    await using model = await load(STORIES);
    const { text } = await model.complete(PROMPT, { temperature: 0, maxTokens: 40 });
    await withPage(async (page) => {
      await page.getByText('Settings').click();
      await page.getByLabel('Temperature').fill('0');
      await page.getByLabel('Most tokens').fill('40');
      await page.getByLabel('Beginning').fill(PROMPT);
      // Asked for while the model loads: it is written as soon as that is done.
      await page.getByRole('button', { name: 'Write' }).click();
      await finished(page);
      expect(await output(page).textContent()).toBe(PROMPT + text);
      const facts = await page.locator('#facts').textContent();
      expect(facts).toMatch(/Architecture\s*llama/);
      expect(facts).toMatch(/wasm, relaxed.simd/);
      expect(facts).toMatch(/Threads\s*\d+/);
      expect(await page.locator('#speed').textContent()).toMatch(
        /^\d+ tokens, \d+ per second, first after \d+ ms/,
      );
    });
  });

  /** Keeps the embedded model from coming until the function that it gives is called. */
  async function holdModel(page: Page): Promise<() => void> {
    let letGo = () => {};
    const held = new Promise<void>((done) => {
      letGo = done;
    });
    await page.route('**/*.gguf', async (route) => {
      await held;
      // The page that asked may be gone.
      await route.continue().catch(() => undefined);
    });
    return letGo;
  }

  it('leaves what is written while a model loads, and changes its own beginning with the mode', async () => {
    await withPage(async (page) => {
      const beginning = await page.getByLabel('Beginning').inputValue();
      const letGo = await holdModel(page);
      await page.reload();
      await page.getByLabel('Beginning').fill(PROMPT);
      letGo();
      await ready(page);
      expect(await page.getByLabel('Beginning').inputValue()).toBe(PROMPT);
      const metadata = [{ key: 'tokenizer.chat_template', kind: 'string', value: template }] as const;
      const { bytes } = tinyLlama({ metadata: [...metadata] });
      await page.reload();
      await ready(page);
      await drop(page, 'chat.gguf', bytes);
      await page.getByRole('radio', { name: 'Chat' }).waitFor();
      expect(await page.getByLabel('Message').inputValue()).toBe('');
      await page.getByRole('radio', { name: 'Continue a text' }).click();
      expect(await page.getByLabel('Beginning').inputValue()).toBe(beginning);
    });
  });

  it('is the page it was when it is loaded again while the model loads or writes', async () => {
    await withPage(async (page) => {
      const letGo = await holdModel(page);
      await page.reload();
      await page.getByText('Starting').or(page.getByText('Reading the header')).first().waitFor();
      await page.reload();
      letGo();
      await ready(page);
      await page.getByText('Settings').click();
      await page.getByLabel('Most tokens').fill('4000');
      await page.getByRole('button', { name: 'Write' }).click();
      await page.locator('#output .made').filter({ hasText: /\w{3}/ }).waitFor();
      await page.reload();
      await ready(page);
      expect(await page.getByLabel('Most tokens').inputValue()).toBe('200');
      expect(page.workers().length).toBeGreaterThan(0);
      await page.getByLabel('Most tokens').evaluate((input: HTMLInputElement) => {
        input.value = '5';
      });
      await page.getByRole('button', { name: 'Write' }).click();
      await finished(page);
    });
  });

  it('stops by button and by key, and gives the focus back', async () => {
    await withPage(async (page) => {
      await ready(page);
      await page.getByText('Settings').click();
      await page.getByLabel('Most tokens').fill('4000');
      for (const stop of ['button', 'key']) {
        await page.getByLabel('Beginning').press('Control+Enter');
        await page.locator('#output .made').filter({ hasText: /\w{3}/ }).waitFor();
        if (stop === 'button') await page.getByRole('button', { name: 'Stop' }).click();
        else await page.keyboard.press('Escape');
        await finished(page);
        await expect.poll(() => page.evaluate(() => document.activeElement?.id)).toBe('prompt');
        expect(await page.getByRole('button', { name: 'Stop' }).isDisabled()).toBe(true);
      }
    });
  });

  it('takes a file of one’s own by the button and by dropping it, and chats where the model can', async () => {
    const metadata = [{ key: 'tokenizer.chat_template', kind: 'string', value: template }] as const;
    const { bytes } = tinyLlama({ metadata: [...metadata] });
    await withPage(async (page) => {
      await ready(page);
      const file = { name: 'mine.gguf', mimeType: 'application/octet-stream', buffer: Buffer.from(bytes) };
      await page.getByLabel('Open a GGUF file').setInputFiles(file);
      await page.getByRole('radio', { name: 'Chat' }).waitFor();
      await page.getByText('Settings').click();
      await page.getByLabel('Most tokens').fill('5');
      for (const message of ['once', 'again']) {
        await page.getByLabel('Message').fill(message);
        await page.getByLabel('Message').press('Enter');
        await expect.poll(() => page.locator('#output .answer').count()).toBe(message === 'once' ? 1 : 2);
        await expect.poll(() => page.getByRole('button', { name: 'Send' }).isEnabled()).toBe(true);
      }
      expect(await page.locator('#output .question').allTextContents()).toEqual(['once', 'again']);
      await drop(page, 'broken.gguf', bytes.slice(0, 1000));
      await expect.poll(() => page.getByRole('alert').textContent()).toMatch(/broken\.gguf.*\. Download/);
      expect(await page.locator('#speed').textContent()).toBe('');
      // The model before is there again, and what was wrong with the other one stays to be read.
      await ready(page);
      await page.getByLabel('Message').fill('and now');
      await page.getByLabel('Message').press('Enter');
      await expect.poll(() => page.locator('#output .answer').count()).toBe(1);
      await expect.poll(() => page.getByRole('button', { name: 'Send' }).isEnabled()).toBe(true);
      await drop(page, 'stories.gguf', readFileSync(STORIES));
      await page.getByRole('heading', { name: 'stories-moe' }).waitFor();
      expect(await page.getByRole('alert').isHidden()).toBe(true);
    });
  });

  it('gives up a load for the model before', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'frugal-page-'));
    try {
      const { path } = await writeBigModel(join(folder, 'big.gguf'), 120);
      await withPage(async (page) => {
        await ready(page);
        const cancel = page.getByRole('button', { name: 'Cancel' });
        expect(await cancel.isHidden()).toBe(true);
        await page.getByLabel('Open a GGUF file').setInputFiles(path);
        await page.getByText('Loading weights').waitFor();
        await cancel.click();
        await page.getByRole('heading', { name: 'stories-moe' }).waitFor();
        expect(await cancel.isHidden()).toBe(true);
        expect(await page.getByRole('alert').isHidden()).toBe(true);
        await page.getByRole('button', { name: 'Write' }).click();
        await finished(page);
      });
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  it('takes the same file again, and settings out of range are shown where they were hidden', async () => {
    const { bytes } = tinyLlama();
    const broken = {
      name: 'same.gguf',
      mimeType: 'application/octet-stream',
      buffer: Buffer.from(bytes.slice(0, 900)),
    };
    await withPage(async (page) => {
      await ready(page);
      await page.getByLabel('Open a GGUF file').setInputFiles(broken);
      await expect.poll(() => page.getByRole('alert').textContent()).toMatch(/same\.gguf/);
      await page.getByRole('heading', { name: 'stories-moe' }).waitFor();
      expect(await page.getByRole('alert').isVisible()).toBe(true);
      expect(await page.getByLabel('Open a GGUF file').inputValue()).toBe('');
      await page.getByLabel('Open a GGUF file').setInputFiles({ ...broken, buffer: Buffer.from(bytes) });
      await expect.poll(() => page.getByRole('alert').isHidden()).toBe(true);
      await ready(page);
      await page.getByText('Settings').click();
      await page.getByLabel('Temperature').fill('7');
      await page.getByText('Settings').click();
      await page.getByRole('button', { name: 'Write' }).click();
      await expect.poll(() => page.getByLabel('Temperature').isVisible()).toBe(true);
    });
  });

  it('has a name for every control, and fits a phone', async () => {
    await withPage(
      async (page) => {
        await ready(page);
        await page.getByText('Settings').click();
        const nameless = await page.evaluate(() =>
          [...document.querySelectorAll('input, textarea, button, progress')]
            .filter((control) => {
              const { labels } = control as HTMLInputElement;
              const text = labels?.[0]?.textContent ?? control.textContent ?? '';
              return text.trim() === '' && !control.hasAttribute('aria-labelledby');
            })
            .map((control) => control.outerHTML),
        );
        expect(nameless).toEqual([]);
        const [content, window] = await page.evaluate(() => [
          document.documentElement.scrollWidth,
          document.documentElement.clientWidth,
        ]);
        expect(content).toBe(window);
        const columns = await page
          .locator('#facts')
          .evaluate((facts) => getComputedStyle(facts).gridTemplateColumns.split(' ').length);
        expect(columns).toBe(2);
      },
      { viewport: { width: 320, height: 568 } },
    );
  });

  it('downloads one build of the engine, of at most 500 kB', async () => {
    const sizes: number[] = [];
    const context = await browser.newContext();
    try {
      const page = await context.newPage();
      page.setDefaultTimeout(PATIENCE_MS);
      page.on('requestfinished', async (request) => {
        if (request.url().endsWith('.wasm')) sizes.push((await request.sizes()).responseBodySize);
      });
      await page.goto(served.url);
      await ready(page);
      await expect.poll(() => sizes.length).toBeGreaterThan(0);
      console.log(
        `engine as downloaded: ${sizes.map((size) => `${(size / 1000).toFixed(0)} kB`).join(', ')}`,
      );
      expect(sizes).toHaveLength(1);
      expect(sizes[0]).toBeLessThan(500_000);
    } finally {
      await context.close();
    }
  });
});

/** Drops a file onto the page. */
async function drop(page: Page, name: string, bytes: Uint8Array): Promise<void> {
  const data = Buffer.from(bytes).toString('base64');
  await page.evaluate(
    ([file, content]) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], file));
      for (const type of ['dragover', 'drop']) {
        document.body.dispatchEvent(
          new DragEvent(type, { dataTransfer: transfer, bubbles: true, cancelable: true }),
        );
      }
    },
    [name, data] as const,
  );
}
