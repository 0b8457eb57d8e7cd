// What every runtime has, beside its own `load`.
export type { AttentionOptions, AttentionPolicy, AttentionUsage, LayerPolicies } from './attention/types.js';
export type { BackendInfo, Isa } from './backend/types.js';
export * from './engine/api.js';
export { type ErrorCode, FrugalError, isFrugalError } from './errors.js';
export { blobSource } from './gguf/blob-source.js';
export { type CachedFile, listCached, removeCached } from './gguf/cache.js';
export { type GgufMetadata, type GgufModel, type GgufTensor, openGguf } from './gguf/index.js';
export type { ByteSource } from './gguf/source.js';
export { openUrl } from './gguf/url-source.js';
export { architectures, type ModelFacts } from './models/index.js';
export type { ChatMessage } from './template/index.js';
export { createTokenizer, type Detokenizer, type Tokenizer } from './tokenizer/index.js';
