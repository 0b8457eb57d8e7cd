// What attention alone takes of a long prompt, by policy: a plan with nothing else in it.

import { formatNumber, formatShare } from '../../dist/bench/table.js';
import { ALLOWED, openLayer, openLookup, policiesFor, timePrompt } from '../lib/attention.mjs';
import { eachInTurn } from '../lib/turns.mjs';

const TOKENS = 16384;
const KEEP = 0.1;

async function prefill(opened) {
  const model = await opened;
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
    const { threads } = context;
    const { results } = await eachInTurn(context, {
      lookup: () => prefill(openLookup(threads)),
      dense: () => prefill(openLayer(threads)),
      ...Object.fromEntries(
        policies.map(([name, { policy }]) => [name, () => prefill(openLayer(threads, { prefill: policy }))]),
      ),
    });
    // To look queries and keys up, as embeddings are, is no part of attention.
    const [lookup, ...attentions] = results;
    const [dense, ...others] = attentions.map(({ name, seconds, kept }) => ({
      name,
      seconds: seconds.median - lookup.seconds.median,
      kept: kept.median,
    }));
    const rows = others.map((other, i) => ({
      ...other,
      cost: other.seconds / dense.seconds,
      kind: policies[i][1].kind,
    }));
    return {
      table: [
        ['', 'seconds', 'blocks kept', 'time over dense', 'above the blocks', 'allowed'],
        ['dense', formatNumber(dense.seconds), '100%', '100%', '-', '-'],
        ...rows.map(({ name, seconds, kept, cost, kind }) => [
          ...[name, formatNumber(seconds), formatShare(kept), formatShare(cost)],
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
