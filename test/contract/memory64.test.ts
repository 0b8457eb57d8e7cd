import { totalmem } from 'node:os';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { load } from '../../ts/index.js';
import { deno, runScript } from '../conformance/programs.js';
import { digestOf } from '../conformance/suite.js';
import { withFolder } from '../gguf/sources.js';
import { writeBigModel } from './big-model.js';

const GIB = 2 ** 30;
/** For the weights, and as much for the file's pages. */
const NEEDED = 11 * GIB;
const whyNot =
  (deno === undefined ? 'want of the npm package deno for this machine' : undefined) ??
  (Math.min(totalmem(), process.constrainedMemory() || Number.POSITIVE_INFINITY) < NEEDED
    ? `want of ${NEEDED} bytes of memory`
    : undefined);
if (whyNot !== undefined) console.log(`not run, for ${whyNot}: a model of over 4 GiB on WebAssembly`);

const PROMPT = [1, 5, 9, 2, 7];

it.runIf(whyNot === undefined)('a model of over 4 GiB runs on WebAssembly with 64-bit memory', async () => {
  await withFolder(async (folder) => {
    const options = { contextLength: 256, threads: 2 };
    // Blocks that are all zero change nothing, so the last one by itself says what comes out.
    const [one, many] = [join(folder, 'one.gguf'), join(folder, 'many.gguf')];
    await writeBigModel(one, 1, { filled: true });
    const { weightBytes } = await writeBigModel(many, 270, { filled: true });
    expect(weightBytes).toBeGreaterThan(4 * GIB);
    await using model = await load(one, options);
    const [answer] = await runScript(deno, 'deno-large.ts', { path: many, options, prompt: PROMPT }, 200_000);
    expect(answer).toEqual({
      variant: 'relaxed-simd-memory64-threads',
      reason: expect.stringContaining('the weights need 64-bit memory'),
      digest: await digestOf(model, PROMPT),
    });
  });
});
