import { describe, expect, it } from 'vitest';
import { medianPeaks } from '../../ts/bench/machine.js';
import { summarise } from '../../ts/bench/stats.js';
import { formatNumber, formatShare, formatTable, markdownTable } from '../../ts/bench/table.js';
import { tokenWork } from '../../ts/bench/work.js';
import type { Plan } from '../../ts/plan/types.js';

describe('summaries', () => {
  it('give the median, and half the distance between the quartiles as a share of it', () => {
    expect(summarise([5, 1, 3])).toEqual({ median: 3, spread: 1 / 3, count: 3 });
    expect(summarise([1, 2, 3, 4])).toEqual({ median: 2.5, spread: 0.3, count: 4 });
    expect(summarise([7])).toEqual({ median: 7, spread: 0, count: 1 });
    expect(summarise([]).median).toBeNaN();
  });

  it('take each limit by itself', () => {
    const peaks = [1, 2, 9].map((x) => ({
      readBytesPerSecond: x,
      int8OpsPerSecond: 10 - x,
      floatOpsPerSecond: x,
    }));
    expect(medianPeaks(peaks)).toEqual({ readBytesPerSecond: 2, int8OpsPerSecond: 8, floatOpsPerSecond: 2 });
    expect(medianPeaks([])).toBeUndefined();
  });
});

describe('tables', () => {
  it('align numbers to the right', () => {
    const rows = [
      ['a', 'long'],
      ['bcd', '1'],
    ];
    expect(formatTable(rows)).toBe('a    long\nbcd     1\n');
    expect(markdownTable(rows)).toBe('| a | long |\n| --- | ---: |\n| bcd | 1 |\n');
  });

  it('show three digits, and a dash for what is not a number', () => {
    expect([0.012345, 1.2345, 12.345, 123.45, 12345, 0, Number.NaN].map(formatNumber)).toEqual([
      '0.0123',
      '1.23',
      '12.3',
      '123',
      '12345',
      '0',
      '-',
    ]);
    expect([0.5, 1.234, undefined, Number.NaN].map(formatShare)).toEqual(['50%', '123%', '-', '-']);
  });
});

describe('the work of a token', () => {
  const tensor = (name: string, type: string, rows: number, cols: number, experts?: number) => ({
    ...{ name, type, rows, cols },
    ...(experts && { experts }),
  });
  const plan: Plan = {
    ...{ version: 1, name: '', vocabSize: 10, contextLength: 1, kvLayers: [], buffers: [], ropes: [] },
    tensors: [
      tensor('embd', 'Q8_0', 10, 4),
      tensor('norm', 'F32', 1, 4),
      tensor('wide', 'Q4_0', 8, 4),
      tensor('gates', 'F32', 6, 4),
      tensor('gate', 'Q4_0', 3, 4, 6),
      tensor('up', 'Q4_0', 3, 4, 6),
      tensor('down', 'Q4_0', 4, 3, 6),
    ],
    ops: [
      { op: 'embed', table: 'embd', out: 'x' },
      { op: 'linear', x: 'x', weight: 'wide', out: 'x' },
      { op: 'linear', x: 'x', weight: 'gates', out: 'g' },
      {
        ...{ op: 'experts', x: 'x', gates: 'g', gate: 'gate', up: 'up', down: 'down', out: 'x' },
        ...{ activation: 'silu', topK: 2, normalise: true, scale: 1 },
      },
      { op: 'logits', x: 'x', weight: 'embd' },
    ],
    hidden: 'x',
  };

  it('counts matrices, of experts those in use, and no logits', () => {
    const { promptOps, float, types } = tokenWork(plan, (i) => (i === 0 ? 90 : 10 / 6));
    expect(promptOps).toBe(2 * (8 * 4 + 6 * 4 + 2 * (3 * 4 * 3)));
    expect(float).toBe(false);
    expect(types).toBe('Q8_0 90%, Q4_0 7%, F32 3%');
  });
});
