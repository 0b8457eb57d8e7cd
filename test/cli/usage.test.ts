import { spawnSync } from 'node:child_process';
import { closeSync, existsSync, openSync } from 'node:fs';
import { link, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type Answer, answerRange, withServer } from '../gguf/server.js';
import { tinyLlama } from '../gguf/tiny-llama.js';
import { frugal } from './program.js';

const ROOT = resolve(import.meta.dirname, '../..');
let folder = '';
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'frugal-usage-'));
});
afterAll(() => rm(folder, { recursive: true }));

const COMMANDS = ['run', 'chat', 'inspect', 'tokenize', 'perplexity', 'score', 'digest', 'bench'];

describe('help', () => {
  it('lists every command on stdout', async () => {
    const { code, stdout, stderr } = await frugal(['--help']);
    expect(code).toBe(0);
    expect(stderr).toBe('');
    for (const command of COMMANDS) expect(stdout).toContain(`\n  ${command} `);
  });

  it.each(COMMANDS)('is there for %s', async (command) => {
    const { code, stdout } = await frugal([command, '--help']);
    expect(code).toBe(0);
    expect(stdout).toContain(`Usage: frugal ${command}`);
    expect(stdout).toContain('--debug');
  });

  it('names the options that change a digest', async () => {
    const { stdout } = await frugal(['digest', '--help']);
    expect(stdout.replace(/\s+/g, ' ')).toMatch(
      /the same on every machine and with every option below but .*--kv-cache, --attention, and --ctx beyond/,
    );
  });

  it('gives the version', async () => {
    expect(await frugal(['--version'])).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/^\d+\.\d+\.\d+\n$/),
    });
  });
});

describe('wrong usage: exit code 2, one line on stderr, nothing on stdout', () => {
  it.each([
    [[], 'give a command'],
    [['nope'], "unknown command 'nope'"],
    [['run'], "missing required argument 'model'"],
    [['run', 'm', '--tmp', '1'], "unknown option '--tmp'"],
    [['run', 'm', 'n'], 'too many arguments'],
    [['run', 'm', '-p', 'a', '-f', 'b'], 'give either -p or -f, not both'],
    [['run', 'm', '-n', '-1'], "option '-n, --max-tokens <count>' argument '-1' is invalid"],
    [['run', 'm', '-n', '1.5'], 'It must be an integer of at least 0'],
    [['run', 'm', '--temp', 'NaN'], 'It must be a number from 0 to 100'],
    [['run', 'm', '--temp', ''], "option '--temp <number>'"],
    [['run', 'm', '--top-k', '-3'], "option '--top-k <count>'"],
    [['run', 'm', '--top-p', '0'], "option '--top-p <share>'"],
    [['run', 'm', '--min-p', '1'], "option '--min-p <share>'"],
    [['run', 'm', '--repeat-penalty', '0'], "option '--repeat-penalty <number>'"],
    [['run', 'm', '--seed', '-1'], "option '--seed <number>'"],
    [['run', 'm', '--seed', '18446744073709551616'], 'It must be an integer from 0 to 2^64 - 1'],
    [['run', 'm', '--stop', ''], "option '--stop <text>'"],
    [['run', 'm', '--sinks', '4'], '--sinks goes with --window'],
    [['run', 'm', '--header', 'Authorization'], '--header takes a name, a colon and a value'],
    [['run', 'm', '--kv-cache', 'q4_0'], 'Allowed choices are f16, q8_0'],
    [['inspect', 'm', '--kv-cache', 'F16'], 'Allowed choices are f16, q8_0'],
    [['chat', 'm', '--window', '15'], 'It must be an integer from 16 to 2147483647'],
    [['bench', 'm', '-t', 'auto'], '-t takes numbers of threads from 1 to 1024'],
    [['bench', 'm', '--efficiency', 'fastest'], "unknown option '--efficiency'"],
    [['replay', 'r', '--ctx', '5'], "unknown option '--ctx'"],
    [['bench', 'm', '-t', '1,zero'], '-t takes numbers of threads from 1 to 1024'],
    [['bench', 'm', '-p', '0', '-n', '0'], 'nothing to measure'],
    [['run', 'm', '--watts', ',5'], 'It must be two numbers of watts'],
    [['run', 'm', '--expert-memory', '0.5'], 'It must be a number of bytes from 1 to 9007199254740991'],
    [['run', 'm', '--expert-memory', '9007199254740992'], 'of bytes from 1 to 9007199254740991'],
    [['inspect', 'm', '--attention', 'a.png', '-p', 'x'], '--attention draws SVG, not .png'],
    [['run', 'm', '--threads', '0'], "option '-t, --threads <count>'"],
    [['run', 'm', '--threads', 'two'], 'It must be an integer from 1 to 1024'],
    [['run', 'm', '--isa', 'sse'], 'Allowed choices are scalar, avx2, avx-vnni, avx512, amx, neon'],
    [['run', 'm', '--backend', 'gpu'], 'Allowed choices are native, wasm'],
    [['run', 'm', '--chunk', '0'], "option '--chunk <tokens>'"],
    [['run', 'm', '--ctx', '1e99'], "option '--ctx <tokens>'"],
    [['inspect', 'm', '--ctx', '16777217'], 'It must be an integer from 1 to 16777216'],
    [['tokenize', 'm'], 'give a text with -p or -f'],
    [['digest', 'm'], 'give a text with -p or -f'],
    [['score', 'm'], "required option '--tokens <path>' not specified"],
    [['perplexity', 'm'], "missing required argument 'file'"],
  ])('%j: %s', async (args, message) => {
    const { code, stdout, stderr } = await frugal(args);
    expect(stderr).toContain(message);
    expect(stderr).toMatch(/^frugal: USAGE: .* See frugal( [a-z]+)? --help\.\n$/);
    expect(stdout).toBe('');
    expect(code).toBe(2);
  });
});

describe('failures: exit code 1, one line on stderr with code and cure, nothing on stdout', () => {
  it.each(COMMANDS.filter((command) => command !== 'score'))(
    '%s of a file that is not there',
    async (command) => {
      const extra = { perplexity: ['-'], tokenize: ['-p', 'x'], digest: ['-p', 'x'] }[command] ?? [];
      const { code, stdout, stderr } = await frugal([command, join(folder, 'none.gguf'), ...extra]);
      expect(stderr).toMatch(/^frugal: SOURCE_READ: .*none\.gguf.* Give the path of a file.*\n$/);
      expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    },
  );

  it('an address that wants a header: without it, and with', async () => {
    const bytes = tinyLlama().bytes;
    const answer: Answer = (request, response, file) => {
      const { authorization, 'x-team': team } = request.headers;
      if (authorization === 'Bearer a:b' && team === 'one') answerRange(request, response, file);
      else response.writeHead(401).end();
    };
    await withServer(new Map([['tiny.gguf', bytes]]), answer, async (url) => {
      const headers = ['--header', 'Authorization: Bearer a:b', '--header', 'X-Team:one'];
      for (const [command, ...more] of [['inspect'], ['tokenize', '-p', 'a'], ['digest', '-p', 'a']]) {
        const args = [command ?? '', `${url}/tiny.gguf`, ...more];
        const { code, stdout, stderr } = await frugal(args);
        expect(stderr).toMatch(/^frugal: SOURCE_READ: .*tiny\.gguf.*\n$/);
        expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
        expect(await frugal([...args, ...headers])).toMatchObject({ code: 0 });
      }
    });
  });

  it('a file that is no model', async () => {
    const path = join(folder, 'text.gguf');
    await writeFile(path, 'This is a text.');
    const { code, stdout, stderr } = await frugal(['inspect', path]);
    expect(stderr).toMatch(/^frugal: GGUF_\w+: [^\n]+\n$/);
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
  });

  it.each([
    ['score', '--tokens', 'ids.json', '--out', 'own.gguf'],
    ['score', '--tokens', 'ids.json', '--out', 'ids.json'],
    ['score', '--tokens', 'ids.json', '--out', 'link.gguf'],
    ['run', '-p', 'x', '--provenance', 'own.gguf'],
    ['run', '-f', 'ids.json', '--provenance', 'ids.json'],
  ])('never writes over what it reads: %s %s %s %s %s', async (command, ...flags) => {
    const [model, tokens] = [join(folder, 'own.gguf'), join(folder, 'ids.json')];
    await writeFile(model, 'a model');
    await writeFile(tokens, '[1, 2]');
    await rm(join(folder, 'link.gguf'), { force: true });
    await link(model, join(folder, 'link.gguf'));
    const args = flags.map((flag) => (/\./.test(flag) ? join(folder, flag) : flag));
    const { code, stderr } = await frugal([command, model, ...args]);
    expect(stderr).toMatch(/^frugal: INVALID_ARGUMENT: .* is a file that is read, .* Give another path.*\n$/);
    expect(code).toBe(1);
    expect(await readFile(model, 'utf8')).toBe('a model');
    expect(await readFile(tokens, 'utf8')).toBe('[1, 2]');
  });

  it.runIf(existsSync('/dev/full'))('standard output on a full disk', async () => {
    const full = openSync('/dev/full', 'w');
    const child = spawnSync(
      process.execPath,
      ['dist/cli/main.js', 'inspect', 'models/stories-moe-q8_0.gguf'],
      {
        cwd: ROOT,
        stdio: ['ignore', full, 'pipe'],
        encoding: 'utf8',
      },
    );
    closeSync(full);
    expect(child.stderr).toMatch(/^frugal: OUTPUT_WRITE: standard output cannot be written: .*ENOSPC.*\n$/);
    expect(child.status).toBe(1);
  });

  it('with --debug the stack trace comes too', async () => {
    const { code, stderr } = await frugal(['inspect', join(folder, 'none.gguf'), '--debug']);
    expect(code).toBe(1);
    expect(stderr).toMatch(/^frugal: SOURCE_READ: /);
    expect(stderr).toMatch(/\n {4}at /);
  });

  it.each([
    ['{"tokens": 3}', 'it holds no array of numbers'],
    ['[1, "2"]', 'it holds no array of numbers'],
    ['[1, 2', 'is not a list of token ids'],
  ])('score with the tokens %s', async (content, message) => {
    const tokens = join(folder, 'tokens.json');
    await writeFile(tokens, content);
    const { code, stderr } = await frugal(['score', 'm', '--tokens', tokens, '--out', join(folder, 'x.npy')]);
    expect(stderr).toMatch(/^frugal: INVALID_ARGUMENT: .*\n$/);
    expect(stderr).toContain(message);
    expect(code).toBe(1);
  });
});
