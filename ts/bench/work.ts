import type { Plan, PlanTensor } from '../plan/types.js';

/** The least that a token costs, counted from the plan. */
export interface TokenWork {
  /** Multiplications and additions with weights per prompt token; its logits, which few tokens need, are not in it. */
  readonly promptOps: number;
  /** Most of these are with floats (F32, F16, BF16), not with quantised weights. */
  readonly float: boolean;
  /** What the weights are, by bytes: `Q4_0 92%, F32 8%`. */
  readonly types: string;
}

const FLOATS = ['F32', 'F16', 'BF16'];

export function tokenWork(plan: Plan, bytesOf: (index: number) => number): TokenWork {
  let [floats, integers] = [0, 0];
  for (const tensor of plan.tensors) {
    const ops = 2 * tensor.rows * tensor.cols * useOf(plan, tensor);
    if (FLOATS.includes(tensor.type)) floats += ops;
    else integers += ops;
  }
  return { promptOps: floats + integers, float: floats > integers, types: describeTypes(plan, bytesOf) };
}

/** How many of a tensor's matrices a prompt token is multiplied with. */
function useOf(plan: Plan, tensor: PlanTensor): number {
  if (tensor.rows === 1) return 0;
  const users = plan.ops.filter((op) => Object.values(op).includes(tensor.name));
  const experts = users.find((op) => op.op === 'experts');
  if (experts) return experts.topK * Object.values(experts).filter((name) => name === tensor.name).length;
  return users.some((op) => op.op !== 'embed' && op.op !== 'logits') ? 1 : 0;
}

function describeTypes(plan: Plan, bytesOf: (index: number) => number): string {
  const bytes = new Map<string, number>();
  for (const [i, { type }] of plan.tensors.entries()) bytes.set(type, (bytes.get(type) ?? 0) + bytesOf(i));
  const total = [...bytes.values()].reduce((sum, each) => sum + each, 0);
  const shares = [...bytes].map(([type, each]) => [type, Math.round((100 * each) / total)] as const);
  const shown = shares.filter(([, share]) => share > 0).sort(([, a], [, b]) => b - a);
  return shown.map(([type, share]) => (share === 100 ? type : `${type} ${share}%`)).join(', ');
}
