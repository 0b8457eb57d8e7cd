import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { describe, expect, test } from 'vitest';
import { FrugalError } from '../../ts/errors.js';
import { openFile } from '../../ts/gguf/file-source.js';
import { type GgufMetadata, openGguf, StringArray } from '../../ts/gguf/index.js';
import { memorySource } from './sources.js';
import { TINY_LLAMA, tinyLlama, tinyLlamaSpec } from './tiny-llama.js';
import { type Entry, writeGguf } from './writer.js';

const SHARED = resolve(process.env.FRUGAL_SHARED ?? '../shared');

async function metadataOf(metadata: readonly Entry[]): Promise<GgufMetadata> {
  const model = await openGguf(memorySource(writeGguf({ metadata, tensors: [] }).bytes));
  return model.metadata;
}

function codeOf(call: () => unknown): string {
  try {
    call();
  } catch (error) {
    if (error instanceof FrugalError) return `${error.code}: ${error.message}`;
    throw error;
  }
  return 'no error';
}

test.each([2, 3])('version %d: metadata and tensors are those that were written', async (version) => {
  const spec = tinyLlamaSpec({ version, alignment: 64 });
  const { bytes } = writeGguf(spec);
  const model = await openGguf(memorySource(bytes));
  expect(model.version).toBe(version);
  expect([...model.metadata.keys()]).toEqual(spec.metadata.map((entry) => entry.key));
  expect([...model.tensors.keys()]).toEqual(spec.tensors.map((tensor) => tensor.name));
  for (const { name, type, shape, data } of spec.tensors) {
    const tensor = model.tensors.get(String(name));
    if (tensor === undefined) throw new Error(`no ${String(name)}`);
    expect(tensor).toMatchObject({ name, type, shape, part: 0, bytes: data?.length });
    expect(tensor.elements).toBe(shape.reduce((product, each) => product * each));
    expect(tensor.offset % 64).toBe(0);
    expect(bytes.subarray(tensor.offset, tensor.offset + tensor.bytes)).toEqual(data);
  }
});

test('only the header is read', async () => {
  // Zeros behind the header stand for a model of 4 MiB.
  const big = writeGguf({ metadata: [], tensors: [{ name: 'big', type: 'F32', shape: [1024, 1024] }] });
  const source = memorySource(big.bytes);
  await openGguf(source);
  expect(source.counts).toMatchObject({ reads: 1, bytes: 256 * 1024, closed: 0 });
});

describe('metadata', () => {
  test('single values of every kind', async () => {
    const { metadata } = await openGguf(memorySource(tinyLlama().bytes));
    const numbers = ['uint8', 'int8', 'uint16', 'int16', 'int32', 'int64', 'float64'];
    expect(numbers.map((kind) => metadata.number(`test.${kind}`))).toEqual([
      200,
      -100,
      60_000,
      -30_000,
      -2_000_000_000,
      -5,
      Math.PI,
    ]);
    expect(numbers.map((kind) => metadata.kind(`test.${kind}`))).toEqual(numbers);
    expect(metadata.bigint('test.uint64')).toBe(2n ** 63n);
    expect(metadata.bigint('test.int8')).toBe(-100n);
    expect(metadata.boolean('tokenizer.ggml.add_bos_token')).toBe(true);
    expect(metadata.number('llama.rope.freq_base')).toBe(10_000);
    expect(metadata.string('general.architecture')).toBe('llama');
  });

  test('arrays', async () => {
    const { metadata } = await openGguf(memorySource(tinyLlama().bytes));
    const tokens = metadata.strings('tokenizer.ggml.tokens');
    expect(tokens.length).toBe(TINY_LLAMA.vocabSize);
    expect([tokens.at(0), tokens.at(3), tokens.at(259), tokens.at(299)]).toEqual([
      '<unk>',
      '<0x00>',
      '▁',
      '.',
    ]);
    expect([...tokens]).toHaveLength(TINY_LLAMA.vocabSize);
    expect(metadata.numbers('tokenizer.ggml.token_type')).toBeInstanceOf(Int32Array);
    expect(metadata.numbers('tokenizer.ggml.scores')[299]).toBe(-40);
    expect(metadata.numbers('test.uint64s')).toEqual(Float64Array.of(1, 2 ** 40));
    expect(metadata.booleans('test.bools')).toEqual(Uint8Array.of(1, 0, 1));
    expect(metadata.optionalList('test.bools')).toEqual(Uint8Array.of(1, 0, 1));
    expect(metadata.optionalList('test.uint64s')).toEqual(Float64Array.of(1, 2 ** 40));
    expect(metadata.optionalList('general.name')).toBeUndefined();
    expect(metadata.kind('test.nested')).toBe('array[array]');
    expect(metadata.kind('tokenizer.ggml.tokens')).toBe('array[string]');
  });

  test('an absent key is missing, and undefined where it is optional', async () => {
    const metadata = await metadataOf([]);
    expect(codeOf(() => metadata.string('general.name'))).toMatch(/^METADATA_MISSING: .*"general.name"/);
    expect(codeOf(() => metadata.kind('general.name'))).toMatch(/^METADATA_MISSING/);
    expect([
      metadata.optionalString('k'),
      metadata.optionalNumber('k'),
      metadata.optionalBoolean('k'),
      metadata.optionalStrings('k'),
      metadata.optionalNumbers('k'),
    ]).toEqual([undefined, undefined, undefined, undefined, undefined]);
  });

  test('a value of another kind is invalid, even where it is optional', async () => {
    const metadata = await metadataOf([
      { key: 'text', kind: 'string', value: 'text' },
      { key: 'wide', kind: 'uint64', value: 2n ** 53n },
      { key: 'wides', kind: 'array', of: 'int64', values: [-(2n ** 60n)] },
      { key: 'real', kind: 'float32', value: 1.5 },
      { key: 'flags', kind: 'array', of: 'bool', values: [true] },
    ]);
    const calls = [
      () => metadata.number('text'),
      () => metadata.optionalNumber('text'),
      () => metadata.boolean('text'),
      () => metadata.strings('text'),
      () => metadata.numbers('text'),
      () => metadata.numbers('flags'),
      () => metadata.string('wide'),
      () => metadata.number('wide'),
      () => metadata.numbers('wides'),
      () => metadata.optionalList('wides'),
      () => metadata.bigint('real'),
    ];
    for (const call of calls) expect(codeOf(call)).toMatch(/^METADATA_INVALID: .*"(text|wides?|real|flags)"/);
    expect(metadata.bigint('wide')).toBe(2n ** 53n);
  });

  test('token strings keep bytes that are not UTF-8', async () => {
    const raw = Uint8Array.of(0xe2, 0x96);
    const metadata = await metadataOf([
      { key: 'tokens', kind: 'array', of: 'string', values: ['', raw, '\u{1F600}'] },
      { key: 'name', kind: 'string', value: raw },
    ]);
    const tokens = metadata.strings('tokens');
    expect(tokens.bytes(1)).toEqual(raw);
    expect([...tokens]).toEqual(['', '\ufffd', '\u{1F600}']);
    expect(metadata.string('name')).toBe('\ufffd');
    expect(codeOf(() => tokens.at(3))).toMatch(/^INVALID_ARGUMENT: .*3/);
    expect(codeOf(() => tokens.at(-1))).toMatch(/^INVALID_ARGUMENT/);
  });

  test('a string array is whole after a transfer', async () => {
    const metadata = await metadataOf([
      { key: 'tokens', kind: 'array', of: 'string', values: ['one', '', 'three'] },
    ]);
    const tokens = metadata.strings('tokens');
    const { buffer, offsets } = structuredClone({ buffer: tokens.buffer, offsets: tokens.offsets });
    expect([...new StringArray(buffer, offsets)]).toEqual(['one', '', 'three']);
  });
});

/** A vocabulary as large as they come, with merges and one very long string: a header of 15 MB. */
function largeHeader(): Uint8Array<ArrayBuffer> {
  const tokens = Array.from({ length: 256_000 }, (_, i) => `token ${i}`);
  const merges = Array.from({ length: 400_000 }, (_, i) => `left${i} right${i}`);
  return writeGguf({
    metadata: [
      { key: 'tokenizer.ggml.tokens', kind: 'array', of: 'string', values: tokens },
      { key: 'tokenizer.ggml.merges', kind: 'array', of: 'string', values: merges },
      { key: 'long', kind: 'array', of: 'string', values: ['x'.repeat(3_000_000), 'y'] },
      { key: 'scores', kind: 'array', of: 'float32', values: tokens.map((_, i) => -i) },
    ],
    tensors: [],
  }).bytes;
}

describe('a header of 15 MB', () => {
  const bytes = largeHeader();

  test('is read rightly across windows and segments', async () => {
    const source = memorySource(bytes);
    const { metadata } = await openGguf(source);
    const tokens = metadata.strings('tokenizer.ggml.tokens');
    const merges = metadata.strings('tokenizer.ggml.merges');
    for (let i = 0; i < tokens.length; i += 997) expect(tokens.at(i)).toBe(`token ${i}`);
    for (let i = 0; i < merges.length; i += 997) expect(merges.at(i)).toBe(`left${i} right${i}`);
    expect([tokens.at(255_999), merges.at(399_999)]).toEqual(['token 255999', 'left399999 right399999']);
    expect(metadata.strings('long').at(0)).toBe('x'.repeat(3_000_000));
    expect(metadata.numbers('scores')[255_999]).toBe(-255_999);
    expect(source.counts.bytes).toBeLessThan(bytes.length + 1024);
  });

  test('does not hold the event loop for more than 10 ms', async () => {
    let best = Number.POSITIVE_INFINITY;
    // The compiler and the garbage collector count as well, so the best of a few tries is taken.
    for (let attempt = 0; attempt < 5 && best > 10; attempt += 1)
      best = Math.min(best, await longestHold(bytes));
    expect(best).toBeLessThanOrEqual(10);
  });

  test('stops when the signal is aborted between two slices', async () => {
    const controller = new AbortController();
    const source = memorySource(bytes);
    const opening = openGguf(source, { signal: controller.signal });
    setTimeout(() => controller.abort(new Error('enough')), 5);
    await expect(opening).rejects.toThrow('enough');
    expect(source.counts.bytes).toBeLessThan(bytes.length);
    expect(source.counts.closed).toBe(1);
  });
});

/**
 * The most processor time in milliseconds that passed between two turns of the event loop while the
 * header was read. Processor time, because other programs on the machine may make a turn last longer.
 */
async function longestHold(bytes: Uint8Array): Promise<number> {
  let longest = 0;
  let running = true;
  let last = process.cpuUsage();
  const tick = () => {
    const { user, system } = process.cpuUsage(last);
    longest = Math.max(longest, (user + system) / 1000);
    last = process.cpuUsage();
    if (running) setImmediate(tick);
  };
  setImmediate(tick);
  // A source in memory never waits: all turns of the loop are those that the reader grants.
  await openGguf(memorySource(bytes));
  await new Promise((turn) => setImmediate(turn));
  running = false;
  return longest;
}

describe('reference files', () => {
  const files: [string, number, number, number][] = [
    ['models/stories260K.gguf', 47, 21, 512],
    ['models/tiny-llama-q4_0.gguf', 39, 26, 32_000],
    ['models/tiny-llama-q4_k_m.gguf', 39, 26, 32_000],
    ['models/tiny-llama-q8_0.gguf', 39, 26, 32_000],
    ['models/tiny-moe-q4_0.gguf', 43, 28, 32_000],
    ['models/tiny-qwen3-q4_k_m.gguf', 46, 26, 32_000],
    ['vocabs/ggml-vocab-gpt-2.gguf', 0, 16, 50_257],
    ['vocabs/ggml-vocab-llama-bpe.gguf', 0, 20, 128_256],
    ['vocabs/ggml-vocab-llama-spm.gguf', 0, 22, 32_000],
    ['vocabs/ggml-vocab-qwen2.gguf', 0, 20, 151_936],
    ['vocabs/ggml-vocab-starcoder.gguf', 0, 19, 49_152],
  ];
  const present = files.filter(([name]) => existsSync(resolve(SHARED, name)));
  if (present.length < files.length) {
    console.log(`not run: ${files.length - present.length} reference files are not in ${SHARED}`);
  }
  test.runIf(present.length > 0).each(present)('%s', async (name, tensors, keys, vocabulary) => {
    const model = await openGguf(await openFile(resolve(SHARED, name)));
    try {
      expect([...model.metadata.keys()]).toHaveLength(keys);
      expect(model.tensors.size).toBe(tensors);
      expect(model.metadata.strings('tokenizer.ggml.tokens')).toHaveLength(vocabulary);
      // The tensors fill the file to its end, so their types, shapes and sizes are right.
      const end = Math.max(0, ...[...model.tensors.values()].map((each) => each.offset + each.bytes));
      if (tensors > 0) expect(Math.ceil(end / 32) * 32).toBe(model.parts[0]?.size);
    } finally {
      await model.close();
    }
  });
});
