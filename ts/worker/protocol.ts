import type { LoadEvent, LoadOptions } from '../engine/load.js';
import type { ModelInfo } from '../engine/model.js';
import type { ThreadChoice } from '../engine/threads.js';
import type { ErrorCode } from '../errors.js';
import type { ChatMessage } from '../template/index.js';
import type { DetokenizerTables } from '../tokenizer/index.js';

/** Options as they cross: a signal is told apart by `Host.abort`. */
export type Sent<T> = Omit<T, 'signal' | 'onProgress'>;

/** A call's outcome. Errors cross as data: what a thread throws would lose its code and cure. */
export type Reply<T> = (
  | { readonly type: 'value'; readonly value: T }
  | { readonly type: 'aborted' }
  | { readonly type: 'error'; readonly error: SentError }
) & {
  /** How many threads compute, with the first reply after that has changed. */
  readonly threads?: ThreadChoice;
};

export interface SentError {
  /** Of a FrugalError. */
  readonly code?: ErrorCode;
  readonly cure?: string;
  readonly data?: Readonly<Record<string, unknown>>;
  readonly message: string;
  readonly cause?: string;
}

/** What the other side knows of a loaded model. */
export interface Loaded {
  readonly info: ModelInfo;
  readonly tables: DetokenizerTables;
}

/** One step of an iteration. */
export interface Taken {
  readonly done: boolean;
  /** A piece of text, a row of logits, or what a generation came to when it is done. */
  readonly value: unknown;
  /** Of a session: how many tokens it holds. */
  readonly length?: number;
}

/** A source of the other side's, offered through a port. */
export interface SourcePort {
  read(offset: number, length: number): Promise<Reply<Uint8Array>>;
  sibling(name: string): Promise<Reply<SentSource>>;
  finish(): Promise<Reply<void>>;
  close(): Promise<Reply<void>>;
}

export type SentSource =
  | { readonly type: 'place'; readonly place: string | Blob }
  // Some runtimes take a File's name from it on the way.
  | { readonly type: 'parts'; readonly parts: readonly Blob[]; readonly names: readonly string[] }
  | { readonly type: 'port'; readonly name: string; readonly size: number; readonly port: MessagePort };

/** Calls that give a promise, by their names in `Model`. */
export type PlainCall = 'embed' | 'tokenize';

/** Iterations: `target` is the number of the chat or session, where it is of one. */
export type Opening =
  | { readonly type: 'generate'; readonly args: readonly unknown[] }
  | { readonly type: 'score'; readonly args: readonly unknown[] }
  | { readonly type: 'send'; readonly target: number; readonly args: readonly unknown[] }
  | { readonly type: 'logits'; readonly target: number; readonly args: readonly unknown[] };

/** What the thread offers: one model. Calls are told apart by numbers that the caller gives. */
export interface Host {
  load(
    id: number,
    source: SentSource,
    options: Sent<LoadOptions>,
    report: (event: LoadEvent) => void,
  ): Promise<Reply<Loaded>>;
  call(id: number, name: PlainCall, input: unknown, options: object): Promise<Reply<unknown>>;
  chat(id: number, options: object): Promise<Reply<void>>;
  history(id: number): Promise<Reply<readonly ChatMessage[]>>;
  session(id: number): void;
  /** Frees a chat or a session. */
  release(id: number): Promise<Reply<void>>;
  open(id: number, opening: Opening): Promise<Reply<void>>;
  next(id: number): Promise<Reply<Taken>>;
  return(id: number): Promise<Reply<Taken>>;
  /** Aborts the call or iteration. */
  abort(id: number): void;
  dispose(): Promise<void>;
}
