import { availableParallelism } from 'node:os';
import { resolve } from 'node:path';
import { afterEach, describe, expect, it, vi } from 'vitest';
import type { EnergyMeter } from '../../ts/energy/types.js';
import { load } from '../../ts/engine/index.js';
import { autoThreads, candidates, type Efficiency, fixedThreads } from '../../ts/engine/threads.js';

const MODEL = resolve(import.meta.dirname, '../../models/stories-moe-q8_0.gguf');
afterEach(() => vi.restoreAllMocks());

let models = 0;

/** A machine whose tokens take so long with so many threads; the clock moves with its steps alone. */
function machine(ms: (threads: number) => number, joules?: (threads: number) => number) {
  const state = { now: 0, threads: -1, spent: 0, steps: [] as number[] };
  vi.spyOn(performance, 'now').mockImplementation(() => state.now);
  const meter: EnergyMeter = {
    kind: 'measured',
    start() {
      const before = state.spent;
      return {
        end: () => ({
          ...{ kind: 'measured', seconds: 0, cpuSeconds: 0, domains: {} },
          joules: state.spent - before,
        }),
      };
    },
  };
  return {
    ...{ state, meter },
    set: (threads: number) => {
      state.threads = threads;
    },
    step(threads: number) {
      state.steps.push(threads);
      state.now += ms(threads);
      state.spent += joules?.(threads) ?? 0;
    },
  };
}

function settle(
  most: number,
  efficiency: Efficiency,
  ms: (threads: number) => number,
  joules?: (threads: number) => number,
) {
  const { state, meter, set, step } = machine(ms, joules);
  models += 1;
  const options = { most, set, efficiency, key: `model ${models}`, ...(joules && { meter }) };
  const tuner = autoThreads(options);
  for (let i = 0; i < 200; i++) {
    const ended = tuner.begin(1);
    step(state.threads === -1 ? most : state.threads);
    ended();
  }
  return { tuner, state, options };
}

/** Two threads saturate the memory. */
const bound = (threads: number) => (threads === 1 ? 18 : 10 - threads * 0.02);

describe('the number of threads', () => {
  it('balanced: the fewest within 3% of the fastest', () => {
    const { tuner, state } = settle(8, 'balanced', bound);
    expect(tuner.choice).toMatchObject({ prefill: 8, decode: 2 });
    expect(tuner.choice.reason).toMatch(/^fewest within 3% of the fastest of 8: 101\.6, 6: /);
    expect(state.steps.at(-1)).toBe(2);
  });

  it('speed: the fastest', () => {
    expect(settle(8, 'speed', bound).tuner.choice.decode).toBe(8);
    expect(settle(8, 'speed', (threads) => Math.abs(threads - 5.5) + 5).tuner.choice.decode).toBe(6);
  });

  it('energy: the fewest joules, or without a meter the fewest threads within 20%', () => {
    expect(settle(4, 'energy', bound, (threads) => Math.abs(threads - 3)).tuner.choice).toMatchObject({
      decode: 3,
      reason: expect.stringContaining('fewest joules'),
    });
    expect(settle(4, 'energy', (threads) => 20 - threads).tuner.choice.decode).toBe(1);
    expect(settle(4, 'energy', bound).tuner.choice.decode).toBe(2);
  });

  it('does not go on measuring what is much slower', () => {
    const { state } = settle(2, 'balanced', (threads) => 10 / threads);
    expect(state.steps.filter((threads) => threads === 1)).toHaveLength(2);
  });

  it('holds when the model is loaded again', () => {
    const { tuner, options } = settle(8, 'balanced', bound);
    expect(autoThreads(options).choice).toEqual(tuner.choice);
  });

  it('uses all for prompts and for several sequences, also while it measures', () => {
    const { set, state } = machine(bound);
    const tuner = autoThreads({ most: 4, set, efficiency: 'balanced', key: 'prompts' });
    tuner.begin(1)();
    tuner.begin(1)();
    expect(state.threads).toBe(3);
    tuner.begin(7)();
    expect(state.threads).toBe(4);
  });

  it('is what was asked for, from the moment it is', () => {
    const { set, state } = machine(bound);
    const tuner = autoThreads({ most: 4, set, efficiency: 'balanced', key: 'asked' });
    tuner.fix(3);
    tuner.begin(1)();
    expect([state.threads, tuner.choice.decode]).toEqual([3, 3]);
    const fixed = fixedThreads(2, set);
    expect(fixed.choice).toEqual({ prefill: 2, decode: 2, reason: 'given' });
    fixed.fix(1);
    expect([state.threads, fixed.choice.prefill]).toEqual([1, 1]);
  });

  it('tries all, one, and steps between', () => {
    expect(candidates(1).map(({ threads }) => threads)).toEqual([1]);
    expect(candidates(2).map(({ threads }) => threads)).toEqual([2, 1]);
    expect(candidates(12).map(({ threads }) => threads)).toEqual([12, 9, 6, 5, 3, 2, 1]);
  });
});

describe('a loaded model', () => {
  const options = { maxTokens: 40, seed: 5, ignoreEnd: true };

  it('chooses in the first tokens, says so, and gives the same text', async () => {
    await using model = await load(MODEL, { efficiency: 'balanced' });
    const { text, usage } = await model.complete('Once', options);
    const { decode, prefill, reason } = model.info.threads;
    expect(prefill).toBe(availableParallelism());
    expect(decode).toBeLessThanOrEqual(prefill);
    expect(usage.threads).toBe(decode);
    if (prefill > 1) expect(reason).toMatch(/^fewest within 3% of the fastest of /);
    await using single = await load(MODEL, { threads: 1 });
    expect(single.info.threads).toEqual({ prefill: 1, decode: 1, reason: 'given' });
    expect((await single.complete('Once', options)).text).toBe(text);
  });

  it('says so where one thread computes, and that the others asked for do not', async () => {
    const single = { backend: 'wasm', variant: 'simd128' } as const;
    await using chosen = await load(MODEL, single);
    expect(chosen.info.threads).toMatchObject({
      prefill: 1,
      reason: 'the backend has one thread: there is one core, or its variant has no threads',
    });
    expect(chosen.info.notes).toEqual([]);
    await using asked = await load(MODEL, { ...single, threads: 8 });
    expect(asked.info.threads.prefill).toBe(1);
    expect(asked.info.notes).toEqual([
      expect.stringContaining('threads is 8, but 1 computes: simd128 has no threads'),
    ]);
  });

  it('uses no more CPU time than its threads have, and none when idle', async () => {
    await using model = await load(MODEL, { threads: 2 });
    const cpuSeconds = async (work: () => Promise<unknown>) => {
      const [cpu, began] = [process.cpuUsage(), performance.now()];
      await work();
      const { user, system } = process.cpuUsage(cpu);
      return [(user + system) / 1e6, (performance.now() - began) / 1000] as const;
    };
    const [busy, wall] = await cpuSeconds(() => model.complete('Once', { ...options, maxTokens: 300 }));
    expect(busy).toBeLessThan(wall * 2 * 1.1);
    await new Promise((resolve) => setTimeout(resolve, 50));
    const [idle] = await cpuSeconds(() => new Promise((resolve) => setTimeout(resolve, 500)));
    expect(idle).toBeLessThan(0.05);
  });

  it.each([['many'], [0], [1.5]])('refuses %s threads', async (threads) => {
    const loading = load(MODEL, { threads: threads as number });
    await expect(loading).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });
});
