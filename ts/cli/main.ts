#!/usr/bin/env node
import { Command, CommanderError } from 'commander';
import { VERSION } from '../version.js';
import { addBench } from './bench.js';
import { addChat } from './chat.js';
import { addDigest } from './digest.js';
import { addInspect } from './inspect.js';
import { addPerplexity } from './perplexity.js';
import { addQuantize } from './quantize.js';
import { addReplay } from './replay.js';
import { addRun } from './run.js';
import { addScore } from './score.js';
import { handleClosedPipes, reportError } from './terminal.js';
import { addTokenize } from './tokenize.js';

function createProgram(version: string): Command {
  const program = new Command('frugal')
    .description(
      'Run open-weight language models. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.',
    )
    .version(version)
    // What is wrong with the arguments is reported by `reportError`, in one line.
    .exitOverride()
    .configureOutput({ outputError: () => {} });
  for (const add of [
    ...[addRun, addChat, addInspect, addTokenize, addPerplexity, addScore, addDigest],
    addQuantize,
    addBench,
    addReplay,
  ])
    add(program);
  for (const command of program.commands) command.option('--debug', 'print stack traces of errors');
  return program;
}

/** `frugal run` when the arguments name a command, for pointing at its help. */
function commandName(program: Command): string {
  const name = process.argv[2];
  return program.commands.some((command) => command.name() === name) ? `frugal ${name}` : 'frugal';
}

async function main(): Promise<void> {
  handleClosedPipes();
  const program = createProgram(VERSION);
  try {
    if (process.argv.length <= 2) throw new CommanderError(2, 'frugal.usage', 'give a command');
    await program.parseAsync();
  } catch (error) {
    // Help and version, when asked for, come as errors with exit code 0.
    if (error instanceof CommanderError && error.exitCode === 0) return;
    process.exitCode = reportError(error, commandName(program));
  }
}

await main();
