/** The package in browsers: the engine runs in a worker. */
export type { BackendInfo, Isa } from './backend/types.js';
export type { Chat, ChatOptions, SendOptions } from './engine/chat.js';
export type { EmbedOptions } from './engine/embed.js';
export type { Completion, FinishReason, Generation, Usage } from './engine/generation.js';
export type { LoadEvent, LoadOptions, LoadPhase } from './engine/load.js';
export type { Model, ModelInfo, Prompt, TokenizeOptions } from './engine/model.js';
export type { GenerateOptions, SamplingOptions } from './engine/options.js';
export type { ScoreOptions, Session, SessionOptions } from './engine/session.js';
export type { ModelSource } from './engine/source.js';
export { type ErrorCode, FrugalError, isFrugalError } from './errors.js';
export { blobSource } from './gguf/blob-source.js';
export { type CachedFile, listCached, removeCached } from './gguf/cache.js';
export type { ByteSource } from './gguf/source.js';
export { openUrl } from './gguf/url-source.js';
export type { KvCacheType } from './plan/types.js';
export type { ChatMessage } from './template/index.js';
export { load } from './worker/web.js';
