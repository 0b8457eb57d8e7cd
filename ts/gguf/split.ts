import { type Header, readHeader } from './header.js';
import type { GgufMetadata } from './metadata.js';
import { parsePartName, partName } from './part-name.js';
import { refuse } from './refuse.js';
import type { ByteSource } from './source.js';
import type { GgufTensor } from './tensors.js';

const MAX_PARTS = 1024;

/** How many files the model is in; 1 when it is not split. */
export function partCount(metadata: GgufMetadata, source: ByteSource): number {
  const count = splitNumber(metadata, 'split.count', source) ?? 1;
  if (count <= 1) return 1;
  if (count <= MAX_PARTS) return count;
  throw splitError(source, `"split.count" is ${count}; at most ${MAX_PARTS} parts are allowed`, { count });
}

/**
 * Opens the other parts of a split model, of which `first` was read from `source`, and joins their tensors.
 * @param opened gets each part's source as soon as it is open, so that the caller can close it
 */
export async function readParts(
  source: ByteSource,
  first: Header,
  count: number,
  opened: ByteSource[],
  signal?: AbortSignal,
): Promise<Map<string, GgufTensor>> {
  const stem = checkFirstName(source, first.metadata, count);
  checkPart(source, first.metadata, 0, count);
  const tensors = new Map(first.tensors);
  const expected = splitNumber(first.metadata, 'split.tensors.count', source);
  for (let part = 1; part < count; part += 1) {
    const sibling = await openSibling(source, partName({ stem, part: part + 1, count }), signal);
    opened.push(sibling);
    const header = await readHeader(sibling, part, signal);
    checkPart(sibling, header.metadata, part, count);
    const stated = splitNumber(header.metadata, 'split.tensors.count', sibling) ?? expected;
    if (stated !== expected) {
      throw splitError(
        sibling,
        `"split.tensors.count" is ${stated}, but ${expected} in the first part: it is a part of another model`,
        { expected, got: stated },
      );
    }
    addTensors(sibling, tensors, header.tensors);
  }
  if (expected !== tensors.size) {
    throw splitError(
      source,
      `"split.tensors.count" is ${expected}, but the parts hold ${tensors.size} tensors`,
      {
        expected,
        got: tensors.size,
      },
    );
  }
  return tensors;
}

/** The part of the file's name that all parts share. */
function checkFirstName(source: ByteSource, metadata: GgufMetadata, count: number): string {
  const base = source.name.slice(Math.max(source.name.lastIndexOf('/'), source.name.lastIndexOf('\\')) + 1);
  const stem = parsePartName(base)?.stem;
  if (stem === undefined) {
    throw splitError(
      source,
      `part of a model split into ${count} files, but not named as one (${partName({ stem: 'NAME', part: 1, count })})`,
      { count },
    );
  }
  const expected = partName({ stem, part: 1, count });
  const number = splitNumber(metadata, 'split.no', source) ?? 0;
  if (number !== 0) {
    throw splitError(
      source,
      `part ${number + 1} of a model split into ${count} files; open the first part`,
      { part: number, count },
      `Open ${expected} instead.`,
    );
  }
  if (base !== expected) {
    throw splitError(source, `the first of ${count} parts should be named ${expected}`, { expected });
  }
  return stem;
}

/** Checks that a part says of itself what its place says. */
function checkPart(source: ByteSource, metadata: GgufMetadata, part: number, count: number): void {
  const number = splitNumber(metadata, 'split.no', source);
  if (number !== part) {
    throw splitError(source, `"split.no" should be ${part}, got ${number ?? 'nothing'}`, {
      expected: part,
      got: number,
    });
  }
  const total = splitNumber(metadata, 'split.count', source);
  if (total !== count) {
    throw splitError(source, `"split.count" should be ${count}, got ${total ?? 'nothing'}`, {
      expected: count,
      got: total,
    });
  }
}

function splitNumber(metadata: GgufMetadata, key: string, source: ByteSource): number | undefined {
  const found = metadata.get(key);
  if (found === undefined) return undefined;
  if (typeof found.value === 'number' && Number.isInteger(found.value) && found.value >= 0)
    return found.value;
  const got = typeof found.value === 'number' ? `${found.value}` : found.kind;
  throw splitError(source, `"${key}" should be a small whole number, got ${got}`, { key, got });
}

async function openSibling(source: ByteSource, name: string, signal?: AbortSignal): Promise<ByteSource> {
  if (source.sibling === undefined) {
    throw splitError(
      source,
      `the model goes on in ${name}, and this kind of source cannot open it`,
      { missing: name },
      'Open the model by path or URL, give a list of all its Files, or merge its parts into one file.',
    );
  }
  try {
    return await source.sibling(name, signal);
  } catch (cause) {
    signal?.throwIfAborted();
    throw splitError(source, `the part ${name} cannot be opened`, { missing: name }, undefined, cause);
  }
}

function addTensors(
  source: ByteSource,
  all: Map<string, GgufTensor>,
  added: ReadonlyMap<string, GgufTensor>,
): void {
  for (const [name, tensor] of added) {
    if (all.has(name)) {
      throw refuse('GGUF_DUPLICATE', `${source.name}: tensor "${name}" is also in an earlier part`, {
        source: source.name,
        tensor: name,
      });
    }
    all.set(name, tensor);
  }
}

function splitError(
  source: ByteSource,
  problem: string,
  data: Record<string, unknown>,
  cure?: string,
  cause?: unknown,
): Error {
  return refuse(
    'GGUF_SPLIT',
    `${source.name}: ${problem}`,
    { source: source.name, ...data },
    { ...(cure === undefined ? {} : { cure }), cause },
  );
}
