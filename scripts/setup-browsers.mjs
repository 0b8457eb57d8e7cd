// Installs the browsers that the tests run in, where that can be done without asking anybody.

import { existsSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import { say, step } from './lib/steps.mjs';

const BROWSERS = [
  { path: process.env.FRUGAL_CHROMIUM ?? '/usr/bin/chromium', packages: ['chromium'] },
  { path: process.env.FRUGAL_FIREFOX ?? '/usr/bin/firefox-esr', packages: ['firefox-esr'] },
  {
    path: process.env.FRUGAL_WEBKIT ?? '/usr/lib/x86_64-linux-gnu/webkit2gtk-4.1/MiniBrowser',
    packages: ['libwebkit2gtk-4.1-0', 'xvfb', 'xauth'],
  },
];
const LIMIT = 300;

const missing = () => BROWSERS.filter(({ path }) => !existsSync(path));

/** Installs Debian's browsers where this is root's machine; gives the paths of those that are missing after that. */
export async function ensureBrowsers() {
  const packages = missing().flatMap((browser) => browser.packages);
  if (packages.length > 0 && process.getuid?.() === 0 && existsSync('/usr/bin/apt-get')) {
    const options = { env: { DEBIAN_FRONTEND: 'noninteractive' }, limit: LIMIT, optional: true };
    await step('apt-get update', ['apt-get', 'update', '-q'], options);
    const install = ['apt-get', 'install', '-qy', '--no-install-recommends', ...packages];
    await step(`${packages.join(', ')} (apt-get)`, install, options);
  }
  return missing().map(({ path }) => path);
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const lost = await ensureBrowsers();
  say(lost.length === 0 ? 'ready' : `missing, and cannot be installed here: ${lost.join(', ')}`);
}
