import { FrugalError } from '../../errors.js';
import type { RuntimeModel } from '../model.js';
import type { StepAnswer } from './glue.js';
import type { Thread, WasmHost } from './host.js';
import { type Instance, isRefusal } from './instance.js';
import { type LocalModel, progressOf } from './local-model.js';
import type { FromThread, ToFirstThread, ToThread } from './protocol.js';

/** What all threads of a model share. */
export type SharedModule = Omit<Extract<ToThread, { type: 'start' }>, 'type' | 'thread'>;

/**
 * A model whose steps run on threads of their own; the calling thread's instance does the rest. Thread 0 takes the
 * steps, the others sleep in the module until it has work for them.
 * @throws FrugalError `BACKEND_UNAVAILABLE` if the threads cannot be started
 */
export async function threadedModel(
  host: WasmHost,
  shared: SharedModule,
  { threads, instance, local }: { threads: number; instance: Instance; local: LocalModel },
): Promise<RuntimeModel> {
  const crew = startCrew(host, threads, instance);
  try {
    await crew.start(shared);
  } catch (cause) {
    await crew.end();
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new FrugalError('BACKEND_UNAVAILABLE', `WebAssembly's threads cannot be started: ${why}`, {
      cure: "Where a page's policy forbids its own workers, allow them; else ask for fewer threads, or use a variant without.",
      cause,
    });
  }
  let ending: Promise<void> | undefined;
  return {
    ...local,
    holdsThread: false,
    step: async (sequences, counts, tokens, wants) =>
      progressOf((await crew.ask({ type: 'step', sequences, counts, tokens, wants })) ?? []),
    async supply(tensor, matrix, bytes) {
      local.stage(tensor, matrix, bytes);
      await crew.ask({ type: 'pack' });
    },
    dispose() {
      ending ??= end(instance, crew);
      return ending;
    },
  };
}

/** The step in progress is cut short, and its memory is in use until then. */
async function end(instance: Instance, crew: Crew): Promise<void> {
  try {
    instance.ask((glue) => glue.dispose(), undefined);
  } catch {
    // An instance that crashes now goes all the same.
  }
  await crew.idle();
  await crew.end();
  await instance.release();
}

interface Crew {
  /** Resolves when all threads are there. Nothing keeps the memory but they, as they may end later than asked. */
  start(shared: SharedModule): Promise<void>;
  /** Has thread 0 do something, after what it was asked before; of a step it gives the answer. */
  ask(request: ToFirstThread): Promise<StepAnswer | undefined>;
  idle(): Promise<void>;
  end(): Promise<void>;
}

interface Pending {
  resolve(answer: StepAnswer | undefined): void;
  reject(reason: unknown): void;
}

function startCrew(host: WasmHost, threads: number, instance: Instance): Crew {
  const pending: Pending[] = [];
  let running: Promise<unknown> = Promise.resolve();
  let broken: FrugalError | undefined;
  const crew: Thread[] = [];
  const settle = (): Pending | undefined => {
    const call = pending.shift();
    if (pending.length === 0) crew[0]?.hold(false);
    return call;
  };
  /** A thread that crashed may hold locks that the others wait for: none goes on. Each end comes here too. */
  const fail = (reason: string): void => {
    if (broken !== undefined) return;
    broken = instance.fail(reason);
    while (pending.length > 0) settle()?.reject(broken);
    for (const thread of crew) void thread.end();
  };
  const ready = () =>
    new Promise<void>((resolve, reject) => {
      const onFailure = (reason: string) => {
        reject(new Error(reason));
        fail(reason);
      };
      const worker = host.startThread({
        onFailure,
        onMessage(message) {
          const from = message as FromThread;
          if (from.type === 'ready') resolve();
          else if (from.type === 'stepped') settle()?.resolve(from.answer);
          else if (from.type === 'packed') settle()?.resolve(undefined);
          else if (isRefusal(from.message)) settle()?.reject(new Error(from.message));
          else onFailure(from.message);
        },
      });
      crew.push(worker);
      worker.hold(true);
    });
  return {
    async start(shared) {
      const all = Array.from({ length: threads }, () => ready());
      crew.forEach((worker, thread) => {
        worker.post({ type: 'start', thread, ...shared });
      });
      await Promise.all(all).finally(() => {
        for (const worker of crew) worker.hold(false);
      });
    },
    ask(request) {
      if (broken !== undefined) return Promise.reject(broken);
      const answer = new Promise<StepAnswer | undefined>((resolve, reject) => {
        pending.push({ resolve, reject });
        crew[0]?.hold(true);
        crew[0]?.post(request);
      });
      running = answer.catch(() => undefined);
      return answer;
    },
    idle: async () => void (await running),
    end: async () => void (await Promise.all(crew.map((thread) => thread.end()))),
  };
}
