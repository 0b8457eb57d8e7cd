import { FrugalError } from '../errors.js';
import type { Plan } from '../plan/types.js';
import { backendModel, chooseIsa, planBytes, type RuntimeModel, translate } from './model.js';
import type { Backend, BackendModel, BackendOptions, Isa } from './types.js';
import type { Glue } from './wasm/glue.js';
import type { WasmHost } from './wasm/host.js';
import { createInstance } from './wasm/instance.js';
import { localModel } from './wasm/local-model.js';
import { checkSize, LARGE_BYTES, mostBytes, residentBytes } from './wasm/size.js';
import { threadedModel } from './wasm/threaded-model.js';
import {
  type Choice,
  chooseVariant,
  type Lacks,
  lacking,
  type Wanted,
  type WasmOptions,
  type WasmVariant,
} from './wasm/variant.js';

export type { WasmVariant } from './wasm/variant.js';

/** Literal addresses, which bundlers find. */
const MODULES: Record<WasmVariant, () => URL> = {
  simd128: () => new URL('../../dist/wasm/simd128.wasm', import.meta.url),
  'relaxed-simd': () => new URL('../../dist/wasm/relaxed-simd.wasm', import.meta.url),
  'simd128-threads': () => new URL('../../dist/wasm/simd128-threads.wasm', import.meta.url),
  'relaxed-simd-threads': () => new URL('../../dist/wasm/relaxed-simd-threads.wasm', import.meta.url),
  'relaxed-simd-memory64': () => new URL('../../dist/wasm/relaxed-simd-memory64.wasm', import.meta.url),
  'relaxed-simd-memory64-threads': () =>
    new URL('../../dist/wasm/relaxed-simd-memory64-threads.wasm', import.meta.url),
};

/**
 * The runtime as WebAssembly. One module is fetched, the best that works here; another, where the runtime has it, for
 * the first model whose weights need 64-bit addresses.
 * @throws FrugalError `BACKEND_UNAVAILABLE`, with what is lacking or could not be fetched
 */
export async function loadWasm(host: WasmHost, options: WasmOptions = {}): Promise<Backend> {
  const wanted = { variant: options.variant, isa: options.isa ?? host.isa };
  const { glue: probe, lacks } = await begin(host, lacking(host.unshared), wanted);
  const isas = probe.isas();
  return {
    kind: 'wasm',
    isas,
    tensorTypes: probe.tensorTypes(),
    async compile(plan, compileOptions) {
      const bytes = residentBytes(plan, compileOptions.expertMemory);
      const sized = { ...wanted, large: bytes > LARGE_BYTES };
      checkSize(plan, bytes, chooseVariant(lacks, sized), lacks);
      return compile(host, await begin(host, lacks, sized), isas, plan, compileOptions);
    },
  };
}

/** An instance of a module. */
interface Begun {
  readonly choice: Choice;
  readonly module: WebAssembly.Module;
  readonly glue: Glue;
  readonly memory: WebAssembly.Memory;
  readonly lacks: Lacks;
}

/** An instance of the best module that has one: some systems do not reserve addresses for memory that is shared. */
async function begin(host: WasmHost, lacks: Lacks, wanted: Wanted): Promise<Begun> {
  const choice = chooseVariant(lacks, wanted);
  const module = await fetchModule(host, choice.variant);
  const { createGlue } = await importGlue(choice);
  try {
    return { choice, module, ...instantiate(module, choice, createGlue()), lacks };
  } catch (error) {
    if (wanted.variant !== undefined || !choice.threads) throw error;
    return begin(host, { ...lacks, threads: 'no memory can be reserved that threads share' }, wanted);
  }
}

/** @throws FrugalError `OUT_OF_MEMORY` where the system does not give what a memory starts with or may grow to */
function instantiate(module: WebAssembly.Module, choice: Choice, glue: Glue): Pick<Begun, 'glue' | 'memory'> {
  try {
    return { glue, memory: glue.initSync({ module }).memory };
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new FrugalError('OUT_OF_MEMORY', `no memory can be reserved for ${choice.variant}: ${why}`, {
      cure: 'Dispose of other models, close other pages, or use a variant without threads.',
      data: { variant: choice.variant },
      cause,
    });
  }
}

/** Addresses that bundlers find. */
function importGlue({ memory64, threads }: Choice): Promise<{ createGlue(): Glue }> {
  if (memory64 && threads) return import('../../dist/wasm/glue-memory64-threads.js');
  if (memory64) return import('../../dist/wasm/glue-memory64.js');
  if (threads) return import('../../dist/wasm/glue-threads.js');
  return import('../../dist/wasm/glue.js');
}

const compiled = new Map<WasmVariant, Promise<WebAssembly.Module>>();

/** Fetched and compiled once, for all models. */
async function fetchModule(host: WasmHost, variant: WasmVariant): Promise<WebAssembly.Module> {
  const url = MODULES[variant]();
  try {
    const module = compiled.get(variant) ?? host.compile(url);
    compiled.set(variant, module);
    return await module;
  } catch (cause) {
    compiled.delete(variant);
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new FrugalError('BACKEND_UNAVAILABLE', `${url.href} cannot be loaded: ${why}`, {
      cure: "Serve the package's .wasm files beside its code, and let the page's policy allow them (connect-src, wasm-unsafe-eval).",
      data: { variant, url: url.href },
      cause,
    });
  }
}

/** Each thread is a worker with a heap of its own: of hundreds some do not start, and no small model gains by them. */
const MOST_BY_DEFAULT = 64;

/** Each model has an instance, and so a memory, of its own: that is given back only as a whole. */
async function compile(
  host: WasmHost,
  { choice, module, glue, memory }: Begun,
  isas: readonly Isa[],
  plan: Plan,
  options: BackendOptions,
): Promise<BackendModel> {
  const isa = chooseIsa(isas, options.isa ?? host.isa);
  const threads = choice.threads ? (options.threads ?? Math.min(host.cores, MOST_BY_DEFAULT)) : 1;
  const instance = createInstance(glue, memory, mostBytes(choice));
  const { maxStepTokens, expertMemory } = options;
  let model: RuntimeModel;
  try {
    translate(() =>
      instance.call(({ compile }) => compile(planBytes(plan), threads, isa, maxStepTokens, expertMemory)),
    );
    const local = localModel(instance);
    const shared = { module, memory, memory64: choice.memory64 };
    model = choice.threads ? await threadedModel(host, shared, { threads, instance, local }) : local;
  } catch (error) {
    await instance.release();
    throw error;
  }
  const { variant, reason } = choice;
  const wanted = options.threads ?? 1;
  return backendModel(model, plan, {
    ...{ kind: 'wasm', isa, threads: model.threads, variant, reason },
    ...(!choice.threads &&
      wanted > 1 && {
        notes: [`threads is ${wanted}, but 1 computes: ${variant} has no threads (${reason})`],
      }),
  });
}
