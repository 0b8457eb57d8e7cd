import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { frugal } from '../cli/program.js';
import { tinyLlama } from '../gguf/tiny-llama.js';
import { filesIn, temporaryFolder, writeFile } from './files.js';

const folder = temporaryFolder();
const source = tinyLlama({ matrixType: 'F32', everyKind: false }).bytes;

describe('frugal quantize', () => {
  it('closes with a table of the types', async () => {
    const { path, folder: own } = writeFile(folder, source);
    const out = join(own, 'out.gguf');
    const { code, stdout, stderr } = await frugal(['quantize', path, out, '--type', 'Q4_0']);
    expect(stderr).toBe('');
    expect(code).toBe(0);
    const lines = stdout.trimEnd().split('\n');
    expect(lines[0]).toMatch(/^type +tensors +in +out +bits\/weight +relative error$/);
    expect(lines.map((line) => line.split(/ +/)[0])).toEqual(['type', 'Q4_0', 'F32', 'all', `${out}:`]);
    expect(lines[1]).toMatch(/ 4\.50 +\d\.\d\d%$/);
  });

  it('prints the report as JSON, notes beside it', async () => {
    const { path, folder: own } = writeFile(folder, source);
    const out = join(own, 'out.gguf');
    const { code, stdout, stderr } = await frugal(['quantize', path, out, '--type', 'Q4_K', '--json']);
    expect(code).toBe(0);
    expect(stderr).toContain('note: ');
    const report = JSON.parse(stdout);
    expect(report).toMatchObject({ path: out, type: 'Q4_K', total: { tensors: 21 } });
    expect(report.types.map((each: { type: string }) => each.type)).toEqual(['Q8_0', 'F32']);
  });

  it('explains wrong use and failures in one line', async () => {
    const { path, folder: own } = writeFile(folder, source);
    const without = await frugal(['quantize', path, join(own, 'out.gguf')]);
    expect(without.code).toBe(2);
    expect(without.stderr).toContain('--type');
    const unknown = await frugal(['quantize', path, join(own, 'out.gguf'), '--type', 'Q3_K']);
    expect(unknown.code).toBe(2);
    expect(unknown.stderr).toContain('Q4_K_M');
    const same = await frugal(['quantize', path, path, '--type', 'F16']);
    expect(same.code).toBe(1);
    expect(same.stderr).toContain('INVALID_ARGUMENT');
    expect(filesIn(own)).toEqual(['in.gguf']);
  });
});
