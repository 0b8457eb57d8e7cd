import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { resolve } from 'node:path';

const ROOT = resolve(import.meta.dirname, '../..');
const MAIN = resolve(ROOT, 'dist/cli/main.js');

export const SHARED = resolve(ROOT, process.env.FRUGAL_SHARED ?? '../shared');

/** Whether a file of the reference data is there; says what is not run when it is not. */
export function hasShared(path: string): boolean {
  if (existsSync(resolve(SHARED, path))) return true;
  console.log(`not run, for want of ${resolve(SHARED, path)} (set FRUGAL_SHARED): the program on ${path}`);
  return false;
}

export interface Outcome {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunOptions {
  readonly input?: string;
  /** Called with all of stdout so far; `close` stops reading it, as `head` does. */
  readonly onOutput?: (stdout: string, kill: (signal: NodeJS.Signals) => void, close: () => void) => void;
}

/** Runs the built program to its end. */
export function frugal(args: readonly string[], options: RunOptions = {}): Promise<Outcome> {
  const child = spawn(process.execPath, [MAIN, ...args], { cwd: ROOT });
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
    const kill = (signal: NodeJS.Signals) => child.kill(signal);
    options.onOutput?.(stdout, kill, () => child.stdout.destroy());
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  child.stdin.end(options.input ?? '');
  return new Promise((done, fail) => {
    child.on('error', fail);
    child.on('close', (code) => done({ code, stdout, stderr }));
  });
}
