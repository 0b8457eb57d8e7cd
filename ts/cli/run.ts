import type { Command } from 'commander';
import { formatEnergy } from '../energy/format.js';
import type { Completion, Generation } from '../engine/index.js';
import { MAX_TOKENS_RANGE } from '../engine/options.js';
import type { ThreadChoice } from '../engine/threads.js';
import { refuseInputs, writeOutput } from '../quantize/output-file.js';
import { numberParser, peakMemory, toJson } from './numbers.js';
import {
  addContextFlags,
  addLoadFlags,
  addPromptFlags,
  addSamplingFlags,
  type ContextFlags,
  contextOptions,
  type LoadFlags,
  type PromptFlags,
  readPrompt,
  type SamplingFlags,
  samplingOptions,
  withModel,
} from './shared.js';
import { interruptible, note, print } from './terminal.js';

interface RunFlags extends LoadFlags, SamplingFlags, ContextFlags, PromptFlags {
  readonly maxTokens: number;
  readonly special?: boolean;
  readonly echo?: boolean;
  readonly json?: boolean;
  readonly provenance?: string;
}

export function addRun(program: Command): void {
  const command = program
    .command('run')
    .description('Continue a text. Prints the continuation on stdout, everything else on stderr.')
    .argument('<model>', 'a GGUF file or its http(s) address');
  addPromptFlags(command).option(
    '-n, --max-tokens <count>',
    'tokens to generate',
    numberParser(MAX_TOKENS_RANGE),
    128,
  );
  addSamplingFlags(command);
  addContextFlags(command);
  addLoadFlags(command)
    .option('--special', 'read the names of special tokens in the text as these tokens')
    .option('--echo', 'print the prompt before its continuation')
    .option('--json', 'print one JSON object: text, tokens, finishReason, seed, usage')
    .option('--provenance <file>', 'write a record there that frugal replay can check')
    .action(run);
}

async function run(path: string, flags: RunFlags): Promise<void> {
  const context = contextOptions(flags);
  const inputs = [path, flags.file ?? '-'];
  if (flags.provenance !== undefined) await refuseInputs(flags.provenance, inputs);
  const prompt = (await readPrompt(flags)) ?? '';
  await interruptible((signal) =>
    withModel(path, { ...flags, provenance: flags.provenance !== undefined }, signal, async (model) => {
      const generation = model.generate(prompt, {
        ...samplingOptions(flags),
        ...context,
        maxTokens: flags.maxTokens,
        parseSpecial: flags.special === true,
        signal,
      });
      if (flags.echo && !flags.json) await print(prompt);
      const completion = await follow(generation, flags.json === true);
      if (flags.provenance !== undefined) await writeRecord(flags.provenance, inputs, completion);
      if (flags.json) await print(`${toJson(completion)}\n`);
      note(summary(completion, model.info.threads));
    }),
  );
}

async function writeRecord(
  path: string,
  inputs: readonly string[],
  { provenance }: Completion,
): Promise<void> {
  const record = new TextEncoder().encode(`${JSON.stringify(provenance, null, 2)}\n`);
  await writeOutput(path, inputs, (output) => output.write(record));
}

async function follow(generation: Generation, quiet: boolean): Promise<Completion> {
  let last = '\n';
  try {
    for await (const piece of generation) {
      if (quiet) continue;
      await print(piece);
      last = piece;
    }
  } finally {
    // On a terminal, what follows must not continue the text's last line; in a file, the text stays as it is.
    if (process.stdout.isTTY && !last.endsWith('\n')) await print('\n');
  }
  return generation.result;
}

/**
 * The one line that closes a run.
 * @param choice says why so many threads decoded, where nobody had asked for a number
 */
export function summary({ finishReason, seed, usage }: Completion, choice?: ThreadChoice): string {
  const why = choice === undefined || choice.reason === 'given' ? '' : ` (${choice.reason})`;
  const parts = [
    `${usage.completionTokens} tokens (${finishReason})`,
    `first token after ${usage.timeToFirstTokenMs.toFixed(0)} ms`,
    `prefill ${usage.prefillTokensPerSecond.toFixed(1)} tokens/s`,
    `decode ${usage.decodeTokensPerSecond.toFixed(1)} tokens/s`,
    `${usage.threads} thread${usage.threads === 1 ? '' : 's'}${why}`,
    `peak memory ${peakMemory()}`,
    ...(usage.energy ? [formatEnergy(usage.energy, usage.completionTokens)] : []),
    `seed ${seed}`,
  ];
  return parts.join(', ');
}
