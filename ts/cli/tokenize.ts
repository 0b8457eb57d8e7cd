import type { Command } from 'commander';
import { createTokenizer } from '../tokenizer/index.js';
import {
  addHeaderFlag,
  addPromptFlags,
  type LoadFlags,
  openModel,
  type PromptFlags,
  requirePrompt,
} from './shared.js';
import { interruptible, note, print } from './terminal.js';

interface TokenizeFlags extends PromptFlags, Pick<LoadFlags, 'header'> {
  /** From --no-bos. */
  readonly bos: boolean;
  readonly special?: boolean;
  readonly json?: boolean;
}

export function addTokenize(program: Command): void {
  const command = program
    .command('tokenize')
    .description('Print the token ids of a text. Needs only the vocabulary of the file.')
    .argument('<model>', 'a GGUF file or its http(s) address');
  addHeaderFlag(addPromptFlags(command))
    .option('--no-bos', 'leave out the tokens that the model adds at the ends')
    .option('--special', 'read the names of special tokens in the text as these tokens')
    .option('--json', 'print {"tokens": [...]}')
    .action(tokenize);
}

async function tokenize(path: string, flags: TokenizeFlags): Promise<void> {
  const text = await requirePrompt(flags);
  await interruptible(async (signal) => {
    const gguf = await openModel(path, flags, signal);
    const tokenizer = await createTokenizer(gguf.metadata, { signal }).finally(() => gguf.close());
    try {
      const tokens = await tokenizer.encode(text, {
        addSpecial: flags.bos,
        parseSpecial: flags.special === true,
        signal,
      });
      if (flags.json) {
        await print(`${JSON.stringify({ tokens: Array.from(tokens) })}\n`);
        return;
      }
      for (const token of tokens) await print(`${token}\t${JSON.stringify(tokenizer.tokenText(token))}\n`);
      note(`${tokens.length} tokens`);
    } finally {
      await tokenizer.dispose();
    }
  });
}
