import type { Backend } from '../backend/types.js';
import type { WasmOptions } from '../backend/wasm/variant.js';
import type { EnergyMeter, EnergyOptions } from '../energy/types.js';
import { blobSource, partsSource } from '../gguf/blob-source.js';
import { openCached } from '../gguf/cached-source.js';
import type { RequestHeaders } from '../gguf/remote.js';
import type { ByteSource } from '../gguf/source.js';
import { openUrl } from '../gguf/url-source.js';
import { invalid, invalidArgument } from './check.js';

/** A path, an http or https address, a Blob (a File), all Files of a split model, or a source of one's own. */
export type ModelSource = string | URL | Blob | readonly Blob[] | ByteSource;

/** What differs between runtimes. */
export interface Runtime {
  /** @throws FrugalError `SOURCE_READ` */
  openFile(path: string): Promise<ByteSource>;
  /**
   * Absent where there is no native code.
   * @throws FrugalError `BACKEND_UNAVAILABLE`
   */
  loadNative?(): Promise<Backend>;
  /** @throws FrugalError `BACKEND_UNAVAILABLE` */
  loadWasm(options: WasmOptions): Promise<Backend>;
  /** Where CPU time and energy can be known. */
  openEnergyMeter?(options: EnergyOptions): Promise<EnergyMeter>;
}

export interface SourceOptions {
  /** Keeps what a URL gives in the browser. */
  readonly cache: boolean;
  /** For a URL. */
  readonly headers?: RequestHeaders;
  readonly signal: AbortSignal | undefined;
}

const SOURCES =
  'a path, a URL, a Blob, a list of the Files of a split model or an object with name, size, read and close';
const OTHER_SOURCES = `Pass ${SOURCES}; bytes in memory as new Blob([bytes]).`;

/** @throws FrugalError `INVALID_ARGUMENT`, `SOURCE_READ`, `CACHE_UNAVAILABLE`, `CACHE_QUOTA` */
export async function openSource(
  runtime: Pick<Runtime, 'openFile'>,
  source: ModelSource,
  options: SourceOptions,
): Promise<ByteSource> {
  if (typeof source === 'string') return openAddress(runtime, source, options);
  if (source instanceof URL) return openAddress(runtime, source.href, options);
  if (source instanceof Blob) return blobSource(source);
  if (isParts(source)) return partsSource(source);
  return checkOwnSource(source);
}

export function isParts(source: unknown): source is readonly Blob[] {
  return Array.isArray(source) && source.length > 0 && source.every((part) => part instanceof Blob);
}

/** @throws FrugalError `INVALID_ARGUMENT` unless it has the parts of a `ByteSource` that are always used */
export function checkOwnSource(source: Exclude<ModelSource, string | URL | Blob>): ByteSource {
  const { size, read, close } = (source ?? {}) as Partial<ByteSource>;
  if (typeof size === 'number' && typeof read === 'function' && typeof close === 'function')
    return source as ByteSource;
  throw invalid('source', SOURCES, source, OTHER_SOURCES);
}

/** Addresses of what is in memory already. */
const IN_MEMORY = /^(blob|data):/i;
/** Two letters at least, so that a Windows drive is a path. */
const SCHEME = /^([a-z][a-z0-9+.-]+):\/\//i;

async function openAddress(
  runtime: Pick<Runtime, 'openFile'>,
  address: string,
  { cache, headers, signal }: SourceOptions,
): Promise<ByteSource> {
  if (address === '') throw invalid('source', SOURCES, address, OTHER_SOURCES);
  if (IN_MEMORY.test(address))
    throw invalid('source', 'a path or a file:, http: or https: URL', address, 'Pass the Blob itself.');
  const scheme = SCHEME.exec(address)?.[1]?.toLowerCase();
  if (scheme === undefined) return runtime.openFile(address);
  if (scheme === 'http' || scheme === 'https') {
    return (cache ? openCached : openUrl)(address, {
      ...(headers && { headers }),
      ...(signal && { signal }),
    });
  }
  if (scheme === 'file') return runtime.openFile(filePath(address));
  throw invalidArgument('source', 'a path or a file:, http: or https: URL', address);
}

/** @throws FrugalError `INVALID_ARGUMENT` for what is no address of a file of this machine */
function filePath(address: string): string {
  const wrong = () => invalidArgument('source', 'a path or the file: URL of a file of this machine', address);
  try {
    const { host, pathname } = new URL(address);
    if (host !== '') throw wrong();
    const path = decodeURIComponent(pathname);
    return /^\/[a-z]:\//i.test(path) ? path.slice(1) : path;
  } catch {
    throw wrong();
  }
}
