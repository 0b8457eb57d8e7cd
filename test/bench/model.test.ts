import { resolve } from 'node:path';
import { describe, expect, it } from 'vitest';
import { timeFromOutside } from '../../bench/scenarios/stopwatch.mjs';
import { benchModel } from '../../ts/bench/model.js';
import { load } from '../../ts/engine/index.js';
import { frugal } from '../cli/program.js';

const MODEL = resolve(import.meta.dirname, '../../models/stories-moe-q8_0.gguf');
const settings = { prompt: 40, generate: 24, depth: 0, threads: [1, 2], repetitions: 2 };

describe('measuring a model', () => {
  it('gives plausible figures for each number of threads', async () => {
    const shown: number[] = [];
    const result = await benchModel(MODEL, settings, {}, (_, done) => shown.push(done));
    expect(result.rows.map(({ threads }) => threads)).toEqual([1, 2]);
    for (const row of result.rows) {
      expect(row.prefill.count).toBe(2);
      expect(row.decode.median).toBeGreaterThan(1);
      expect(row.stream?.median).toBeGreaterThan(1);
      expect(row.firstTokenMs?.median).toBeGreaterThan(0);
      expect(row.cpuSecondsPerToken.median).toBeGreaterThan(0);
      expect(row.peaks?.readBytesPerSecond).toBeGreaterThan(1e8);
      expect(row.computeShare).toBeGreaterThan(0);
    }
    expect(result.rows[0]?.bytesPerToken).toBeLessThan(result.model.weightBytes);
    expect(result.loadToFirstTokenMs.median).toBeGreaterThan(result.loadMs.median);
    await using model = await load(MODEL);
    expect(result.memory.kvBytes).toBeGreaterThanOrEqual(model.info.kvBytesPerToken * settings.prompt);
    expect(shown.every((done, i) => done >= (shown[i - 1] ?? 0) && done <= 1)).toBe(true);
  });

  it('measures at a depth, with the caches filled', async () => {
    const result = await benchModel(MODEL, { ...settings, depth: 100, threads: [2] });
    const { bytesPerToken = 0, prefill, stream } = result.rows[0] ?? {};
    expect(prefill?.count).toBe(1);
    expect(stream).toBeUndefined();
    await using model = await load(MODEL);
    const { bytesPerToken: weights, kvBytesPerToken } = model.info;
    expect(bytesPerToken).toBe(weights + kvBytesPerToken * (100 + 12));
    expect(result.memory.kvBytes).toBeGreaterThanOrEqual(kvBytesPerToken * (100 + 2 * 25 + 40));
  });

  it('agrees with a stopwatch in another process within 5%', async () => {
    const times: Array<Record<'prefillMs' | 'prefillOutside' | 'decodeMs' | 'decodeOutside', number>> =
      await timeFromOutside(MODEL, {
        ...{ threads: 1, prompt: 256, generate: 160, repetitions: 8, limitMs: 60_000 },
      });
    expect(times.length).toBe(8);
    // Of several runs the one that nothing disturbed: figures that are wrong are wrong in all of them.
    const best = (ratios: readonly number[]) => Math.min(...ratios.map((ratio) => Math.abs(ratio - 1)));
    expect(best(times.map(({ prefillMs, prefillOutside }) => prefillMs / prefillOutside))).toBeLessThan(0.05);
    expect(best(times.map(({ decodeMs, decodeOutside }) => decodeMs / decodeOutside))).toBeLessThan(0.05);
  });

  it('prints a table, or JSON', async () => {
    const args = ['bench', MODEL, '-p', '16', '-n', '8', '-t', '1', '-r', '1'];
    const table = await frugal(args);
    expect(table.code).toBe(0);
    expect(table.stdout).toMatch(/threads {2}prefill 16 tok\/s {2}of int8 peak {2}decode 8 tok\/s/);
    const { stdout } = await frugal([...args, '--json']);
    expect(JSON.parse(stdout)).toMatchObject({ settings: { prompt: 16, generate: 8, threads: [1] } });
  });
});
