import { FrugalError } from '../errors.js';
import type { Plan } from '../plan/types.js';
import { backendModel, chooseIsa, planBytes, type RuntimeModel, translate } from './model.js';
import type { Backend, BackendModel, BackendOptions, Isa } from './types.js';
import type { Glue } from './wasm/glue.js';
import type { WasmHost } from './wasm/host.js';
import { localModel, watched } from './wasm/local-model.js';
import { threadedModel } from './wasm/threaded-model.js';
import { type Choice, chooseVariant, lacking, type WasmOptions, type WasmVariant } from './wasm/variant.js';

export type { WasmVariant } from './wasm/variant.js';

/** Literal addresses, which bundlers find. */
const MODULES: Record<WasmVariant, () => URL> = {
  simd128: () => new URL('../../dist/wasm/simd128.wasm', import.meta.url),
  'relaxed-simd': () => new URL('../../dist/wasm/relaxed-simd.wasm', import.meta.url),
  'simd128-threads': () => new URL('../../dist/wasm/simd128-threads.wasm', import.meta.url),
  'relaxed-simd-threads': () => new URL('../../dist/wasm/relaxed-simd-threads.wasm', import.meta.url),
};

/**
 * The runtime as WebAssembly. One module is fetched, the best that works here.
 * @throws FrugalError `BACKEND_UNAVAILABLE`, with what is lacking or could not be fetched
 */
export async function loadWasm(host: WasmHost, options: WasmOptions = {}): Promise<Backend> {
  const choice = chooseVariant(lacking(host.unshared), {
    variant: options.variant,
    isa: options.isa ?? host.isa,
  });
  const module = await fetchModule(host, choice.variant);
  const { createGlue } = choice.threads
    ? await import('../../dist/wasm/glue-threads.js')
    : await import('../../dist/wasm/glue.js');
  const setup: Setup = { host, choice, module, createGlue };
  const probe = createGlue();
  probe.initSync({ module });
  const isas = probe.isas();
  return {
    kind: 'wasm',
    isas,
    tensorTypes: probe.tensorTypes(),
    compile: (plan, compileOptions) => compile(setup, isas, plan, compileOptions),
  };
}

interface Setup {
  readonly host: WasmHost;
  readonly choice: Choice;
  readonly module: WebAssembly.Module;
  readonly createGlue: () => Glue;
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
      cure: "Serve the package's folder dist/wasm beside its code, and let the page's policy allow wasm-unsafe-eval.",
      data: { variant, url: url.href },
      cause,
    });
  }
}

/** Each thread is a worker with a heap of its own: of hundreds some do not start, and no small model gains by them. */
const MOST_BY_DEFAULT = 64;

/** Each model has an instance, and so a memory, of its own: that is given back only as a whole. */
async function compile(
  { host, choice, module, createGlue }: Setup,
  isas: readonly Isa[],
  plan: Plan,
  options: BackendOptions,
): Promise<BackendModel> {
  const isa = chooseIsa(isas, options.isa ?? host.isa);
  const threads = choice.threads ? (options.threads ?? Math.min(host.cores, MOST_BY_DEFAULT)) : 1;
  const glue = createGlue();
  const { memory } = glue.initSync({ module });
  const watch = watched(memory);
  const { maxStepTokens, expertMemory } = options;
  translate(() => watch(() => glue.compile(planBytes(plan), threads, isa, maxStepTokens, expertMemory)));
  const local = localModel(glue, watch);
  const model: RuntimeModel = choice.threads
    ? await threadedModel(host, { module, memory, threads }, local)
    : local;
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
