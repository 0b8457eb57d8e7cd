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

const IN_PAGES = `
import { listCached, load, type Model, openUrl } from 'frugal';

const model: Model = await load(new File([], 'model.gguf'), { cache: true });
for await (const piece of model.generate('Once')) document.body.append(piece);
export const all = [listCached, openUrl, model[Symbol.asyncDispose]];
`;

const STRICT = {
  target: 'es2022',
  strict: true,
  exactOptionalPropertyTypes: true,
  skipLibCheck: false,
  noEmit: true,
};

/** Every declaration is checked, as if it were the program's own. */
it.each([
  ['Node', PROGRAM, { lib: ['es2022'], module: 'nodenext', types: ['node'] }],
  [
    'pages',
    IN_PAGES,
    { lib: ['es2022', 'dom', 'dom.asynciterable'], module: 'esnext', moduleResolution: 'bundler', types: [] },
  ],
])('types for %s need nothing else', (_, program, options) =>
  withFolder(async (folder) => {
    await mkdir(join(folder, 'node_modules/@types'), { recursive: true });
    await symlink(ROOT, join(folder, 'node_modules/frugal'), 'dir');
    await symlink(join(ROOT, 'node_modules/@types/node'), join(folder, 'node_modules/@types/node'), 'dir');
    const config = { compilerOptions: { ...STRICT, ...options }, files: ['program.mts'] };
    await writeFile(join(folder, 'tsconfig.json'), JSON.stringify(config));
    await writeFile(join(folder, 'program.mts'), program);
    const compiler = join(ROOT, 'node_modules/typescript/bin/tsc');
    const { stdout, stderr, status } = spawnSync(process.execPath, [compiler, '-p', folder], {
      encoding: 'utf8',
    });
    expect(`${stdout}${stderr}`).toBe('');
    expect(status).toBe(0);
  }),
);
