import { defineConfig } from 'vitest/config';

// The one default export of the project: vitest takes its settings in no other way.
export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // Against what hangs, not what is slow: the machine may have other work.
    testTimeout: 240_000,
    hookTimeout: 240_000,
    expect: { poll: { timeout: 120_000 } },
    // Tests of memory, threads and the event loop measure, so nothing else may run beside them.
    fileParallelism: false,
  },
});
