import { FrugalError } from '../../errors.js';
import type { Isa } from '../types.js';
import { probeRelaxedDot, supportsMemory64, supportsSharedMemory, supportsSimd } from './probe.js';

export const WASM_VARIANTS = [
  ...(['simd128', 'relaxed-simd', 'relaxed-simd-memory64'] as const),
  ...(['simd128-threads', 'relaxed-simd-threads', 'relaxed-simd-memory64-threads'] as const),
] as const;
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
  /** Whether addresses have 64 bits. */
  readonly memory64: boolean;
  /** Why this one and no better. */
  readonly reason: string;
}

export interface Wanted {
  readonly variant?: WasmVariant | undefined;
  /** Rules out variants without it. */
  readonly isa?: Isa | string | undefined;
  /** Whether the weights need 64-bit addresses. @default false */
  readonly large?: boolean;
}

/** What this runtime can do: undefined, or why not. */
export interface Lacks {
  readonly simd: string | undefined;
  readonly relaxed: string | undefined;
  readonly threads: string | undefined;
  readonly memory64: string | undefined;
}

/** What pages lack for shared memory. */
export const NOT_ISOLATED = 'the page is not cross-origin isolated';
export const NOT_SHARED = 'this runtime has no shared memory';
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
    threads: unshared ?? (supportsSharedMemory() ? undefined : NOT_SHARED),
    memory64: supportsMemory64() ? undefined : 'this runtime has no 64-bit memory',
  };
}

/** What a module needs and this runtime lacks, beside SIMD. */
export function whyNot(lacks: Lacks, variant: WasmVariant): string | undefined {
  return (
    (variant.startsWith('relaxed') ? lacks.relaxed : undefined) ??
    (variant.endsWith('-threads') ? lacks.threads : undefined) ??
    (variant.includes('-memory64') ? lacks.memory64 : undefined)
  );
}

/**
 * The best module that works here.
 * @throws FrugalError `BACKEND_UNAVAILABLE` where none does, or not the one asked for
 */
export function chooseVariant(lacks: Lacks, wanted: Wanted): Choice {
  if (lacks.simd !== undefined) throw unavailable('WebAssembly', lacks.simd);
  const { variant, isa, large = false } = wanted;
  const lack = variant && whyNot(lacks, variant);
  if (lack !== undefined) throw unavailable(`The variant ${variant}`, lack);
  const relaxed = variant ? variant.startsWith('relaxed') : isa !== 'simd128' && lacks.relaxed === undefined;
  const threads = variant ? variant.endsWith('-threads') : lacks.threads === undefined;
  // Modules with 64-bit memory have relaxed SIMD, too.
  const memory64 = variant ? variant.includes('-memory64') : large && relaxed && lacks.memory64 === undefined;
  const found = [
    relaxed ? 'relaxed SIMD passed its self-test' : (lacks.relaxed ?? 'relaxed SIMD was not wanted'),
    threads ? 'memory can be shared' : (lacks.threads ?? 'threads were not wanted'),
    ...(memory64 && !variant ? ['the weights need 64-bit memory'] : []),
  ];
  const kind = memory64 ? 'relaxed-simd-memory64' : relaxed ? 'relaxed-simd' : 'simd128';
  return {
    variant: threads ? `${kind}-threads` : kind,
    threads,
    memory64,
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
