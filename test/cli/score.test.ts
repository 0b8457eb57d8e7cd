import { execFileSync } from 'node:child_process';
import { chmodSync, lstatSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { expect, it } from 'vitest';
import { tinyLlama } from '../gguf/tiny-llama.js';
import { filesIn, temporaryFolder, withGguf, writeFile } from '../quantize/files.js';
import { frugal } from './program.js';

const MAIN = resolve(import.meta.dirname, '../../dist/cli/main.js');
const folder = temporaryFolder();
const DAMAGED = 7;

/** A model that computes nothing but NaN after one of its tokens, in a folder with two lists of tokens. */
async function damagedModel(): Promise<{ path: string; folder: string }> {
  const written = writeFile(folder, tinyLlama({ matrixType: 'F32', everyKind: false }).bytes);
  const bytes = readFileSync(written.path);
  await withGguf(written.path, ({ tensors }) => {
    const embedding = tensors.get('token_embd.weight');
    if (embedding?.type !== 'F32') throw new Error('no F32 embedding');
    bytes.writeFloatLE(Number.NaN, embedding.offset + DAMAGED * (embedding.shape[0] ?? 0) * 4);
  });
  writeFileSync(written.path, bytes);
  writeFileSync(join(written.folder, 'good.json'), '[1, 5, 6]');
  writeFileSync(join(written.folder, 'bad.json'), `[1, 5, ${DAMAGED}]`);
  return written;
}

const args = (path: string, own: string, tokens: string, out: string) =>
  ['score', path, '--chunk', '1', '--tokens', join(own, tokens), '--out', out] as const;

it('leaves an older file as it is when it fails half way, and no other file', async () => {
  const { path, folder: own } = await damagedModel();
  const out = join(own, 'logits.npy');
  writeFileSync(out, 'older');
  chmodSync(out, 0o640);
  const before = filesIn(own);
  const failed = await frugal(args(path, own, 'bad.json', out));
  expect(failed.stderr).toMatch(/^frugal: NON_FINITE: [^\n]+\n$/);
  expect(failed.code).toBe(1);
  expect(readFileSync(out, 'utf8')).toBe('older');
  expect(filesIn(own)).toEqual(before);

  const done = await frugal(args(path, own, 'good.json', out));
  expect(done).toMatchObject({ code: 0, stderr: `3 rows of 300 logits in ${out}\n` });
  expect(readFileSync(out).length).toBe(128 + 3 * 300 * 4);
  expect(statSync(out).mode & 0o777).toBe(0o640);
  expect(filesIn(own)).toEqual(before);
});

it('replaces what a link leads to, not the link', async () => {
  const { path, folder: own } = await damagedModel();
  const [out, link] = [join(own, 'logits.npy'), join(own, 'link.npy')];
  writeFileSync(out, 'older');
  symlinkSync(out, link);
  expect((await frugal(args(path, own, 'good.json', link))).code).toBe(0);
  expect(lstatSync(link).isSymbolicLink()).toBe(true);
  expect(readFileSync(out).subarray(1, 6).toString()).toBe('NUMPY');
});

it.runIf(process.platform !== 'win32')('writes to standard output and to pipes in place', async () => {
  const { path, folder: own } = await damagedModel();
  const out = join(own, 'logits.npy');
  expect((await frugal(args(path, own, 'good.json', out))).code).toBe(0);
  const wanted = readFileSync(out);
  const shell = (tokens: string, target: string, rest: string) => {
    const line = args(path, own, tokens, target).map((part) => `'${part}'`);
    return execFileSync('sh', ['-c', `'${process.execPath}' '${MAIN}' ${line.join(' ')} ${rest}`], {
      stdio: ['ignore', 'pipe', 'ignore'],
    });
  };
  expect(shell('good.json', '/dev/stdout', '| cat')).toEqual(wanted);
  const redirected = join(own, 'redirected.npy');
  shell('good.json', '/dev/stdout', `> '${redirected}'`);
  expect(readFileSync(redirected)).toEqual(wanted);
  const pipe = join(own, 'pipe');
  execFileSync('mkfifo', [pipe]);
  expect(shell('good.json', pipe, `& cat '${pipe}'; wait`)).toEqual(wanted);
  // A failure leaves the pipe where it is, after the rows before it.
  expect(shell('bad.json', pipe, `& cat '${pipe}'; wait`).length).toBe(128 + 2 * 300 * 4);
  expect(lstatSync(pipe).isFIFO()).toBe(true);
});
