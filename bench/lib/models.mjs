// Models loaded for a measurement.

import { engineOf } from '../../dist/engine/model.js';
import { SAMPLING_DEFAULTS } from '../../dist/engine/options.js';
import { load } from '../../dist/index.js';
import { promptIds } from './measure.mjs';

/** Loads a model natively, uses it, and frees it whatever happens. */
export async function withModel(file, options, use) {
  const model = await load(file, options);
  try {
    return await use(model);
  } finally {
    await model.dispose();
  }
}

/**
 * A sequence that holds `depth` tokens and grows by one with each step of the engine.
 * @returns `step(count)`, which gives the tokens per second of so many steps, and `kept()`, the share of the blocks of
 *   keys that was looked at since it was last asked
 */
export async function openDecoder(model, depth) {
  const { scheduler } = engineOf(model);
  const sequence = scheduler.open({ ...SAMPLING_DEFAULTS, temperature: 0, seed: 0n, logitBias: [] });
  const feed = async (tokens) => {
    for (let rest = tokens; ; ) {
      const { consumed, token } = await scheduler.run(sequence, rest, 'sample');
      if (token !== undefined) return token;
      rest = rest.subarray(consumed);
    }
  };
  let token = await feed(promptIds(depth));
  return {
    async step(count) {
      const began = performance.now();
      for (let i = 0; i < count; i++) token = await feed(Uint32Array.of(token));
      return (count * 1000) / (performance.now() - began);
    },
    kept() {
      const rows = scheduler.keptKeys(sequence);
      const sum = (at) => rows.reduce((total, x, i) => (i % 4 === at ? total + x : total), 0);
      return rows.length === 0 ? 1 : sum(0) / sum(1);
    },
  };
}
