import type { Thread, ThreadListener, WasmHost } from './host.js';
import { NOT_ISOLATED, NOT_SHARED, OWN_THREAD } from './variant.js';

/** Browsers and Deno: what the web platform has. */
export const webHost: WasmHost = {
  cores: globalThis.navigator?.hardwareConcurrency ?? 1,
  unshared: sharingRefused(),
  compile,
  startThread,
};

function sharingRefused(): string | undefined {
  if (globalThis.crossOriginIsolated === false) return NOT_ISOLATED;
  // WebKit may keep it from isolated pages too.
  if (typeof SharedArrayBuffer === 'undefined') return NOT_SHARED;
  // A page's own thread must not sleep, which locks may ask for; see `frugal/worker`.
  if (typeof document !== 'undefined') return OWN_THREAD;
  if (typeof Worker === 'undefined') return 'there are no workers here';
  return undefined;
}

async function compile(url: URL): Promise<WebAssembly.Module> {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url} answered ${response.status}`);
  const streams = response.headers.get('content-type') === 'application/wasm';
  if (streams) return WebAssembly.compileStreaming(response);
  return WebAssembly.compile(await response.arrayBuffer());
}

function startThread({ onMessage, onFailure }: ThreadListener): Thread {
  const worker = new Worker(new URL('./thread-web.js', import.meta.url), {
    type: 'module',
    name: 'frugal wasm',
  });
  worker.onmessage = ({ data }) => onMessage(data);
  worker.onerror = (event) => {
    event.preventDefault();
    onFailure(event.message || 'the thread could not be started');
  };
  return {
    post: (message) => worker.postMessage(message),
    hold: () => {},
    end: async () => worker.terminate(),
  };
}
