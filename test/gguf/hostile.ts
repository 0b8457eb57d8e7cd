/**
 * Files that a reader must refuse or read rightly, and never crash or hang on. All are made from one
 * small model that is complete, so that what survives the reader goes on to the rest of the load path.
 */
import { below, createRandom, pick, type Random } from './random.js';
import { tinyLlama, tinyLlamaSpec } from './tiny-llama.js';
import { type ArrayValue, type Entry, type Field, type GgufSpec, type Written, writeGguf } from './writer.js';

export interface HostileFile {
  /** What was changed; the same for the same seed. */
  readonly name: string;
  readonly bytes: Uint8Array;
  readonly base: 'truncated' | 'number' | 'structure' | 'bytes';
}

/**
 * Truncations at every boundary of a field, extremes in every numeric field and mistakes of structure,
 * about 2,300 files, then random damage until there are `count`.
 */
export function* hostileFiles(seed: number, count: number): Generator<HostileFile> {
  const random = createRandom(seed);
  const base = tinyLlama();
  let made = 0;
  for (const file of systematic(random, base)) {
    made += 1;
    yield file;
  }
  for (; made < count; made += 1) yield damaged(random, base, made);
}

function* systematic(random: Random, base: Written): Generator<HostileFile> {
  yield* truncations(base);
  for (const field of base.fields) yield* extremes(random, base, field);
  yield* mistakes();
}

function* truncations({ bytes, fields }: Written): Generator<HostileFile> {
  const ends = new Map<number, string>();
  for (const { offset, size, label } of fields) {
    ends.set(offset, `before ${label}`);
    ends.set(offset + size, `after ${label}`);
  }
  for (const [end, label] of ends) {
    yield { name: `truncated ${label} at ${end}`, bytes: bytes.slice(0, end), base: 'truncated' };
  }
}

const WIDE = [
  0n,
  1n,
  2n ** 31n,
  2n ** 32n - 1n,
  2n ** 32n,
  2n ** 40n,
  2n ** 53n - 1n,
  2n ** 53n,
  2n ** 61n,
  2n ** 63n - 1n,
  2n ** 63n,
  2n ** 64n - 1n,
];
const NARROW = [0, 1, 5, 13, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0x8000_0000, 0x0300_0000, 0xffff_ffff];

/** A numeric field with three of the extremes of its width; one for each of the many tokens. */
function* extremes(random: Random, base: Written, field: Field): Generator<HostileFile> {
  if (field.role === 'bytes' || field.role === 'data' || field.size > 8) return;
  const times = field.label.startsWith('length of tokenizer.ggml.tokens[') ? 1 : 3;
  for (let i = 0; i < times; i += 1) {
    const bytes = base.bytes.slice();
    const view = new DataView(bytes.buffer);
    const near = BigInt(pick(random, [-1, 1, 8]));
    const here = field.size === 8 ? view.getBigUint64(field.offset, true) : 0n;
    const wide = pick(random, [...WIDE, here + near, BigInt(bytes.length)]);
    const narrow = pick(random, NARROW);
    if (field.size === 8) view.setBigUint64(field.offset, BigInt.asUintN(64, wide), true);
    else if (field.size === 4) view.setUint32(field.offset, narrow, true);
    else bytes[field.offset + below(random, field.size)] = narrow & 0xff;
    const value = field.size === 8 ? wide : narrow;
    yield { name: `${field.label} at ${field.offset} set to ${value}`, bytes, base: 'number' };
  }
}

/** Random damage: bytes changed, a stretch repeated, cut out, zeroed or exchanged. Mostly in the header. */
function damaged(random: Random, base: Written, number: number): HostileFile {
  const bytes = base.bytes.slice();
  const header = base.fields.find((field) => field.role === 'data')?.offset ?? bytes.length;
  const end = random() < 0.9 ? header : bytes.length;
  const at = below(random, end);
  const length = 1 + below(random, 64);
  const how = pick(random, ['flip', 'flip', 'flip', 'zero', 'ones', 'repeat', 'cut'] as const);
  const name = `${how} ${length} at ${at} (${number})`;
  if (how === 'flip') {
    for (let i = 0; i < 1 + (length >> 3); i += 1) {
      const position = below(random, end);
      bytes[position] = (bytes[position] ?? 0) ^ (1 << below(random, 8));
    }
  } else if (how === 'zero' || how === 'ones') {
    bytes.fill(how === 'zero' ? 0 : 0xff, at, at + length);
  } else {
    // Cutting and repeating move everything behind, tensor data included.
    const resume = how === 'cut' ? at + length : Math.max(0, at - length);
    return { name, bytes: joinBytes(bytes.subarray(0, at), bytes.subarray(resume)), base: 'bytes' };
  }
  return { name, bytes, base: 'bytes' };
}

function joinBytes(first: Uint8Array, second: Uint8Array): Uint8Array {
  const joined = new Uint8Array(first.length + second.length);
  joined.set(first);
  joined.set(second, first.length);
  return joined;
}

function* mistakes(): Generator<HostileFile> {
  const spec = tinyLlamaSpec();
  const file = (name: string, changed: Partial<GgufSpec>): HostileFile => ({
    name,
    bytes: writeGguf({ ...spec, ...changed }).bytes,
    base: 'structure',
  });
  for (const version of [0, 1, 4, 0x0300_0000, 0x0200_0000]) yield file(`version ${version}`, { version });
  for (const alignment of [0, 1, 4, 7, 24, 64, 2 ** 21, 2 ** 31]) {
    yield file(`alignment ${alignment}`, {
      metadata: [{ key: 'general.alignment', kind: 'uint32', value: alignment }, ...spec.metadata],
    });
  }
  for (const entry of spec.metadata) {
    const others = spec.metadata.filter((other) => other !== entry);
    yield file(`${entry.key} twice`, { metadata: [...spec.metadata, entry] });
    yield file(`${entry.key} absent`, { metadata: others });
    yield file(`${entry.key} of another kind`, { metadata: [...others, otherKind(entry)] });
  }
  for (const tensor of spec.tensors) {
    const others = spec.tensors.filter((other) => other !== tensor);
    yield file(`${tensor.name} twice`, { tensors: [...spec.tensors, tensor] });
    yield file(`${tensor.name} absent`, { tensors: others });
    yield file(`${tensor.name} of another shape`, {
      tensors: [...others, { name: tensor.name, type: 'F32', shape: [...tensor.shape, 1, 1] }],
    });
    yield file(`${tensor.name} with shape reversed`, {
      tensors: [...others, { name: tensor.name, type: 'F32', shape: [...tensor.shape].reverse() }],
    });
  }
  for (const depth of [2, 4, 5, 100]) {
    const entry: Entry = { key: 'test.deep', kind: 'array', ...deep(depth) };
    yield file(`arrays ${depth} deep`, { metadata: [...spec.metadata, entry] });
  }
  yield file('a key that is not UTF-8', {
    metadata: [...spec.metadata, { key: Uint8Array.of(0xff, 0xfe), kind: 'uint8', value: 1 }],
  });
  yield file('an empty key', { metadata: [...spec.metadata, { key: '', kind: 'uint8', value: 1 }] });
  yield file('a model split in two whose second part is missing', {
    metadata: [...spec.metadata, { key: 'split.count', kind: 'uint16', value: 2 }],
  });
  yield file('no metadata', { metadata: [] });
  yield file('no tensors', { tensors: [] });
}

function otherKind(entry: Entry): Entry {
  return entry.kind === 'string'
    ? { key: entry.key, kind: 'float64', value: -1 }
    : { key: entry.key, kind: 'string', value: 'something else' };
}

/** Arrays in arrays; each but the innermost holds three. */
function deep(levels: number): ArrayValue {
  if (levels === 1) return { of: 'uint8', values: [1] };
  const inner = deep(levels - 1);
  return { of: 'array', values: levels > 5 ? [inner] : [inner, inner, inner] };
}
