import type { StepValue } from './glue.js';

/** The first message makes a thread of a model; thread 0 then takes steps, the others work on them. */
export type ToThread =
  | {
      readonly type: 'start';
      readonly thread: number;
      readonly module: WebAssembly.Module;
      readonly memory: WebAssembly.Memory;
    }
  | ({ readonly type: 'step' } & StepRequest);

export interface StepRequest {
  readonly sequences: Uint32Array;
  readonly counts: Uint32Array;
  readonly tokens: Uint32Array;
  readonly wants: Uint8Array;
}

export type FromThread =
  | { readonly type: 'ready' }
  | { readonly type: 'stepped'; readonly values: readonly StepValue[] }
  | { readonly type: 'failed'; readonly message: string };
