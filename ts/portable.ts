// What every runtime has where the engine is not in a worker, beside its own `load`.
export * from './common.js';
export { replay, type Verdict } from './engine/replay.js';
export { type GgufMetadata, type GgufModel, type GgufTensor, openGguf } from './gguf/index.js';
export { architectures, type ModelFacts } from './models/index.js';
export {
  createTokenizer,
  type Detokenizer,
  type Tokenizer,
  type TokenizerOptions,
} from './tokenizer/index.js';
