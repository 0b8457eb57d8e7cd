import {
  checkKnown,
  checkNumber,
  describeRange,
  fieldsOf,
  inRange,
  invalid,
  isRecord,
  type NumberRange,
} from '../engine/check.js';
import type { Sparse, SparsePolicy } from '../plan/types.js';
import type {
  AttentionOptions,
  AttentionPolicy,
  AttentionUsage,
  HeadBlocks,
  KeepOptions,
  LayerPolicies,
  QueryBlocks,
} from './types.js';

export type * from './types.js';

/** Positions of a block. */
export const BLOCK = 64;

const TOKENS: NumberRange = { min: 0, max: 2 ** 31 - 1, integer: true };
const WINDOW: NumberRange = { min: 1, max: 2 ** 31 - 1, integer: true };
const BLOCKS: NumberRange = { min: 0, max: 65_536, integer: true };
const SHARE: NumberRange = { min: 0, max: 1 };
const SEED: NumberRange = { min: 0, max: Number.MAX_SAFE_INTEGER, integer: true };

const CURE =
  "Pass { prefill, decode } as attention, each a policy such as { policy: 'auto' } or a list of one for each layer.";

/**
 * A frozen copy of the options: what usage and provenance report stays what was computed.
 * @throws FrugalError `INVALID_ARGUMENT` naming the first wrong option
 */
export function checkAttention(options: unknown): AttentionOptions | undefined {
  if (options === undefined) return undefined;
  if (!isRecord(options)) throw invalid('attention', 'an object', options, CURE);
  checkKnown('attention', options, ['prefill', 'decode']);
  const copy: AttentionOptions = Object.freeze(
    Object.fromEntries(
      Object.entries(fieldsOf(options)).map(([name, policies]) => [name, frozenAll(policies)]),
    ),
  );
  plannedAll('attention.prefill', copy.prefill);
  plannedAll('attention.decode', copy.decode);
  return copy;
}

/** A list's holes become undefined, which is refused as any other wrong policy. */
function frozenAll(policies: unknown): unknown {
  return Array.isArray(policies) ? Object.freeze(Array.from(policies, frozen)) : frozen(policies);
}

/** A policy holds only numbers and texts. What is none stays as it is. */
function frozen(policy: unknown): unknown {
  return isRecord(policy) ? Object.freeze(fieldsOf(policy)) : policy;
}

/**
 * The options as the plan has them.
 * @throws FrugalError `INVALID_ARGUMENT` where there are not as many policies as layers
 */
export function sparsePlan({ prefill, decode }: AttentionOptions, layers: number): Sparse {
  const all = (name: string, policies: LayerPolicies | undefined) => {
    const list = listed(policies);
    if (list.length !== 1 && list.length !== layers)
      throw invalid(
        `attention.${name}`,
        `one policy, or one for each of the model's ${layers} layers`,
        list.length,
      );
    return plannedAll(`attention.${name}`, policies);
  };
  return { prefill: all('prefill', prefill), decode: all('decode', decode) };
}

function listed(policies: LayerPolicies | undefined): readonly AttentionPolicy[] {
  if (policies === undefined) return [{ policy: 'dense' }];
  return Array.isArray(policies) ? policies : [policies as AttentionPolicy];
}

function plannedAll(name: string, policies: LayerPolicies | undefined): SparsePolicy[] {
  return listed(policies).map((policy, layer) =>
    planned(policy, Array.isArray(policies) ? `${name}[${layer}]` : name),
  );
}

const PATTERN = {
  policy: 'pattern',
  sinks: 0,
  recent: 1,
  dilated: 0,
  dilation: 1,
  global: [],
  stride: 0,
  random: 0,
  seed: 0,
} as const;

/**
 * What each policy may have, and what it becomes in a plan.
 * @param at the policy's place in the options, for messages
 */
function planned(policy: AttentionPolicy, at: string): SparsePolicy {
  const known = (...names: string[]) => checkKnown(at, policy, ['policy', ...names]);
  const number = (name: string, value: unknown, range: NumberRange, otherwise: number) =>
    checkNumber(`${at}.${name}`, value, range, otherwise);
  const needed = (name: string, value: unknown, range: NumberRange): number => {
    if (inRange(value, range)) return value;
    const cure = `Give the policy ${policy.policy} its ${name}: ${describeRange(range)}.`;
    throw invalid(`${at}.${name}`, describeRange(range), value, cure);
  };
  const keep = ({ keep, minTokens }: KeepOptions) => ({
    keep: number('keep', keep, SHARE, 0.1),
    tokens: number('minTokens', minTokens, TOKENS, 1024),
  });
  switch (policy?.policy) {
    case 'dense':
      known();
      return { policy: 'dense' };
    case 'window':
      known('window', 'sinks');
      return {
        ...PATTERN,
        recent: needed('window', policy.window, WINDOW),
        sinks: number('sinks', policy.sinks, TOKENS, 4),
      };
    case 'longformer':
      known('window', 'dilatedBlocks', 'dilation', 'globalTokens');
      return {
        ...PATTERN,
        recent: needed('window', policy.window, WINDOW),
        sinks: number('globalTokens', policy.globalTokens, TOKENS, 64),
        dilated: number('dilatedBlocks', policy.dilatedBlocks, BLOCKS, 0),
        dilation: number('dilation', policy.dilation, { ...BLOCKS, min: 1 }, 2),
      };
    case 'bigbird':
      known('window', 'globalTokens', 'randomBlocks', 'seed');
      return {
        ...PATTERN,
        recent: needed('window', policy.window, WINDOW),
        sinks: number('globalTokens', policy.globalTokens, TOKENS, 64),
        random: number('randomBlocks', policy.randomBlocks, BLOCKS, 3),
        seed: number('seed', policy.seed, SEED, 0),
      };
    case 'strided':
      known('window', 'stride');
      return {
        ...PATTERN,
        recent: needed('window', policy.window, WINDOW),
        stride: needed('stride', policy.stride, { ...BLOCKS, min: 1 }),
      };
    case 'antidiagonal': {
      known('keep', 'minTokens', 'stride', 'mass');
      const { stride = 16 } = policy;
      if (![4, 8, 16].includes(stride)) throw invalid(`${at}.stride`, '4, 8 or 16', stride);
      return { policy: 'antidiagonal', ...keep(policy), stride, mass: number('mass', policy.mass, SHARE, 1) };
    }
    case 'vertical-slash':
      known('keep', 'minTokens');
      return { policy: 'vertical-slash', ...keep(policy) };
    case 'lsh':
      known('keep', 'minTokens', 'rounds', 'seed');
      return {
        policy: 'lsh',
        ...keep(policy),
        rounds: number('rounds', policy.rounds, { min: 1, max: 8, integer: true }, 8),
        seed: number('seed', policy.seed, SEED, 0),
      };
    case 'quest':
      known('keep', 'minTokens');
      return { policy: 'bounds', ...keep(policy) };
    case 'auto':
      known('quality', 'from');
      return {
        policy: 'auto',
        quality: number('quality', policy.quality, SHARE, 0.98),
        from: number('from', policy.from, TOKENS, 4096),
      };
    default:
      if (typeof policy !== 'object' || policy === null)
        throw invalid(at, "an object such as { policy: 'auto' }", policy);
      throw invalid(
        `${at}.policy`,
        `one of ${POLICIES.join(', ')}`,
        (policy as { policy?: unknown }).policy,
        `Pass one of ${POLICIES.join(', ')} as ${at}.policy.`,
      );
  }
}

export const POLICIES = [
  'dense',
  'window',
  'longformer',
  'bigbird',
  'strided',
  'antidiagonal',
  'vertical-slash',
  'lsh',
  'quest',
  'auto',
] as const satisfies readonly AttentionPolicy['policy'][];

/** What `BackendModel.keptKeys` gives, for people. Undefined where nothing was counted. */
export function attentionUsage(options: AttentionOptions, numbers: Float64Array): AttentionUsage | undefined {
  const rows = Array.from({ length: numbers.length / 4 }, (_, layer) => [
    ...numbers.subarray(4 * layer, 4 * layer + 4),
  ]);
  if (rows.length === 0) return undefined;
  const layers = rows.map(([kept = 0, seen = 0, mass = 0, measured = 0], layer) => {
    const share = shareOf(kept, seen);
    if (hasPattern(options, layer)) return { kept: share };
    if (kept === seen) return { kept: share, mass: 1 };
    return { kept: share, ...(measured === 0 ? {} : { mass: mass / measured }) };
  });
  const masses = layers.flatMap(({ mass }) => mass ?? []);
  const mass = masses.reduce((sum, mass) => sum + mass, 0) / layers.length;
  return {
    options,
    layers,
    kept: keptShare(numbers),
    ...(masses.length === layers.length ? { mass } : {}),
  };
}

/** The part of all keys that was kept, of what `BackendModel.keptKeys` gives; 1 where nothing was counted. */
export function keptShare(numbers: Float64Array): number {
  const sum = (column: number) => numbers.reduce((all, x, i) => (i % 4 === column ? all + x : all), 0);
  return shareOf(sum(0), sum(1));
}

function shareOf(kept: number, seen: number): number {
  return seen === 0 ? 1 : kept / seen;
}

/** Whether prompts or single tokens have one: patterns may mask within blocks, and nobody measures what they hold. */
function hasPattern({ prefill, decode }: AttentionOptions, layer: number): boolean {
  const patterns = ['window', 'longformer', 'bigbird', 'strided'];
  return [prefill, decode].some((policies) => {
    const list = listed(policies);
    return patterns.includes((list[layer] ?? list[0])?.policy ?? 'dense');
  });
}

/** What `BackendModel.recordedKeys` gives, by head. */
export function headBlocks(words: Uint32Array): HeadBlocks[] {
  const heads: HeadBlocks[] = [];
  for (let at = 0; at < words.length; ) {
    const [layer = 0, length = 0] = words.subarray(at, at + 2);
    const before = heads.at(-1);
    const head = before?.layer === layer ? before.head + 1 : 0;
    heads.push({ layer, head, rows: queryBlocks(words.subarray(at + 2, at + 2 + length)) });
    at += 2 + length;
  }
  return heads;
}

function queryBlocks(list: Uint32Array): QueryBlocks[] {
  const rows: QueryBlocks[] = [];
  for (let at = 0; at < list.length; ) {
    const [block = 0, count = 0] = list.subarray(at, at + 2);
    const some = list.slice(at + 2, at + 2 + count);
    rows.push({ block, keys: count > 0 ? some : Uint32Array.from({ length: block + 1 }, (_, key) => key) });
    at += 2 + count;
  }
  return rows;
}
