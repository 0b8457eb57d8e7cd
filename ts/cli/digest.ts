import { createHash } from 'node:crypto';
import type { Command } from 'commander';
import type { Model } from '../engine/index.js';
import { mostLikely } from '../engine/probability.js';
import { FrugalError } from '../errors.js';
import { createPace } from '../yield.js';
import { rowBytes } from './npy.js';
import { numberParser, toJson } from './numbers.js';
import { createProgress } from './progress.js';
import {
  addLoadFlags,
  addPromptFlags,
  type LoadFlags,
  type PromptFlags,
  requirePrompt,
  withModel,
} from './shared.js';
import { interruptible, note, print } from './terminal.js';

interface DigestFlags extends LoadFlags, PromptFlags {
  readonly maxTokens: number;
  readonly json?: boolean;
}

export function addDigest(program: Command): void {
  const command = program
    .command('digest')
    .description(
      'Print the SHA-256 of the raw bits (float32, little-endian) of all logits: of each token of the prompt, then of ' +
        'greedily generated ones, fed one by one. It is the same on every machine and with every option below but ' +
        'those that ask for another computation: --kv-cache, --attention, and --ctx beyond the original context of ' +
        'models that have other rotation factors there.',
    )
    .argument('<model>', 'a GGUF file or its http(s) address');
  addPromptFlags(command).option(
    '-n, --max-tokens <count>',
    'tokens to generate after the prompt',
    numberParser({ min: 0, max: 2 ** 31 - 1, integer: true }),
    16,
  );
  addLoadFlags(command).option('--json', 'print one JSON object: digest, tokens, settings').action(digest);
}

async function digest(path: string, flags: DigestFlags): Promise<void> {
  const prompt = await requirePrompt(flags);
  await interruptible((signal) =>
    withModel(path, flags, signal, async (model) => {
      const result = await digestModel(model, prompt, flags.maxTokens, signal);
      const { backend, chunk, kvCache } = model.info;
      const { kind, isa, threads } = backend;
      const attention = flags.attention ?? null;
      const settings = { backend: kind, isa, threads, chunk, kvCache, attention };
      await print(flags.json ? `${toJson({ ...result, ...settings })}\n` : `${result.digest}\n`);
      const rows = result.promptTokens + result.tokens.length;
      note(
        `${rows} rows of ${model.info.vocabSize} logits: ${kind} ${isa}, ${threads} threads, chunk ${chunk}, ` +
          `cache ${kvCache}, attention ${attention ? toJson(attention) : 'dense'}`,
      );
    }),
  );
}

export interface Digest {
  readonly digest: string;
  readonly promptTokens: number;
  /** The greedily generated tokens; end tokens do not end them. */
  readonly tokens: readonly number[];
}

/** @throws FrugalError `CONTEXT_OVERFLOW` when the prompt and `count` tokens do not fit, before any work */
async function digestModel(model: Model, text: string, count: number, signal: AbortSignal): Promise<Digest> {
  const prompt = await model.tokenize(text, { signal });
  checkRoom(model, prompt.length + count);
  const hash = createHash('sha256');
  const pace = createPace();
  const progress = createProgress();
  await using session = model.session();
  let last: Float32Array = new Float32Array(0);
  const feed = async (tokens: ArrayLike<number>) => {
    for await (const row of session.logits(tokens, { signal })) {
      hash.update(rowBytes(row));
      last = row;
      if (pace.due()) await pace.rest();
      progress.update('computing', session.length / (prompt.length + count));
    }
  };
  await feed(prompt);
  const tokens: number[] = [];
  for (let i = 0; i < count; i++) {
    const token = mostLikely(last);
    tokens.push(token);
    await feed([token]);
  }
  progress.end();
  return { digest: hash.digest('hex'), promptTokens: prompt.length, tokens };
}

function checkRoom(model: Model, needed: number): void {
  const { contextLength } = model.info;
  if (needed <= contextLength) return;
  throw new FrugalError(
    'CONTEXT_OVERFLOW',
    `The prompt and -n need ${needed} positions, but the context holds ${contextLength}`,
    {
      cure: 'Shorten the prompt, lower -n, or raise --ctx.',
      data: { needed, contextLength },
    },
  );
}
