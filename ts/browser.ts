/** The package in browsers: the engine runs in a worker. */
export * from './common.js';
export { load } from './worker/web.js';
