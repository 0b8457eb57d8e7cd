import type { TensorPlacement } from '../backend/types.js';
import { FrugalError } from '../errors.js';
import type { PlanTensor } from '../plan/types.js';
import { unsupported } from './keys.js';
import type { FileTensor, ModelFile } from './types.js';

/** What a tensor serves as: that decides which types it may have. */
export type TensorRole = 'matrix' | 'experts' | 'pairs' | 'heads' | 'vector' | 'vectors' | 'factors';

/** The tensors a plan uses, each checked for presence, shape and type when it is asked for. */
export interface TensorTable {
  /**
   * Takes a tensor into the plan and returns its name.
   * @param shape in GGUF order, [inputs, outputs], [inputs, outputs, experts or heads], [inputs, outputs of both,
   * experts] of pairs of matrices, which become single ones, [length], or [length, vectors], which become one vector
   * @param beside a tensor of the file that it goes with, where not every file of the architecture has it
   * @throws FrugalError `MISSING_TENSOR`, `TENSOR_SHAPE`, `UNSUPPORTED_TENSOR_TYPE`
   */
  required(name: string, shape: readonly number[], role: TensorRole, beside?: string): string;
  /** The same where the file has the tensor, else undefined. */
  optional(name: string, shape: readonly number[], role: TensorRole): string | undefined;
  has(name: string): boolean;
  typeOf(name: string): string | undefined;
  /** Accepts a tensor without using it. */
  ignore(name: string): void;
  /** @throws FrugalError `UNSUPPORTED_FEATURE` when the file has tensors nobody asked for */
  finish(): TakenTensors;
}

export interface TakenTensors {
  readonly tensors: readonly PlanTensor[];
  readonly placements: readonly TensorPlacement[];
  readonly parameters: number;
  readonly bytes: number;
}

const VECTOR_TYPES = ['F32', 'F16', 'BF16'];
// Rotary frequencies that some old conversions store; they follow from the metadata.
const HARMLESS = /^blk\.\d+\.attn_rot_embd(\.weight)?$/;

export function createTensorTable(
  file: ModelFile,
  architecture: string,
  tensorTypes: readonly string[],
): TensorTable {
  const taken = new Map<string, Taken>();
  const ignored = new Set<string>();
  const allowed: Record<TensorRole, readonly string[]> = {
    matrix: tensorTypes,
    experts: tensorTypes,
    pairs: tensorTypes,
    heads: tensorTypes,
    vector: VECTOR_TYPES,
    vectors: VECTOR_TYPES,
    factors: ['F32'],
  };

  const table: TensorTable = {
    required(name, shape, role, beside) {
      const tensor = file.tensors.get(name);
      if (tensor === undefined) throw missing(name, architecture, beside);
      checkShape(name, shape, tensor);
      checkType(name, tensor, allowed[role]);
      taken.set(name, { tensor, role });
      return name;
    },
    optional: (name, shape, role) => (file.tensors.has(name) ? table.required(name, shape, role) : undefined),
    has: (name) => file.tensors.has(name),
    typeOf: (name) => file.tensors.get(name)?.type,
    ignore: (name) => void ignored.add(name),
    finish() {
      refuseUnused(file, architecture, (name) => taken.has(name) || ignored.has(name));
      return collect(file, taken);
    },
  };
  return table;
}

function missing(name: string, architecture: string, beside: string | undefined): FrugalError {
  const why =
    beside === undefined
      ? `every ${architecture} model has it`
      : `the file has ${beside}, which goes with it`;
  return new FrugalError('MISSING_TENSOR', `the tensor ${name} is missing; ${why}`, {
    cure: 'the file is incomplete or was converted wrongly; fetch it again or use another conversion',
    data: { tensor: name, architecture },
  });
}

/** @throws FrugalError `TENSOR_SHAPE` */
export function checkShape(name: string, expected: readonly number[], tensor: FileTensor): void {
  const got = tensor.shape;
  const length = Math.max(expected.length, got.length);
  for (let i = 0; i < length; i++) {
    if ((expected[i] ?? 1) === (got[i] ?? 1)) continue;
    throw new FrugalError(
      'TENSOR_SHAPE',
      `the tensor ${name} has the shape [${got.join(', ')}], expected [${expected.join(', ')}]`,
      {
        cure: 'the metadata and the tensors of the file disagree; fetch it again or use another conversion',
        data: { tensor: name, expected, got },
      },
    );
  }
}

function checkType(name: string, tensor: FileTensor, allowed: readonly string[]): void {
  if (allowed.includes(tensor.type)) return;
  throw new FrugalError(
    'UNSUPPORTED_TENSOR_TYPE',
    `the tensor ${name} has the type ${tensor.type}; supported for it are ${allowed.join(', ')}`,
    {
      cure: `use a file with ${allowed.join(', ')} weights`,
      data: { tensor: name, type: tensor.type, supported: allowed },
    },
  );
}

/** A tensor that the plan leaves out would be silently wrong results. */
function refuseUnused(file: ModelFile, architecture: string, known: (name: string) => boolean): void {
  for (const name of file.tensors.keys()) {
    if (known(name) || HARMLESS.test(name)) continue;
    throw unsupported(`the file has a tensor ${name.slice(0, 80)} that ${architecture} models lack`, {
      tensor: name,
      architecture,
    });
  }
}

interface Taken {
  readonly tensor: FileTensor;
  readonly role: TensorRole;
}

const STACKS: readonly TensorRole[] = ['experts', 'pairs', 'heads'];

function planShape({ shape, elements }: FileTensor, role: TensorRole): readonly number[] {
  if (role === 'vectors') return [elements];
  const [cols = 1, rows = 1, experts = 1] = shape;
  return role === 'pairs' ? [cols, rows / 2, experts * 2] : shape;
}

function collect(file: ModelFile, taken: ReadonlyMap<string, Taken>): TakenTensors {
  const tensors: PlanTensor[] = [];
  const placements: TensorPlacement[] = [];
  let parameters = 0;
  let bytes = 0;
  for (const [name, { tensor, role }] of taken) {
    const source = file.parts[tensor.part];
    if (source === undefined) {
      throw new FrugalError('INTERNAL', `the tensor ${name} lies in part ${tensor.part}, which is not open`, {
        cure: 'report this as a defect of frugal',
        data: { tensor: name, part: tensor.part },
      });
    }
    const [cols = 1, rows = 1, experts = 1] = planShape(tensor, role);
    placements.push({ tensor: tensors.length, source, offset: tensor.offset, bytes: tensor.bytes });
    tensors.push({
      name,
      type: tensor.type,
      rows,
      cols,
      ...(STACKS.includes(role) ? { experts } : {}),
    });
    parameters += tensor.elements;
    bytes += tensor.bytes;
  }
  return { tensors, placements, parameters, bytes };
}
