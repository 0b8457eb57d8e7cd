// What attention alone takes of a long prompt, by policy: a plan with nothing else in it.

import { formatNumber, formatShare } from '../../dist/bench/table.js';
import { ALLOWED, openLayer, policiesFor, timePrompt } from '../lib/attention.mjs';
import { eachInTurn } from '../lib/turns.mjs';

const TOKENS = 16384;
const KEEP = 0.1;

async function prefill(threads, attention) {
  const model = await openLayer(threads, attention);
  try {
    return await timePrompt(model, TOKENS);
  } finally {
    await model.dispose();
  }
}

export const attention = {
  name: 'attention',
  text: `attention alone over ${TOKENS.toLocaleString('en')} tokens, one layer of the 1B shape: time over dense against the blocks kept, choosing them included`,
  async run(context) {
    // `auto` finds nothing to leave out of random keys.
    const policies = Object.entries(policiesFor(TOKENS, KEEP)).filter(([name]) => name !== 'auto');
    const { results } = await eachInTurn(context, {
      dense: () => prefill(context.threads),
      ...Object.fromEntries(
        policies.map(([name, { policy }]) => [name, () => prefill(context.threads, { prefill: policy })]),
      ),
    });
    const [dense, ...others] = results;
    const rows = others.map(({ name, seconds, kept }, i) => {
      const cost = seconds.median / dense.seconds.median;
      const { kind } = policies[i][1];
      return { name, seconds, kept: kept.median, cost, kind };
    });
    return {
      table: [
        ['', 'seconds', 'blocks kept', 'time over dense', 'above the blocks', 'allowed'],
        ['dense', formatNumber(dense.seconds.median), '100%', '100%', '-', '-'],
        ...rows.map(({ name, seconds, kept, cost, kind }) => [
          ...[name, formatNumber(seconds.median), formatShare(kept), formatShare(cost)],
          ...[formatShare(cost - kept), formatShare(ALLOWED[kind])],
        ]),
      ],
      // The worst of all: what is left of what is allowed.
      values: {
        fixedAttention: worst(rows.filter(({ kind }) => kind === 'fixed')),
        chosenAttention: worst(rows.filter(({ kind }) => kind === 'content')),
      },
    };
  },
};

const worst = (rows) => Math.max(...rows.map(({ cost, kept }) => cost - kept));
