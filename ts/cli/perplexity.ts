import type { Command } from 'commander';
import type { Model } from '../engine/index.js';
import { logProbability } from '../engine/probability.js';
import { FrugalError } from '../errors.js';
import { createPace } from '../yield.js';
import { toJson } from './numbers.js';
import { createProgress } from './progress.js';
import { addLoadFlags, type LoadFlags, readText, withModel } from './shared.js';
import { interruptible, note, print } from './terminal.js';

interface PerplexityFlags extends LoadFlags {
  readonly json?: boolean;
}

export function addPerplexity(program: Command): void {
  const command = program
    .command('perplexity')
    .description(
      'Measure how well a model predicts a text. The text is cut into windows of the context length; each begins with ' +
        'the beginning-of-text token, or with the last token of the window before, and every token of the text counts.',
    )
    .argument('<model>', 'a GGUF file or its http(s) address')
    .argument('<file>', 'a text file; - reads standard input');
  addLoadFlags(command)
    .option('--json', 'print one JSON object: perplexity, bitsPerByte, tokens, bytes, window')
    .action(perplexity);
}

async function perplexity(path: string, file: string, flags: PerplexityFlags): Promise<void> {
  const text = await readText(file);
  await interruptible((signal) =>
    withModel(path, flags, signal, async (model) => {
      const result = await measure(model, text, signal);
      await print(flags.json ? `${toJson(result)}\n` : `perplexity ${result.perplexity.toFixed(4)}\n`);
      note(
        `${result.bitsPerByte.toFixed(4)} bits per byte over ${result.tokens} tokens and ${result.bytes} bytes, windows of ${result.window}`,
      );
    }),
  );
}

export interface Perplexity {
  /** exp of the mean negative log-probability per token. */
  readonly perplexity: number;
  readonly bitsPerByte: number;
  /** Tokens predicted. */
  readonly tokens: number;
  /** Bytes of text that these tokens stand for. */
  readonly bytes: number;
  /** Positions of a window. */
  readonly window: number;
}

/** @throws FrugalError `INVALID_ARGUMENT` when the text has no token to predict */
export async function measure(model: Model, text: string, signal: AbortSignal): Promise<Perplexity> {
  const plain = await model.tokenize(text, { addSpecial: false, signal });
  // Without a beginning-of-text token nothing predicts the first token, and it does not count.
  const bos = model.info.beginToken;
  const tokens = bos === undefined ? plain : Uint32Array.from([bos, ...plain]);
  const window = model.info.contextLength;
  const count = tokens.length - 1;
  if (count < 1 || window < 2) throw tooShort(count, window);
  const progress = createProgress();
  let total = 0;
  let done = 0;
  for (let start = 0; start < count; start += window - 1) {
    const part = tokens.slice(start, start + window);
    if (bos !== undefined) part[0] = bos;
    total += await negativeLog(model, part, signal, () => {
      done += 1;
      progress.update('measuring', done / count);
    });
  }
  progress.end();
  const bytes = Buffer.byteLength(text) - (bos === undefined ? firstBytes(model, plain) : 0);
  return {
    perplexity: Math.exp(total / count),
    bitsPerByte: total / Math.LN2 / bytes,
    tokens: count,
    bytes,
    window,
  };
}

/** The sum of -ln p of every token of a window but the first. */
async function negativeLog(
  model: Model,
  tokens: Uint32Array,
  signal: AbortSignal,
  onToken: () => void,
): Promise<number> {
  const pace = createPace();
  let sum = 0;
  let next = 1;
  // The last token is only predicted, never fed.
  for await (const row of model.score(tokens.subarray(0, -1), { signal })) {
    const token = tokens[next];
    if (token !== undefined) sum -= await logProbability(row, token, pace);
    next += 1;
    onToken();
  }
  return sum;
}

function firstBytes(model: Model, tokens: Uint32Array): number {
  return Buffer.byteLength(model.detokenize(tokens.subarray(0, 1)));
}

function tooShort(count: number, window: number): FrugalError {
  return new FrugalError(
    'INVALID_ARGUMENT',
    `There is nothing to predict: ${Math.max(0, count)} tokens after the first, windows of ${window}`,
    { cure: 'Give a longer text and a context of at least 2.', data: { tokens: count, window } },
  );
}
