import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import type { ServerResponse } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import type { Site } from './browser.js';
import type { Run } from './engine-sites.js';

export interface RemoteBrowser {
  readonly name: string;
  readonly path: string;
  /** The command that opens a page with a profile of its own. */
  command(url: string, profile: string): readonly string[];
  readonly env?: Readonly<Record<string, string>>;
}

export const FIREFOX: RemoteBrowser = {
  name: 'Firefox',
  path: process.env.FRUGAL_FIREFOX ?? '/usr/bin/firefox-esr',
  command(url, profile) {
    return [this.path, '--headless', '--no-remote', '--profile', profile, url];
  },
};

/** WebKitGTK's own small browser; it has no headless mode. */
export const WEBKIT: RemoteBrowser = {
  name: 'WebKit',
  path: process.env.FRUGAL_WEBKIT ?? '/usr/lib/x86_64-linux-gnu/webkit2gtk-4.1/MiniBrowser',
  command(url) {
    return ['xvfb-run', '-a', this.path, url];
  },
  // Safari shares memory with isolated pages; here that has to be asked for.
  env: { JSC_useSharedArrayBuffer: '1' },
};

/** Whether the browser is there; says so where it is not. */
export function present({ name, path }: RemoteBrowser): boolean {
  const found = existsSync(path);
  if (!found)
    console.log(`not run, for want of ${path} (set FRUGAL_${name.toUpperCase()}): tests in ${name}`);
  return found;
}

export interface Remote {
  /** Calls one of `engine-page.ts` in the page. */
  readonly run: Run;
  close(): Promise<void>;
}

interface Order {
  readonly text: string;
  resolve(value: unknown): void;
  reject(error: Error): void;
}

/** Opens a site whose page is `remote-page.ts`. */
export function openRemote(browser: RemoteBrowser, site: Site): Remote {
  const orders: Order[] = [];
  let waiting: ServerResponse | undefined;
  const hand = () => {
    const [order] = orders;
    if (order === undefined || waiting === undefined) return;
    waiting.end(order.text);
    waiting = undefined;
  };
  site.answers.set('/next', (_, response) => {
    waiting = response;
    hand();
  });
  site.answers.set('/answer', async (request, response) => {
    const { value, error } = JSON.parse(await text(request));
    const order = orders.shift();
    if (error === undefined) order?.resolve(value);
    else order?.reject(new Error(error));
    response.end();
  });

  const profile = mkdtempSync(join(tmpdir(), 'frugal-browser-'));
  const [command, ...args] = browser.command(site.url, profile) as [string, ...string[]];
  // A group of its own, so that all its processes end with it.
  const child = spawn(command, args, {
    stdio: 'ignore',
    detached: true,
    env: { ...process.env, ...browser.env, HOME: profile, TMPDIR: profile },
  });
  let failure: Error | undefined;
  const fail = (reason: string) => {
    failure = new Error(`${browser.name}: ${reason}`);
    for (const order of orders.splice(0)) order.reject(failure);
  };
  const ended = once(child, 'exit').then(
    ([code, signal]) => fail(`ended with ${code ?? signal}`),
    (error) => fail(`${error}`),
  );

  const run = (name: string, ...values: unknown[]) =>
    new Promise((resolve, reject) => {
      if (failure !== undefined) throw failure;
      orders.push({ text: JSON.stringify({ name, args: values }), resolve, reject });
      hand();
    });
  return {
    run: run as Run,
    async close() {
      if (child.pid !== undefined && failure === undefined) process.kill(-child.pid);
      await ended;
      rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
    },
  };
}
