import { CommanderError } from 'commander';
import { FrugalError, isFrugalError } from '../errors.js';

/** Ctrl-C. */
export class Interrupted extends Error {
  override readonly name = 'Interrupted';
}

/** Writes to stdout and waits while the reader is slower than we are. */
export async function print(text: string): Promise<void> {
  if (process.stdout.write(text)) return;
  await new Promise<void>((resolve) => process.stdout.once('drain', resolve));
}

/** Writes one line to stderr. */
export function note(text: string): void {
  process.stderr.write(`${text}\n`);
}

/** A reader that closes its end (as `head` does) ends the program quietly, a full disk with an error. */
export function handleClosedPipes(): void {
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    process.exit(error.code === 'EPIPE' ? 0 : reportError(outputFailed(error), 'frugal'));
  });
  process.stderr.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error;
  });
}

function outputFailed(cause: Error): FrugalError {
  return new FrugalError('OUTPUT_WRITE', `standard output cannot be written: ${cause.message}`, {
    cure: 'Make room on the disk, or send the output elsewhere.',
    cause,
  });
}

/** The error in one line: code, what happened, what to do. */
function errorLine(error: unknown): string {
  if (isFrugalError(error)) {
    return `frugal: ${error.code}: ${sentence(error.message)} ${sentence(error.cure)}`;
  }
  if (error instanceof Interrupted) return 'frugal: interrupted';
  if (error instanceof CommanderError) return `frugal: USAGE: ${sentence(usageMessage(error))}`;
  return `frugal: INTERNAL: ${sentence(error instanceof Error ? error.message : String(error))} Run again with --debug and report what it prints.`;
}

function usageMessage({ code, message }: CommanderError): string {
  // What `frugal help` throws for the name of no command.
  return code === 'commander.help' ? 'there is no such command' : message.replace(/^error: /, '');
}

function sentence(text: string): string {
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

/** Reports an error on stderr and gives the exit code: 1 failed, 2 usage, 130 interrupted. */
export function reportError(error: unknown, command: string): number {
  const line = errorLine(error).replaceAll(/\s+/g, ' ');
  const isUsage = error instanceof CommanderError;
  note(isUsage ? `${line} See ${command} --help.` : line);
  if (process.argv.includes('--debug') && error instanceof Error) note(error.stack ?? String(error));
  if (error instanceof Interrupted) return 130;
  return isUsage ? 2 : 1;
}

export function usageError(message: string): CommanderError {
  return new CommanderError(2, 'frugal.usage', message);
}

/** Runs `body` with a signal that Ctrl-C aborts; a second Ctrl-C ends the program. */
export async function interruptible<T>(body: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController();
  const interrupt = () => controller.abort(new Interrupted('interrupted'));
  process.once('SIGINT', interrupt);
  try {
    return await body(controller.signal);
  } finally {
    process.removeListener('SIGINT', interrupt);
  }
}
