import { defineConfig } from 'vitest/config';

// Tests of memory, threads, time and the event loop measure, so nothing else may run beside them. These do not.
const UNDISTURBED = [
  'test/attention/**/*.test.ts',
  'test/browser/{bundlers,cache,digests,remote}.test.ts',
  'test/cli/{score,usage}.test.ts',
  'test/conformance/**/*.test.ts',
  'test/contract/digests.test.ts',
  'test/contract/expert-*.test.ts',
  'test/contract/hostile.test.ts',
  'test/quantize/**/*.test.ts',
  'test/reference/**/*.test.ts',
  'test/tokenizer/vectors.test.ts',
];

// The one default export of the project: vitest takes its settings in no other way.
export default defineConfig({
  test: {
    // Against what hangs, not what is slow: the machine may have other work.
    testTimeout: 240_000,
    hookTimeout: 240_000,
    expect: { poll: { timeout: 120_000 } },
    projects: [
      {
        extends: true,
        test: { name: 'beside others', include: UNDISTURBED, maxWorkers: 2 },
      },
      {
        extends: true,
        test: {
          name: 'alone',
          include: ['test/**/*.test.ts'],
          exclude: UNDISTURBED,
          fileParallelism: false,
        },
      },
    ],
  },
});
