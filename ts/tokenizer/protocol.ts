import type { EncodeFlags, ErrorData, VocabularyData, VocabularyFacts } from './types.js';

/** What is asked of the thread; the first request builds. */
export type Request = { readonly id: number } & (
  | { readonly type: 'build'; readonly data: VocabularyData }
  | {
      readonly type: 'encode';
      readonly text: string;
      readonly flags: EncodeFlags;
      /** Shared: other than 0 once nobody wants the tokens any more. */
      readonly unwanted: Int32Array;
    }
);

/** What it answers, by the id of the request; of its own accord that it is there, as id 0. */
export type Reply = { readonly id: number } & (
  | { readonly type: 'ready' }
  | { readonly type: 'built'; readonly facts: VocabularyFacts }
  | { readonly type: 'encoded'; readonly tokens: Uint32Array<ArrayBuffer> }
  | { readonly type: 'failed'; readonly error: ErrorData }
);
