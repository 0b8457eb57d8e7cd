import { open } from 'node:fs/promises';
import type { GgufSpec, TensorSpec } from '../gguf/writer.js';
import { tensorBytes, writeGguf } from '../gguf/writer.js';
import { randomModelSpec, VOCABULARY } from './random-model.js';

const WIDTH = 1024;
const FEED_FORWARD = 4096;
const ALIGNMENT = 32;

/** Bytes of weights of a model with so many blocks, about 17.9 million for each. */
export interface BigModel {
  readonly path: string;
  readonly weightBytes: number;
}

export interface BigModelOptions {
  /** Where there are any, each feed-forward layer is a mixture of so many, all of which a token uses. @default 0 */
  readonly experts?: number;
  /** Embedding, last block and last norm are not zero. @default false */
  readonly filled?: boolean;
}

/**
 * A Llama of Q8_0 weights that are all zero, written as a sparse file: only the header takes space and time. What
 * loading and computing cost does not depend on the weights' values.
 */
export async function writeBigModel(
  path: string,
  blocks: number,
  { experts = 0, filled = false }: BigModelOptions = {},
): Promise<BigModel> {
  const shapes = bigSpec(blocks, experts);
  const empty: GgufSpec = {
    ...shapes,
    tensors: shapes.tensors.map((tensor) => ({ ...tensor, data: new Uint8Array(0) })),
  };
  const { bytes, fields } = writeGguf(empty);
  const view = new DataView(bytes.buffer);
  const places = fields.filter(({ role }) => role === 'offset');
  let weightBytes = 0;
  let at = 0;
  const starts = shapes.tensors.map((tensor, i) => {
    view.setBigUint64(places[i]?.offset ?? 0, BigInt(at), true);
    const size = tensorBytes(tensor.type, tensor.shape);
    weightBytes += size;
    const start = bytes.length + at;
    at += Math.ceil(size / ALIGNMENT) * ALIGNMENT;
    return start;
  });
  const file = await open(path, 'w');
  try {
    await file.write(bytes);
    await file.truncate(bytes.length + at);
    const last = `blk.${blocks - 1}.`;
    for (const [i, tensor] of shapes.tensors.entries()) {
      if (!filled || (`${tensor.name}`.startsWith('blk.') && !`${tensor.name}`.startsWith(last))) continue;
      await file.write(someBytes(tensor), 0, undefined, starts[i]);
    }
  } finally {
    await file.close();
  }
  return { path, weightBytes };
}

/** Ones, and blocks of Q8_0 with the scale 1 / 512 whose values follow from their place alone. */
function someBytes({ type, shape }: TensorSpec): Uint8Array {
  const bytes = new Uint8Array(tensorBytes(type, shape));
  if (type === 'F32') new Float32Array(bytes.buffer).fill(1);
  else
    bytes.forEach((_, i) => {
      const within = i % 34;
      bytes[i] = within === 0 ? 0 : within === 1 ? 0x18 : ((i * 2654435761) >>> 11) & 255;
    });
  return bytes;
}

/** Metadata and shapes of the random models, with matrices that are larger and have no data yet. */
function bigSpec(blocks: number, experts: number): GgufSpec {
  const { metadata } = randomModelSpec({
    architecture: 'llama',
    seed: 0,
    blocks: 0,
    width: 32,
    heads: 16,
    kvHeads: 4,
    headDim: 64,
    feedForward: FEED_FORWARD,
    contextLength: 2048,
    types: ['Q8_0'],
    ...(experts === 0 ? {} : { keys: { expert_count: experts, expert_used_count: experts } }),
  });
  const set: Readonly<Record<string, number>> = {
    'llama.block_count': blocks,
    'llama.embedding_length': WIDTH,
  };
  return {
    metadata: metadata.map((entry) => {
      const value = set[String(entry.key)];
      return value === undefined ? entry : { key: entry.key, kind: 'uint32', value };
    }),
    tensors: [
      matrix('token_embd', WIDTH, VOCABULARY),
      ...Array.from({ length: blocks }, (_, i) => block(`blk.${i}`, experts)).flat(),
      norm('output_norm'),
    ],
  };
}

function block(name: string, experts: number): TensorSpec[] {
  return [
    norm(`${name}.attn_norm`),
    matrix(`${name}.attn_q`, WIDTH, WIDTH),
    matrix(`${name}.attn_k`, WIDTH, WIDTH / 4),
    matrix(`${name}.attn_v`, WIDTH, WIDTH / 4),
    matrix(`${name}.attn_output`, WIDTH, WIDTH),
    norm(`${name}.ffn_norm`),
    ...(experts === 0 ? [] : [matrix(`${name}.ffn_gate_inp`, WIDTH, experts)]),
    feedForward(`${name}.ffn_gate`, [WIDTH, FEED_FORWARD], experts),
    feedForward(`${name}.ffn_up`, [WIDTH, FEED_FORWARD], experts),
    feedForward(`${name}.ffn_down`, [FEED_FORWARD, WIDTH], experts),
  ];
}

const matrix = (name: string, cols: number, rows: number): TensorSpec => ({
  name: `${name}.weight`,
  type: 'Q8_0',
  shape: [cols, rows],
});

const feedForward = (name: string, shape: readonly number[], experts: number): TensorSpec => ({
  name: experts === 0 ? `${name}.weight` : `${name}_exps.weight`,
  type: 'Q8_0',
  shape: experts === 0 ? shape : [...shape, experts],
});

const norm = (name: string): TensorSpec => ({ name: `${name}.weight`, type: 'F32', shape: [WIDTH] });
