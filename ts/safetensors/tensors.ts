import { FrugalError } from '../errors.js';
import type { GgmlType } from '../gguf/index.js';
import { readExactly } from '../gguf/read-exactly.js';
import { unsupported } from '../models/keys.js';
import type { SourceTensor } from '../quantize/types.js';
import type { ModelConfig } from './config.js';
import type { SafeTensor } from './header.js';

/** Types that can be converted, with the bytes of a value. */
const VALUE_BYTES = { F32: 4, F16: 2, BF16: 2 } as const;

/** A tensor of the GGUF file and the stored tensors that make it up, one after another. */
interface Assembly {
  readonly name: string;
  readonly from: readonly string[];
  /** Rows first, of each stored tensor. */
  readonly shape: readonly number[];
  /** Rows are permuted within each head, for interleaved rotary pairs. */
  readonly permuted?: boolean;
  readonly optional?: boolean;
}

/** Rotary frequencies that old files store; they follow from the configuration. */
const HARMLESS = /^model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq$/;

/**
 * The tensors of the GGUF file, each checked against the configuration. Every stored tensor must be used:
 * one that is left out would silently be a wrong result.
 * @throws FrugalError `MISSING_TENSOR`, `TENSOR_SHAPE`, `UNSUPPORTED_TENSOR_TYPE`, `UNSUPPORTED_FEATURE`
 */
export function modelTensors(
  config: ModelConfig,
  stored: ReadonlyMap<string, SafeTensor>,
): { tensors: SourceTensor[]; notices: string[] } {
  // A bound on the layers before anything is listed for each.
  if (config.layers > stored.size) throw config.fields.invalid('num_hidden_layers', `at most ${stored.size}`);
  if (config.experts > stored.size)
    throw config.fields.invalid('num_local_experts', `at most ${stored.size}`);
  const used = new Set<string>();
  const tensors: SourceTensor[] = [];
  for (const assembly of assemblies(config)) {
    if (assembly.optional && !stored.has(assembly.from[0] ?? '')) continue;
    const parts = assembly.from.map((name) => take(stored, name, assembly.shape));
    for (const { name } of parts) used.add(name);
    tensors.push(assemble(assembly, parts, config.headDim));
  }
  if (config.ropeFactors !== undefined)
    tensors.splice(1, 0, constant('rope_freqs.weight', config.ropeFactors));
  const notices: string[] = [];
  for (const name of stored.keys()) {
    if (used.has(name) || HARMLESS.test(name)) continue;
    if (name === 'lm_head.weight' && config.tied) {
      notices.push('lm_head.weight is left out: the configuration ties the output to the token embeddings');
      continue;
    }
    throw unsupported(`the model has a tensor ${name.slice(0, 80)} that ${config.architecture} models lack`, {
      tensor: name,
    });
  }
  return { tensors, notices };
}

function assemblies(config: ModelConfig): Assembly[] {
  const { hidden, vocabSize, layers, tied } = config;
  const one = (name: string, from: string, shape: readonly number[]): Assembly => ({
    name,
    from: [from],
    shape,
  });
  return [
    one('token_embd.weight', 'model.embed_tokens.weight', [vocabSize, hidden]),
    ...Array.from({ length: layers }, (_, layer) => layerAssemblies(config, layer)).flat(),
    one('output_norm.weight', 'model.norm.weight', [hidden]),
    ...(tied ? [] : [one('output.weight', 'lm_head.weight', [vocabSize, hidden])]),
  ];
}

function layerAssemblies(config: ModelConfig, layer: number): Assembly[] {
  const { architecture, hidden, heads, kvHeads, headDim, feedForward, experts } = config;
  const from = `model.layers.${layer}`;
  const one = (name: string, stored: string, ...shape: number[]): Assembly => ({
    name: `blk.${layer}.${name}`,
    from: [`${from}.${stored}`],
    shape,
  });
  const project = (letter: string, outputs: number, inputs: number, gguf: string): Assembly[] => {
    const permuted = architecture === 'llama' && (letter === 'q' || letter === 'k');
    return [
      { ...one(`${gguf}.weight`, `self_attn.${letter}_proj.weight`, outputs, inputs), permuted },
      { ...one(`${gguf}.bias`, `self_attn.${letter}_proj.bias`, outputs), permuted, optional: true },
    ];
  };
  const feed = (name: string, dense: string, expert: string, outputs: number, inputs: number): Assembly => {
    if (experts === 0) return one(`ffn_${name}.weight`, `mlp.${dense}_proj.weight`, outputs, inputs);
    const names = Array.from(
      { length: experts },
      (_, e) => `${from}.block_sparse_moe.experts.${e}.${expert}.weight`,
    );
    return { name: `blk.${layer}.ffn_${name}_exps.weight`, from: names, shape: [outputs, inputs] };
  };
  const norm = (letter: string): Assembly => ({
    ...one(`attn_${letter}_norm.weight`, `self_attn.${letter}_norm.weight`, headDim),
    optional: true,
  });
  return [
    one('attn_norm.weight', 'input_layernorm.weight', hidden),
    ...project('q', heads * headDim, hidden, 'attn_q'),
    ...project('k', kvHeads * headDim, hidden, 'attn_k'),
    ...project('v', kvHeads * headDim, hidden, 'attn_v'),
    ...project('o', hidden, heads * headDim, 'attn_output'),
    ...(architecture === 'qwen3' ? [norm('q'), norm('k')] : []),
    one('ffn_norm.weight', 'post_attention_layernorm.weight', hidden),
    ...(experts === 0 ? [] : [one('ffn_gate_inp.weight', 'block_sparse_moe.gate.weight', experts, hidden)]),
    feed('gate', 'gate', 'w1', feedForward, hidden),
    feed('up', 'up', 'w3', feedForward, hidden),
    feed('down', 'down', 'w2', hidden, feedForward),
  ];
}

function take(stored: ReadonlyMap<string, SafeTensor>, name: string, shape: readonly number[]): SafeTensor {
  const found = stored.get(name);
  if (found === undefined) {
    throw new FrugalError('MISSING_TENSOR', `the tensor ${name} is missing`, {
      cure: 'The model is incomplete: fetch it again, all parts of it.',
      data: { tensor: name },
    });
  }
  const { dtype } = found;
  if (!Object.hasOwn(VALUE_BYTES, dtype)) {
    const known = Object.keys(VALUE_BYTES).join(', ');
    throw new FrugalError('UNSUPPORTED_TENSOR_TYPE', `the tensor ${name} is ${dtype}; read are ${known}`, {
      cure: `Use a release of the model whose weights are ${known}.`,
      data: { tensor: name, type: dtype },
    });
  }
  if (found.shape.length === shape.length && shape.every((size, i) => size === found.shape[i])) return found;
  const texts = [found.shape, shape].map((each) => `[${each.join(', ')}]`);
  throw new FrugalError(
    'TENSOR_SHAPE',
    `the tensor ${name} has the shape ${texts[0]}, expected ${texts[1]}`,
    {
      cure: 'config.json and the weights disagree: fetch both again, of the same release.',
      data: { tensor: name, got: found.shape, expected: shape },
    },
  );
}

/** One tensor of stored ones, which must have one type. */
function assemble(assembly: Assembly, parts: readonly SafeTensor[], headDim: number): SourceTensor {
  const { name, shape, permuted = false } = assembly;
  const [first] = parts;
  const mixed = parts.find((part) => part.dtype !== first?.dtype);
  if (first === undefined || mixed !== undefined)
    throw unsupported(`the parts of ${name} have different types`, { tensor: name });
  const type = first.dtype as keyof typeof VALUE_BYTES;
  const width = VALUE_BYTES[type];
  const cols = shape.length === 1 ? 1 : (shape.at(-1) ?? 1);
  const gguf = [...shape].reverse();
  return {
    name,
    type,
    shape: parts.length > 1 || name.includes('_exps') ? [...gguf, parts.length] : gguf,
    elements: first.elements * parts.length,
    unit: permuted ? headDim * cols : 1,
    async read(start, count, signal) {
      const bytes = await readAcross(parts, start * width, count * width, signal);
      return permuted ? interleave(bytes, headDim, cols * width) : bytes;
    },
  };
}

/** A range of bytes of several tensors of one size, as if they followed each other. */
async function readAcross(
  parts: readonly SafeTensor[],
  start: number,
  length: number,
  signal?: AbortSignal,
): Promise<Uint8Array> {
  const size = parts[0]?.bytes ?? 0;
  const pieces: Uint8Array[] = [];
  for (let at = start; at < start + length; ) {
    const part = parts[Math.floor(at / size)];
    const within = at % size;
    const count = Math.min(size - within, start + length - at);
    if (part !== undefined) pieces.push(await readExactly(part.source, part.offset + within, count, signal));
    at += count;
  }
  const [only] = pieces;
  if (pieces.length === 1 && only !== undefined) return only;
  const bytes = new Uint8Array(length);
  let at = 0;
  for (const piece of pieces) {
    bytes.set(piece, at);
    at += piece.length;
  }
  return bytes;
}

/**
 * Brings the rows of whole heads into the order of interleaved rotary pairs: the stored weights turn row i
 * of a head together with row i + headDim/2; in a GGUF file of `llama` the two follow each other.
 */
function interleave(bytes: Uint8Array, headDim: number, rowBytes: number): Uint8Array {
  const out = new Uint8Array(bytes.length);
  const half = headDim / 2;
  for (let row = 0; row * rowBytes < bytes.length; row += 1) {
    const within = row % headDim;
    const from = row - within + (within % 2) * half + Math.floor(within / 2);
    out.set(bytes.subarray(from * rowBytes, (from + 1) * rowBytes), row * rowBytes);
  }
  return out;
}

function constant(name: string, values: Float32Array): SourceTensor {
  const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  const type: GgmlType = 'F32';
  return {
    name,
    type,
    shape: [values.length],
    elements: values.length,
    unit: 1,
    read: async (start, count) => bytes.slice(4 * start, 4 * (start + count)),
  };
}
