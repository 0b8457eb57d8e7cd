import { createRandom } from '../gguf/random.js';
import type { GgufSpec, TensorSpec } from '../gguf/writer.js';
import { type MatrixType, type RandomModelOptions, randomModelSpec, weights } from './random-model.js';

export interface MixtureOptions extends Omit<RandomModelOptions, 'architecture'> {
  readonly experts: number;
  readonly topK: number;
}

/** A random Llama whose feed-forward layers are mixtures of experts, its routers F32. */
export function mixtureSpec({ experts, topK, ...options }: MixtureOptions): GgufSpec {
  const random = createRandom(options.seed + 1000);
  const spec = randomModelSpec({
    ...options,
    architecture: 'llama',
    keys: { ...options.keys, expert_count: experts, expert_used_count: topK },
  });
  const stack = ({ name, type, shape: [cols = 1, rows = 1] }: TensorSpec): TensorSpec => ({
    name: `${name}`.replace('.weight', '_exps.weight'),
    type,
    shape: [cols, rows, experts],
    data: weights(random, type as MatrixType, cols, rows * experts),
  });
  const router = (block: string): TensorSpec => ({
    name: `${block}.ffn_gate_inp.weight`,
    type: 'F32',
    shape: [options.width, experts],
    data: weights(random, 'F32', options.width, experts),
  });
  return {
    ...spec,
    tensors: spec.tensors.flatMap((tensor) => {
      const [, block, part] = /^(blk\.\d+)\.ffn_(gate|up|down)\.weight$/.exec(`${tensor.name}`) ?? [];
      if (block === undefined) return [tensor];
      return part === 'gate' ? [router(block), stack(tensor)] : [stack(tensor)];
    }),
  };
}

/** The same model with the gate and up matrices of its experts, and their biases, as one tensor. */
export function mergedSpec(spec: GgufSpec): GgufSpec {
  const merge = (gate: TensorSpec): TensorSpec => {
    const name = String(gate.name);
    const up = spec.tensors.find((tensor) => tensor.name === name.replace('gate', 'up'));
    const [a, b] = [gate.data, up?.data];
    const { shape, type } = gate;
    const experts = shape.at(-1) ?? 1;
    if (a === undefined || b === undefined || up?.type !== type) throw new Error(`no twin of ${name}`);
    const length = a.length / experts;
    const data = new Uint8Array(2 * a.length);
    for (let i = 0; i < experts; i += 1) {
      data.set(a.subarray(i * length, (i + 1) * length), 2 * i * length);
      data.set(b.subarray(i * length, (i + 1) * length), (2 * i + 1) * length);
    }
    const rows = shape.length - 2;
    return {
      name: `${name}`.replace('gate', 'gate_up'),
      type,
      shape: shape.map((each, i) => (i === rows ? 2 * each : each)),
      data,
    };
  };
  return {
    ...spec,
    tensors: spec.tensors.flatMap((tensor) => {
      if (/ffn_up_exps/.test(String(tensor.name))) return [];
      return [/ffn_gate_exps/.test(String(tensor.name)) ? merge(tensor) : tensor];
    }),
  };
}
