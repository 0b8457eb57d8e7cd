import { defineConfig } from 'vitest/config';

// The one default export of the project: vitest takes its settings in no other way.
export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    testTimeout: 60_000,
    hookTimeout: 60_000,
    // Tests of memory, threads and the event loop measure, so nothing else may run beside them.
    fileParallelism: false,
  },
});
