import { createInterface } from 'node:readline';
import type { Command } from 'commander';
import type { Chat } from '../engine/index.js';
import { MAX_TOKENS_RANGE } from '../engine/options.js';
import { numberParser } from './numbers.js';
import { summary } from './run.js';
import {
  addContextFlags,
  addLoadFlags,
  addSamplingFlags,
  type ContextFlags,
  contextOptions,
  type LoadFlags,
  readText,
  type SamplingFlags,
  samplingOptions,
  withModel,
} from './shared.js';
import { Interrupted, note, print } from './terminal.js';

interface ChatFlags extends LoadFlags, SamplingFlags, ContextFlags {
  readonly maxTokens?: number;
  readonly system?: string;
  readonly template?: string;
}

export function addChat(program: Command): void {
  const command = program
    .command('chat')
    .description(
      'Talk with a model. Each line is a message, typed or piped in. Ctrl-C stops the answer, at the prompt it ends ' +
        'the program, as does Ctrl-D: with the exit code 0, or 130 where it comes as a signal and not from a terminal.',
    )
    .argument('<model>', 'a GGUF file or its http(s) address')
    .option('--system <text>', 'what the model is told first')
    .option('--template <path>', "a file with a Jinja chat template, in place of the model's own")
    .option('-n, --max-tokens <count>', 'the most tokens of one answer', numberParser(MAX_TOKENS_RANGE));
  addSamplingFlags(command);
  addContextFlags(command);
  addLoadFlags(command).action(talk);
}

async function talk(path: string, flags: ChatFlags): Promise<void> {
  const context = contextOptions(flags);
  const chatTemplate = flags.template === undefined ? undefined : await readText(flags.template);
  const loading = new AbortController();
  let onInterrupt = () => loading.abort(new Interrupted('interrupted'));
  const interrupt = () => onInterrupt();
  process.on('SIGINT', interrupt);
  try {
    const settings = { ...flags, ...(chatTemplate === undefined ? {} : { chatTemplate }) };
    await withModel(path, settings, loading.signal, async (model) => {
      const chat = model.chat({
        ...samplingOptions(flags),
        ...context,
        ...(flags.system === undefined ? {} : { system: flags.system }),
        ...(flags.maxTokens === undefined ? {} : { maxTokens: flags.maxTokens }),
      });
      await converse(chat, (handler) => {
        onInterrupt = handler;
      });
    });
  } finally {
    process.removeListener('SIGINT', interrupt);
  }
}

/** Reads messages and prints answers until the input ends or Ctrl-C comes at the prompt. */
async function converse(chat: Chat, setInterrupt: (handler: () => void) => void): Promise<void> {
  const terminal = process.stdin.isTTY === true && process.stderr.isTTY;
  // readline echoes and edits on stderr, so that stdout holds answers only.
  const lines = createInterface({ input: process.stdin, output: process.stderr, terminal, prompt: '> ' });
  let answering: AbortController | undefined;
  let isOpen = true;
  let interrupted: Interrupted | undefined;
  const stop = (): boolean => {
    answering?.abort(new Interrupted('interrupted'));
    if (answering === undefined) lines.close();
    return answering !== undefined;
  };
  lines.on('close', () => {
    isOpen = false;
  });
  // A terminal in raw mode gives Ctrl-C to readline, which leaves as Ctrl-D does; otherwise it comes as a signal.
  lines.on('SIGINT', stop);
  setInterrupt(() => {
    if (!stop()) interrupted = new Interrupted('interrupted');
  });
  let isPrompted = false;
  const prompt = () => {
    // To prompt would open again what Ctrl-D has closed meanwhile.
    isPrompted = terminal && isOpen;
    if (isPrompted) lines.prompt();
  };
  prompt();
  try {
    for await (const line of lines) {
      if (line.trim() !== '') {
        answering = new AbortController();
        await answer(chat, line, answering.signal);
        answering = undefined;
      }
      prompt();
    }
    if (interrupted) throw interrupted;
    // The shell's prompt belongs on a line of its own.
    if (isPrompted) note('');
  } finally {
    lines.close();
  }
}

async function answer(chat: Chat, message: string, signal: AbortSignal): Promise<void> {
  const generation = chat.send(message, { signal });
  try {
    for await (const piece of generation) await print(piece);
    await print('\n');
    note(summary(await generation.result));
  } catch (error) {
    if (!(error instanceof Interrupted)) throw error;
    await print('\n');
    note('(stopped)');
  }
}
