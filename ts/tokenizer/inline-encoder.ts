import { createPace } from '../yield.js';
import { buildCore } from './core.js';
import { disposed } from './refuse.js';
import type { OpenEncoder } from './types.js';

/** Characters that take longer than a moment. */
const LONG = 1 << 16;

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
      const tokens = core.encode(text, flags);
      if (text.length > LONG) {
        // An abort that came meanwhile is not heard before other tasks have had their turn.
        await createPace().rest();
        encodeSignal?.throwIfAborted();
      }
      return tokens;
    },
    async dispose() {
      isDisposed = true;
    },
  };
};
