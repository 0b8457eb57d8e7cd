import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** Folders of /sys/class/powercap: what `name`, `energy_uj` and `max_energy_range_uj` hold. */
export type Tree = Readonly<Record<string, readonly [name: string, energy: string, range: string]>>;

/** A server with two processors, memory counted beside each. */
export const TWO_PACKAGES: Tree = {
  'intel-rapl:0': ['package-0', '208573862211', '262143328850'],
  'intel-rapl:0:0': ['dram', '34882345678', '65712999613'],
  'intel-rapl:1': ['package-1', '262143000000', '262143328850'],
  'intel-rapl:1:0': ['dram', '65712999000', '65712999613'],
};

/** A portable computer: parts of the package, the whole platform, and the package again through memory. */
export const PORTABLE: Tree = {
  'intel-rapl-mmio:0': ['package-0', '9912345678', '262143328850'],
  'intel-rapl:0': ['package-0', '9912345678', '262143328850'],
  'intel-rapl:0:0': ['core', '4512345678', '262143328850'],
  'intel-rapl:0:1': ['uncore', '112345678', '262143328850'],
  'intel-rapl:1': ['psys', '29912345678', '262143328850'],
};

/** AMD: a package and its cores, counters of 32 bits. */
export const AMD: Tree = {
  'intel-rapl:0': ['package-0', '65532610987', '65532610987'],
  'intel-rapl:0:0': ['core', '1000000', '65532610987'],
};

/** A processor of two dies, counted one by one; Linux names them so. */
export const TWO_DIES: Tree = {
  'intel-rapl:0': ['package-0-die-0', '1000000', '262143328850'],
  'intel-rapl:0:0': ['dram', '2000000', '65712999613'],
  'intel-rapl:1': ['package-0-die-1', '3000000', '262143328850'],
};

/** A machine with the driver loaded and nothing to count. */
export const EMPTY: Tree = {};

export interface Recorded {
  readonly root: string;
  /** Sets the counts of zones. */
  count(energies: Readonly<Record<string, number>>): Promise<void>;
  remove(): Promise<void>;
}

export async function writeTree(tree: Tree): Promise<Recorded> {
  const root = await mkdtemp(join(tmpdir(), 'frugal-powercap-'));
  for (const [zone, [name, energy, range]] of Object.entries(tree)) {
    await mkdir(join(root, zone));
    await writeFile(join(root, zone, 'name'), `${name}\n`);
    await writeFile(join(root, zone, 'energy_uj'), `${energy}\n`);
    await writeFile(join(root, zone, 'max_energy_range_uj'), `${range}\n`);
  }
  // Beside the zones lie the control type itself and other drivers.
  await mkdir(join(root, 'intel-rapl'));
  await mkdir(join(root, 'dtpm'));
  return {
    root,
    async count(energies) {
      for (const [zone, energy] of Object.entries(energies))
        await writeFile(join(root, zone, 'energy_uj'), `${energy}\n`);
    },
    remove: () => rm(root, { recursive: true, force: true }),
  };
}
