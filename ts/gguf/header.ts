import { breathe, type Cursor, checkFits, createCursor, keep, need, readU32, readU64 } from './cursor.js';
import { GgufMetadata, type GgufValue } from './metadata.js';
import { refuse } from './refuse.js';
import type { ByteSource } from './source.js';
import { readName } from './strings.js';
import { checkTensorCount, type GgufTensor, readTensors } from './tensors.js';
import { readValue } from './values.js';

const MAGIC = 0x46554747; // "GGUF"
const DEFAULT_ALIGNMENT = 32;
const MAX_ALIGNMENT = 1024 * 1024;
const MAX_KEYS = 65_536;
const MAX_KEY_BYTES = 65_535;
/** An empty key's length, the value's type and a value of one byte. */
const MIN_PAIR_BYTES = 8 + 4 + 1;
/** What a pair takes in memory beside its key and value. */
const PAIR_COST = 160;

/** One file's header, checked against the size of its source. */
export interface Header {
  readonly version: 2 | 3;
  readonly metadata: GgufMetadata;
  readonly tensors: ReadonlyMap<string, GgufTensor>;
}

/** @param part the number that the tensors carry: which file of a split model this is */
export async function readHeader(source: ByteSource, part: number, signal?: AbortSignal): Promise<Header> {
  const cursor = createCursor(source, signal);
  const version = await readVersion(cursor);
  await need(cursor, 16, 'the counts of tensors and metadata');
  const tensorCount = readU64(cursor);
  const pairCount = readU64(cursor);
  checkTensorCount(cursor, tensorCount);
  checkPairCount(cursor, pairCount);
  const metadata = await readMetadata(cursor, pairCount);
  const tensors = await readTensors(cursor, tensorCount, alignmentOf(cursor, metadata), part);
  return { version, metadata, tensors };
}

async function readVersion(cursor: Cursor): Promise<2 | 3> {
  const source = cursor.source.name;
  await need(cursor, 4, 'the magic "GGUF"');
  const magic = readU32(cursor);
  if (magic !== MAGIC) {
    const bytes = [0, 8, 16, 24].map((shift) => ((magic >>> shift) & 0xff).toString(16).padStart(2, '0'));
    throw refuse('GGUF_MAGIC', `${source}: not a GGUF file: it begins with ${bytes.join(' ')}, not "GGUF"`, {
      source,
      offset: 0,
      bytes: bytes.join(' '),
    });
  }
  await need(cursor, 4, 'the version');
  const version = readU32(cursor);
  if (version === 2 || version === 3) return version;
  // The magic is the same in both byte orders; the version tells them apart.
  if (version !== 0 && (version & 0xffff) === 0) {
    throw refuse(
      'GGUF_BIG_ENDIAN',
      `${source}: a big-endian GGUF file: its version reads ${version} at offset 4`,
      {
        source,
        offset: 4,
        version,
      },
    );
  }
  throw refuse('GGUF_VERSION', `${source}: GGUF version ${version} at offset 4; versions 2 and 3 are read`, {
    source,
    offset: 4,
    version,
  });
}

function checkPairCount(cursor: Cursor, count: number): void {
  checkFits(cursor, count * MIN_PAIR_BYTES, `the metadata of ${count} keys`);
  if (count <= MAX_KEYS) return;
  throw refuse(
    'GGUF_LIMIT',
    `${cursor.source.name}: the header announces ${count} metadata keys; at most ${MAX_KEYS} are allowed`,
    { source: cursor.source.name, count, limit: MAX_KEYS },
  );
}

async function readMetadata(cursor: Cursor, count: number): Promise<GgufMetadata> {
  const values = new Map<string, GgufValue>();
  for (let i = 0; i < count; i += 1) {
    const offset = cursor.position;
    keep(cursor, PAIR_COST, `metadata key ${i}`);
    const key = await readName(cursor, MAX_KEY_BYTES, `metadata key ${i}`);
    if (values.has(key)) {
      throw refuse(
        'GGUF_DUPLICATE',
        `${cursor.source.name}: metadata "${key}" appears a second time at offset ${offset}`,
        { source: cursor.source.name, key, offset },
      );
    }
    values.set(key, await readValue(cursor, key));
    await breathe(cursor);
  }
  return new GgufMetadata(cursor.source.name, values);
}

function alignmentOf(cursor: Cursor, metadata: GgufMetadata): number {
  const found = metadata.get('general.alignment');
  if (found === undefined) return DEFAULT_ALIGNMENT;
  const alignment = found.kind === 'uint32' ? found.value : Number.NaN;
  const powerOfTwo = (alignment & (alignment - 1)) === 0;
  if (alignment >= 8 && alignment <= MAX_ALIGNMENT && powerOfTwo) return alignment;
  const got = found.kind === 'uint32' ? `${found.value}` : `a value of type ${found.kind}`;
  throw refuse(
    'GGUF_ALIGNMENT',
    `${cursor.source.name}: "general.alignment" should be a uint32 power of two from 8 to ` +
      `${MAX_ALIGNMENT}, got ${got}`,
    { source: cursor.source.name, key: 'general.alignment', got },
  );
}
