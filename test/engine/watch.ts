import { existsSync, readFileSync } from 'node:fs';

const SCHEDSTAT = '/proc/thread-self/schedstat';
const hasSchedstat = existsSync(SCHEDSTAT);

/** Processor time of this thread in milliseconds; where the system does not tell, of the whole process. */
function processorTime(): number {
  if (hasSchedstat) return Number(readFileSync(SCHEDSTAT, 'latin1').split(' ')[0]) / 1e6;
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

/**
 * Watches how long tasks hold the thread. Processor time is counted, not the clock, because other programs on the
 * machine stop the clock's watcher as well.
 */
export function watchEventLoop(): { stop(): number } {
  const holds: number[] = [];
  let running = true;
  let last = processorTime();
  const turn = () => {
    const now = processorTime();
    holds.push(now - last);
    last = now;
    if (running) setImmediate(turn);
  };
  setImmediate(turn);
  return {
    /** @returns the longest hold in milliseconds, but for the longest hundredth: the collector also takes time */
    stop() {
      running = false;
      holds.sort((a, b) => a - b);
      return holds[Math.floor(holds.length * 0.99)] ?? 0;
    },
  };
}
