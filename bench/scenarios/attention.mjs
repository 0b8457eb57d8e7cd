// What attention alone takes of a long prompt, by policy: a plan with nothing else in it.

import { sparsePlan } from '../../dist/attention/index.js';
import { loadNative } from '../../dist/backend/native.js';
import { formatNumber, formatShare } from '../../dist/bench/table.js';
import { SAMPLING_DEFAULTS } from '../../dist/engine/options.js';
import { attentionPlan, placementsOf } from '../lib/cases.mjs';
import { eachInTurn } from '../lib/turns.mjs';

const TOKENS = 16384;
/** Whole blocks of 64 positions. */
const STEP = 256;
const VOCAB = 4096;
/** Heads, KV heads and head size of Llama-3.2-1B. */
const HEADS = [32, 8, 64];
const KEEP = { keep: 0.1, minTokens: 0 };

/** With what its time may be above the share of blocks kept. */
const POLICIES = [
  ['window of 1,024', 0.05, { policy: 'window', window: 1024 }],
  ['longformer', 0.05, { policy: 'longformer', window: 512, dilatedBlocks: 8 }],
  ['bigbird', 0.05, { policy: 'bigbird', window: 512, randomBlocks: 8 }],
  ['strided, 1 of 16', 0.05, { policy: 'strided', window: 512, stride: 16 }],
  ['antidiagonal, 10%', 0.1, { policy: 'antidiagonal', ...KEEP }],
  ['vertical-slash, 10%', 0.1, { policy: 'vertical-slash', ...KEEP }],
  ['lsh, 10%', 0.1, { policy: 'lsh', ...KEEP }],
];

async function prefill(backend, threads, policy) {
  const plan = attentionPlan(...HEADS, { vocab: VOCAB });
  plan.sparse = sparsePlan({ prefill: policy }, 1);
  const model = await backend.compile(plan, { maxStepTokens: STEP, threads });
  try {
    await model.loadTensors(placementsOf(plan), {});
    const sequence = model.createSequence({ ...SAMPLING_DEFAULTS, seed: 1n, logitBias: [] });
    const began = performance.now();
    for (let at = 0; at < TOKENS; at += STEP) {
      const tokens = Uint32Array.from({ length: STEP }, (_, i) => ((at + i) * 7919) % VOCAB);
      await model.step([{ sequence, tokens, output: 'none' }]);
    }
    const seconds = (performance.now() - began) / 1000;
    const [kept = 1, seen = 1] = model.keptKeys(sequence);
    return { seconds, kept: kept / seen };
  } finally {
    await model.dispose();
  }
}

export const attention = {
  name: 'attention',
  text: `attention alone over ${TOKENS.toLocaleString('en')} tokens, one layer of the 1B shape: time over dense against the blocks kept, choosing them included`,
  async run(context) {
    const backend = await loadNative();
    const call = (policy) => () => prefill(backend, context.threads, policy);
    const { results } = await eachInTurn(context, {
      dense: call({ policy: 'dense' }),
      ...Object.fromEntries(POLICIES.map(([name, , policy]) => [name, call(policy)])),
    });
    const [dense, ...others] = results;
    const rows = others.map(({ name, seconds, kept }, i) => {
      const cost = seconds.median / dense.seconds.median;
      return { name, seconds, kept: kept.median, cost, allowed: POLICIES[i][1] };
    });
    return {
      table: [
        ['', 'seconds', 'blocks kept', 'time over dense', 'above the blocks', 'allowed'],
        ['dense', formatNumber(dense.seconds.median), '100%', '100%', '-', '-'],
        ...rows.map(({ name, seconds, kept, cost, allowed }) => [
          ...[name, formatNumber(seconds.median), formatShare(kept), formatShare(cost)],
          ...[formatShare(cost - kept), formatShare(allowed)],
        ]),
      ],
      // The worst of all: what is left of what is allowed.
      values: {
        fixedAttention: worst(rows.filter(({ allowed }) => allowed === 0.05)),
        chosenAttention: worst(rows.filter(({ allowed }) => allowed === 0.1)),
      },
    };
  },
};

const worst = (rows) => Math.max(...rows.map(({ cost, kept }) => cost - kept));
