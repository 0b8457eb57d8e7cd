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
    name: name.replace('.weight', '_exps.weight'),
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
      const [, block, part] = /^(blk\.\d+)\.ffn_(gate|up|down)\.weight$/.exec(tensor.name) ?? [];
      if (block === undefined) return [tensor];
      return part === 'gate' ? [router(block), stack(tensor)] : [stack(tensor)];
    }),
  };
}
