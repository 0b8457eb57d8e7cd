import { createGlue } from '../../../dist/wasm/glue-threads.js';
import type { Glue } from './glue.js';
import type { FromThread, ToThread } from './protocol.js';

/** Stack of a thread, which the model's memory holds. */
export const THREAD_STACK = 1 << 20;

/** What a thread does with its messages, whatever the runtime calls them. */
export function createServer(
  post: (message: FromThread, transfer: ArrayBuffer[]) => void,
): (message: ToThread) => void {
  let glue: Glue | undefined;
  return (message) => {
    try {
      if (message.type === 'start') {
        const { module, memory, thread } = message;
        glue = createGlue();
        glue.initSync({ module, memory, thread_stack_size: THREAD_STACK });
        post({ type: 'ready' }, []);
        // From here on this thread sleeps in the module and gets no more messages.
        if (thread > 0) glue.work(thread);
      } else if (glue !== undefined) {
        if (message.type === 'pack') {
          glue.packStaged();
          post({ type: 'packed' }, []);
          return;
        }
        const { sequences, counts, tokens, wants } = message;
        const answer = glue.step(sequences, counts, tokens, wants);
        post({ type: 'stepped', answer }, Array.isArray(answer) ? answer.flatMap(bufferOf) : []);
      }
    } catch (error) {
      post({ type: 'failed', message: error instanceof Error ? error.message : String(error) }, []);
    }
  };
}

function bufferOf(value: unknown): ArrayBuffer[] {
  return value instanceof Float32Array ? [value.buffer as ArrayBuffer] : [];
}
