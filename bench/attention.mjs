// node bench/attention.mjs [--tokens N] [--decode] [--only POLICY,...] [--threads N] [--keep SHARE] [--json FILE]     after npm run build
//
// What policies of sparse attention cost: the time of one layer's attention of a 1B model (32 heads of 64 on 8 KV heads) over
// a prompt of N tokens, or of single tokens at that depth with --decode, choosing included, over that of dense attention.
// Dense attention is measured before and after the policies, and the mean counts. Keys and queries are random; to look
// them up, as embeddings are, is no part of a prompt's times.

import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { formatShare, formatTable } from '../dist/bench/table.js';
import {
  ALLOWED,
  fill,
  openLayer,
  openLookup,
  policiesFor,
  settle,
  timePrompt,
  tokensOf,
} from './lib/attention.mjs';

const { values: flags } = parseArgs({
  options: {
    tokens: { type: 'string', default: '16384' },
    decode: { type: 'boolean', default: false },
    only: { type: 'string' },
    threads: { type: 'string', default: '2' },
    keep: { type: 'string', default: '0.1' },
    json: { type: 'string' },
  },
});
const tokens = Number(flags.tokens);
const keep = Number(flags.keep);

/** Single tokens; all but the first are timed. */
const DECODED = 65;

const DECODE = {
  window: { kind: 'fixed', policy: { policy: 'window', window: 2048 } },
  quest: { kind: 'content', policy: { policy: 'quest', keep: 0, minTokens: 2048 } },
  'antidiagonal, stride 8': {
    kind: 'content',
    policy: { policy: 'antidiagonal', keep: 0, minTokens: 2048, stride: 8 },
  },
  'vertical-slash': { kind: 'content', policy: { policy: 'vertical-slash', keep: 0, minTokens: 2048 } },
  lsh: { kind: 'content', policy: { policy: 'lsh', keep: 0, minTokens: 2048 } },
  auto: { kind: 'content', policy: { policy: 'auto' } },
};

const open = (attention) => openLayer(Number(flags.threads), attention);

/** What looking up takes of a prompt's seconds. */
async function timeLookups() {
  const model = await openLookup(Number(flags.threads));
  // Once to get ready.
  await timePrompt(model, tokens);
  const { seconds } = await timePrompt(model, tokens);
  await model.dispose();
  return seconds;
}

/** Seconds, and the share of blocks kept. */
async function measure(model) {
  if (!flags.decode) {
    const { seconds, kept } = await timePrompt(model, tokens);
    return { seconds: seconds - lookup, kept };
  }
  const depth = tokens - DECODED;
  const sequence = await fill(model, depth);
  const decode = (i) => model.step([{ sequence, tokens: tokensOf(1, depth + i), output: 'none' }]);
  // The first token brings what a policy knows of the keys up to date.
  await decode(0);
  model.keptKeys(sequence);
  const began = performance.now();
  for (let i = 1; i < DECODED; i++) await decode(i);
  return settle(model, sequence, began);
}

const wanted = flags.only?.split(',').map((name) => name.trim());
const chosen = Object.entries(flags.decode ? DECODE : policiesFor(tokens, keep)).filter(
  ([name]) => !wanted || wanted.some((part) => name.startsWith(part)),
);
const lookup = flags.decode ? 0 : await timeLookups();
const dense = await open();
const before = await measure(dense);
const measured = [];
for (const [name, { kind, policy }] of chosen) {
  // To fill the cache takes no time that counts.
  const filler = { policy: 'window', window: 64 };
  const model = await open(flags.decode ? { prefill: filler, decode: policy } : { prefill: policy });
  measured.push({ name, kind, policy, ...(await measure(model)) });
  await model.dispose();
}
const after = await measure(dense);
const denseSeconds = (before.seconds + after.seconds) / 2;
const rows = measured.map((row) => ({
  ...row,
  share: row.seconds / denseSeconds,
  most: row.kept + ALLOWED[row.kind],
}));
await dense.dispose();
if (flags.json)
  writeFileSync(
    flags.json,
    JSON.stringify({ tokens, decode: flags.decode, dense: [before.seconds, after.seconds], rows }, null, 2),
  );
console.log(
  formatTable([
    ['policy', 'kept', 'time over dense', 'at most', 'seconds'],
    ['dense, before and after', '', '', '', `${before.seconds.toFixed(3)}, ${after.seconds.toFixed(3)}`],
    ...rows.map(({ name, kept, seconds, share, most }) => [
      name,
      formatShare(kept),
      `${(share * 100).toFixed(1)}%${share <= most ? '' : ' (missed)'}`,
      `${(most * 100).toFixed(1)}%`,
      seconds.toFixed(3),
    ]),
  ]),
);
