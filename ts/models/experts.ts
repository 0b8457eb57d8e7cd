import { FrugalError } from '../errors.js';
import type { Activation, Groups, PlanBuffer, PlanOp, Scoring } from '../plan/types.js';
import { invalid, type Keys, unsupported } from './keys.js';
import { linear } from './linear.js';
import type { TensorTable } from './tensors.js';

/** Where mixtures of experts differ. */
export interface ExpertDifferences {
  /** Every file has them, or only those that count experts. */
  readonly required: boolean;
  /** The weights of the chosen ones are divided by their sum, where the file does not say. */
  readonly normalise: boolean;
  /** @default 'softmax' */
  readonly scoring?: Scoring | 'stated';
  /** An expert that every token uses as well; `gated`: as much of it as the sigmoid of a gate says. */
  readonly shared?: 'plain' | 'gated';
  /** @default 'silu' */
  readonly activation?: Activation;
}

/** Mixtures of experts: how many there are, how many a token uses, how wide each is, and how they are chosen. */
export interface Experts {
  readonly count: number;
  readonly used: number;
  readonly feedForward: number;
  readonly activation: Activation;
  readonly scoring: Scoring;
  readonly normalise: boolean;
  readonly scale: number;
  readonly groups?: Groups;
  readonly shared?: { readonly feedForward: number; readonly gated: boolean };
  /** So many first layers have no experts. */
  readonly leadingDense: number;
}

const MAX_EXPERTS = 4096;
const MAX_SHARED = 64;

/** @throws FrugalError `METADATA_MISSING`, `METADATA_INVALID`, `UNSUPPORTED_FEATURE` */
export function readExperts(
  keys: Keys,
  row: ExpertDifferences | undefined,
  tensors: ReadonlyMap<string, unknown>,
  feedForward: number,
  maxWidth: number,
): Experts | undefined {
  const counted = keys.optionalFinite('expert_count') ?? 0;
  if (counted === 0 && row?.required !== true) return undefined;
  if (row === undefined) {
    throw unsupported(`the file has ${counted} experts (${keys.full('expert_count')})`, {
      key: keys.full('expert_count'),
      experts: counted,
    });
  }
  const count = keys.count('expert_count', MAX_EXPERTS);
  const used = keys.count('expert_used_count', count);
  // Qwen2-MoE files without the key divide the shared expert's width among those that a token uses.
  const fallback = row.shared === 'gated' ? Math.floor(feedForward / used) : feedForward;
  const width = keys.optionalCount('expert_feed_forward_length', maxWidth) ?? fallback;
  const scoring = readScoring(keys, row.scoring ?? 'softmax', tensors);
  const groups = readGroups(keys, count, used, scoring);
  const shared = row.shared && readShared(keys, row.shared, width, feedForward, maxWidth);
  return {
    count,
    used,
    feedForward: width,
    activation: row.activation ?? 'silu',
    scoring,
    normalise: readNormalise(keys) ?? row.normalise,
    scale: keys.optionalFinite('expert_weights_scale') || 1,
    leadingDense: readLeadingDense(keys),
    ...(groups === undefined ? {} : { groups }),
    ...(shared === undefined ? {} : { shared }),
  };
}

/** What is added to scores where experts are chosen, and only there. */
const SELECTION_BIAS = 'exp_probs_b.bias';

/** Numbers of llama.cpp's `expert_gating_func`. */
const SCORINGS: readonly Scoring[] = ['softmax', 'softmax', 'sigmoid', 'chosen'];

/**
 * Where the architecture has one scoring, files may state it but no other. Of those that state none, as files from before
 * the key (DeepSeek-V2) and first ones of GLM-4.7-Flash do, the ones with a bias for the choice have sigmoids.
 */
function readScoring(keys: Keys, known: Scoring | 'stated', tensors: ReadonlyMap<string, unknown>): Scoring {
  const key = 'expert_gating_func';
  const value = keys.optionalFinite(key) ?? 0;
  const biased = () => [...tensors.keys()].some((name) => name.endsWith(`.${SELECTION_BIAS}`));
  const unstated = () => (known !== 'stated' ? known : biased() ? 'sigmoid' : 'softmax');
  const scoring = value === 0 ? unstated() : SCORINGS[value];
  if (scoring !== undefined && (known === 'stated' || scoring === known)) return scoring;
  throw unsupported(`the file sets ${keys.full(key)} to ${value}`, { key: keys.full(key), value });
}

/** llama.cpp's name of the key, or Ollama's. */
function readNormalise({ metadata, full }: Keys): boolean | undefined {
  return (
    metadata.optionalBoolean(full('expert_weights_norm')) ?? metadata.optionalBoolean(full('norm_top_k_prob'))
  );
}

/** DeepSeek-V2 judges a group by its best expert; V3, which scores by sigmoids, by its best two. */
function readGroups(keys: Keys, experts: number, used: number, scoring: Scoring): Groups | undefined {
  const count = keys.optionalFinite('expert_group_count') ?? 0;
  if (count === 0 || count === 1) return undefined;
  const groups: Groups = {
    count: keys.count('expert_group_count', experts),
    used: keys.count('expert_group_used_count', count),
    best: scoring === 'sigmoid' ? 2 : 1,
  };
  const size = experts / count;
  if (Number.isInteger(size) && size >= groups.best && size * groups.used >= used) return groups;
  const expected = `a divisor of ${experts} that leaves groups enough to choose ${used} experts from`;
  throw invalid(keys.full('expert_group_count'), expected, count);
}

function readLeadingDense(keys: Keys): number {
  const key = 'leading_dense_block_count';
  const value = keys.optionalFinite(key) ?? 0;
  if (Number.isInteger(value) && value >= 0) return value;
  throw invalid(keys.full(key), 'a whole number', value);
}

function readShared(
  keys: Keys,
  kind: 'plain' | 'gated',
  width: number,
  feedForward: number,
  maxWidth: number,
): Experts['shared'] {
  if (kind === 'plain') {
    if (keys.optionalFinite('expert_shared_count') === 0) return undefined;
    return { feedForward: width * keys.count('expert_shared_count', MAX_SHARED), gated: false };
  }
  const stated = keys.optionalCount('expert_shared_feed_forward_length', maxWidth);
  return { feedForward: stated ?? feedForward, gated: true };
}

export function expertBuffers({ count, shared }: Experts): PlanBuffer[] {
  return [
    { name: 'gates', width: count, rows: 'tokens' },
    ...(shared ? [{ name: 'shared', width: shared.feedForward, rows: 'tokens' } as const] : []),
    ...(shared?.gated ? [{ name: 'shared_gate', width: 1, rows: 'tokens' } as const] : []),
  ];
}

/**
 * x += a mixture of experts (Jiang et al., 2024, arXiv:2401.04088) of `normed`: the router's gates, the experts
 * it chooses, and the one that all tokens share.
 */
export function expertOps(experts: Experts, width: number, tensors: TensorTable, block: string): PlanOp[] {
  const { count, used, feedForward, activation, scoring, normalise, scale, groups, shared } = experts;
  refuseOtherStacks(tensors, block);
  const stack = (name: string, shape: readonly number[]) =>
    tensors.required(`${block}.ffn_${name}_exps.weight`, [...shape, count], 'experts');
  const bias = (name: string, length: number) =>
    tensors.optional(`${block}.ffn_${name}_exps.bias`, [length, count], 'vectors');
  const merged = tensors.has(`${block}.ffn_gate_up_exps.weight`);
  // Of each expert first the gate's rows, then those of up.
  const gateOrUp = (name: 'gate' | 'up') =>
    merged
      ? tensors.required(`${block}.ffn_gate_up_exps.weight`, [width, 2 * feedForward, count], 'pairs')
      : stack(name, [width, feedForward]);
  const gateOrUpBias = (name: 'gate' | 'up') =>
    merged ? bias('gate_up', 2 * feedForward) : bias(name, feedForward);
  const selectionBias = tensors.optional(`${block}.${SELECTION_BIAS}`, [count], 'vector');
  const biases = Object.entries({
    selectionBias,
    gateBias: gateOrUpBias('gate'),
    upBias: gateOrUpBias('up'),
    downBias: bias('down', width),
  }).filter(([, name]) => name !== undefined);
  return [
    { ...linear(tensors, 'normed', `${block}.ffn_gate_inp`, width, count, 'gates'), precise: true },
    ...(shared ? sharedOps(shared, activation, width, tensors, block) : []),
    {
      op: 'experts',
      x: 'normed',
      gates: 'gates',
      gate: gateOrUp('gate'),
      up: gateOrUp('up'),
      down: stack('down', [feedForward, width]),
      activation,
      out: 'x',
      topK: used,
      normalise,
      scale,
      ...(scoring === 'softmax' ? {} : { scoring }),
      ...(groups === undefined ? {} : { groups }),
      ...Object.fromEntries(biases),
    },
  ];
}

/** The oldest files hold each expert's matrices by themselves; none may hold gates and ups both apart and as one. */
function refuseOtherStacks(tensors: TensorTable, block: string): void {
  const single = `${block}.ffn_gate.0.weight`;
  if (tensors.has(single)) {
    throw new FrugalError(
      'UNSUPPORTED_FEATURE',
      `the file holds each expert of a layer by itself (${single}); supported are ffn_gate_exps and ffn_up_exps, or ` +
        `ffn_gate_up_exps, and ffn_down_exps, each for all experts`,
      {
        cure: 'use another conversion of the model, with ffn_gate_exps, ffn_up_exps and ffn_down_exps',
        data: { tensor: single },
      },
    );
  }
  const find = (names: readonly string[]) =>
    names
      .flatMap((name) => [`${block}.${name}.weight`, `${block}.${name}.bias`])
      .find((name) => tensors.has(name));
  const [merged, apart] = [find(['ffn_gate_up_exps']), find(['ffn_gate_exps', 'ffn_up_exps'])];
  if (merged === undefined || apart === undefined) return;
  throw new FrugalError(
    'UNSUPPORTED_FEATURE',
    `the file holds gate and up of its experts both as one tensor (${merged}) and apart (${apart})`,
    {
      cure: 'the file was converted wrongly: use another conversion of the model, with one or the other',
      data: { tensor: merged, other: apart },
    },
  );
}

function sharedOps(
  { feedForward, gated }: NonNullable<Experts['shared']>,
  activation: Activation,
  width: number,
  tensors: TensorTable,
  block: string,
): PlanOp[] {
  const shape = [width, feedForward];
  const gate = () => linear(tensors, 'normed', `${block}.ffn_gate_inp_shexp`, width, 1, 'shared_gate');
  return [
    ...(gated ? [{ ...gate(), precise: true }] : []),
    {
      op: 'glu',
      x: 'normed',
      gate: tensors.required(`${block}.ffn_gate_shexp.weight`, shape, 'matrix'),
      up: tensors.required(`${block}.ffn_up_shexp.weight`, shape, 'matrix'),
      activation,
      out: 'shared',
    },
    // Before the last matrix, which is linear: the same as after it.
    ...(gated ? [{ op: 'gate', x: 'shared', gate: 'shared_gate' } as const] : []),
    { ...linear(tensors, 'shared', `${block}.ffn_down_shexp`, feedForward, width, 'x'), add: true },
  ];
}
