// npm run build: the native addon, the WebAssembly modules and dist/, no tests.

import { writeNotices } from './lib/notices.mjs';
import { ensureBrowser, ensureWasm, setUp } from './lib/setup.mjs';
import { SetupError, say } from './lib/steps.mjs';

try {
  const rustc = await setUp();
  await ensureWasm(rustc);
  await ensureBrowser();
  writeNotices(rustc);
  say('built: bindings/napi and dist');
} catch (error) {
  if (!(error instanceof SetupError)) throw error;
  say(`frugal: ${error.message}`);
  process.exitCode = 1;
}
