import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { frugal, hasShared, SHARED } from './program.js';

const EMBEDDED = resolve(import.meta.dirname, '../../models/stories-moe-q8_0.gguf');
const STORIES = resolve(SHARED, 'models/stories260K.gguf');
const PROMPT = 'Once upon a time';
/** For texts that take seconds: others may be over before a signal comes. */
const SLOW = ['--isa', 'scalar', '--threads', '1'];
const SUMMARY =
  /^\d+ tokens \([a-z-]+\), first token after \d+ ms, prefill [\d.]+ tokens\/s, decode [\d.]+ tokens\/s, \d+ threads?(?: \([^)]+\))?, peak memory [\d.]+ MiB, (CPU|measured|about) [^\n]*, seed \d+\n$/;

let folder = '';
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'frugal-cli-'));
});
afterAll(() => rm(folder, { recursive: true }));

describe.runIf(hasShared('models/stories260K.gguf'))('frugal run', () => {
  it('prints the continuation on stdout and one line of figures on stderr', async () => {
    const { code, stdout, stderr } = await frugal(['run', STORIES, '-p', PROMPT, '--temp', '0', '-n', '10']);
    expect(code).toBe(0);
    expect(stdout).toBe(', there was a little girl named Lily');
    expect(stderr).toMatch(SUMMARY);
  });

  it('--echo puts the prompt before it', async () => {
    const args = ['run', STORIES, '-p', PROMPT, '--temp', '0', '-n', '10', '--echo'];
    expect((await frugal(args)).stdout).toBe('Once upon a time, there was a little girl named Lily');
  });

  it('--json prints one object', async () => {
    const args = ['run', STORIES, '-p', PROMPT, '--temp', '0', '-n', '10', '--json', '--seed', '5'];
    const { code, stdout } = await frugal(args);
    expect(code).toBe(0);
    expect(stdout.trimEnd().split('\n')).toHaveLength(1);
    const result = JSON.parse(stdout);
    expect(Object.keys(result)).toEqual(['text', 'tokens', 'finishReason', 'seed', 'usage']);
    expect(result).toMatchObject({
      text: ', there was a little girl named Lily',
      finishReason: 'length',
      seed: 5,
    });
    expect(result.tokens).toHaveLength(10);
    expect(result.usage).toMatchObject({ promptTokens: 5, completionTokens: 10 });
  });

  it('reads the prompt from a file or standard input, exactly', async () => {
    const path = join(folder, 'prompt.txt');
    await writeFile(path, PROMPT);
    const options = ['--temp', '0', '-n', '10'];
    const [fromFile, fromInput] = await Promise.all([
      frugal(['run', STORIES, '-f', path, ...options]),
      frugal(['run', STORIES, '-f', '-', ...options], { input: PROMPT }),
    ]);
    expect(fromFile.stdout).toBe(', there was a little girl named Lily');
    expect(fromInput.stdout).toBe(fromFile.stdout);
  });

  it('repeats a run with its seed, whatever computes it', async () => {
    const first = JSON.parse((await frugal(['run', STORIES, '-p', PROMPT, '-n', '40', '--json'])).stdout);
    const seed = ['--seed', String(first.seed), '-n', '40', '--json'];
    const options = ['--isa', 'scalar', '--threads', '1', '--chunk', '2', ...seed];
    const again = JSON.parse((await frugal(['run', STORIES, '-p', PROMPT, ...options])).stdout);
    expect(again.text).toBe(first.text);
  });

  it('ends before a stop string', async () => {
    const args = [
      'run',
      STORIES,
      '-p',
      PROMPT,
      '--temp',
      '0',
      '--stop',
      'nothing',
      '--stop',
      ' girl',
      '--json',
    ];
    const result = JSON.parse((await frugal(args)).stdout);
    expect(result).toMatchObject({
      text: ', there was a little',
      finishReason: 'stop-string',
      stopString: ' girl',
    });
  });

  it('tells a story without a prompt', async () => {
    const { code, stdout } = await frugal(['run', STORIES, '-n', '20', '--temp', '0']);
    expect(code).toBe(0);
    expect(stdout.length).toBeGreaterThan(20);
  });

  it('fails in one line when the prompt is too long', async () => {
    const { code, stdout, stderr } = await frugal(['run', STORIES, '-p', PROMPT, '--ctx', '4']);
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(stderr).toMatch(/^frugal: CONTEXT_OVERFLOW: .*5 tokens.*4\. Shorten it.*\n$/);
  });

  it('stops with Ctrl-C, and leaves 130 as its exit code', async () => {
    const args = ['run', STORIES, '-p', PROMPT, '-n', '500', '--seed', '3', ...SLOW];
    const { code, stderr } = await frugal(args, { onOutput: (_text, kill) => kill('SIGINT') });
    expect(stderr).toBe('frugal: interrupted\n');
    expect(code).toBe(130);
  });
});

describe.runIf(hasShared('models/stories260K.gguf'))('a reader that goes away', () => {
  it('ends the program quietly', async () => {
    const args = ['run', STORIES, '-p', PROMPT, '-n', '400', '--temp', '0'];
    const { code, stderr } = await frugal(args, { onOutput: (_text, _kill, close) => close() });
    expect(stderr).toBe('');
    expect(code).toBe(0);
  });
});

describe.runIf(hasShared('models/stories260K.gguf'))('frugal chat', () => {
  it('Ctrl-C stops the answer, and the chat goes on', async () => {
    const template = join(folder, 'stop.jinja');
    await writeFile(template, '{{ messages[-1].content }}');
    let interrupted = false;
    const args = ['chat', STORIES, '--template', template, '--temp', '0', ...SLOW];
    const { code, stdout, stderr } = await frugal(args, {
      input: `${PROMPT}\nLily\n`,
      onOutput(_text, kill) {
        if (!interrupted) kill('SIGINT');
        interrupted = true;
      },
    });
    const [first, ...rest] = stderr.trimEnd().split('\n');
    expect(first).toBe('(stopped)');
    expect(rest).toEqual([expect.stringMatching(/^\d+ tokens \((context|stop)\)/)]);
    expect(stdout).toMatch(/^,[^\n]{0,200}\n and Tom were playing in the park/);
    expect(code).toBe(0);
  });

  it('answers each line of its input, and only that on stdout', async () => {
    const template = join(folder, 'chat.jinja');
    await writeFile(template, '{% for m in messages %}{{ m.content }}{% endfor %}');
    const args = ['chat', STORIES, '--template', template, '-n', '10', '--temp', '0'];
    const { code, stdout, stderr } = await frugal(args, { input: `${PROMPT}\n\n and then\n` });
    expect(code).toBe(0);
    expect(stdout).toMatch(/^, there was a little girl named Lily\n[^\n]+\n$/);
    expect(stderr.trimEnd().split('\n')).toHaveLength(2);
  });

  it('says what to do when the model has no template', async () => {
    const { code, stderr } = await frugal(['chat', STORIES]);
    expect(stderr).toMatch(/^frugal: TEMPLATE_MISSING: .*--template.*\n$/);
    expect(code).toBe(1);
  });
});

describe.runIf(hasShared('models/stories260K.gguf'))('frugal inspect', () => {
  it('shows facts, metadata and tensors', async () => {
    const { code, stdout, stderr } = await frugal(['inspect', STORIES]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toContain('architecture: llama\nparameters: 260,032\n');
    expect(stdout).toContain('tokenizer.ggml.tokens = string[512] "<unk>", "<s>"');
    expect(stdout).toContain('token_embd.weight  F32  [64, 512]  128 KiB');
  });

  it('--json gives the memory for a context length', async () => {
    const report = JSON.parse((await frugal(['inspect', STORIES, '--json', '--ctx', '100'])).stdout);
    expect(report).toMatchObject({
      architecture: 'llama',
      parameters: 260032,
      weightBytes: 260032 * 4,
      notes: [],
    });
    // 5 layers of keys and values: 4 heads of 8 numbers of 2 bytes each.
    const kvBytes = 100 * 5 * 2 * 4 * 8 * 2;
    expect(report.memory).toEqual({
      contextLength: 100,
      kvCache: 'f16',
      weightBytes: 260032 * 4,
      kvBytes,
      totalBytes: 260032 * 4 + kvBytes,
    });
    const small = ['inspect', STORIES, '--json', '--ctx', '100', '--kv-cache', 'q8_0'];
    // A byte each, and a scale of 2 bytes for a head's key and its value.
    expect(JSON.parse((await frugal(small)).stdout).memory).toMatchObject({
      kvCache: 'q8_0',
      kvBytes: 100 * 5 * 2 * 4 * (8 + 2),
    });
    expect(report.metadata['tokenizer.ggml.tokens']).toMatchObject({ array: 'string', length: 512 });
    expect(report.tensors).toHaveLength(47);
  });
});

describe.runIf(hasShared('vocabs/ggml-vocab-gpt-2.gguf'))('files without weights', () => {
  const GPT2 = resolve(SHARED, 'vocabs/ggml-vocab-gpt-2.gguf');

  it('inspect shows a file of an unknown architecture, and says so', async () => {
    const report = JSON.parse((await frugal(['inspect', GPT2, '--json'])).stdout);
    expect(report).toMatchObject({ architecture: 'gpt2', bytesPerToken: null, memory: null, tensors: [] });
    expect(report.notes[0]).toContain('UNKNOWN_ARCHITECTURE');
  });

  it('tokenize works on them', async () => {
    const { code, stdout } = await frugal(['tokenize', GPT2, '-p', 'Hello world', '--json']);
    expect({ code, stdout }).toEqual({ code: 0, stdout: '{"tokens":[15496,995]}\n' });
  });
});

describe.runIf(hasShared('models/stories260K.gguf'))('frugal tokenize', () => {
  it('adds the token that texts begin with, unless told not to', async () => {
    const [whole, bare] = await Promise.all(
      [[], ['--no-bos']].map((extra) => frugal(['tokenize', STORIES, '-p', PROMPT, '--json', ...extra])),
    );
    const tokens = JSON.parse(whole?.stdout ?? '').tokens;
    expect(tokens[0]).toBe(1);
    expect(JSON.parse(bare?.stdout ?? '')).toEqual({ tokens: tokens.slice(1) });
  });

  it('shows ids and their names', async () => {
    const { stdout, stderr } = await frugal(['tokenize', STORIES, '-p', PROMPT, '--no-bos']);
    expect(stdout.split('\n')[0]).toMatch(/^\d+\t"▁/);
    expect(stderr).toBe('4 tokens\n');
  });
});

describe.runIf(hasShared('models/stories260K.gguf'))('frugal score, digest and perplexity', () => {
  const TOKENS = [1, 403, 407, 261, 378];

  /** Reads the NumPy file apart from how it was written: by the documented layout. */
  async function readNpy(path: string): Promise<{ header: string; values: Float32Array }> {
    const bytes = await readFile(path);
    expect(bytes.subarray(0, 8).toString('latin1')).toBe('\x93NUMPY\x01\x00');
    const start = 10 + bytes.readUInt16LE(8);
    expect(start % 64).toBe(0);
    const header = bytes.subarray(10, start).toString('latin1');
    return { header, values: new Float32Array(bytes.buffer.slice(bytes.byteOffset + start)) };
  }

  it('score writes a NumPy file of [tokens, vocabulary]', async () => {
    const out = join(folder, 'logits.npy');
    const tokens = join(folder, 'ids.json');
    await writeFile(tokens, JSON.stringify({ tokens: TOKENS, other: 1 }));
    const { code, stdout } = await frugal(['score', STORIES, '--tokens', tokens, '--out', out]);
    expect({ code, stdout }).toEqual({ code: 0, stdout: '' });
    const { header, values } = await readNpy(out);
    expect(header).toMatch(/^\{'descr': '<f4', 'fortran_order': False, 'shape': \(5, 512\), \} *\n$/);
    expect(values).toHaveLength(5 * 512);
    // "Once upon a time" is followed by a comma.
    const last = values.subarray(4 * 512);
    const best = last.indexOf(Math.max(...last));
    const comma = JSON.parse(
      (await frugal(['run', STORIES, '-p', PROMPT, '--temp', '0', '-n', '1', '--json'])).stdout,
    );
    expect(comma.text).toBe(',');
    expect([best]).toEqual(comma.tokens);
  });

  it('score leaves no file behind for a token that the model lacks', async () => {
    const out = join(folder, 'none.npy');
    const tokens = join(folder, 'wrong.json');
    await writeFile(tokens, '[1, 512]');
    const { code, stderr } = await frugal(['score', STORIES, '--tokens', tokens, '--out', out]);
    expect(code).toBe(1);
    expect(stderr).toContain('tokens[1] must be an integer from 0 to 511, got 512');
    await expect(readFile(out)).rejects.toThrow('ENOENT');
  });

  it('digest is one for instruction sets, threads and chunks, and another for another prompt', async () => {
    const digest = async (...options: string[]) => {
      const { code, stdout, stderr } = await frugal(['digest', STORIES, '-n', '6', ...options]);
      expect(code, stderr).toBe(0);
      expect(stdout).toMatch(/^[0-9a-f]{64}\n$/);
      return stdout;
    };
    const reference = await digest('-p', PROMPT);
    const same = [
      ['--isa', 'scalar'],
      ['--threads', '1'],
      ['--threads', '2', '--chunk', '1'],
      ['--chunk', '3'],
    ];
    for (const options of same)
      expect(await digest('-p', PROMPT, ...options), options.join(' ')).toBe(reference);
    expect(await digest('-p', `${PROMPT},`)).not.toBe(reference);
  });

  it('digest --json gives the settings', async () => {
    const args = [
      'digest',
      STORIES,
      '-p',
      PROMPT,
      '-n',
      '3',
      '--threads',
      '1',
      '--isa',
      'scalar',
      '--chunk',
      '2',
    ];
    const { stdout } = await frugal([...args, '--json']);
    const result = JSON.parse(stdout);
    expect(result).toMatchObject({ promptTokens: 5, backend: 'native', isa: 'scalar', threads: 1, chunk: 2 });
    expect(result.tokens).toHaveLength(3);
  });

  it('digest is another with --kv-cache or --attention, and says so beside it', async () => {
    const digest = async (...options: string[]) => {
      const { stdout, stderr } = await frugal(['digest', STORIES, '-p', PROMPT, '--json', ...options]);
      return { ...JSON.parse(stdout), stderr };
    };
    const plain = await digest();
    expect(plain).toMatchObject({ kvCache: 'f16', attention: null });
    expect(plain.stderr).toContain(', cache f16, attention dense\n');
    const bytes = await digest('--kv-cache', 'q8_0');
    expect(bytes).toMatchObject({ kvCache: 'q8_0', attention: null });
    expect(bytes.stderr).toContain(', cache q8_0, attention dense\n');
    const attention = { prefill: { policy: 'window', window: 2, sinks: 0 } };
    const sparse = await digest('--attention', JSON.stringify(attention));
    expect(sparse).toMatchObject({ kvCache: 'f16', attention });
    expect(sparse.stderr).toContain(`, cache f16, attention ${JSON.stringify(attention)}\n`);
    expect(new Set([plain.digest, bytes.digest, sparse.digest]).size).toBe(3);
  });

  it('perplexity is low for a story and high for noise, and counts every byte', async () => {
    const story = join(folder, 'story.txt');
    const text = `${PROMPT}, there was a little girl named Lily. She loved to play outside in the park. `;
    await writeFile(story, text.repeat(3));
    const measure = async (args: string[], input?: string) =>
      JSON.parse((await frugal(['perplexity', STORIES, ...args, '--json'], input ? { input } : {})).stdout);
    const good = await measure([story]);
    expect(good).toMatchObject({ bytes: text.length * 3, window: 512 });
    expect(good.perplexity).toBeLessThan(4);
    expect(good.bitsPerByte).toBeCloseTo((Math.log2(good.perplexity) * good.tokens) / good.bytes, 9);
    const noise = await measure(['-'], 'zq#xv 81 jjK qqp %% vvx 0k ZZ hrr'.repeat(3));
    expect(noise.perplexity).toBeGreaterThan(50);
    // Windows change the context that tokens are predicted from, never which tokens count.
    const windows = await measure([story, '--ctx', '16']);
    expect(windows.tokens).toBe(good.tokens);
    expect(windows.perplexity).toBeGreaterThan(good.perplexity);
  });

  it('perplexity measures each document of a file by itself, its end token included', async () => {
    const measure = async (input: string) =>
      JSON.parse((await frugal(['perplexity', EMBEDDED, '-', '--json'], { input })).stdout);
    const [first, second] = ['Once upon a time, there was a cat.', 'One day, Tom saw a big red ball.'];
    const bits = (of: { bitsPerByte: number; bytes: number }) => of.bitsPerByte * of.bytes;
    const a = await measure(`${first}<|endoftext|>`);
    const b = await measure(`${second}\n<|endoftext|>\n`);
    const both = await measure(`${first}\n<|endoftext|>\n\n${second}\n<|endoftext|>\n`);
    expect(both).toMatchObject({ tokens: a.tokens + b.tokens, bytes: first.length + second.length });
    expect(bits(both)).toBeCloseTo(bits(a) + bits(b), 6);
    expect(a.tokens).toBe((await measure(first)).tokens + 1);
  });

  it('a text without tokens has no perplexity', async () => {
    const { code, stderr } = await frugal(['perplexity', STORIES, '-'], { input: '' });
    expect(code).toBe(1);
    expect(stderr).toMatch(/^frugal: INVALID_ARGUMENT: There is nothing to predict.*\n$/);
  });
});

const MIXTURE = resolve(import.meta.dirname, '../../models/stories-moe-q8_0.gguf');

describe('frugal run --window', () => {
  it('takes texts longer than the context', async () => {
    const args = ['run', EMBEDDED, '-p', 'The cat sat on the mat. '.repeat(100), '-n', '5', '--json'];
    expect((await frugal(args)).stderr).toContain('the context holds 512');
    const { code, stdout } = await frugal([...args, '--window', '64', '--sinks', '2']);
    expect(code).toBe(0);
    const { context, promptTokens } = JSON.parse(stdout).usage;
    expect(context.droppedTokens).toBeGreaterThanOrEqual(promptTokens - 66);
  });
});

describe('frugal inspect --routing', () => {
  const args = ['inspect', MIXTURE, '--routing', 'Once upon a time'];

  it('prints a row for each layer, whose counts add up', async () => {
    const { code, stdout } = await frugal(args);
    expect(code).toBe(0);
    const [title = '', ...lines] = stdout.split('\n');
    const [tokens = 0, topK = 0, layers = 0] = title.match(/\d+/g)?.map(Number) ?? [];
    const rows = lines.filter((line) => /^ +\d+ +[01]\.\d{3} /.test(line));
    expect(rows).toHaveLength(layers);
    for (const row of rows) {
      const counts = row.trim().split(/ +/).slice(3).map(Number);
      expect(counts.reduce((sum, count) => sum + count, 0)).toBe(tokens * topK);
    }
  });

  it('--json adds the counts to the object', async () => {
    const report = JSON.parse((await frugal([...args, '--json'])).stdout);
    expect(report).toMatchObject({ architecture: 'llama', routing: { text: 'Once upon a time', topK: 2 } });
    expect(report.routing.layers).toHaveLength(6);
    expect(report.routing.layers[0].tokens).toHaveLength(8);
    expect(report.routing.bytesPerToken).toBeGreaterThan(0);
  });
});

describe.runIf(hasShared('models/stories260K.gguf'))('frugal inspect --routing of a dense model', () => {
  it('says that there is nothing to route', async () => {
    const { code, stderr } = await frugal(['inspect', STORIES, '--routing', 'Once']);
    expect(code).toBe(1);
    expect(stderr).toContain('UNSUPPORTED_FEATURE');
  });
});
