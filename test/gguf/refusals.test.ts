import { describe, expect, test } from 'vitest';
import { type ErrorCode, FrugalError } from '../../ts/errors.js';
import { openGguf } from '../../ts/gguf/index.js';
import { largeSource, memorySource } from './sources.js';
import {
  type ArrayValue,
  type Entry,
  type Field,
  type GgufSpec,
  type TensorSpec,
  writeGguf,
} from './writer.js';

const MIB = 1024 * 1024;

const ENTRIES: readonly Entry[] = [
  { key: 'general.architecture', kind: 'string', value: 'llama' },
  { key: 'a.flag', kind: 'bool', value: true },
  { key: 'a.flags', kind: 'array', of: 'bool', values: [true, false, true] },
  { key: 'a.numbers', kind: 'array', of: 'uint32', values: [1, 2, 3] },
  { key: 'a.strings', kind: 'array', of: 'string', values: ['one', 'two'] },
  { key: 'a.nested', kind: 'array', of: 'array', values: [{ of: 'bool', values: [true, true] }] },
];
const TENSORS: readonly TensorSpec[] = [
  { name: 'first', type: 'Q8_0', shape: [64, 2] },
  { name: 'second', type: 'F32', shape: [3, 2, 5, 7] },
];

async function refusal(bytes: Uint8Array): Promise<FrugalError> {
  return refusalOf(memorySource(bytes));
}

async function refusalOf(source: ReturnType<typeof memorySource>): Promise<FrugalError> {
  const error: unknown = await openGguf(source).then(
    () => undefined,
    (reason: unknown) => reason,
  );
  if (!(error instanceof FrugalError)) throw new Error(`expected a FrugalError, got ${String(error)}`);
  expect(error.cure).not.toBe('');
  expect(source.counts.closed).toBe(1);
  return error;
}

function write(changed: Partial<GgufSpec> = {}) {
  return writeGguf({ metadata: ENTRIES, tensors: TENSORS, ...changed });
}

/** The file with one field changed by `change`, and where the field lies. */
function withField(label: string, change: (view: DataView, field: Field) => void): [Uint8Array, number] {
  const { bytes, fields } = write();
  const field = fields.find((each) => each.label === label);
  if (field === undefined) throw new Error(`no field ${label}`);
  change(new DataView(bytes.buffer), field);
  return [bytes, field.offset];
}

const u32 = (value: number) => (view: DataView, field: Field) => view.setUint32(field.offset, value, true);
const u64 = (value: bigint) => (view: DataView, field: Field) => view.setBigUint64(field.offset, value, true);
const u8 = (value: number) => (view: DataView, field: Field) => view.setUint8(field.offset, value);

test('the file that the refusals start from is read', async () => {
  const model = await openGguf(memorySource(write().bytes));
  expect([...model.tensors.keys()]).toEqual(['first', 'second']);
  expect([...model.metadata.keys()]).toEqual(ENTRIES.map((entry) => entry.key));
});

describe('one wrong field', () => {
  const cases: [string, string, (view: DataView, field: Field) => void, ErrorCode, string][] = [
    ['wrong magic', 'magic', u32(0x6c6d6767), 'GGUF_MAGIC', '67 67 6d 6c'],
    ['version 0', 'version', u32(0), 'GGUF_VERSION', 'version 0'],
    ['version 1', 'version', u32(1), 'GGUF_VERSION', 'version 1'],
    ['version 4', 'version', u32(4), 'GGUF_VERSION', 'version 4'],
    ['big-endian', 'version', u32(0x0300_0000), 'GGUF_BIG_ENDIAN', 'big-endian'],
    ['tensor count', 'tensor count', u64(2n ** 40n), 'GGUF_TRUNCATED', '1099511627776 tensors'],
    ['largest tensor count', 'tensor count', u64(2n ** 64n - 1n), 'GGUF_TRUNCATED', 'tensors'],
    ['metadata count', 'metadata count', u64(2n ** 63n), 'GGUF_TRUNCATED', 'keys'],
    ['key length', 'length of key a.flag', u64(2n ** 62n), 'GGUF_TRUNCATED', 'metadata key 1'],
    ['value type', 'kind of a.flag', u32(13), 'GGUF_VALUE_TYPE', '"a.flag" has the unknown type 13'],
    ['element type', 'element kind of a.numbers', u32(99), 'GGUF_VALUE_TYPE', 'unknown type 99'],
    ['boolean of 2', 'a.flag', u8(2), 'GGUF_VALUE_TYPE', 'boolean of 2'],
    ['boolean in an array', 'values of a.flags', u8(255), 'GGUF_VALUE_TYPE', 'boolean of 255'],
    ['boolean in a nested array', 'values of a.nested[0]', u8(3), 'GGUF_VALUE_TYPE', 'boolean of 3'],
    ['array of 2^40 strings', 'count of a.strings', u64(2n ** 40n), 'GGUF_TRUNCATED', '1099511627776 string'],
    ['array beyond 2^53', 'count of a.numbers', u64(2n ** 62n), 'GGUF_TRUNCATED', '"a.numbers"'],
    ['nested array count', 'count of a.nested', u64(2n ** 50n), 'GGUF_TRUNCATED', '"a.nested"'],
    ['string in an array', 'length of a.strings[1]', u64(2n ** 33n), 'GGUF_TRUNCATED', '"a.strings"[1]'],
    ['no dimensions', 'dimensions of first', u32(0), 'GGUF_SHAPE', '"first"'],
    ['five dimensions', 'dimensions of first', u32(5), 'GGUF_SHAPE', '5 dimensions'],
    ['empty dimension', 'dimension 1 of first', u64(0n), 'GGUF_SHAPE', 'empty dimension'],
    ['row of half a block', 'dimension 0 of first', u64(48n), 'GGUF_SHAPE', 'block of 32'],
    ['product beyond 2^53', 'dimension 1 of second', u64(2n ** 52n), 'GGUF_SHAPE', '2^53'],
    ['dimension beyond 2^53', 'dimension 3 of second', u64(2n ** 64n - 1n), 'GGUF_SHAPE', '2^53'],
    ['tensor beyond the end', 'dimension 1 of first', u64(1000n), 'GGUF_TRUNCATED', 'tensor "first"'],
    ['removed tensor type', 'type of first', u32(4), 'GGUF_TENSOR_TYPE', 'unknown type 4'],
    ['unknown tensor type', 'type of second', u32(1000), 'GGUF_TENSOR_TYPE', '"second"'],
    ['misaligned offset', 'offset of second', u64(161n), 'GGUF_ALIGNMENT', '"second"'],
    ['offset beyond the end', 'offset of second', u64(2n ** 40n), 'GGUF_TRUNCATED', '"second"'],
    ['offset beyond 2^53', 'offset of second', u64(2n ** 64n - 32n), 'GGUF_TRUNCATED', '"second"'],
    ['same offset', 'offset of second', u64(0n), 'GGUF_OVERLAP', '"first"'],
    ['overlap', 'offset of second', u64(96n), 'GGUF_OVERLAP', '"second"'],
    ['key that is not UTF-8', 'key a.flag', u8(0xff), 'GGUF_STRING', 'metadata key 1'],
    ['name that is not UTF-8', 'tensor name second', u8(0xc0), 'GGUF_STRING', 'tensor 1'],
  ];
  test.each(cases)('%s', async (_, field, change, code, named) => {
    // The key's own bytes carry the key as their label, a value's bytes as well: the key comes first.
    const [bytes] = withField(field, change);
    const error = await refusal(bytes);
    expect([error.code, error.message]).toEqual([code, expect.stringContaining(named)]);
  });

  test('the message gives the offset of the wrong field', async () => {
    const [bytes, offset] = withField('kind of a.flag', u32(13));
    const error = await refusal(bytes);
    expect(error.message).toContain(`offset ${offset}`);
    expect(error.data.offset).toBe(offset);
  });
});

describe('wrong structure', () => {
  const first = ENTRIES[0];
  const cases: [string, Partial<GgufSpec>, ErrorCode, string][] = [
    [
      'duplicate key',
      { metadata: [...ENTRIES, ...(first === undefined ? [] : [first])] },
      'GGUF_DUPLICATE',
      '"general.architecture"',
    ],
    [
      'duplicate tensor',
      { tensors: [...TENSORS, { name: 'first', type: 'F32', shape: [1] }] },
      'GGUF_DUPLICATE',
      '"first"',
    ],
    ['empty key', { metadata: [{ key: '', kind: 'uint8', value: 0 }] }, 'GGUF_STRING', 'metadata key 0'],
    ['empty tensor name', { tensors: [{ name: '', type: 'F32', shape: [1] }] }, 'GGUF_STRING', 'tensor 0'],
    [
      'long tensor name',
      { tensors: [{ name: 'n'.repeat(256), type: 'F32', shape: [1] }] },
      'GGUF_LIMIT',
      '256 bytes',
    ],
    [
      'long key',
      { metadata: [{ key: 'k'.repeat(65_536), kind: 'uint8', value: 0 }] },
      'GGUF_LIMIT',
      '65536 bytes',
    ],
    [
      'arrays five deep',
      {
        metadata: [
          {
            key: 'deep',
            kind: 'array',
            of: 'array',
            values: [
              {
                of: 'array',
                values: [{ of: 'array', values: [{ of: 'array', values: [{ of: 'uint8', values: [] }] }] }],
              },
            ],
          },
        ],
      },
      'GGUF_LIMIT',
      '5 deep',
    ],
  ];
  test.each(cases)('%s', async (_, changed, code, named) => {
    const error = await refusal(write(changed).bytes);
    expect([error.code, error.message]).toEqual([code, expect.stringContaining(named)]);
  });

  test.each([0, 1, 4, 7, 24, 48, 2 ** 21, 2 ** 31])('alignment %d', async (value) => {
    const metadata: Entry[] = [{ key: 'general.alignment', kind: 'uint32', value }];
    const error = await refusal(write({ metadata }).bytes);
    expect([error.code, error.message]).toEqual(['GGUF_ALIGNMENT', expect.stringContaining(`got ${value}`)]);
  });

  test('alignment of another type', async () => {
    const metadata: Entry[] = [{ key: 'general.alignment', kind: 'uint64', value: 32 }];
    const error = await refusal(write({ metadata }).bytes);
    expect([error.code, error.message]).toEqual(['GGUF_ALIGNMENT', expect.stringContaining('uint64')]);
  });

  test('every truncation is refused as one', async () => {
    const { bytes, fields } = write();
    // The last tensor takes 840 bytes, then padding that a file may lack.
    const end = Math.max(...fields.map((field) => field.offset + field.size));
    for (let length = 0; length < end; length += 1) {
      const error = await refusal(bytes.slice(0, length));
      expect([length, error.code]).toEqual([length, 'GGUF_TRUNCATED']);
    }
    await openGguf(memorySource(bytes.slice(0, end)));
  });
});

describe('a file of 8 GB does not make the reader take memory', () => {
  // The list is the last entry, so that the zeros of the large source are its elements.
  const endless = (values: readonly ArrayValue[]): Partial<GgufSpec> => ({
    metadata: [{ key: 'endless', kind: 'array', of: 'array', values }],
    tensors: [],
  });
  const cases: [string, Partial<GgufSpec>, string, bigint][] = [
    ['tensors', {}, 'tensor count', 200_000_000n],
    ['keys', {}, 'metadata count', 300_000_000n],
    ['strings', {}, 'count of a.strings', 900_000_000n],
    ['numbers', {}, 'count of a.numbers', 1_900_000_000n],
    ['booleans', {}, 'count of a.flags', 7_000_000_000n],
    ['a string', {}, 'length of general.architecture', 7_000_000_000n],
    ['nested strings', endless([{ of: 'string', values: [] }]), 'count of endless[0]', 6_500_000n],
    ['nested arrays', endless([]), 'count of endless', 600_000_000n],
  ];
  test.each(cases)('%s', async (_, changed, label, value) => {
    const { bytes, fields } = write(changed);
    const field = fields.find((each) => each.label === label);
    if (field === undefined) throw new Error(`no field ${label}`);
    new DataView(bytes.buffer).setBigUint64(field.offset, value, true);
    const source = largeSource(bytes, 8e9);
    const before = process.memoryUsage().arrayBuffers;
    const start = process.cpuUsage();
    const error = await refusalOf(source);
    const { user, system } = process.cpuUsage(start);
    expect([error.code, error.message]).toEqual(['GGUF_LIMIT', expect.stringMatching(/offset|announces/)]);
    expect((user + system) / 1000).toBeLessThan(1000);
    expect(source.counts.bytes).toBeLessThan(64 * MIB);
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(64 * MIB);
  });
});
