import { FrugalError } from '../../errors.js';
import type { Isa } from '../types.js';
import { probeRelaxedDot, supportsSharedMemory, supportsSimd } from './probe.js';

export const WASM_VARIANTS = ['simd128', 'relaxed-simd', 'simd128-threads', 'relaxed-simd-threads'] as const;
export type WasmVariant = (typeof WASM_VARIANTS)[number];

export interface WasmOptions {
  /** Forces one of the modules. @default the best that this runtime has */
  readonly variant?: WasmVariant;
  /** Leaves out modules without this instruction set. */
  readonly isa?: Isa;
}

export interface Choice {
  readonly variant: WasmVariant;
  readonly threads: boolean;
  /** Why this one and no better. */
  readonly reason: string;
}

export interface Wanted {
  readonly variant?: WasmVariant | undefined;
  /** Rules out variants without it. */
  readonly isa?: Isa | string | undefined;
}

/** What this runtime can do: undefined, or why not. */
export interface Lacks {
  readonly simd: string | undefined;
  readonly relaxed: string | undefined;
  readonly threads: string | undefined;
}

/** What pages lack for shared memory. */
export const NOT_ISOLATED = 'the page is not cross-origin isolated';
export const OWN_THREAD = "the page's own thread must not wait";

const CURES: Readonly<Record<string, string>> = {
  [NOT_ISOLATED]:
    'Serve the page with the headers Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: ' +
    'require-corp, or use a variant without threads.',
  [OWN_THREAD]: 'Load the model with frugal/worker, or use a variant without threads.',
};

/** @throws FrugalError `BACKEND_UNAVAILABLE` where nothing may be compiled */
export function lacking(unshared: string | undefined): Lacks {
  if (typeof WebAssembly === 'undefined') throw unavailable('WebAssembly', 'this runtime has none');
  const relaxed = probeRelaxed();
  return {
    simd: supportsSimd() ? undefined : 'this runtime has no WebAssembly SIMD',
    relaxed:
      relaxed === 'right'
        ? undefined
        : relaxed === 'absent'
          ? 'this runtime has no relaxed SIMD'
          : "this runtime's relaxed dot product failed its self-test",
    threads: unshared ?? (supportsSharedMemory() ? undefined : 'this runtime has no shared memory'),
  };
}

/**
 * The best module that works here.
 * @throws FrugalError `BACKEND_UNAVAILABLE` where none does, or not the one asked for
 */
export function chooseVariant(lacks: Lacks, wanted: Wanted): Choice {
  if (lacks.simd !== undefined) throw unavailable('WebAssembly', lacks.simd);
  const { variant, isa } = wanted;
  const relaxed = variant ? variant.startsWith('relaxed') : isa !== 'simd128' && lacks.relaxed === undefined;
  const threads = variant ? variant.endsWith('-threads') : lacks.threads === undefined;
  if (relaxed && lacks.relaxed !== undefined) throw unavailable(`The variant ${variant}`, lacks.relaxed);
  if (threads && lacks.threads !== undefined) throw unavailable(`The variant ${variant}`, lacks.threads);
  const instructions = relaxed ? 'relaxed-simd' : 'simd128';
  const found = [
    relaxed ? 'relaxed SIMD passed its self-test' : (lacks.relaxed ?? 'relaxed SIMD was not wanted'),
    threads ? 'memory can be shared' : (lacks.threads ?? 'threads were not wanted'),
  ];
  return {
    variant: threads ? `${instructions}-threads` : instructions,
    threads,
    reason: variant ? `asked for; ${found.join('; ')}` : found.join('; '),
  };
}

/** A page's policy shows in the first module that is compiled. */
function probeRelaxed(): ReturnType<typeof probeRelaxedDot> {
  try {
    return probeRelaxedDot();
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new FrugalError('BACKEND_UNAVAILABLE', `WebAssembly cannot be used: ${why}`, {
      cure: "Let the page's policy allow it: script-src with 'wasm-unsafe-eval'.",
      data: { why },
      cause,
    });
  }
}

function unavailable(what: string, why: string): FrugalError {
  return new FrugalError('BACKEND_UNAVAILABLE', `${what} cannot be used: ${why}`, {
    cure: CURES[why] ?? 'Use a newer runtime, another variant, or the native backend in Node.',
    data: { why },
  });
}
