import { availableParallelism } from 'node:os';
import { checkKnown } from '../engine/check.js';
import { countedSince, findRapl, type RaplCounter, type ReadText, readCount } from './rapl.js';
import type { Energy, EnergyMeter, EnergyOptions, Watts } from './types.js';
import { checkWatts } from './watts.js';

const ROOT = '/sys/class/powercap';

/** Counters are looked at so often, so that none starts again twice unseen: the fastest take over a minute. */
const LOOK_MS = 20_000;

/**
 * The best that this machine allows, always labelled: counters of the hardware (`measured`); else a model of the watts
 * given (`modelled`); else CPU time alone (`counted`), with the reason.
 * @throws FrugalError `INVALID_ARGUMENT` if the watts are not two numbers, 0 <= idle <= busy
 */
export function openEnergyMeter(options: EnergyOptions = {}): EnergyMeter {
  return meterFrom(options);
}

/** @param read reads the counters' files */
export function meterFrom(options: EnergyOptions, read?: ReadText): EnergyMeter {
  checkKnown('openEnergyMeter', options, ['watts', 'root']);
  const watts = checkWatts(options.watts);
  const { counters, refused = '' } = findRapl(options.root ?? ROOT, read);
  if (counters.length > 0) return raplMeter(counters, read);
  if (watts) return timeMeter('modelled', (cost) => modelled(cost, watts));
  return timeMeter('counted', (cost) => ({ kind: 'counted', ...cost, why: refused }));
}

interface Cost {
  readonly seconds: number;
  readonly cpuSeconds: number;
}

function modelled(cost: Cost, watts: Watts): Energy {
  const share = cost.cpuSeconds / availableParallelism();
  const joules = watts.idle * cost.seconds + (watts.busy - watts.idle) * share;
  return { kind: 'modelled', ...cost, joules, watts };
}

function timeMeter(kind: Energy['kind'], finish: (cost: Cost) => Energy): EnergyMeter {
  return {
    kind,
    start() {
      const cost = startClock();
      return { end: () => finish(cost()) };
    },
  };
}

function startClock(): () => Cost {
  const [began, cpu] = [performance.now(), process.cpuUsage()];
  return () => {
    const { user, system } = process.cpuUsage(cpu);
    return { seconds: (performance.now() - began) / 1000, cpuSeconds: (user + system) / 1e6 };
  };
}

function raplMeter(counters: readonly RaplCounter[], read: ReadText | undefined): EnergyMeter {
  return {
    kind: 'measured',
    start() {
      const cost = startClock();
      const sum = countersSince(counters, read);
      const timer = setInterval(sum.look, LOOK_MS);
      timer.unref();
      return {
        end() {
          clearInterval(timer);
          sum.look();
          if (sum.failure !== undefined) return { kind: 'counted', ...cost(), why: sum.failure };
          const { package: packages = 0, dram = 0 } = sum.joules;
          return { kind: 'measured', ...cost(), joules: packages + dram, domains: sum.joules };
        },
      };
    },
  };
}

interface CounterSums {
  /** By domain, from the beginning to the last look. */
  readonly joules: Record<string, number>;
  /** Why a counter could not be read; then the joules mean nothing. */
  failure: string | undefined;
  readonly look: () => void;
}

function countersSince(counters: readonly RaplCounter[], read: ReadText | undefined): CounterSums {
  const last = new Map<RaplCounter, number>();
  const sums: CounterSums = {
    joules: {},
    failure: undefined,
    look() {
      try {
        for (const counter of counters) {
          const now = readCount(counter.path, read);
          const passed = countedSince(last.get(counter) ?? now, now, counter.range);
          sums.joules[counter.domain] = (sums.joules[counter.domain] ?? 0) + passed / 1e6;
          last.set(counter, now);
        }
      } catch (error) {
        sums.failure = `a counter could not be read any more: ${error instanceof Error ? error.message : error}`;
      }
    },
  };
  sums.look();
  return sums;
}
