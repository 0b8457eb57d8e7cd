import { FrugalError } from '../errors.js';
import { GGML_TYPES, type GgmlType } from '../gguf/index.js';
import type { SourceModel, SourceTensor } from './types.js';

/** What a file can be written as: one type for all matrices, or a mixture. */
export const QUANTIZE_TYPES = ['F16', 'BF16', 'Q8_0', 'Q4_0', 'Q4_K', 'Q6_K', 'Q4_K_M'] as const;
export type QuantizeType = (typeof QUANTIZE_TYPES)[number];

/** The tensor types that are written. */
export type WrittenType = Exclude<QuantizeType, 'Q4_K_M'> | 'F32';

const READABLE: readonly GgmlType[] = ['F32', 'F16', 'BF16'];

export interface Choice {
  readonly tensor: SourceTensor;
  readonly type: WrittenType;
}

/**
 * The type that each tensor is written as, and notices where that is not the type that was asked for.
 * @throws FrugalError `UNSUPPORTED_TENSOR_TYPE` for a tensor that is quantised already, in another type
 */
export function chooseTypes(
  model: SourceModel,
  type: QuantizeType,
): { choices: readonly Choice[]; notices: readonly string[] } {
  const wanted = type === 'Q4_K_M' ? mixture(model) : () => type;
  const fallbacks = new Map<string, number>();
  const choices = model.tensors.map((tensor) => {
    if (!isMatrix(tensor)) return { tensor, type: 'F32' as const };
    const asked = wanted(tensor.name);
    const chosen = fitting(asked, tensor.shape[0] ?? 1);
    if (chosen !== asked) {
      const what = `rows of ${tensor.shape[0]} are not whole blocks of ${asked}: written as ${chosen}`;
      fallbacks.set(what, (fallbacks.get(what) ?? 0) + 1);
    }
    return { tensor, type: chosen };
  });
  for (const choice of choices) checkSource(model, choice);
  const notices = [...fallbacks].map(
    ([what, count]) => `${count} ${count === 1 ? 'tensor' : 'tensors'}: ${what}`,
  );
  return { choices, notices };
}

/**
 * Whether a tensor is large and robust enough to be quantised. Vectors, norms, biases and the small
 * matrices that route tokens to experts are not: they stay F32.
 */
function isMatrix({ name, shape }: SourceTensor): boolean {
  if (shape.slice(1).every((dimension) => dimension === 1)) return false;
  return name.endsWith('weight') && !/(_norm|ffn_gate_inp)\.weight$/.test(name);
}

/** What is asked for where rows are whole blocks of it, else the next best that they are. */
function fitting(type: WrittenType, row: number): WrittenType {
  if (row % GGML_TYPES[type].block === 0) return type;
  return row % GGML_TYPES.Q8_0.block === 0 ? 'Q8_0' : 'F16';
}

function checkSource(model: SourceModel, { tensor, type }: Choice): void {
  if (READABLE.includes(tensor.type) || tensor.type === type) return;
  throw new FrugalError(
    'UNSUPPORTED_TENSOR_TYPE',
    `${model.name}: the tensor ${tensor.name} is ${tensor.type} and should become ${type}; ` +
      `tensors are converted from ${READABLE.join(', ')}, and copied where their type is the same`,
    {
      cure: 'Quantise from the F32, F16 or BF16 release of the model: each rounding adds to the last.',
      data: { tensor: tensor.name, type: tensor.type, wanted: type, readable: READABLE },
    },
  );
}

/**
 * The mixture that llama.cpp calls Q4_K_M: Q4_K, with Q6_K for the matrix that makes the logits and, in
 * the layers that need it most, for the values of attention and the last step of the feed-forward. In
 * models of eight experts attention is a small part of the file, so that keys and values get Q8_0 and the
 * output of attention Q6_K (llama.cpp: Q5_K, which is not written here).
 */
function mixture(model: SourceModel): (name: string) => WrittenType {
  const names = model.tensors.map((tensor) => tensor.name);
  const logits = names.includes('output.weight') ? 'output.weight' : 'token_embd.weight';
  const eightExperts = model.metadata.get(`${model.architecture}.expert_count`)?.value === 8;
  const layers = (tensor: string) => names.filter((name) => layerOf(name, tensor) !== undefined).length;
  const counts = { attn_v: layers('attn_v'), ffn_down: layers('ffn_down') };
  return (name) => {
    if (name === logits) return 'Q6_K';
    if (eightExperts && /\.attn_[kv]\.weight$/.test(name)) return 'Q8_0';
    if (eightExperts && name.endsWith('.attn_output.weight')) return 'Q6_K';
    for (const tensor of ['attn_v', 'ffn_down'] as const) {
      const layer = layerOf(name, tensor);
      if (layer !== undefined && isSensitive(layer, counts[tensor])) return 'Q6_K';
    }
    return 'Q4_K';
  };
}

function layerOf(name: string, tensor: string): number | undefined {
  const found = /^blk\.(\d+)\.(\w+)\.weight$/.exec(name);
  return found?.[2]?.replace(/_exps$/, '') === tensor ? Number(found[1]) : undefined;
}

/** The first and the last eighth of the layers, and every third in between. */
function isSensitive(layer: number, layers: number): boolean {
  const eighth = Math.floor(layers / 8);
  return layer < eighth || layer >= Math.floor((7 * layers) / 8) || (layer - eighth) % 3 === 2;
}

const FILE_TYPES: Readonly<Record<QuantizeType, number>> = {
  F16: 1,
  Q4_0: 2,
  Q8_0: 7,
  Q4_K: 14,
  Q4_K_M: 15,
  Q6_K: 18,
  BF16: 32,
};

/** `general.file_type`: what the file calls itself. */
export function fileTypeOf(type: QuantizeType): number {
  return FILE_TYPES[type];
}
