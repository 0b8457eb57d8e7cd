/**
 * Lets timers, input and other tasks run before the caller goes on. A timer is the one way that every
 * runtime has; it costs about a millisecond, so long loops use a `Pace` and yield by the clock.
 */
function yieldNow(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 0));
}

/** Yields by the clock: a loop asks `due()` every so often and awaits `rest()` when it is. */
export interface Pace {
  /** True when the loop has held the thread for longer than its slice. */
  due(): boolean;
  /** Yields, then starts a new slice. */
  rest(): Promise<void>;
}

/** @param sliceMs how long a loop may hold the thread, in milliseconds */
export function createPace(sliceMs = 3): Pace {
  let start = performance.now();
  return {
    due: () => performance.now() - start >= sliceMs,
    async rest() {
      await yieldNow();
      start = performance.now();
    },
  };
}
