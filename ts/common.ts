/// <reference lib="esnext.disposable" preserve="true" />
// What every entry of the package has, beside its own `load`.
export type { AttentionOptions, AttentionPolicy, AttentionUsage, LayerPolicies } from './attention/types.js';
export type { BackendInfo, Isa } from './backend/types.js';
export type { Energy, Watts } from './energy/types.js';
export * from './engine/api.js';
export { type ErrorCode, FrugalError, isFrugalError } from './errors.js';
export { blobSource } from './gguf/blob-source.js';
export { type CachedFile, listCached, removeCached } from './gguf/cached-files.js';
export type { ByteSource } from './gguf/source.js';
export { openUrl, type UrlOptions } from './gguf/url-source.js';
export type { ChatMessage } from './template/index.js';
