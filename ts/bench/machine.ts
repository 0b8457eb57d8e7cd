import { readFile } from 'node:fs/promises';
import { availableParallelism, cpus, loadavg, release, totalmem, type } from 'node:os';
import { loadAddon, type MachinePeaks } from '../backend/native.js';
import type { Isa } from '../backend/types.js';
import { isFrugalError } from '../errors.js';
import { VERSION } from '../version.js';
import { summarise } from './stats.js';

/** Where and with what something was measured. */
export interface MachineFacts {
  readonly cpu: string;
  readonly cores: number;
  readonly memoryBytes: number;
  readonly system: string;
  readonly node: string;
  readonly frugal: string;
  /** Processes that wanted to run in the minute before: what else the machine was doing. */
  readonly load: number;
  readonly date: string;
}

export async function machineFacts(): Promise<MachineFacts> {
  return {
    cpu: (await cpuName()) ?? cpus()[0]?.model ?? process.arch,
    cores: availableParallelism(),
    memoryBytes: totalmem(),
    system: `${type()} ${release()} ${process.arch}`,
    node: process.version,
    frugal: VERSION,
    load: loadavg()[0] ?? 0,
    date: new Date().toISOString(),
  };
}

/** With family and model, where a virtual machine keeps the rest of the name to itself. */
async function cpuName(): Promise<string | undefined> {
  const text = await readFile('/proc/cpuinfo', 'utf8').catch(() => '');
  const field = (name: string) => new RegExp(`^${name}\\s*: (.+)$`, 'm').exec(text)?.[1];
  const name = field('model name');
  return name && `${name} (family ${field('cpu family')}, model ${field('model')})`;
}

/** Read from memory: more than caches hold. */
const READ_BYTES = 256 << 20;

/**
 * What so many threads can do at most, measured now; undefined where the native addon is missing. Machines drift, so
 * measure it again and again between what is compared with it, and take medians.
 * @param isa where the machine lacks it (WASM): the fastest it has
 */
export async function measurePeaks(isa: string, threads: number): Promise<MachinePeaks | undefined> {
  try {
    const addon = loadAddon();
    const known = addon.isas().find((each) => each === (isa as Isa)) ?? addon.isas()[0] ?? 'scalar';
    return await addon.measurePeaks(known, threads, READ_BYTES);
  } catch (error) {
    if (isFrugalError(error) && error.code === 'BACKEND_UNAVAILABLE') return undefined;
    throw error;
  }
}

/** The median of each limit. */
export function medianPeaks(peaks: readonly MachinePeaks[]): MachinePeaks | undefined {
  if (peaks.length === 0) return undefined;
  const median = (pick: (each: MachinePeaks) => number) => summarise(peaks.map(pick)).median;
  return {
    readBytesPerSecond: median((each) => each.readBytesPerSecond),
    int8OpsPerSecond: median((each) => each.int8OpsPerSecond),
    floatOpsPerSecond: median((each) => each.floatOpsPerSecond),
  };
}
