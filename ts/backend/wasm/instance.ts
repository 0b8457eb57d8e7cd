import { FrugalError } from '../../errors.js';
import type { Glue } from './glue.js';
import { nextTurn } from './turn.js';

/** An instance of a module, which holds one model. After a call that crashed, none runs any more. */
export interface Instance {
  /** @throws FrugalError `DISPOSED` once it is released, or what it crashed with */
  call<T>(use: (glue: Glue) => T): T;
  /** The same, or `gone` where it is of no use any more. */
  ask<T>(use: (glue: Glue) => T, gone: T): T;
  /** What it crashed with elsewhere, from now on. */
  fail(cause: unknown): FrugalError;
  /** Lets go of its memory, whoever still holds the model. */
  release(): Promise<void>;
}

/** What may be left when an allocation fails, in bytes. */
const SLACK_BYTES = 16 << 20;
/** Engines collect garbage when so many bytes were asked for. */
const NOTICED_BYTES = 256 << 20;

/** `most`: bytes that the memory can grow to. */
export function createInstance(glue: Glue, memory: WebAssembly.Memory, most: number): Instance {
  let held: { readonly glue: Glue; readonly memory: WebAssembly.Memory } | undefined = { glue, memory };
  let broken: FrugalError | undefined;
  const instance: Instance = {
    call(use) {
      if (held === undefined) throw gone();
      if (broken !== undefined) throw broken;
      try {
        return use(held.glue);
      } catch (error) {
        // All others come from an instance that has stopped midway.
        if (error instanceof Error && isRefusal(error.message)) throw error;
        throw instance.fail(error);
      }
    },
    ask: (use, otherwise) => (broken || held === undefined ? otherwise : instance.call(use)),
    fail(cause) {
      broken ??= crashed(held?.memory.buffer.byteLength ?? 0, most, cause);
      return broken;
    },
    async release() {
      if (held === undefined) return;
      held = undefined;
      // What has called must be over, too.
      await nextTurn();
      askForCollection();
    },
  };
  return instance;
}

/** The runtime's own errors have three lines; a panic's may have more, but no code. */
export function isRefusal(message: string): boolean {
  return /^[A-Z_]+\n.*\n/.test(message);
}

/** Memory that threads share is not part of what engines count to see when it is time to collect garbage. */
function askForCollection(): void {
  try {
    // Never touched, so that it takes addresses alone.
    new ArrayBuffer(NOTICED_BYTES);
  } catch {
    // Where not even these can be had, the engine has collected what it could.
  }
}

function gone(): FrugalError {
  return new FrugalError('DISPOSED', 'the model was disposed of', {
    cure: 'Load the model again, or keep it until the last call has ended.',
  });
}

function crashed(memoryBytes: number, most: number, cause: unknown): FrugalError {
  const why = cause instanceof Error ? cause.message : String(cause);
  if (memoryBytes > most - SLACK_BYTES) {
    return new FrugalError(
      'OUT_OF_MEMORY',
      `${memoryBytes} bytes of memory are in use, and WebAssembly has at most ${most}`,
      {
        cure: 'Use a smaller model, a shorter context, fewer sequences at once, or the native backend.',
        cause,
      },
    );
  }
  return new FrugalError('INTERNAL', `the WebAssembly engine stopped: ${why}`, {
    cure: 'This is a fault of the engine; report it with the command that shows it.',
    cause,
  });
}
