import type { OpenEncoder } from './types.js';

/**
 * Where encoding is done: in Node on a thread of its own, and where Deno runs it on the main thread; elsewhere on the
 * calling one, which is a worker already (in Deno's, another takes half a second to start). The only place that chooses.
 */
export const openEncoder: OpenEncoder = async (data, signal) => {
  const isNode =
    typeof process === 'object' &&
    process.versions?.node !== undefined &&
    !('WorkerGlobalScope' in globalThis);
  // Builds for browsers leave the module for Node out, and Deno, which says that it is Node, may run them.
  const open = isNode ? (await import('./node-encoder.js')).openNodeEncoder : undefined;
  return (open ?? (await import('./inline-encoder.js')).openInlineEncoder)(data, signal);
};
