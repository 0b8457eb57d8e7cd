import { buildCore } from './core.js';
import { disposed } from './refuse.js';
import type { OpenEncoder } from './types.js';

/** Encodes on the calling thread, which a long text or a large vocabulary holds for up to seconds. */
export const openInlineEncoder: OpenEncoder = async (data, signal) => {
  signal?.throwIfAborted();
  const core = buildCore(data);
  let isDisposed = false;
  return {
    facts: core.facts,
    async encode(text, flags, encodeSignal) {
      if (isDisposed) throw disposed();
      encodeSignal?.throwIfAborted();
      return core.encode(text, flags);
    },
    async dispose() {
      isDisposed = true;
    },
  };
};
