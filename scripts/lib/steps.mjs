// Runs commands and shows what is going on: a live line on a terminal,
// a line every ten seconds elsewhere. Everything goes to stderr, so stdout stays free for results.

import { spawn } from 'node:child_process';
import { performance } from 'node:perf_hooks';
import { fileURLToPath } from 'node:url';

export const ROOT = fileURLToPath(new URL('../..', import.meta.url));

const LIVE = process.stderr.isTTY === true && process.env.CI === undefined;
const QUIET_SECONDS = 10;
const running = new Set();

/** Thrown when a step that the rest depends on has failed; the message is for the user. */
export class SetupError extends Error {}

export function say(text) {
  process.stderr.write(`${text}\n`);
}

/** Ends a child together with its own children. */
function kill(child, signal) {
  try {
    if (process.platform === 'win32') child.kill(signal);
    else process.kill(-child.pid, signal);
  } catch {
    // It has ended already.
  }
}

for (const [signal, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
]) {
  process.on(signal, () => {
    for (const child of running) kill(child, signal);
    process.exit(code);
  });
}

/** What each step that is under way has to say, in the order in which they began. */
const shown = new Set();

function drawLive() {
  const text = [...shown].map((describe) => describe()).join(' ');
  process.stderr.write(`\r\x1b[2K${text.slice(0, (process.stderr.columns ?? 80) - 1)}`);
}

/** Shows that `title` is under way until the returned function is called. */
function progress(title, lastLine) {
  const started = performance.now();
  const seconds = () => (performance.now() - started) / 1000;
  const describe = () => {
    const hint = lastLine();
    return `  ${title} ... ${Math.floor(seconds())} s${hint === '' ? '' : ` | ${hint}`}`;
  };
  shown.add(describe);
  if (LIVE) drawLive();
  else say(`  ${title}`);
  const show = LIVE ? drawLive : () => say(describe());
  const timer = setInterval(show, LIVE ? 1000 : QUIET_SECONDS * 1000);
  return (mark) => {
    clearInterval(timer);
    shown.delete(describe);
    if (LIVE) process.stderr.write('\r\x1b[2K');
    say(`${mark} ${title} (${seconds().toFixed(1)} s)`);
  };
}

/** Calls `onLine` for every complete line of a stream, and for what is left at its end. */
function readLines(stream, onLine) {
  let rest = '';
  stream.setEncoding('utf8');
  stream.on('data', (chunk) => {
    const lines = (rest + chunk).split('\n');
    rest = lines.pop() ?? '';
    for (const line of lines) onLine(line.replace(/\r$/, ''));
  });
  stream.on('end', () => {
    if (rest !== '') onLine(rest);
  });
}

/**
 * Runs one command as a step, without stdin.
 *
 * @param {string} title what the user sees
 * @param {string[]} command program and arguments
 * @param {{ env?: Record<string, string>, limit?: number, optional?: boolean }} [options] `limit` in
 *   seconds, after which the command is ended; `optional`: a failure is expected to happen, so its
 *   output is kept back
 * @returns {Promise<{ ok: boolean, lines: string[], reason: string }>} `reason` says why `ok` is false
 */
export function step(title, command, options = {}) {
  const [program, ...args] = command;
  const lines = [];
  const done = progress(title, () => lines.at(-1)?.trim() ?? '');
  return new Promise((resolve) => {
    const child = spawn(program, args, {
      cwd: ROOT,
      env: { ...process.env, ...options.env },
      stdio: ['ignore', 'pipe', 'pipe'],
      detached: process.platform !== 'win32',
    });
    running.add(child);
    let reason = '';
    const timer =
      options.limit === undefined
        ? undefined
        : setTimeout(() => {
            reason = `ended after its limit of ${options.limit} s`;
            kill(child, 'SIGKILL');
          }, options.limit * 1000);
    const finish = (ok, why) => {
      clearTimeout(timer);
      running.delete(child);
      done(ok ? '+' : options.optional ? '-' : 'x');
      if (!ok && !options.optional) say(lines.map((line) => `    ${line}`).join('\n'));
      resolve({ ok, lines, reason: reason || why });
    };
    readLines(child.stdout, (line) => lines.push(line));
    readLines(child.stderr, (line) => lines.push(line));
    child.on('error', (error) => finish(false, `${program}: ${error.message}`));
    child.on('close', (code, signal) => {
      if (child.pid !== undefined) finish(code === 0, signal ? `ended by ${signal}` : `exit code ${code}`);
    });
  });
}

/** Like `step`, but throws a SetupError when the command fails. */
export async function need(title, command, options = {}) {
  const result = await step(title, command, options);
  if (!result.ok) throw new SetupError(`${title} failed: ${result.reason}`);
  return result;
}
