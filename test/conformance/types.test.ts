import { spawnSync } from 'node:child_process';
import { mkdir, symlink, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { expect, it } from 'vitest';
import { withFolder } from '../gguf/sources.js';

const ROOT = resolve(import.meta.dirname, '../..');

const PROGRAM = `
import { type ErrorCode, listCached, load, type Model, openUrl, quantize } from 'frugal';
import { load as loadWasm } from 'frugal/wasm';
import { load as loadInWorker } from 'frugal/worker';

const model: Model = await load('model.gguf', { headers: { Authorization: 'x' }, signal: AbortSignal.timeout(9) });
for await (const piece of model.generate('Once')) process.stdout.write(piece);
const { usage, text } = await model.complete('Once', { maxTokens: 3 });
const others: Model[] = [await loadWasm(new Blob([])), await loadInWorker(new URL('http://host/model.gguf'))];
const code: ErrorCode = 'CACHE_BUSY';
export const all = [usage.decodeMs, text.length, others, code, listCached, openUrl, quantize];
// @ts-expect-error: what is wrong is seen.
await load('model.gguf', { header: {} });
`;

/** The package as a program for Node sees it, with every declaration checked and without the library of browsers. */
it('types need nothing but those of Node', () =>
  withFolder(async (folder) => {
    await mkdir(join(folder, 'node_modules/@types'), { recursive: true });
    await symlink(ROOT, join(folder, 'node_modules/frugal'), 'dir');
    await symlink(join(ROOT, 'node_modules/@types/node'), join(folder, 'node_modules/@types/node'), 'dir');
    const compilerOptions = {
      target: 'es2022',
      lib: ['es2022'],
      module: 'nodenext',
      types: ['node'],
      strict: true,
      exactOptionalPropertyTypes: true,
      skipLibCheck: false,
      noEmit: true,
    };
    await writeFile(
      join(folder, 'tsconfig.json'),
      JSON.stringify({ compilerOptions, files: ['program.mts'] }),
    );
    await writeFile(join(folder, 'program.mts'), PROGRAM);
    const compiler = join(ROOT, 'node_modules/typescript/bin/tsc');
    const { stdout, stderr, status } = spawnSync(process.execPath, [compiler, '-p', folder], {
      encoding: 'utf8',
    });
    expect(`${stdout}${stderr}`).toBe('');
    expect(status).toBe(0);
  }));
