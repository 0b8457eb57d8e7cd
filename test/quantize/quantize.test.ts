import { readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { loadAddon } from '../../ts/backend/native.js';
import { load, QUANTIZE_TYPES, type QuantizeType, quantize } from '../../ts/index.js';
import { tinyLlama, tinyLlamaSpec } from '../gguf/tiny-llama.js';
import { type TensorSpec, writeGguf, writeSplit } from '../gguf/writer.js';
import { decode, relativeError } from './decode.js';
import { bytesOf, filesIn, randomFloats, temporaryFolder, tensorData, withGguf, writeFile } from './files.js';

const folder = temporaryFolder();
const ARCHITECTURE = { key: 'general.architecture', kind: 'string', value: 'llama' } as const;

/** A file of the given tensors; no model, but all that quantising looks at. */
function writeTensors(tensors: readonly TensorSpec[]) {
  return writeFile(folder, writeGguf({ metadata: [ARCHITECTURE], tensors }).bytes);
}

function matrix(name: string, cols: number, rows: number, seed = 1): TensorSpec {
  return { name, type: 'F32', shape: [cols, rows], data: bytesOf(randomFloats(seed, cols * rows)) };
}

const BOUNDS: Readonly<Record<string, number>> = {
  ...{ F16: 0.0003, BF16: 0.0018, Q8_0: 0.006, Q4_0: 0.09, Q4_K: 0.075, Q6_K: 0.018 },
};

describe('the types', () => {
  const values = randomFloats(7, 512 * 12, 0.02);
  const spec: TensorSpec = { name: 'output.weight', type: 'F32', shape: [512, 12], data: bytesOf(values) };

  for (const type of ['F16', 'BF16', 'Q8_0', 'Q4_0', 'Q4_K', 'Q6_K'] as const) {
    it(`writes ${type} that reads back as what the report says`, async () => {
      const { path, folder: own } = writeTensors([spec]);
      const out = join(own, 'out.gguf');
      const report = await quantize(path, out, { type });
      const written = (await tensorData(out)).get('output.weight');
      expect(written?.type).toBe(type);
      const error = relativeError(values, decode(type, written?.bytes ?? new Uint8Array()));
      expect(error).toBeLessThan(BOUNDS[type] ?? 0);
      expect(error).toBeGreaterThan(0);
      expect(report.types).toHaveLength(1);
      expect(report.total.relativeError / error).toBeCloseTo(1, 4);
      expect(report.total.bytesOut).toBe(written?.bytes.length);
      expect(report.total.bitsPerWeight).toBe(((written?.bytes.length ?? 0) * 8) / values.length);
      expect(report.fileBytes).toBe(readFileSync(out).length);
      expect(filesIn(own)).toEqual(['in.gguf', 'out.gguf']);
    });
  }

  it('reads F16 and BF16 weights as well, exactly', async () => {
    for (const type of ['F16', 'BF16'] as const) {
      const { path, folder: own } = writeTensors([spec]);
      const [narrow, twice, direct] = ['narrow', 'twice', 'again'].map((name) => join(own, `${name}.gguf`));
      if (narrow === undefined || twice === undefined || direct === undefined) throw new Error('three names');
      await quantize(path, narrow, { type });
      expect((await quantize(narrow, twice, { type })).total.relativeError).toBe(0);
      expect(readFileSync(twice)).toEqual(readFileSync(narrow));
      await quantize(narrow, direct, { type: 'Q8_0' });
      const first = decode(type, (await tensorData(narrow)).get('output.weight')?.bytes ?? new Uint8Array());
      const second = decode(
        'Q8_0',
        (await tensorData(direct)).get('output.weight')?.bytes ?? new Uint8Array(),
      );
      expect(relativeError(first, second)).toBeLessThan(BOUNDS.Q8_0 ?? 0);
    }
  });

  it('writes the same bytes with any number of threads', async () => {
    const addon = loadAddon();
    const input = bytesOf(randomFloats(11, 256 * 300));
    for (const type of ['Q8_0', 'Q4_0', 'Q4_K', 'Q6_K']) {
      const [one, many] = await Promise.all(
        [1, 5].map((threads) => addon.quantizeValues('F32', type, input, threads)),
      );
      expect(many).toEqual(one);
    }
  });

  it('joins the pieces that a large tensor is converted in', async () => {
    // Three pieces, the last not full; in whole rows of 1536 no piece ends with a row.
    const rows = 3000;
    const large = matrix('blk.0.ffn_up.weight', 1536, rows);
    const { path, folder: own } = writeTensors([large]);
    const out = join(own, 'out.gguf');
    const events: number[] = [];
    await quantize(path, out, { type: 'Q8_0', onProgress: ({ done }) => events.push(done) });
    const whole = await loadAddon().quantizeValues('F32', 'Q8_0', large.data ?? new Uint8Array(), 2);
    const written = (await tensorData(out)).get('blk.0.ffn_up.weight');
    expect(Buffer.compare(written?.bytes ?? new Uint8Array(), whole.bytes)).toBe(0);
    expect(events).toEqual([2 ** 21, 2 ** 22, 1536 * rows]);
  });
});

describe('a whole model', () => {
  const source = tinyLlama({ matrixType: 'F32', everyKind: false }).bytes;

  for (const type of QUANTIZE_TYPES) {
    it(`loads and generates as ${type}`, async () => {
      const { path, folder: own } = writeFile(folder, source);
      const out = join(own, 'out.gguf');
      const report = await quantize(path, out, { type });
      expect(filesIn(own)).toEqual(['in.gguf', 'out.gguf']);
      await withGguf(out, async (model) => {
        expect(model.version).toBe(3);
        expect(model.metadata.string('general.architecture')).toBe('llama');
        expect(model.metadata.number('general.quantization_version')).toBe(2);
        expect(model.metadata.number('general.file_type')).toBe(
          { F16: 1, BF16: 32, Q8_0: 7, Q4_0: 2, Q4_K: 14, Q6_K: 18, Q4_K_M: 15 }[type],
        );
        for (const tensor of model.tensors.values()) {
          expect(tensor.offset % 32).toBe(0);
          // Rows of 64 and 96 are no whole blocks of 256.
          const matrices = type.includes('K') ? 'Q8_0' : type;
          expect(tensor.type).toBe(tensor.shape.length === 1 ? 'F32' : matrices);
        }
      });
      expect(report.notices.length > 0).toBe(type.includes('K'));
      await using model = await load(out);
      let text = '';
      for await (const piece of model.generate('once', { temperature: 0, maxTokens: 8 })) text += piece;
      expect(text.length).toBeGreaterThan(0);
    });
  }

  it('keeps metadata of every kind and vectors as they are', async () => {
    const spec = tinyLlamaSpec({ matrixType: 'F32', alignment: 64 });
    const { path, folder: own } = writeFile(folder, writeGguf(spec).bytes);
    const out = join(own, 'out.gguf');
    const report = await quantize(path, out, { type: 'Q4_0' });
    expect(report.notices).toEqual([expect.stringContaining('test.nested')]);
    const before = await tensorData(path);
    const after = await tensorData(out);
    expect([...after.keys()]).toEqual([...before.keys()]);
    expect(after.get('output_norm.weight')).toEqual(before.get('output_norm.weight'));
    await withGguf(path, (input) =>
      withGguf(out, ({ metadata }) => {
        expect(metadata.has('general.alignment')).toBe(false);
        for (const key of input.metadata.keys()) {
          if (key === 'general.alignment' || key === 'test.nested') continue;
          expect(metadata.get(key), key).toEqual(input.metadata.get(key));
        }
      }),
    );
  });

  it('joins the parts of a split model into one file', async () => {
    const spec = tinyLlamaSpec({ matrixType: 'F32', everyKind: false });
    const { path: whole, folder: own } = writeFile(folder, source);
    const joined = join(own, 'joined.gguf');
    const direct = join(own, 'direct.gguf');
    const parts = writeSplit('split', spec, [3, 9]);
    const [[name, bytes] = ['', new Uint8Array()], ...others] = parts;
    const { path: first } = writeFile(folder, bytes, name);
    for (const [other, rest] of others) writeFileSync(join(dirname(first), other), rest);
    await quantize(first, joined, { type: 'Q8_0' });
    await quantize(whole, direct, { type: 'Q8_0' });
    expect(readFileSync(joined)).toEqual(readFileSync(direct));
  });

  it('copies tensors that have the type already, and refuses those of another by name', async () => {
    const { path, folder: own } = writeFile(
      folder,
      tinyLlama({ matrixType: 'Q8_0', everyKind: false }).bytes,
    );
    const out = join(own, 'out.gguf');
    const report = await quantize(path, out, { type: 'Q8_0' });
    expect(report.total.relativeError).toBe(0);
    expect(await tensorData(out)).toEqual(await tensorData(path));
    await expect(quantize(path, join(own, 'other.gguf'), { type: 'Q4_0' })).rejects.toMatchObject({
      code: 'UNSUPPORTED_TENSOR_TYPE',
      message: expect.stringContaining('token_embd.weight is Q8_0'),
    });
    expect(filesIn(own)).toEqual(['in.gguf', 'out.gguf']);
  });
});

describe('what stops it', () => {
  it('names the tensor and the place of a value that cannot be written, and leaves no file', async () => {
    for (const [value, type, words] of [
      [Number.NaN, 'Q4_0', 'NaN or an infinity'],
      [Number.NEGATIVE_INFINITY, 'Q8_0', 'NaN or an infinity'],
      [1e6, 'F16', 'more than F16 can hold'],
    ] as const) {
      const values = randomFloats(3, 256 * 4);
      values[256 * 2 + 5] = value;
      const bad: TensorSpec = {
        name: 'blk.0.attn_k.weight',
        type: 'F32',
        shape: [256, 4],
        data: bytesOf(values),
      };
      const { path, folder: own } = writeTensors([matrix('blk.0.attn_q.weight', 256, 4), bad]);
      const error = await quantize(path, join(own, 'out.gguf'), { type }).catch((each: unknown) => each);
      expect(error).toMatchObject({
        code: 'NON_FINITE',
        data: { tensor: 'blk.0.attn_k.weight', element: 517 },
      });
      expect(String(error)).toContain(words);
      expect(String(error)).toContain('row 2, column 5');
      expect(filesIn(own)).toEqual(['in.gguf']);
    }
  });

  it('looks at vectors too, which it only copies', async () => {
    const norm: TensorSpec = {
      name: 'output_norm.weight',
      type: 'F32',
      shape: [3],
      data: bytesOf(Float32Array.of(1, Number.POSITIVE_INFINITY, 1)),
    };
    const { path, folder: own } = writeTensors([norm]);
    const result = quantize(path, join(own, 'out.gguf'), { type: 'F16' });
    await expect(result).rejects.toMatchObject({
      code: 'NON_FINITE',
      data: { tensor: 'output_norm.weight' },
    });
  });

  it('ends with the reason of an abort and leaves no file', async () => {
    const tensors = ['a', 'b', 'c'].map((name) => matrix(`${name}.weight`, 256, 64));
    const { path, folder: own } = writeTensors(tensors);
    const controller = new AbortController();
    const reason = new Error('enough');
    const result = quantize(path, join(own, 'out.gguf'), {
      type: 'Q4_K',
      signal: controller.signal,
      onProgress: () => controller.abort(reason),
    });
    await expect(result).rejects.toBe(reason);
    expect(filesIn(own)).toEqual(['in.gguf']);
    await expect(
      quantize(path, join(own, 'out.gguf'), { type: 'F16', signal: AbortSignal.abort(reason) }),
    ).rejects.toBe(reason);
  });

  it('does not write over its own input, nor where there is no folder', async () => {
    const { path, folder: own } = writeTensors([matrix('a.weight', 32, 2)]);
    const before = readFileSync(path);
    await expect(quantize(path, path, { type: 'F16' })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    const nowhere = join(own, 'nowhere', 'out.gguf');
    await expect(quantize(path, nowhere, { type: 'F16' })).rejects.toMatchObject({ code: 'OUTPUT_WRITE' });
    await expect(quantize(path, own, { type: 'F16' })).rejects.toMatchObject({ code: 'OUTPUT_WRITE' });
    expect(readFileSync(path)).toEqual(before);
    expect(filesIn(own)).toEqual(['in.gguf']);
  });

  it('leaves a file that was there as it is until the new one is complete', async () => {
    const { path, folder: own } = writeTensors([matrix('a.weight', 32, 2), matrix('b.weight', 32, 2)]);
    const out = join(own, 'out.gguf');
    await quantize(path, out, { type: 'F16' });
    const before = readFileSync(out);
    const failing = quantize(path, out, {
      type: 'Q8_0',
      onProgress: () => {
        throw new Error('no');
      },
    });
    await expect(failing).rejects.toThrow('no');
    expect(readFileSync(out)).toEqual(before);
    await quantize(path, out, { type: 'Q8_0' });
    expect(readFileSync(out)).not.toEqual(before);
    expect(filesIn(own)).toEqual(['in.gguf', 'out.gguf']);
  });

  it('refuses arguments that make no sense', async () => {
    const { path, folder: own } = writeTensors([matrix('a.weight', 32, 2)]);
    const out = join(own, 'out.gguf');
    for (const options of [
      {},
      { type: 'Q5_0' },
      { type: 'F16', threads: 2 },
      { type: 'F16', onProgress: 1 },
    ]) {
      const result = quantize(path, out, options as unknown as { type: QuantizeType });
      await expect(result).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    }
    expect(filesIn(own)).toEqual(['in.gguf']);
  });
});
