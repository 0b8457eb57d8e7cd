export * from './energy/index.js';
export { load } from './engine/index.js';
export { openFile } from './gguf/file-source.js';
export * from './portable.js';
export * from './quantize/index.js';
