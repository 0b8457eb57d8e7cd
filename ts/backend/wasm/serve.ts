import type { Glue } from './glue.js';
import type { FromThread, ToThread } from './protocol.js';

/** Stack of a thread, which the model's memory holds. */
const THREAD_STACK = 1 << 20;

/** What a thread does with its messages, whatever the runtime calls them. */
export function createServer(
  post: (message: FromThread, transfer: ArrayBuffer[]) => void,
): (message: ToThread) => Promise<void> {
  let starting: Promise<Glue> | undefined;
  return async (message) => {
    try {
      if (message.type === 'start') {
        starting = start(message);
        const glue = await starting;
        post({ type: 'ready' }, []);
        // From here on this thread sleeps in the module and gets no more messages.
        if (message.thread > 0) glue.work(message.thread);
        return;
      }
      const glue = await starting;
      if (glue === undefined) return;
      if (message.type === 'pack') {
        glue.packStaged();
        post({ type: 'packed' }, []);
        return;
      }
      const { sequences, counts, tokens, wants } = message;
      const answer = glue.step(sequences, counts, tokens, wants);
      post({ type: 'stepped', answer }, Array.isArray(answer) ? answer.flatMap(bufferOf) : []);
    } catch (error) {
      post({ type: 'failed', message: error instanceof Error ? error.message : String(error) }, []);
    }
  };
}

async function start({ module, memory, memory64 }: Extract<ToThread, { type: 'start' }>): Promise<Glue> {
  const { createGlue } = memory64
    ? await import('../../../dist/wasm/glue-memory64-threads.js')
    : await import('../../../dist/wasm/glue-threads.js');
  const glue = createGlue();
  glue.initSync({ module, memory, thread_stack_size: THREAD_STACK });
  return glue;
}

function bufferOf(value: unknown): ArrayBuffer[] {
  return value instanceof Float32Array ? [value.buffer as ArrayBuffer] : [];
}
