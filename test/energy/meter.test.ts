import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { formatEnergy } from '../../ts/energy/format.js';
import { meterFrom, openEnergyMeter } from '../../ts/energy/meter.js';
import { sumEnergies } from '../../ts/energy/sum.js';
import type { Energy } from '../../ts/energy/types.js';
import { load } from '../../ts/engine/index.js';
import { frugal } from '../cli/program.js';
import {
  AMD,
  EMPTY,
  PORTABLE,
  type Recorded,
  type Tree,
  TWO_DIES,
  TWO_PACKAGES,
  writeTree,
} from './trees.js';

const MODEL = resolve(import.meta.dirname, '../../models/stories-moe-q8_0.gguf');
let recorded: Recorded | undefined;
afterEach(() => recorded?.remove());

/** What a meter gives for a tree whose counters move on. */
async function measure(tree: Tree, ...counts: Array<Readonly<Record<string, number>>>): Promise<Energy> {
  recorded = await writeTree(tree);
  const meter = openEnergyMeter({ root: recorded.root });
  const span = meter.start();
  for (const count of counts) await recorded.count(count);
  const energy = span.end();
  expect(energy.kind).toBe(meter.kind);
  return energy;
}

describe('counters of the hardware', () => {
  it('are summed over packages and memory, each starting again at its own range', async () => {
    const energy = await measure(TWO_PACKAGES, {
      'intel-rapl:0': 208573862211 + 3_000_000,
      'intel-rapl:0:0': 34882345678 + 250_000,
      'intel-rapl:1': 1_000_000,
      'intel-rapl:1:0': 500_000,
    });
    const first = 3 + (262143328850 - 262143000000 + 1 + 1_000_000) / 1e6;
    const memory = 0.25 + (65712999613 - 65712999000 + 1 + 500_000) / 1e6;
    expect(energy).toMatchObject({ kind: 'measured', domains: { package: first, dram: memory } });
    expect((energy as { joules: number }).joules).toBeCloseTo(first + memory, 9);
  });

  it('count a package once, and neither its parts nor the platform', async () => {
    const energy = await measure(PORTABLE, {
      'intel-rapl-mmio:0': 9912345678 + 2_000_000,
      'intel-rapl:0': 9912345678 + 2_000_000,
      'intel-rapl:0:0': 4512345678 + 1_500_000,
      'intel-rapl:1': 29912345678 + 9_000_000,
    });
    expect(energy).toMatchObject({
      kind: 'measured',
      joules: 2,
      domains: { package: 2, core: 1.5, uncore: 0, psys: 9 },
    });
  });

  it('of dies are those of their package', async () => {
    const energy = await measure(TWO_DIES, {
      'intel-rapl:0': 1_500_000,
      'intel-rapl:0:0': 2_250_000,
      'intel-rapl:1': 4_000_000,
    });
    expect(energy).toMatchObject({ kind: 'measured', joules: 1.75, domains: { package: 1.5, dram: 0.25 } });
  });

  it('start again from the very end of their range', async () => {
    const energy = await measure(AMD, { 'intel-rapl:0': 0 });
    expect(energy).toMatchObject({ kind: 'measured', joules: 1e-6 });
  });

  it('that vanish on the way give no joules', async () => {
    recorded = await writeTree(AMD);
    const span = openEnergyMeter({ root: recorded.root }).start();
    await recorded.remove();
    recorded = undefined;
    expect(span.end()).toMatchObject({ kind: 'counted', why: expect.stringContaining('energy_uj') });
  });
});

describe('without counters', () => {
  it('says why: there are none', async () => {
    const energy = await measure(EMPTY);
    expect(energy).toMatchObject({ kind: 'counted', why: expect.stringContaining('no energy counters') });
    expect(energy).not.toHaveProperty('joules');
    expect(openEnergyMeter({ root: '/nowhere' }).start().end()).toMatchObject({ kind: 'counted' });
  });

  it('says why: they may not be read, and how that is changed', async () => {
    recorded = await writeTree(AMD);
    const read = (path: string) => {
      if (!path.endsWith('energy_uj') || path.endsWith('max_energy_range_uj'))
        return readFileSync(path, 'utf8');
      throw Object.assign(new Error(`EACCES: permission denied, open '${path}'`), { code: 'EACCES' });
    };
    const refused = meterFrom({ root: recorded.root }, read).start().end();
    expect(refused).toMatchObject({ kind: 'counted', why: expect.stringContaining('sudo chmod a+r') });
    const watts = { idle: 10, busy: 50 };
    expect(meterFrom({ root: recorded.root, watts }, read).kind).toBe('modelled');
  });

  it('skips counters that hold no number', async () => {
    const energy = await measure({ 'intel-rapl:0': ['package-0', 'none', '1000'] });
    expect(energy.kind).toBe('counted');
  });

  it('models from watts, between idle and busy', async () => {
    recorded = await writeTree(EMPTY);
    const span = openEnergyMeter({ root: recorded.root, watts: { idle: 10, busy: 10 } }).start();
    await new Promise((resolve) => setTimeout(resolve, 30));
    const energy = span.end();
    expect(energy).toMatchObject({ kind: 'modelled', watts: { idle: 10, busy: 10 } });
    expect((energy as { joules: number }).joules).toBeCloseTo(10 * energy.seconds, 9);
  });

  it('prefers counters to watts', async () => {
    recorded = await writeTree(AMD);
    expect(openEnergyMeter({ root: recorded.root, watts: { idle: 1, busy: 2 } }).kind).toBe('measured');
  });

  it.each([
    { idle: -1, busy: 2 },
    { idle: 3, busy: 2 },
    { idle: 0, busy: Number.NaN },
  ])('refuses the watts %o', (watts) => {
    expect(() => openEnergyMeter({ watts })).toThrow(/watts must be/);
  });

  it.each([
    [{ idle: 1, busy: 2, Busy: 3 }, 'watts has no option "Busy"'],
    [[1, 2], 'The options of watts must be an object, got an array of 2'],
    [null, 'The options of watts must be an object, got null'],
    [5, 'The options of watts must be an object, got 5'],
  ])('refuses the watts %o, of a load too: %s', async (watts, message) => {
    const error = { code: 'INVALID_ARGUMENT', message };
    const open = async () => openEnergyMeter({ watts: watts as never });
    await expect(open()).rejects.toMatchObject(error);
    await expect(load('none.gguf', { watts: watts as never })).rejects.toMatchObject(error);
  });

  it('refuses options that it does not know', () => {
    expect(() => openEnergyMeter({ watt: { idle: 1, busy: 2 } } as never)).toThrow(/has no option "watt"/);
  });
});

describe('measured and modelled', () => {
  const cost = { seconds: 1, cpuSeconds: 2 };
  const measured: Energy = { kind: 'measured', ...cost, joules: 6, domains: { package: 5, dram: 1 } };
  const modelled: Energy = { kind: 'modelled', ...cost, joules: 6, watts: { idle: 1, busy: 9 } };

  it('never print alike', () => {
    expect(formatEnergy(measured, 3)).toBe('measured 6.0 J (2.00 per token) of package, dram');
    expect(formatEnergy(modelled, 3)).toBe(
      'about 6.0 J (2.00 per token), modelled from 1 to 9 W, CPU 2.00 s',
    );
    expect(formatEnergy({ kind: 'counted', ...cost, why: '', bytesMoved: 3e9 }, 3)).toBe(
      'CPU 2.00 s, 3.0 GB read (energy unknown)',
    );
  });

  it('are never added', () => {
    expect(() => sumEnergies([measured, modelled])).toThrow('not added');
    expect(sumEnergies([measured, measured])).toMatchObject({
      joules: 12,
      domains: { package: 10, dram: 2 },
      cpuSeconds: 4,
    });
    expect(sumEnergies([])).toBeUndefined();
  });

  it('are of no use once a part is not known', () => {
    const counted: Energy = { kind: 'counted', ...cost, why: 'a counter is gone' };
    for (const parts of [
      [measured, counted],
      [counted, modelled],
      [counted, counted],
    ]) {
      const sum = sumEnergies(parts);
      expect(sum).toEqual({ kind: 'counted', seconds: 2, cpuSeconds: 4, why: 'a counter is gone' });
    }
  });
});

describe('usage.energy', () => {
  it('comes with every generation', async () => {
    await using model = await load(MODEL, { watts: { idle: 4, busy: 20 }, chunk: 8 });
    const { usage } = await model.complete([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], {
      maxTokens: 4,
      ignoreEnd: true,
    });
    const { bytesPerToken, kvBytesPerToken } = model.info;
    expect(['measured', 'modelled']).toContain(usage.energy?.kind);
    expect(usage.energy?.cpuSeconds).toBeGreaterThan(0);
    // Two steps for the prompt, three for the tokens after the first; 1 + 2 + ... + 13 positions looked at.
    expect(usage.energy?.bytesMoved).toBe(5 * bytesPerToken + 91 * kvBytesPerToken);
  });

  it('stands beside the number of threads, and why it is that, unless somebody asked for it', async () => {
    const args = ['run', MODEL, '-p', 'Once', '-n', '40'];
    expect((await frugal(args)).stderr).toMatch(
      /\d threads? \((fewest within 3% of the fastest of|the machine)/,
    );
    expect((await frugal([...args, '--threads', '1'])).stderr).toMatch(/, 1 thread, /);
  });

  it('is in the last line of frugal run', async () => {
    const args = ['run', MODEL, '-p', 'Once', '-n', '4', '--watts', '4,20'];
    expect((await frugal(args)).stderr).toMatch(
      /measured [\d.]+ J|about [\d.]+ J .*, modelled from 4 to 20 W/,
    );
    expect(await frugal(['run', 'm', '--watts', '9'])).toMatchObject({
      code: 2,
      stderr: expect.stringContaining('two numbers of watts'),
    });
  });
});
