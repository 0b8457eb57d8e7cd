import { type FileHandle, lstat, open, rm } from 'node:fs/promises';
import type { Command } from 'commander';
import type { Model } from '../engine/index.js';
import { FrugalError } from '../errors.js';
import { refuseInputs, writing } from '../quantize/output-file.js';
import { npyHeader, rowBytes } from './npy.js';
import { createProgress } from './progress.js';
import { addLoadFlags, type LoadFlags, readText, withModel } from './shared.js';
import { interruptible, note } from './terminal.js';

interface ScoreFlags extends LoadFlags {
  readonly tokens: string;
  readonly out: string;
}

export function addScore(program: Command): void {
  const command = program
    .command('score')
    .description('Write the logits after each token of a list: a NumPy file, float32 [tokens, vocabulary].')
    .argument('<model>', 'a GGUF file or its http(s) address')
    .requiredOption(
      '--tokens <path>',
      'a JSON file: an array of token ids, or an object that has one as "tokens"',
    )
    .requiredOption('--out <path>', 'the .npy file to write');
  addLoadFlags(command).action(score);
}

async function score(path: string, flags: ScoreFlags): Promise<void> {
  await refuseInputs(flags.out, [path, flags.tokens]);
  const tokens = await readTokens(flags.tokens);
  await interruptible((signal) =>
    withModel(path, flags, signal, async (model) => {
      await writeLogits(model, tokens, flags.out, signal);
      note(`${tokens.length} rows of ${model.info.vocabSize} logits in ${flags.out}`);
    }),
  );
}

async function writeLogits(
  model: Model,
  tokens: readonly number[],
  path: string,
  signal: AbortSignal,
): Promise<void> {
  const rows = model.score(tokens, { signal });
  // The first row comes before the file is touched: wrong ids must not leave an empty file.
  const first = await rows.next();
  const file = await writing(path, () => open(path, 'w'));
  const progress = createProgress();
  try {
    const write = (bytes: Uint8Array) => writing(path, () => writeAll(file, bytes));
    await write(npyHeader([tokens.length, model.info.vocabSize]));
    if (!first.done) await write(rowBytes(first.value));
    let done = 1;
    for await (const row of rows) {
      await write(rowBytes(row));
      done += 1;
      progress.update('scoring', done / tokens.length);
    }
    await writing(path, () => file.close());
  } catch (error) {
    await rows.return();
    await file.close();
    // A device or a pipe stays where it is.
    if ((await lstat(path).catch(() => undefined))?.isFile()) await rm(path, { force: true });
    throw error;
  } finally {
    progress.end();
  }
}

async function writeAll(file: FileHandle, bytes: Uint8Array): Promise<void> {
  let rest = bytes;
  while (rest.length > 0) {
    const { bytesWritten } = await file.write(rest);
    rest = rest.subarray(bytesWritten);
  }
}

async function readTokens(path: string): Promise<readonly number[]> {
  const content = parseJson(path, await readText(path));
  const list =
    typeof content === 'object' && content !== null && 'tokens' in content ? content.tokens : content;
  if (Array.isArray(list) && list.every((item) => typeof item === 'number')) return list;
  throw badTokens(path, 'it holds no array of numbers');
}

function parseJson(path: string, text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw badTokens(path, cause instanceof Error ? cause.message : String(cause));
  }
}

function badTokens(path: string, reason: string): FrugalError {
  return new FrugalError('INVALID_ARGUMENT', `--tokens ${path} is not a list of token ids: ${reason}`, {
    cure: 'Give a JSON file such as [1, 2, 3] or {"tokens": [1, 2, 3]}.',
    data: { field: 'tokens', path },
  });
}
