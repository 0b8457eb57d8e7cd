import { FrugalError } from '../errors.js';
import type { GgufValue } from './metadata.js';
import { StringArray } from './string-array.js';
import { GGML_TYPES, type GgmlType, VALUE_KINDS, type ValueKind } from './types.js';

const MAGIC = 0x46554747; // "GGUF"
const VERSION = 3;
/** Tensors begin at multiples of this, which is what files have that do not say otherwise. */
export const ALIGNMENT = 32;

/** A tensor as a file's table lists it; the shape in the order of the file, row length first. */
export interface TensorHead {
  readonly name: string;
  readonly type: GgmlType;
  readonly shape: readonly number[];
}

/** Where a tensor's bytes go. */
export interface TensorSpace extends TensorHead {
  readonly offset: number;
  readonly bytes: number;
}

/** A file before its tensors are written. */
export interface GgufLayout {
  /** All bytes before the first tensor. */
  readonly header: Uint8Array;
  readonly tensors: readonly TensorSpace[];
  /** The size of the whole file; what lies between tensors is zero. */
  readonly bytes: number;
}

/** How many bytes a tensor takes. */
export function tensorBytes(type: GgmlType, shape: readonly number[]): number {
  const { block, bytes } = GGML_TYPES[type];
  return (shape.reduce((product, dimension) => product * dimension, 1) / block) * bytes;
}

/**
 * Lays out a GGUF file of version 3: its header, and where each tensor's bytes go.
 * @param metadata in the order of the file; arrays of arrays cannot be written, as none are kept when read
 * @throws FrugalError `INTERNAL` for a value that cannot be written
 */
export function layOutGguf(
  metadata: ReadonlyMap<string, GgufValue>,
  tensors: readonly TensorHead[],
): GgufLayout {
  const parts = [u32(MAGIC), u32(VERSION), u64(tensors.length), u64(metadata.size)];
  for (const [key, value] of metadata) parts.push(text(key), ...pair(key, value));
  const placed = place(tensors);
  for (const { name, type, shape, offset } of placed) {
    parts.push(text(name), u32(shape.length), ...shape.map(u64));
    parts.push(u32(GGML_TYPES[type].id), u64(offset));
  }
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  const header = new Uint8Array(aligned(length));
  let at = 0;
  for (const part of parts) {
    header.set(part, at);
    at += part.length;
  }
  const last = placed.at(-1);
  return {
    header,
    tensors: placed.map((tensor) => ({ ...tensor, offset: header.length + tensor.offset })),
    bytes: header.length + (last === undefined ? 0 : aligned(last.offset + last.bytes)),
  };
}

/** Offsets count from the start of the tensor data here. */
function place(tensors: readonly TensorHead[]): TensorSpace[] {
  let at = 0;
  return tensors.map(({ name, type, shape }) => {
    const space = { name, type, shape, offset: at, bytes: tensorBytes(type, shape) };
    at = aligned(at + space.bytes);
    return space;
  });
}

function aligned(length: number): number {
  return Math.ceil(length / ALIGNMENT) * ALIGNMENT;
}

function u32(value: number): Uint8Array {
  return scalar(4, (view) => view.setUint32(0, value, true));
}

function u64(value: number): Uint8Array {
  return scalar(8, (view) => view.setBigUint64(0, BigInt(value), true));
}

function text(value: string): Uint8Array {
  return prefixed(new TextEncoder().encode(value));
}

/** A string's bytes after their count. */
function prefixed(bytes: Uint8Array): Uint8Array {
  const out = new Uint8Array(8 + bytes.length);
  out.set(u64(bytes.length));
  out.set(bytes, 8);
  return out;
}

function scalar(length: number, write: (view: DataView) => void): Uint8Array {
  const bytes = new Uint8Array(length);
  write(new DataView(bytes.buffer));
  return bytes;
}

function kindId(kind: ValueKind): Uint8Array {
  return u32(VALUE_KINDS.indexOf(kind));
}

/** A value's kind and its bytes. */
function pair(key: string, { kind, value }: GgufValue): Uint8Array[] {
  if (typeof value === 'boolean') return [kindId('bool'), Uint8Array.of(Number(value))];
  if (typeof value === 'number' || typeof value === 'bigint') return single(key, kind, value);
  if (kind === 'string') return [kindId('string'), prefixed(value)];
  const element = VALUE_KINDS.find((each) => kind === `array[${each}]`);
  if (value === undefined || element === undefined) throw unwritable(key, kind);
  const head = [kindId('array'), kindId(element), u64(value.length)];
  if (value instanceof StringArray) return [...head, strings(value)];
  return [...head, new Uint8Array(value.buffer, value.byteOffset, value.byteLength)];
}

function unwritable(key: string, kind: string): FrugalError {
  return new FrugalError('INTERNAL', `metadata "${key}" of the type ${kind} cannot be written`, {
    cure: 'Report this as a defect of frugal.',
    data: { key, kind },
  });
}

const SETTERS: Readonly<Record<string, readonly [number, (view: DataView, value: number) => void]>> = {
  uint8: [1, (view, value) => view.setUint8(0, value)],
  int8: [1, (view, value) => view.setInt8(0, value)],
  uint16: [2, (view, value) => view.setUint16(0, value, true)],
  int16: [2, (view, value) => view.setInt16(0, value, true)],
  uint32: [4, (view, value) => view.setUint32(0, value, true)],
  int32: [4, (view, value) => view.setInt32(0, value, true)],
  float32: [4, (view, value) => view.setFloat32(0, value, true)],
  float64: [8, (view, value) => view.setFloat64(0, value, true)],
};

function single(key: string, kind: string, value: number | bigint): Uint8Array[] {
  const known = VALUE_KINDS.find((each) => each === kind);
  if (known === undefined) throw unwritable(key, kind);
  if (typeof value === 'bigint') {
    const write =
      kind === 'int64'
        ? (view: DataView) => view.setBigInt64(0, value, true)
        : (view: DataView) => view.setBigUint64(0, value, true);
    return [kindId(known), scalar(8, write)];
  }
  const setter = SETTERS[kind];
  if (setter === undefined) throw unwritable(key, kind);
  return [kindId(known), scalar(setter[0], (view) => setter[1](view, value))];
}

/** All strings of an array, each after its length. */
function strings(array: StringArray): Uint8Array {
  const { buffer, offsets } = array;
  const start = offsets[0] ?? 0;
  const end = offsets[array.length] ?? start;
  const out = new Uint8Array(8 * array.length + end - start);
  const view = new DataView(out.buffer);
  let at = 0;
  for (let i = 0; i < array.length; i += 1) {
    const from = offsets[i] ?? 0;
    const to = offsets[i + 1] ?? from;
    // Lengths are below 2^32: the high half stays zero.
    view.setUint32(at, to - from, true);
    out.set(buffer.subarray(from, to), at + 8);
    at += 8 + to - from;
  }
  return out;
}
