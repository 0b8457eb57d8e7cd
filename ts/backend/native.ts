import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { FrugalError } from '../errors.js';
import type { Plan } from '../plan/types.js';
import { backendModel, chooseIsa, planBytes, type RuntimeModel, translate } from './model.js';
import type { Backend, BackendModel, BackendOptions, Isa } from './types.js';

/** What `bindings/napi` exports. */
interface Addon {
  isas(): Isa[];
  tensorTypes(): string[];
  /** `values`, of type `source`, as whole blocks of type `target`, and what that changed. */
  quantizeValues(source: string, target: string, values: Uint8Array, threads: number): Promise<Quantized>;
  /** What so many threads can do at most; memory is read from `bytes` of it. */
  measurePeaks(isa: string, threads: number, bytes: number): Promise<MachinePeaks>;
  NativeModel: new (
    plan: Uint8Array,
    threads: number,
    isa: string,
    maxStepTokens: number,
    expertMemory?: number,
  ) => RuntimeModel;
}

/** Limits of the machine, measured. A multiplication and an addition count as two operations. */
export interface MachinePeaks {
  readonly readBytesPerSecond: number;
  readonly int8OpsPerSecond: number;
  readonly floatOpsPerSecond: number;
}

export interface Quantized {
  readonly bytes: Uint8Array;
  /** Sum of the squares of the values. */
  readonly squares: number;
  /** Sum of the squares of the differences. */
  readonly errors: number;
  /** The first element that cannot be held, where there is one: the other fields mean nothing then. */
  readonly badElement?: number;
  /** Its value, where it is a number. */
  readonly badValue?: number;
}

/**
 * The native addon.
 * @throws FrugalError `BACKEND_UNAVAILABLE`, with why each place it may be in did not work
 */
export async function loadNative(): Promise<Backend> {
  const addon = loadAddon();
  const isas = addon.isas();
  return {
    kind: 'native',
    isas,
    tensorTypes: addon.tensorTypes(),
    compile: async (plan, options) => compile(addon, isas, plan, options),
  };
}

/** Names that napi-rs gives the addon on this machine; on Linux the C library is part of it. */
function addonNames(): string[] {
  const base = `${process.platform}-${process.arch}`;
  const variants = { linux: ['-gnu', '-musl'], win32: ['-msvc'] }[process.platform as string] ?? [''];
  return variants.map((variant) => `frugal.${base}${variant}.node`);
}

/** @throws FrugalError `BACKEND_UNAVAILABLE` */
export function loadAddon(): Addon {
  const require = createRequire(import.meta.url);
  const failures: string[] = [];
  for (const name of addonNames()) {
    try {
      return require(`../../bindings/napi/${name}`) as Addon;
    } catch (error) {
      const why = error instanceof Error ? error.message.split('\n')[0] : String(error);
      failures.push(`${name}: ${why}`);
    }
  }
  throw new FrugalError('BACKEND_UNAVAILABLE', `The native addon cannot be loaded: ${failures.join('; ')}`, {
    cure: existsSync(new URL('../../scripts/build.mjs', import.meta.url))
      ? 'Build it with `npm run build`, which needs Rust.'
      : `This package has none for ${process.platform}-${process.arch}: use the backend wasm, or build frugal from its source.`,
    data: { failures },
  });
}

function compile(addon: Addon, isas: readonly Isa[], plan: Plan, options: BackendOptions): BackendModel {
  const isa = chooseIsa(isas, options.isa ?? process.env.FRUGAL_ISA);
  const threads = options.threads ?? availableParallelism();
  const model = translate(
    () => new addon.NativeModel(planBytes(plan), threads, isa, options.maxStepTokens, options.expertMemory),
  );
  return backendModel(model, plan, { kind: 'native', isa, threads: model.threads });
}
