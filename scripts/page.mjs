// npm run page: builds everything, and serves the page in page/ with the embedded model, on this machine only.

import { ensureBrowser, ensureWasm, setUp } from './lib/setup.mjs';
import { SetupError, say } from './lib/steps.mjs';

try {
  await ensureWasm(await setUp());
  await ensureBrowser();
  const { buildPage, servePage } = await import('./lib/page.mjs');
  const port = Number(process.env.PORT ?? 8080);
  const { url } = await servePage(await buildPage(), port);
  say(`the page is at ${url} (Ctrl+C ends it)`);
} catch (error) {
  if (!(error instanceof SetupError)) throw error;
  say(`frugal: ${error.message}`);
  process.exitCode = 1;
}
