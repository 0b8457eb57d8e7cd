import { expect, it } from 'vitest';
import { formatRouting } from '../../ts/cli/routing.js';

it('a table of more than a hundred experts keeps its columns apart', () => {
  const layers = [{ block: 0, tokens: Array<number>(128).fill(1), balance: 1, peak: 1 }];
  const usage = { text: 'a', promptTokens: 1, topK: 128, bytesPerToken: 1, reads: 1, hits: 1, layers };
  const lines = formatRouting(usage).split('\n');
  expect(lines[0]).toMatch(/^1 token, each/);
  const names = lines
    .filter((line) => line.includes('#'))
    .flatMap((line) => line.trim().split(/ +/).slice(3));
  expect(names).toEqual(Array.from({ length: 128 }, (_, i) => `#${i}`));
  const rows = lines.filter((line) => /^ +0 /.test(line));
  expect(rows.flatMap((line) => line.trim().split(/ +/).slice(3))).toEqual(Array<string>(128).fill('1'));
});
