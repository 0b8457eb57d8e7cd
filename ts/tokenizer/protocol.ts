import type { EncodeFlags, ErrorData, VocabularyData, VocabularyFacts } from './types.js';

/** What is asked of the thread; the first request builds. */
export type Request = { readonly id: number } & (
  | { readonly type: 'build'; readonly data: VocabularyData }
  | { readonly type: 'encode'; readonly text: string; readonly flags: EncodeFlags }
);

/** What it answers, by the id of the request. */
export type Reply = { readonly id: number } & (
  | { readonly type: 'built'; readonly facts: VocabularyFacts }
  | { readonly type: 'encoded'; readonly tokens: Uint32Array<ArrayBuffer> }
  | { readonly type: 'failed'; readonly error: ErrorData }
);
