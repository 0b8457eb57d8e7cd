import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

/**
 * Energy counters of Intel and AMD processors (RAPL) as Linux shows them: a folder for each package and for parts of
 * it, with a count of microjoules that starts again at 0 after `max_energy_range_uj`.
 * https://docs.kernel.org/power/powercap/powercap.html
 */
export interface RaplCounter {
  /** `package`, `core`, `uncore`, `dram` or `psys`; several packages have the same. */
  readonly domain: string;
  readonly path: string;
  /** Microjoules after which it starts again. */
  readonly range: number;
}

export interface Rapl {
  readonly counters: readonly RaplCounter[];
  /** Why there are none, and what to do about it. */
  readonly refused?: string;
}

export type ReadText = (path: string) => string;

const readFile: ReadText = (path) => readFileSync(path, 'utf8');

export function findRapl(root: string, read: ReadText = readFile): Rapl {
  const counters = new Map<string, RaplCounter>();
  for (const zone of zones(root)) {
    const path = join(root, zone);
    try {
      const name = read(join(path, 'name')).trim();
      const range = readCount(join(path, 'max_energy_range_uj'), read);
      const counter = { domain: domainOf(name), path: join(path, 'energy_uj'), range };
      readCount(counter.path, read);
      // A package may be shown twice, by its registers and by memory (intel-rapl-mmio), with the same counts.
      const key = `${zone.replace('-mmio', '')} ${name}`;
      if (!counters.has(key)) counters.set(key, counter);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === 'EACCES' || code === 'EPERM') return { counters: [], refused: forbidden(root) };
      if (code !== 'ENOENT' && code !== 'ENODATA' && code !== 'EIO' && !(error instanceof RangeError))
        throw error;
    }
  }
  const found = [...counters.values()];
  if (found.some(({ domain }) => domain === 'package')) return { counters: found };
  return { counters: [], refused: missing(root) };
}

/** Without the numbers of packages, and of the dies where Linux counts each of a package by itself. */
function domainOf(name: string): string {
  return name.replace(/^(package)-\d+-die-\d+$/, '$1').replace(/-\d+$/, '');
}

/** Packages and their parts, those of registers before those of memory. */
function zones(root: string): string[] {
  try {
    return readdirSync(root)
      .filter((name) => /^intel-rapl(-mmio)?(:\d+)+$/.test(name))
      .sort();
  } catch {
    return [];
  }
}

/** @throws RangeError if it is not a count */
export function readCount(path: string, read: ReadText = readFile): number {
  const text = read(path).trim();
  if (/^\d{1,15}$/.test(text)) return Number(text);
  throw new RangeError(`${path} holds no count: ${JSON.stringify(text.slice(0, 20))}`);
}

function forbidden(root: string): string {
  return (
    `${root} may not be read by this user: allow it with ` +
    `sudo chmod a+r ${root}/intel-rapl*/energy_uj (until the next start), or give the watts of the machine`
  );
}

function missing(root: string): string {
  return `${root} has no energy counters (virtual machines and most ARM boards lack them): give the watts of the machine`;
}

/** Microjoules from one count to the next, which may have started again in between, once. */
export function countedSince(before: number, now: number, range: number): number {
  return now >= before ? now - before : now - before + range + 1;
}
