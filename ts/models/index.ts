import type { KvCacheType, Plan, PlanOp } from '../plan/types.js';
import { decoderBuffers, decoderOps } from './decoder.js';
import { splitFused } from './fused.js';
import { type Hyper, readHyper } from './hyper.js';
import { createKeys } from './keys.js';
import { readRopes } from './rope.js';
import { differencesOf } from './table.js';
import { createTensorTable, type TakenTensors, type TensorTable } from './tensors.js';
import type { ExpertLayer, ModelFacts, ModelFile, ModelPlan, PlanOptions } from './types.js';

export { architectures } from './table.js';
export type {
  ExpertLayer,
  FileTensor,
  ModelFacts,
  ModelFile,
  ModelPlan,
} from './types.js';

/** Dimensions of a key or value that share a scale in a Q8_0 cache; of those left over at the end there may be fewer. */
const RUN = 32;

/** Bytes that a cache takes for a key or value of so many dimensions. */
function cachedBytes(kvCache: KvCacheType, dim: number): number {
  return kvCache === 'f16' ? 2 * dim : dim + 2 * Math.ceil(dim / RUN);
}

/**
 * Builds the plan of a model file from its metadata and tensor table; reads no weights.
 *
 * @throws FrugalError `UNKNOWN_ARCHITECTURE`, `METADATA_MISSING`, `METADATA_INVALID`, `MISSING_TENSOR`,
 * `TENSOR_SHAPE`, `UNSUPPORTED_TENSOR_TYPE`, `UNSUPPORTED_FEATURE`, `INVALID_ARGUMENT`
 */
export function buildPlan(model: ModelFile, options: PlanOptions): ModelPlan {
  const architecture = model.metadata.string('general.architecture');
  const row = differencesOf(architecture);
  const keys = createKeys(model.metadata, architecture);
  const hyper = readHyper(keys, row, model.tensors, options.contextLength);
  const file = splitFused(model, hyper);
  const table = createTensorTable(file, architecture, options.tensorTypes);
  ignorePredictingBlocks(file, hyper, table);
  const ropes = readRopes(keys, hyper, row, table);
  const ops = decoderOps(hyper, row, table, ropes);
  const taken = table.finish();
  const name = model.metadata.optionalString('general.name') ?? architecture;
  const { kvHeads, headDim, valueDim } = hyper;
  const { kvCache = 'f16' } = options;
  const kvLayer = { kvHeads, headDim, ...(valueDim === undefined ? {} : { valueDim }) };
  const plan: Plan = {
    version: 1,
    name: `${architecture} ${name.slice(0, 80)}`,
    vocabSize: hyper.vocabSize,
    contextLength: hyper.contextLength,
    kvLayers: Array.from({ length: hyper.blockCount }, () => kvLayer),
    ...(kvCache === 'f16' ? {} : { kvCache }),
    tensors: taken.tensors,
    buffers: decoderBuffers(hyper, row),
    ropes,
    ops,
    hidden: 'hidden',
  };
  const facts = modelFacts(architecture, name, hyper, taken, ops, table.has('output.weight'), kvCache);
  return { plan, placements: taken.placements, facts };
}

/** What predicts further tokens takes no part in predicting the next. */
function ignorePredictingBlocks(
  { tensors }: ModelFile,
  { blockCount, predictingBlocks }: Hyper,
  table: TensorTable,
): void {
  for (const name of tensors.keys()) {
    const block = Number(/^blk\.(\d+)\./.exec(name)?.[1]);
    if (block >= blockCount && block < blockCount + predictingBlocks) table.ignore(name);
  }
}

function modelFacts(
  architecture: string,
  name: string,
  hyper: Hyper,
  taken: TakenTensors,
  ops: readonly PlanOp[],
  ownOutput: boolean,
  kvCache: KvCacheType,
): ModelFacts {
  const { contextLength, trainedContext, headDim, valueDim = headDim } = hyper;
  const positionBytes = cachedBytes(kvCache, headDim) + cachedBytes(kvCache, valueDim);
  const notes =
    contextLength > trainedContext
      ? [
          `the context of ${contextLength} is longer than the ${trainedContext} that the model was trained for`,
        ]
      : [];
  const expertLayers = ops.flatMap((op) => (op.op === 'experts' ? [expertLayer(op, taken)] : []));
  return {
    architecture,
    name,
    parameters: taken.parameters,
    trainedContext,
    contextLength,
    vocabSize: hyper.vocabSize,
    embeddingLength: hyper.embeddingLength,
    ...(hyper.poolingType === undefined ? {} : { poolingType: hyper.poolingType }),
    blockCount: hyper.blockCount,
    heads: hyper.heads,
    kvHeads: hyper.kvHeads,
    weightBytes: taken.bytes,
    bytesPerToken: bytesPerToken(taken, hyper, ops, ownOutput),
    kvBytesPerToken: hyper.blockCount * hyper.kvHeads * positionBytes,
    kvCache,
    expertLayers,
    expertBytes: expertLayers.reduce((sum, { experts, expertBytes }) => sum + experts * expertBytes, 0),
    notes,
  };
}

function expertLayer(op: Extract<PlanOp, { op: 'experts' }>, taken: TakenTensors): ExpertLayer {
  const ids = [op.gate, op.up, op.down].map((name) => taken.tensors.findIndex((each) => each.name === name));
  const stacks = ids.map((id) => ({
    bytes: taken.placements[id]?.bytes ?? 0,
    experts: taken.tensors[id]?.experts ?? 1,
  }));
  return {
    block: Number(/^blk\.(\d+)\./.exec(op.gate)?.[1]),
    // Of `down`: gates and ups may be pairs in one tensor.
    experts: stacks[2]?.experts ?? 1,
    topK: op.topK,
    expertBytes: stacks.reduce((sum, { bytes, experts }) => sum + bytes / experts, 0),
  };
}

/** All weights, but only the experts in use, and one row of an embedding table that serves for nothing else. */
function bytesPerToken(
  taken: TakenTensors,
  { experts, vocabSize }: Hyper,
  ops: readonly PlanOp[],
  ownOutput: boolean,
): number {
  const stacks = new Set(ops.flatMap((op) => (op.op === 'experts' ? [op.gate, op.up, op.down] : [])));
  return taken.tensors.reduce((sum, tensor, index) => {
    const bytes = taken.placements[index]?.bytes ?? 0;
    if (experts && stacks.has(tensor.name)) return sum + (bytes / experts.count) * experts.used;
    return sum + (tensor.name === 'token_embd.weight' && ownOutput ? bytes / vocabSize : bytes);
  }, 0);
}
