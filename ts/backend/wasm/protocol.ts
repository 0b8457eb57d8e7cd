import type { StepAnswer } from './glue.js';

/** The first message makes a thread of a model; thread 0 then takes steps and packs, the others help with both. */
export type ToThread =
  | {
      readonly type: 'start';
      readonly thread: number;
      readonly module: WebAssembly.Module;
      readonly memory: WebAssembly.Memory;
      /** Whether its addresses have 64 bits, which takes other glue. */
      readonly memory64: boolean;
    }
  | ToFirstThread;

/** What thread 0 does, in the order of the messages: a step, or the packing of what was staged first. */
export type ToFirstThread = ({ readonly type: 'step' } & StepRequest) | { readonly type: 'pack' };

export interface StepRequest {
  readonly sequences: Uint32Array;
  readonly counts: Uint32Array;
  readonly tokens: Uint32Array;
  readonly wants: Uint8Array;
}

export type FromThread =
  | { readonly type: 'ready' }
  | { readonly type: 'stepped'; readonly answer: StepAnswer }
  | { readonly type: 'packed' }
  | { readonly type: 'failed'; readonly message: string };
