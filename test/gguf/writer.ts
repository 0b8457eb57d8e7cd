/**
 * Writes GGUF files in memory, right ones and (because nothing is checked) wrong ones. It remembers
 * where each field lies, so that tests can change one field at a time.
 */
import { GGML_TYPES, type GgmlType, VALUE_KINDS, type ValueKind } from '../../ts/gguf/types.js';

export type Scalar = number | bigint | boolean | string | Uint8Array;

/** One metadata pair. For arrays, `of` is the kind of the elements; nested arrays hold `ArrayValue`s. */
export type Entry =
  | { key: string | Uint8Array; kind: Exclude<ValueKind, 'array'>; value: Scalar }
  | ({ key: string | Uint8Array; kind: 'array' } & ArrayValue);

export interface ArrayValue {
  of: ValueKind;
  values: readonly Scalar[] | readonly ArrayValue[];
}

export interface TensorSpec {
  name: string | Uint8Array;
  type: GgmlType;
  shape: readonly number[];
  /** By default zeros of the right length. */
  data?: Uint8Array;
}

export interface GgufSpec {
  /** @default 3 */
  version?: number;
  metadata: readonly Entry[];
  tensors: readonly TensorSpec[];
  /** @default 32; it is not written to the metadata by itself */
  alignment?: number;
}

export type FieldRole =
  | 'magic'
  | 'version'
  | 'count'
  | 'length'
  | 'kind'
  | 'value'
  | 'bytes'
  | 'dimensions'
  | 'dimension'
  | 'type'
  | 'offset'
  | 'data';

/** Where a field lies in the written file. */
export interface Field {
  readonly role: FieldRole;
  readonly label: string;
  readonly offset: number;
  readonly size: number;
}

export interface Written {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly fields: readonly Field[];
}

interface Out {
  bytes: Uint8Array<ArrayBuffer>;
  length: number;
  readonly fields: Field[];
}

/** How many bytes a tensor takes. */
export function tensorBytes(type: GgmlType, shape: readonly number[]): number {
  const { block, bytes } = GGML_TYPES[type];
  return (shape.reduce((product, each) => product * each, 1) / block) * bytes;
}

export function writeGguf(spec: GgufSpec): Written {
  const alignment = spec.alignment ?? 32;
  const out: Out = { bytes: new Uint8Array(64 * 1024), length: 0, fields: [] };
  u32(out, 0x46554747, 'magic', 'magic');
  u32(out, spec.version ?? 3, 'version', 'version');
  u64(out, spec.tensors.length, 'count', 'tensor count');
  u64(out, spec.metadata.length, 'count', 'metadata count');
  for (const entry of spec.metadata) writeEntry(out, entry);
  const offsets = layOut(spec.tensors, alignment);
  spec.tensors.forEach((tensor, i) => {
    writeTensorEntry(out, tensor, offsets[i] ?? 0);
  });
  for (const tensor of spec.tensors) {
    pad(out, alignment);
    const data = tensor.data ?? new Uint8Array(tensorBytes(tensor.type, tensor.shape));
    append(out, data, 'data', `data of ${label(tensor.name)}`);
  }
  if (spec.tensors.length > 0) pad(out, alignment);
  return { bytes: out.bytes.slice(0, out.length), fields: out.fields };
}

/** The parts of a split model by file name; `cuts` are the indexes of tensors at which a new part begins. */
export function writeSplit(
  stem: string,
  spec: GgufSpec,
  cuts: readonly number[],
): Map<string, Uint8Array<ArrayBuffer>> {
  const starts = [0, ...cuts];
  const digits = (value: number) => String(value).padStart(5, '0');
  return new Map(
    starts.map((start, part) => {
      const split: Entry[] = [
        { key: 'split.no', kind: 'uint16', value: part },
        { key: 'split.count', kind: 'uint16', value: starts.length },
        { key: 'split.tensors.count', kind: 'int32', value: spec.tensors.length },
      ];
      const metadata = part === 0 ? [...spec.metadata, ...split] : split;
      const tensors = spec.tensors.slice(start, starts[part + 1] ?? spec.tensors.length);
      const name = `${stem}-${digits(part + 1)}-of-${digits(starts.length)}.gguf`;
      return [name, writeGguf({ ...spec, metadata, tensors }).bytes];
    }),
  );
}

function layOut(tensors: readonly TensorSpec[], alignment: number): number[] {
  let at = 0;
  return tensors.map((tensor) => {
    const offset = at;
    const bytes = tensor.data?.length ?? tensorBytes(tensor.type, tensor.shape);
    at = Math.ceil((offset + bytes) / alignment) * alignment;
    return offset;
  });
}

function writeEntry(out: Out, entry: Entry): void {
  const name = label(entry.key);
  text(out, entry.key, `key ${name}`);
  u32(out, VALUE_KINDS.indexOf(entry.kind), 'kind', `kind of ${name}`);
  if (entry.kind === 'array') writeArray(out, entry, name);
  else writeScalar(out, entry.kind, entry.value, name);
}

function writeArray(out: Out, array: ArrayValue, name: string): void {
  u32(out, VALUE_KINDS.indexOf(array.of), 'kind', `element kind of ${name}`);
  u64(out, array.values.length, 'count', `count of ${name}`);
  const start = out.length;
  array.values.forEach((value, i) => {
    if (isArrayValue(value)) writeArray(out, value, `${name}[${i}]`);
    else if (array.of === 'string') text(out, asText(value), `${name}[${i}]`);
    else putScalar(out, array.of, value);
  });
  if (array.of !== 'string' && array.of !== 'array') field(out, 'value', `values of ${name}`, start);
}

function isArrayValue(value: Scalar | ArrayValue): value is ArrayValue {
  return typeof value === 'object' && 'of' in value && 'values' in value;
}

function writeScalar(out: Out, kind: ValueKind, value: Scalar, name: string): void {
  if (kind === 'string') {
    text(out, asText(value), name);
    return;
  }
  const start = out.length;
  putScalar(out, kind, value);
  field(out, 'value', name, start);
}

function asText(value: Scalar): string | Uint8Array {
  return value instanceof Uint8Array ? value : String(value);
}

const PUT: Partial<Record<ValueKind, [number, (view: DataView, value: Scalar) => void]>> = {
  uint8: [1, (view, value) => view.setUint8(0, Number(value))],
  int8: [1, (view, value) => view.setInt8(0, Number(value))],
  uint16: [2, (view, value) => view.setUint16(0, Number(value), true)],
  int16: [2, (view, value) => view.setInt16(0, Number(value), true)],
  uint32: [4, (view, value) => view.setUint32(0, Number(value), true)],
  int32: [4, (view, value) => view.setInt32(0, Number(value), true)],
  float32: [4, (view, value) => view.setFloat32(0, Number(value), true)],
  bool: [1, (view, value) => view.setUint8(0, Number(value))],
  uint64: [8, (view, value) => view.setBigUint64(0, wide(value), true)],
  int64: [8, (view, value) => view.setBigInt64(0, wide(value), true)],
  float64: [8, (view, value) => view.setFloat64(0, Number(value), true)],
};

function wide(value: Scalar): bigint {
  return BigInt(typeof value === 'bigint' ? value : Number(value));
}

function putScalar(out: Out, kind: ValueKind, value: Scalar): void {
  const put = PUT[kind];
  if (put === undefined) throw new Error(`no single value has the kind ${kind}`);
  const [width, write] = put;
  write(new DataView(room(out, width).buffer, out.length, width), value);
  out.length += width;
}

function writeTensorEntry(out: Out, tensor: TensorSpec, offset: number): void {
  const name = label(tensor.name);
  text(out, tensor.name, `tensor name ${name}`);
  u32(out, tensor.shape.length, 'dimensions', `dimensions of ${name}`);
  tensor.shape.forEach((dimension, i) => {
    u64(out, dimension, 'dimension', `dimension ${i} of ${name}`);
  });
  u32(out, GGML_TYPES[tensor.type].id, 'type', `type of ${name}`);
  u64(out, offset, 'offset', `offset of ${name}`);
}

function label(name: string | Uint8Array): string {
  return typeof name === 'string' ? name : new TextDecoder().decode(name);
}

function text(out: Out, value: string | Uint8Array, name: string): void {
  const bytes = typeof value === 'string' ? new TextEncoder().encode(value) : value;
  u64(out, bytes.length, 'length', `length of ${name}`);
  append(out, bytes, 'bytes', name);
}

function u32(out: Out, value: number, role: FieldRole, name: string): void {
  const start = out.length;
  putScalar(out, 'uint32', value);
  field(out, role, name, start);
}

function u64(out: Out, value: number, role: FieldRole, name: string): void {
  const start = out.length;
  putScalar(out, 'uint64', value);
  field(out, role, name, start);
}

function append(out: Out, bytes: Uint8Array, role: FieldRole, name: string): void {
  const start = out.length;
  room(out, bytes.length).set(bytes, out.length);
  out.length += bytes.length;
  field(out, role, name, start);
}

function pad(out: Out, alignment: number): void {
  const length = Math.ceil(out.length / alignment) * alignment;
  room(out, length - out.length);
  out.length = length;
}

function field(out: Out, role: FieldRole, name: string, start: number): void {
  out.fields.push({ role, label: name, offset: start, size: out.length - start });
}

/** The buffer with room for `bytes` more, grown when it is full. */
function room(out: Out, bytes: number): Uint8Array<ArrayBuffer> {
  if (out.length + bytes > out.bytes.length) {
    const grown = new Uint8Array(Math.max(2 * out.bytes.length, out.length + bytes));
    grown.set(out.bytes);
    out.bytes = grown;
  }
  return out.bytes;
}
