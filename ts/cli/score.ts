import type { Command } from 'commander';
import type { Model } from '../engine/index.js';
import { FrugalError } from '../errors.js';
import { type OutputStream, writeOutput } from '../quantize/output-file.js';
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
  const tokens = await readTokens(flags.tokens);
  const vocabSize = await interruptible((signal) =>
    writeOutput(flags.out, [path, flags.tokens], (output) =>
      withModel(path, flags, signal, async (model) => {
        await writeLogits(model, tokens, output, signal);
        return model.info.vocabSize;
      }),
    ),
  );
  note(`${tokens.length} rows of ${vocabSize} logits in ${flags.out}`);
}

async function writeLogits(
  model: Model,
  tokens: readonly number[],
  output: OutputStream,
  signal: AbortSignal,
): Promise<void> {
  const progress = createProgress();
  try {
    let done = 0;
    for await (const row of model.score(tokens, { signal })) {
      // Not before there is a row: a pipe gets nothing where ids are wrong.
      if (done === 0) await output.write(npyHeader([tokens.length, model.info.vocabSize]));
      await output.write(rowBytes(row));
      done += 1;
      progress.update('scoring', done / tokens.length);
    }
  } finally {
    progress.end();
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
