/**
 * Mixtures of experts in float64, as their papers say. Mixtral: Jiang et al., 2024, arXiv:2401.04088; OLMoE:
 * Muennighoff et al., 2024, arXiv:2409.02060; Qwen2-MoE: arXiv:2407.10671; DeepSeek-V2: arXiv:2405.04434; DeepSeek-V3:
 * arXiv:2412.19437; gpt-oss: arXiv:2508.10925.
 */
import type { FloatModel } from './forward.js';
import { add, dot, linear, type Vector, weight } from './vectors.js';

export function silu(x: number): number {
  return x * sigmoid(x);
}

function sigmoid(x: number): number {
  return 1 / (1 + Math.exp(-x));
}

/** down · (activation(gate · x) * (up · x)) of the tensors whose names end in `suffix`. */
export function gatedLayer(
  model: FloatModel,
  block: string,
  suffix: string,
  x: Vector,
  activation: (x: number) => number,
): Vector {
  const gate = linear(model, `${block}ffn_gate${suffix}`, x);
  const up = linear(model, `${block}ffn_up${suffix}`, x);
  const gated = gate.map((value, i) => activation(value) * (up[i] ?? 0));
  return linear(model, `${block}ffn_down${suffix}`, gated);
}

/** What the chosen experts and the shared one give for a normalised x. */
export function mixture(model: FloatModel, block: string, x: Vector): Vector {
  const out = new Float64Array(x.length);
  for (const { expert, share } of route(model, block, linear(model, `${block}ffn_gate_inp`, x))) {
    add(
      out,
      expertOutput(model, block, expert, x).map((value) => share * value),
    );
  }
  if (model.weights.has(`${block}ffn_gate_shexp.weight`)) {
    const gate = model.weights.get(`${block}ffn_gate_inp_shexp.weight`);
    const share = gate === undefined ? 1 : sigmoid(dot(x, gate, 0));
    add(
      out,
      gatedLayer(model, block, '_shexp', x, silu).map((value) => share * value),
    );
  }
  return out;
}

function expertOutput(model: FloatModel, block: string, expert: number, x: Vector): Vector {
  const apply = (name: string, input: Vector): Vector => {
    const count = model.number('expert_count') ?? 0;
    const stack = weight(model, `${block}ffn_${name}_exps.weight`);
    const biases = model.weights.get(`${block}ffn_${name}_exps.bias`);
    const rows = stack.length / count / input.length;
    return Float64Array.from(
      { length: rows },
      (_, row) =>
        dot(input, stack, (expert * rows + row) * input.length) + (biases?.[expert * rows + row] ?? 0),
    );
  };
  const [gate, up] = [apply('gate', x), apply('up', x)];
  const gated = gate.map((value, i) => {
    const other = up[i] ?? 0;
    if (model.architecture !== 'gpt-oss') return silu(value) * other;
    const held = Math.min(value, 7);
    return held * sigmoid(1.702 * held) * (Math.max(-7, Math.min(7, other)) + 1);
  });
  return apply('down', gated);
}

interface Share {
  readonly expert: number;
  readonly share: number;
}

/** The experts of a token and their shares, by the architecture's rules. */
export function route(model: FloatModel, block: string, gates: Vector): Share[] {
  const used = model.number('expert_used_count') ?? 0;
  const sum = (values: Iterable<number>) => [...values].reduce((a, b) => a + b, 0);
  const softmax = (values: readonly number[]) => {
    const powers = values.map((value) => Math.exp(value - Math.max(...values)));
    return powers.map((power) => power / sum(powers));
  };
  if (model.architecture === 'gpt-oss') {
    const chosen = best(gates, used);
    const shares = softmax(chosen.map((expert) => gates[expert] ?? 0));
    return chosen.map((expert, i) => ({ expert, share: shares[i] ?? 0 }));
  }
  const sigmoids = model.number('expert_gating_func') === 2;
  const scores = sigmoids ? [...gates].map(sigmoid) : softmax([...gates]);
  const bias = model.weights.get(`${block}exp_probs_b.bias`);
  const chosen = best(
    limit(
      model,
      scores.map((score, i) => score + (bias?.[i] ?? 0)),
      sigmoids ? 2 : 1,
    ),
    used,
  );
  const total = sum(chosen.map((expert) => scores[expert] ?? 0));
  const divided = normalises(model) ? total : 1;
  const scale = model.number('expert_weights_scale') ?? 1;
  return chosen.map((expert) => ({ expert, share: ((scores[expert] ?? 0) / divided) * scale }));
}

/**
 * DeepSeek-V3 divides shares by their sum, V2 does not; the keys that tell them apart here differ in scoring. Others may
 * say so in Ollama's word.
 */
function normalises({ architecture, number, boolean }: FloatModel): boolean {
  const stated = boolean('norm_top_k_prob');
  if (stated !== undefined) return stated;
  if (architecture === 'deepseek2') return number('expert_gating_func') === 2;
  return architecture === 'llama' || architecture === 'qwen3moe';
}

/** Scores of experts outside of the best groups become minus infinity. */
function limit({ number }: FloatModel, scores: readonly number[], counted: number): number[] {
  const count = number('expert_group_count') ?? 1;
  if (count === 1) return [...scores];
  const size = scores.length / count;
  const groups = Array.from({ length: count }, (_, group) =>
    scores
      .slice(group * size, (group + 1) * size)
      .sort((a, b) => b - a)
      .slice(0, counted)
      .reduce((a, b) => a + b, 0),
  );
  const open = best(groups, number('expert_group_used_count') ?? 1);
  return scores.map((score, i) => (open.includes(Math.floor(i / size)) ? score : Number.NEGATIVE_INFINITY));
}

/** The indexes of the highest values, highest first. */
function best(values: ArrayLike<number>, count: number): number[] {
  return Array.from(values, (value, index) => ({ value, index }))
    .sort((a, b) => b.value - a.value)
    .slice(0, count)
    .map(({ index }) => index);
}
