// Installs the browser that the tests run in, where that can be done without asking anybody.

import { existsSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import { say, step } from './lib/steps.mjs';

const CHROMIUM = process.env.FRUGAL_CHROMIUM ?? '/usr/bin/chromium';
const LIMIT = 300;

/** Whether there is a Chromium for the tests; installs Debian's where this is root's machine. */
export async function ensureChromium() {
  if (existsSync(CHROMIUM)) return true;
  if (process.getuid?.() !== 0 || !existsSync('/usr/bin/apt-get')) return false;
  const env = { DEBIAN_FRONTEND: 'noninteractive' };
  const options = { env, limit: LIMIT, optional: true };
  await step('apt-get update', ['apt-get', 'update', '-q'], options);
  const install = ['apt-get', 'install', '-qy', '--no-install-recommends', 'chromium'];
  await step('Chromium (apt-get)', install, options);
  return existsSync(CHROMIUM);
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  say(
    (await ensureChromium()) ? `ready: ${CHROMIUM}` : `${CHROMIUM} is missing, and cannot be installed here`,
  );
}
