import type { OpenEncoder } from './types.js';

/**
 * Where encoding is done: in Node on a thread of its own, elsewhere on the calling one, which is a worker
 * already. The only place that chooses.
 */
export const openEncoder: OpenEncoder = async (data, signal) => {
  const isNode = typeof process === 'object' && process.versions?.node !== undefined;
  const open = isNode
    ? (await import('./node-encoder.js')).openNodeEncoder
    : (await import('./inline-encoder.js')).openInlineEncoder;
  return open(data, signal);
};
