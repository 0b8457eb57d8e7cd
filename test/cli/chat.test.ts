import { spawn, spawnSync } from 'node:child_process';
import { resolve } from 'node:path';
import { describe, expect, it } from 'vitest';
import { temporaryFolder, writeFile } from '../quantize/files.js';

const ROOT = resolve(import.meta.dirname, '../..');
const folder = temporaryFolder();
const { path: template } = writeFile(
  folder,
  new TextEncoder().encode('{{ messages[-1].content }}'),
  'chat.jinja',
);
// With so small a window the most likely text goes round in circles for ever.
const ENDLESS = ['--temp', '0', '--window', '16', '--sinks', '8'];
const command = (...flags: string[]) => [
  ...[process.execPath, 'dist/cli/main.js', 'chat', 'models/stories-moe-q8_0.gguf', '--template', template],
  ...[...ENDLESS, ...flags],
];
const inTerminal = (parts: readonly string[]) => [
  ...['script', '-qec', parts.map((part) => `'${part}'`).join(' '), '/dev/null'],
];

// What gives a program a terminal: of util-linux, as others of this name have other options.
const hasScript =
  spawnSync('script', ['--version'], { encoding: 'utf8' }).stdout?.includes('util-linux') === true;
if (!hasScript) console.log('not run, for want of script (util-linux): frugal chat in a terminal');

interface Ended {
  readonly code: number | null;
  readonly output: string;
}

/**
 * Runs a chat to its end.
 * @param keys what to type once the output since the keys before holds a text; a signal in place of keys is sent again
 * and again
 */
function converse(parts: readonly string[], keys: ReadonlyArray<readonly [string, string]>): Promise<Ended> {
  const [program = '', ...args] = parts;
  const child = spawn(program, args, { cwd: ROOT });
  const waiting = [...keys];
  let output = '';
  let seen = 0;
  let timer: ReturnType<typeof setInterval> | undefined;
  const take = (text: string) => {
    output += text;
    for (;;) {
      const [until, typed] = waiting[0] ?? [];
      const at = until === undefined ? -1 : output.indexOf(until, seen);
      if (until === undefined || typed === undefined || at < 0) return;
      seen = at + until.length;
      waiting.shift();
      if (typed === 'SIGINT') timer = setInterval(() => child.kill('SIGINT'), 100);
      else child.stdin.write(typed);
    }
  };
  child.stdout.setEncoding('utf8').on('data', take);
  child.stderr.setEncoding('utf8').on('data', take);
  take('');
  return new Promise((done, fail) => {
    child.on('error', fail);
    child.on('close', (code) => {
      clearInterval(timer);
      done({ code, output });
    });
  });
}

describe.runIf(hasScript)('frugal chat in a terminal', () => {
  it.each([
    ['Ctrl-C', '\x03'],
    ['Ctrl-D', '\x04'],
  ])('%s at the prompt leaves, on a line of its own', async (_, key) => {
    const { code, output } = await converse(inTerminal(command()), [['> ', key]]);
    expect(output).toMatch(/> [^\n]*\n$/);
    expect(output).not.toContain('frugal:');
    expect(code).toBe(0);
  });

  it('Ctrl-C stops an answer, and leaves at the prompt after it', async () => {
    const { code, output } = await converse(inTerminal(command()), [
      ['> ', 'Once upon a time\r'],
      ['there', '\x03'],
      ['(stopped)', ''],
      ['> ', '\x03'],
    ]);
    expect(output).toContain('(stopped)');
    expect(output).not.toMatch(/frugal:|\n {4}at /);
    expect(code).toBe(0);
  });

  it('Ctrl-D during an answer ends the program after it', async () => {
    const { code, output } = await converse(inTerminal(command('--max-tokens', '3000')), [
      ['> ', 'Once upon a time\r'],
      ['there', '\x04'],
    ]);
    expect(output).toMatch(/tokens\/s[^\n]*\r\n$/);
    expect(code).toBe(0);
  });
});

it('frugal chat ends with 130 when a signal interrupts it while it waits for input', async () => {
  const { code, output } = await converse(command('--max-tokens', '5'), [
    ['', 'Once upon a time\n'],
    ['5 tokens', 'SIGINT'],
  ]);
  expect(code).toBe(130);
  expect(output).toMatch(/frugal: interrupted\n$/);
});
