import { createPace } from '../yield.js';
import { buildCore } from './core.js';
import { disposed } from './refuse.js';
import type { OpenEncoder } from './types.js';

/** How long a text may hold the thread, in milliseconds. A slice, or a text without spaces, may take longer. */
const HOLD_MS = 10;

/** Encodes on the calling thread, which a large vocabulary holds for up to seconds when it is built. */
export const openInlineEncoder: OpenEncoder = async (data, signal) => {
  signal?.throwIfAborted();
  const core = buildCore(data);
  let isDisposed = false;
  return {
    facts: core.facts,
    async encode(text, flags, encodeSignal) {
      if (isDisposed) throw disposed();
      encodeSignal?.throwIfAborted();
      const slices = core.encodeSlices(text, flags);
      const pace = createPace(HOLD_MS);
      for (let slice = slices.next(); ; slice = slices.next()) {
        if (slice.done) return slice.value;
        if (!pace.due()) continue;
        await pace.rest();
        if (isDisposed) throw disposed();
        encodeSignal?.throwIfAborted();
      }
    },
    async dispose() {
      isDisposed = true;
    },
  };
};
