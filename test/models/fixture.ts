import { GgufMetadata, type GgufValue } from '../../ts/gguf/index.js';
import type { ByteSource } from '../../ts/gguf/source.js';
import type { FileTensor, ModelFile } from '../../ts/models/index.js';

type Value = string | number | boolean | readonly number[] | readonly boolean[];
export type Values = Readonly<Record<string, Value>>;
export type Shapes = Readonly<Record<string, readonly [type: string, ...shape: number[]]>>;

const source: ByteSource = {
  name: 'fixture',
  size: 0,
  read: () => Promise.reject(new Error('a plan must not read the file')),
  close: () => Promise.resolve(),
};

/** A model file that exists only as metadata and a tensor table. Every element counts as two bytes. */
export function modelFile(values: Values, shapes: Shapes): ModelFile {
  const metadata = new Map<string, GgufValue>();
  for (const [key, value] of Object.entries(values)) metadata.set(key, ggufValue(value));
  const tensors = new Map<string, FileTensor>();
  let offset = 0;
  for (const [name, [type, ...shape]] of Object.entries(shapes)) {
    const elements = shape.reduce((product, length) => product * length, 1);
    tensors.set(name, { type, shape, elements, part: 0, offset, bytes: elements * 2 });
    offset += elements * 2;
  }
  return { metadata: new GgufMetadata('fixture', metadata), tensors, parts: [source] };
}

function ggufValue(value: Value): GgufValue {
  if (typeof value === 'object') {
    const kind = typeof value[0] === 'boolean' ? 'array[bool]' : 'array[uint8]';
    return { kind, value: Uint8Array.from(value, Number) };
  }
  if (typeof value === 'string') return { kind: 'string', value: new TextEncoder().encode(value) };
  if (typeof value === 'boolean') return { kind: 'bool', value };
  return { kind: 'float64', value };
}

/** The smallest decoder: two layers, width 8, two heads of 4, one KV head, feed-forward 12, 16 tokens. */
export function tinyValues(architecture: string, more: Values = {}): Values {
  const values: Record<string, Value> = {
    'general.architecture': architecture,
    'general.name': 'tiny',
    [`${architecture}.block_count`]: 2,
    [`${architecture}.context_length`]: 64,
    [`${architecture}.embedding_length`]: 8,
    [`${architecture}.feed_forward_length`]: 12,
    [`${architecture}.attention.head_count`]: 2,
    [`${architecture}.attention.head_count_kv`]: 1,
    [`${architecture}.attention.layer_norm_rms_epsilon`]: 0.00001,
    [`${architecture}.vocab_size`]: 16,
  };
  for (const [key, value] of Object.entries(more)) values[`${architecture}.${key}`] = value;
  return values;
}

export function tinyShapes(more: Shapes = {}, perLayer: Shapes = {}, blocks = 2): Shapes {
  const shapes: Record<string, readonly [string, ...number[]]> = {
    'token_embd.weight': ['Q8_0', 8, 16],
    'output_norm.weight': ['F32', 8],
  };
  for (let layer = 0; layer < blocks; layer++) {
    const layerShapes: Shapes = {
      'attn_norm.weight': ['F32', 8],
      'attn_q.weight': ['Q8_0', 8, 8],
      'attn_k.weight': ['Q8_0', 8, 4],
      'attn_v.weight': ['Q8_0', 8, 4],
      'attn_output.weight': ['Q8_0', 8, 8],
      'ffn_norm.weight': ['F32', 8],
      'ffn_gate.weight': ['Q8_0', 8, 12],
      'ffn_up.weight': ['Q8_0', 8, 12],
      'ffn_down.weight': ['Q8_0', 12, 8],
      ...perLayer,
    };
    for (const [name, shape] of Object.entries(layerShapes)) shapes[`blk.${layer}.${name}`] = shape;
  }
  return { ...shapes, ...more };
}

export const BIASES: Shapes = {
  'attn_q.bias': ['F32', 8],
  'attn_k.bias': ['F32', 4],
  'attn_v.bias': ['F32', 4],
};

export const NORMS: Shapes = { 'attn_q_norm.weight': ['F32', 4], 'attn_k_norm.weight': ['F32', 4] };

export const TENSOR_TYPES = ['F32', 'F16', 'BF16', 'Q8_0', 'Q4_0'];
