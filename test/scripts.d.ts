/** What the tests take of `bench/` and `scripts/`, which are not typed. */
declare module '*.mjs';
