import { describe, expect, it } from 'vitest';
import { isFrugalError } from '../../ts/errors.js';
import { blobSource } from '../../ts/gguf/blob-source.js';
import type { ByteSource } from '../../ts/gguf/source.js';
import { readSafetensors } from '../../ts/safetensors/index.js';
import { below, createRandom, pick } from '../gguf/random.js';
import { type Entry, headerOf, joinFile, type StoredTensor, writeSafetensors } from './writer.js';

const TENSORS = new Map<string, StoredTensor>([
  ['a', { dtype: 'F32', shape: [2, 3], data: new Uint8Array(24).fill(1) }],
  ['b', { dtype: 'BF16', shape: [4], data: new Uint8Array(8).fill(2) }],
  ['empty', { dtype: 'F16', shape: [0, 7], data: new Uint8Array(0) }],
  ['scalar', { dtype: 'I64', shape: [], data: new Uint8Array(8).fill(3) }],
]);
const DATA = new Uint8Array(40);

function source(bytes: Uint8Array<ArrayBuffer>): ByteSource {
  return blobSource(new Blob([bytes]), 'test.safetensors');
}

/** The file with one entry changed. */
function changed(name: string, change: (entry: Entry) => void): Uint8Array<ArrayBuffer> {
  const header = headerOf(TENSORS);
  const entry = header[name];
  if (entry === undefined) throw new Error(`no tensor ${name}`);
  change(entry);
  return joinFile(header, DATA);
}

async function refusal(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  const error = await readSafetensors(source(bytes)).catch((each: unknown) => each);
  if (!isFrugalError(error)) throw new Error(`not refused: ${JSON.stringify(error)}`);
  expect(error.code).toBe('SAFETENSORS_INVALID');
  expect(error.message).toMatch(/^test\.safetensors: /);
  return error.message;
}

describe('a right file', () => {
  it('gives every tensor its place', async () => {
    const bytes = writeSafetensors(TENSORS);
    const tensors = await readSafetensors(source(bytes));
    expect(tensors.map(({ name }) => name)).toEqual([...TENSORS.keys()]);
    for (const { name, dtype, shape, offset, bytes: length } of tensors) {
      const wanted = TENSORS.get(name);
      expect({ dtype, shape }).toEqual({ dtype: wanted?.dtype, shape: wanted?.shape });
      expect(bytes.slice(offset, offset + length)).toEqual(wanted?.data);
    }
  });
});

describe('a wrong file', () => {
  it('is refused for its size and the length of its header', async () => {
    expect(await refusal(new Uint8Array(7))).toContain('7 bytes');
    for (const length of [0n, 1n, 41n, 2n ** 31n, 2n ** 63n, 2n ** 64n - 1n]) {
      const bytes = new Uint8Array(48).fill(0x20);
      new DataView(bytes.buffer).setBigUint64(0, length, true);
      expect(await refusal(bytes)).toContain(`header of ${length} bytes`);
    }
  });

  it('is refused for a header that is no JSON object', async () => {
    for (const text of ['{"a":', '[]', 'null', '12', '"a"', '{}}', '\u0000\u0000', '[['.repeat(50_000)])
      expect(await refusal(joinFile(text, DATA))).toMatch(/not JSON|JSON object/);
    const broken = joinFile('{"aaaa":1}', DATA);
    broken[11] = 0xff;
    expect(await refusal(broken)).toContain('not JSON');
  });

  it('is refused for an entry that is none', async () => {
    for (const entry of [null, 1, 'F32', [], [1]])
      expect(await refusal(joinFile({ a: entry }, DATA))).toContain('"a"');
  });

  it('is refused for a type that does not exist', async () => {
    for (const dtype of ['F33', '', 'constructor', '__proto__', 1, null, undefined])
      expect(await refusal(changed('a', (entry) => (entry.dtype = dtype)))).toContain('has the type');
  });

  it('is refused for shapes and places that contradict each other', async () => {
    const shapes = [
      [2, 4],
      [2, -3],
      [2.5, 3],
      ['2', 3],
      6,
      null,
      {},
      [2 ** 53, 3],
      [2 ** 40, 2 ** 40],
      Array(9).fill(1),
    ];
    for (const shape of shapes)
      expect(await refusal(changed('a', (entry) => (entry.shape = shape)))).toContain('"a"');
    const places = [
      [0, 23],
      [0, 25],
      [1, 25],
      [24, 0],
      [-24, 0],
      [0],
      [0, 24, 24],
      [0, 1e300],
      ['0', '24'],
      null,
      [0.5, 24.5],
    ];
    for (const place of places)
      expect(await refusal(changed('a', (entry) => (entry.data_offsets = place)))).toMatch(/tensor "(a|b)"/);
  });

  it('is refused for tensors that overlap, leave gaps or lie outside', async () => {
    expect(await refusal(changed('b', (entry) => (entry.data_offsets = [16, 24])))).toContain('overlaps');
    expect(await refusal(changed('b', (entry) => (entry.data_offsets = [32, 40])))).toMatch(
      /begins|overlaps/,
    );
    expect(await refusal(changed('scalar', (entry) => (entry.data_offsets = [40, 48])))).toContain(
      'ends at byte',
    );
    expect(await refusal(joinFile(headerOf(TENSORS), new Uint8Array(39)))).toContain('ends at byte');
    expect(await refusal(joinFile(headerOf(TENSORS), new Uint8Array(41)))).toContain('tensors end at byte');
    expect(await refusal(joinFile({}, new Uint8Array(1)))).toContain('tensors end at byte');
  });

  it('is read or refused, whatever byte is changed, and nothing else', async () => {
    const random = createRandom(5);
    const whole = writeSafetensors(TENSORS);
    const header = whole.length - DATA.length;
    let refused = 0;
    for (let i = 0; i < 3000; i += 1) {
      const bytes = whole.slice(0, random() < 0.1 ? below(random, whole.length) : whole.length);
      for (let n = 1 + below(random, 3); n > 0; n -= 1) {
        const at = below(random, header);
        bytes[at] = pick(random, [below(random, 256), 0x22, 0x2c, 0x30 + below(random, 10), 0x5b, 0x7d]);
      }
      const result = await readSafetensors(source(bytes)).catch((each: unknown) => each);
      if (isFrugalError(result)) {
        expect(result.code).toBe('SAFETENSORS_INVALID');
        refused += 1;
      } else {
        expect(Array.isArray(result)).toBe(true);
      }
    }
    expect(refused).toBeGreaterThan(1000);
  });
});
