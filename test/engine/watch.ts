/**
 * Watches how long tasks hold the thread. Processor time is counted, not the clock, because other programs on the
 * machine stop the clock's watcher as well.
 */
export function watchEventLoop(): { stop(): number } {
  const holds: number[] = [];
  let running = true;
  let last = process.cpuUsage();
  const turn = () => {
    const { user, system } = process.cpuUsage(last);
    holds.push((user + system) / 1000);
    last = process.cpuUsage();
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
