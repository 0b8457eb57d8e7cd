import { describe, expect, it } from 'vitest';
import { BLOCKS, pattern, sizeOf } from '../../bench/lib/blocks.mjs';
import { allCases } from '../../bench/lib/cases.mjs';
import { againstPeers, energy, overThreads, roofline } from '../../bench/lib/plots.mjs';
import { stateOf, TARGETS } from '../../bench/lib/targets.mjs';
import { loadNative } from '../../ts/backend/native.js';
import { GGML_TYPES } from '../../ts/gguf/index.js';

const samples = (median: number) => ({ median, spread: 0.01, count: 3 });
const row = (threads: number, share: number) => ({
  ...{ threads, bandwidthShare: share, computeShare: share },
  ...{ prefill: samples(100 * threads), decode: samples(10), stream: samples(9.9) },
  cpuSecondsPerToken: samples(0.01),
});
const model = (name: string, share: number) => ({
  model: { file: `/x/${name}.gguf` },
  ...{ settings: { depth: 0 }, backend: { kind: 'native' }, rows: [row(1, share), row(2, share)] },
  loadToFirstTokenMs: samples(500),
});
const peers = {
  model: 'llama-1b-Q4_0.gguf',
  results: [
    { name: 'frugal', setting: 'default', prefill: samples(300), decode: samples(20), steps: samples(30) },
    { name: 'llama.cpp', setting: 'default', prefill: samples(100), decode: samples(40) },
    { name: 'llama.cpp', setting: 'no repacking', prefill: samples(200), decode: samples(25) },
    { name: 'frugal in Chromium', setting: 'default', prefill: samples(60), decode: samples(900) },
    { name: 'wllama', setting: 'default', prefill: samples(10), decode: samples(300) },
  ],
};

/** Values as `npm run bench:scenarios` gives them. */
const SCENARIOS: Readonly<Record<string, Readonly<Record<string, number | undefined>>>> = {
  long: { prefill8192: 1.31, prefill16384: 1.29, decode16384: undefined },
  idle: { idleCpu: 0.0001, cpuOverThreads: 1.11 },
  attention: { fixedAttention: -0.02, chosenAttention: 0.12 },
  stopwatch: { stopwatch: 0.012 },
};

describe('targets', () => {
  const data = (share: number) => ({
    model: (name: string) => (name === 'llama-1b-Q4_0' ? model(name, share) : undefined),
    peers: (name: string) => (['llama-1b-Q4_0', 'qwen3-0.6b-Q4_0'].includes(name) ? peers : undefined),
    scenario: (name: string) => SCENARIOS[name],
  });
  const state = (text: string, share: number) => {
    const target = TARGETS.find((each: { text: string }) => each.text.startsWith(text));
    return stateOf(target, data(share));
  };

  it('are met or missed by what was measured', () => {
    expect(state('decode, 1B shape, Q4_0', 0.91)).toEqual({ state: 'met', text: '91%' });
    expect(state('decode, 1B shape, Q4_0', 0.89)).toEqual({ state: 'missed', text: '89%' });
    expect(state('load to the first token', 1)).toEqual({ state: 'met', text: '0.50 s' });
    expect(state('prefill with 2 threads', 1)).toEqual({ state: 'met', text: '2.00x' });
  });

  it('compare with the best setting of the best native peer', () => {
    expect(state('prefill, llama-1b-Q4_0', 1)).toEqual({ state: 'met', text: '1.50x' });
    expect(state('decode, llama-1b-Q4_0', 1)).toEqual({ state: 'missed', text: '0.75x' });
  });

  it('compare what runs in a browser with our own build in a browser', () => {
    expect(state('prefill, 0.6B shape, against wllama', 1)).toEqual({ state: 'met', text: '6.00x' });
    expect(state('decode, 0.6B shape, against wllama', 1)).toEqual({ state: 'missed', text: '3.00x' });
  });

  it('are read from scenarios, also where less is better', () => {
    expect(state('prefill of 8,192', 1)).toEqual({ state: 'met', text: '1.31x' });
    expect(state('prefill of 16,384 tokens', 1)).toEqual({ state: 'missed', text: '1.29x' });
    expect(state('decode at depth 16,384', 1).state).toBe('not measured here');
    expect(state('CPU time after', 1)).toEqual({ state: 'met', text: '0.0001' });
    expect(state('CPU time while', 1)).toEqual({ state: 'missed', text: '111%' });
    expect(state('attention at 16,384, fixed', 1)).toEqual({ state: 'met', text: 'plus -2.0%' });
    expect(state('attention at 16,384, chosen', 1)).toEqual({ state: 'missed', text: 'plus 12.0%' });
    expect(state('what the engine says of itself', 1)).toEqual({ state: 'met', text: '1.2%' });
  });

  it('are never met by what was not measured', () => {
    const nothing = { model: () => undefined, peers: () => undefined, scenario: () => undefined };
    for (const target of TARGETS) expect(stateOf(target, nothing).state).toBe('not measured here');
  });

  it('can all be measured', () => {
    for (const { text, least, read } of TARGETS)
      expect({ text, read: typeof read, least: typeof least }).toEqual({
        text,
        read: 'function',
        least: 'number',
      });
  });
});

describe('plots', () => {
  it('are SVG, and energies of different kinds are apart', () => {
    const peaks = { readBytesPerSecond: 4e10, int8OpsPerSecond: 1e12, floatOpsPerSecond: 4e11 };
    const results = [{ name: 'matmul Q4_0', kind: 'native', ms: 1, ops: 1e9, bytes: 1e7 }];
    expect(roofline({ results, peaks: { avx512: peaks } })).toContain('<svg');
    expect(againstPeers([peers], 'decode')).toContain('no repacking');
    expect(overThreads([model('tiny', 1)])).toContain('tiny');
    expect(energy([model('a', 1)], 'measured')).toBeUndefined();
    expect(energy([model('a', 1)], 'counted')).toContain('CPU milliseconds');
  });
});

describe('random weights', () => {
  it('are there for every type of the kernels, in blocks of its size', async () => {
    const { tensorTypes } = await loadNative();
    expect(Object.keys(BLOCKS).sort()).toEqual([...tensorTypes].sort());
    for (const type of tensorTypes) {
      const { elements, bytes } = BLOCKS[type];
      expect({ type, elements, bytes }).toMatchObject({ type, ...blockOf(type) });
      expect(pattern(type).length % bytes).toBe(0);
      expect(sizeOf(type, 4 * elements)).toBe(4 * bytes);
    }
  });

  it('make kernels of distinct names', () => {
    const names = allCases().map(({ name }: { name: string }) => name);
    expect(new Set(names).size).toBe(names.length);
  });
});

function blockOf(type: string): { elements: number; bytes: number } {
  const of = Object.entries(GGML_TYPES).find(([name]) => name === type)?.[1];
  return { elements: of?.block ?? 0, bytes: of?.bytes ?? 0 };
}
