// Other programs: run to their end within a limit, and asked for JSON.

import { spawn } from 'node:child_process';
import { SetupError } from '../../scripts/lib/steps.mjs';

/**
 * Runs a program to its end.
 * @param {{ limitMs?: number, cwd?: string, env?: object, onMessage?: (message: object) => void }} [options] after
 *   `limitMs` it is ended; `onMessage` opens a channel to a program of Node and takes what it sends
 * @returns what it printed
 * @throws SetupError with its last word, or that it was stopped
 */
export function run(command, args, { limitMs = 240_000, onMessage, ...options } = {}) {
  return new Promise((done, fail) => {
    const stdio = ['ignore', 'pipe', 'pipe', ...(onMessage ? ['ipc'] : [])];
    const child = spawn(command, args.map(String), { stdio, ...options });
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      child.kill('SIGKILL');
    }, limitMs);
    let [stdout, stderr] = ['', ''];
    child.stdout.on('data', (text) => {
      stdout += text;
    });
    child.stderr.on('data', (text) => {
      stderr += text;
    });
    if (onMessage) child.on('message', onMessage);
    child.on('error', (error) => fail(new SetupError(error.message)));
    child.on('close', (code, signal) => {
      clearTimeout(timer);
      if (code === 0) return done(stdout);
      if (late) return fail(stopped(limitMs));
      const last = stderr.trim().split('\n').at(-1);
      fail(new SetupError(last || (signal ? `ended by ${signal}` : `exit code ${code}`)));
    });
  });
}

/** Waits for something no longer than so; what it was must be ended by the caller. */
export function within(promise, limitMs) {
  let timer;
  const late = new Promise((_, fail) => {
    timer = setTimeout(() => fail(stopped(limitMs)), limitMs);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

const stopped = (limitMs) => new SetupError(`stopped after ${(limitMs / 1000).toFixed(0)} s`);

/** The object in the last line that a program printed. */
export const lastJson = (text) => JSON.parse(text.trim().split('\n').at(-1));
