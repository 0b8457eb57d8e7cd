import { spawn } from 'node:child_process';
import { resolve } from 'node:path';

export interface ChildOptions {
  readonly execArgv?: readonly string[];
  /** The child is killed after this time, which fails the test. */
  readonly limitMs: number;
}

/**
 * Runs one of the programs beside this file in a process of its own, so that a crash fails a test instead of
 * ending the runner. Its last line on stdout is JSON: the result. Lines before it say what it is at.
 * @throws Error with what the child was at when it crashed, hung or failed
 */
export function runChild<T>(name: string, args: unknown, options: ChildOptions): Promise<T> {
  const script = resolve(import.meta.dirname, 'children', `${name}.mjs`);
  const child = spawn(process.execPath, [...(options.execArgv ?? []), script, JSON.stringify(args)]);
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  const timer = setTimeout(() => child.kill('SIGKILL'), options.limitMs);
  return new Promise((done, fail) => {
    child.on('error', fail);
    child.on('close', (code, signal) => {
      clearTimeout(timer);
      const last = stdout.trimEnd().split('\n').at(-1) ?? '';
      if (code === 0) done(JSON.parse(last) as T);
      else fail(new Error(`${name} ended with ${signal ?? code} at: ${last}\n${stderr.slice(-2000)}`));
    });
  });
}
