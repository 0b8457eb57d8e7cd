import type { ToThread } from './protocol.js';

/** What WebAssembly needs from the runtime around it. */
export interface WasmHost {
  /** Cores that threads may use. */
  readonly cores: number;
  /** Why threads cannot share memory here; undefined where they can. */
  readonly unshared: string | undefined;
  /** The instruction set that the user's environment asks for. */
  readonly isa?: string | undefined;
  /** Fetches and compiles a module. */
  compile(url: URL): Promise<WebAssembly.Module>;
  /** Starts a thread that serves `ToThread` messages. */
  startThread(listener: ThreadListener): Thread;
}

export interface ThreadListener {
  onMessage(message: unknown): void;
  /** The thread could not be started, or it crashed. */
  onFailure(reason: string): void;
}

export interface Thread {
  post(message: ToThread): void;
  /** Whether the thread keeps the process alive. */
  hold(busy: boolean): void;
  end(): Promise<void>;
}
