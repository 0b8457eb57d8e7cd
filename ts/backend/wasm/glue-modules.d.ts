// Generated when the modules are built; see scripts/lib/wasm.mjs.
declare module '*/dist/wasm/glue.js' {
  export function createGlue(): import('./glue.js').Glue;
}
declare module '*/dist/wasm/glue-threads.js' {
  export function createGlue(): import('./glue.js').Glue;
}
declare module '*/dist/wasm/glue-memory64.js' {
  export function createGlue(): import('./glue.js').Glue;
}
declare module '*/dist/wasm/glue-memory64-threads.js' {
  export function createGlue(): import('./glue.js').Glue;
}
