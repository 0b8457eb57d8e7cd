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
        'the beginning-of-text token, or with the last token of the window before, and every token of the text counts. ' +
        'Where the text names a token that ends texts, such as <|endoftext|>, a document ends: each is measured by itself.',
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

/** A stretch of text that is predicted by itself. */
interface Document {
  readonly text: string;
  /** The token that ends it, predicted too; undefined at the end of the file. */
  readonly end: number | undefined;
}

/** @throws FrugalError `INVALID_ARGUMENT` when the text has no token to predict */
export async function measure(model: Model, text: string, signal: AbortSignal): Promise<Perplexity> {
  const window = model.info.contextLength;
  const bos = model.info.beginToken;
  const progress = createProgress();
  let total = 0;
  let count = 0;
  let bytes = 0;
  let read = 0;
  let previous = bos;
  for (const { text: part, end } of documents(model, text)) {
    const plain = await model.tokenize(part, { addSpecial: false, signal });
    // Nothing predicts the first token of a text without a token before it, so it does not count.
    const first = bos ?? previous;
    const tokens = Uint32Array.from([
      ...(first === undefined ? [] : [first]),
      ...plain,
      ...(end === undefined ? [] : [end]),
    ]);
    bytes += Buffer.byteLength(part) - (first === undefined ? firstBytes(model, plain) : 0);
    if (window < 2) throw tooShort(tokens.length - 1, window);
    for (let start = 0; start < tokens.length - 1; start += window - 1) {
      const piece = tokens.slice(start, start + window);
      if (first !== undefined) piece[0] = first;
      total += await negativeLog(model, piece, signal, (done) => {
        progress.update('measuring', (read + ((start + done) / tokens.length) * part.length) / text.length);
      });
    }
    count += Math.max(0, tokens.length - 1);
    read += part.length;
    previous = end ?? previous;
  }
  progress.end();
  if (count < 1) throw tooShort(count, window);
  return {
    perplexity: Math.exp(total / count),
    bitsPerByte: total / Math.LN2 / bytes,
    tokens: count,
    bytes,
    window,
  };
}

/**
 * The text cut where it names an end token, such as `<|endoftext|>`. White space around such a name lays out the file
 * and is no part of a document.
 */
function documents(model: Model, text: string): readonly Document[] {
  let parts: readonly Document[] = [{ text, end: undefined }];
  for (const id of model.info.endTokens) {
    const name = model.detokenize([id], { special: true });
    if (name === '') continue;
    parts = parts.flatMap((part) => {
      const pieces = part.text.split(name);
      return pieces.map((piece, i) => ({ text: piece, end: i < pieces.length - 1 ? id : part.end }));
    });
  }
  if (parts.length === 1) return parts;
  return parts.map(({ text, end }) => ({ text: text.trim(), end })).filter((part) => part.text !== '');
}

/** The sum of -ln p of every token of a window but the first. */
async function negativeLog(
  model: Model,
  tokens: Uint32Array,
  signal: AbortSignal,
  onToken: (done: number) => void,
): Promise<number> {
  const pace = createPace();
  let sum = 0;
  let next = 1;
  // The last token is only predicted, never fed.
  for await (const row of model.score(tokens.subarray(0, -1), { signal })) {
    const token = tokens[next];
    if (token !== undefined) sum -= await logProbability(row, token, pace);
    onToken(next);
    next += 1;
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
