// npm start [-- [PROMPT] [OPTIONS of `frugal run`]]: sets up, builds, and tells a story.

import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { ensureWasm, setUp } from './lib/setup.mjs';
import { ROOT, SetupError, say } from './lib/steps.mjs';

/** The model that comes with the project. */
const MODEL = join(ROOT, 'models', 'stories-moe-q8_0.gguf');
const DEFAULT_PROMPT = 'Once upon a time';
const STORY_TOKENS = '256';

/** Words before the first option are the prompt; the rest goes to the program as it is. */
function runArguments(args) {
  const first = args.findIndex((arg) => arg.startsWith('-'));
  const words = first === -1 ? args : args.slice(0, first);
  const options = first === -1 ? [] : args.slice(first);
  const has = (...names) => options.some((option) => names.includes(option.split('=')[0]));
  return [
    ...(has('-p', '--prompt', '-f', '--file')
      ? []
      : ['-p', words.length === 0 ? DEFAULT_PROMPT : words.join(' ')]),
    ...(has('-n', '--max-tokens') ? [] : ['-n', STORY_TOKENS]),
    ...options,
  ];
}

/** Runs the program on this terminal; resolves to its exit code. */
function runProgram(args) {
  const child = spawn(process.execPath, [join(ROOT, 'dist', 'cli', 'main.js'), ...args], {
    stdio: 'inherit',
  });
  // The terminal sends its interrupt to both; this process waits for the program to close properly.
  process.removeAllListeners('SIGINT').on('SIGINT', () => {});
  process.removeAllListeners('SIGTERM').on('SIGTERM', () => child.kill('SIGTERM'));
  return new Promise((done, fail) => {
    child.on('error', fail);
    child.on('close', (code, signal) => done(code ?? (signal === 'SIGINT' ? 130 : 1)));
  });
}

try {
  const rustc = await setUp();
  // Minutes of building that only this choice needs.
  if (process.argv.includes('wasm')) await ensureWasm(rustc);
  // A story is read from its first word, so the prompt is shown too.
  process.exitCode = await runProgram(['run', MODEL, '--echo', ...runArguments(process.argv.slice(2))]);
} catch (error) {
  if (!(error instanceof SetupError)) throw error;
  say(`frugal: ${error.message}`);
  process.exitCode = 1;
}
