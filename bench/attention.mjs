// node bench/attention.mjs [--tokens N] [--decode] [--only POLICY,...] [--threads N] [--keep SHARE] [--json FILE]     after npm run build
//
// What policies of sparse attention cost: the time of one layer's attention of a 1B model (32 heads of 64 on 8 KV heads) over
// a prompt of N tokens, or of single tokens at that depth with --decode, choosing included, over that of dense attention.
// Dense attention is measured before and after the policies, and the mean counts. Keys and queries are random.

import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { sparsePlan } from '../dist/attention/index.js';
import { loadNative } from '../dist/backend/native.js';
import { formatShare, formatTable } from '../dist/bench/table.js';
import { SAMPLING_DEFAULTS } from '../dist/engine/options.js';
import { attentionPlan } from './lib/cases.mjs';

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

const [HEADS, KV_HEADS, HEAD_DIM, VOCAB, STEP] = [32, 8, 64, 8192, 512];
/** Single tokens; all but the first are timed. */
const DECODED = 65;
/** More than the share of kept blocks that time may be. */
const ALLOWED = { fixed: 0.05, content: 0.1 };

/** Fixed patterns keep about as many blocks of this prompt as `keep` says. */
const blocks = Math.max(2, Math.round((keep * tokens) / 128));
const content = { keep, minTokens: 0 };
const POLICIES = {
  window: { kind: 'fixed', policy: { policy: 'window', window: 64 * blocks } },
  longformer: {
    kind: 'fixed',
    policy: { policy: 'longformer', window: 32 * blocks, dilatedBlocks: blocks >> 1, dilation: 2 },
  },
  bigbird: { kind: 'fixed', policy: { policy: 'bigbird', window: 32 * blocks, randomBlocks: blocks >> 1 } },
  strided: { kind: 'fixed', policy: { policy: 'strided', window: 64, stride: Math.round(1 / keep) } },
  'antidiagonal, stride 8': { kind: 'content', policy: { policy: 'antidiagonal', ...content } },
  'antidiagonal, stride 16': { kind: 'content', policy: { policy: 'antidiagonal', ...content, stride: 16 } },
  'vertical-slash': { kind: 'content', policy: { policy: 'vertical-slash', ...content } },
  lsh: { kind: 'content', policy: { policy: 'lsh', ...content } },
  quest: { kind: 'content', policy: { policy: 'quest', ...content } },
  auto: { kind: 'content', policy: { policy: 'auto' } },
};
const DECODE = {
  window: { kind: 'fixed', policy: { policy: 'window', window: 2048 } },
  quest: { kind: 'content', policy: { policy: 'quest', keep: 0, minTokens: 2048 } },
  'antidiagonal, stride 8': {
    kind: 'content',
    policy: { policy: 'antidiagonal', keep: 0, minTokens: 2048 },
  },
  'vertical-slash': { kind: 'content', policy: { policy: 'vertical-slash', keep: 0, minTokens: 2048 } },
  lsh: { kind: 'content', policy: { policy: 'lsh', keep: 0, minTokens: 2048 } },
  auto: { kind: 'content', policy: { policy: 'auto' } },
};

/** Seeded numbers between -2 and 2. */
function randomFloats(count) {
  const values = new Float32Array(count);
  let state = 1;
  for (let i = 0; i < count; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    values[i] = state / 2 ** 30 - 2;
  }
  return new Uint8Array(values.buffer);
}

const noise = randomFloats(VOCAB * HEADS * HEAD_DIM);
const placements = ({ tensors }) =>
  tensors.map(({ rows, cols }, tensor) => ({
    tensor,
    offset: 0,
    bytes: 4 * rows * cols,
    source: {
      name: 'random',
      size: noise.length,
      read: async (offset, length) => noise.slice(offset, offset + length),
      close: async () => {},
    },
  }));

async function open(attention) {
  const plan = {
    ...attentionPlan(HEADS, KV_HEADS, HEAD_DIM, { vocab: VOCAB }),
    ...(attention && { sparse: sparsePlan(attention, 1) }),
  };
  const backend = await loadNative();
  const model = await backend.compile(plan, { maxStepTokens: STEP, threads: Number(flags.threads) });
  await model.loadTensors(placements(plan), {});
  return model;
}

const tokensOf = (count, from) =>
  Uint32Array.from({ length: count }, (_, i) => Math.imul(from + i, 2654435761) >>> 19);

async function fill(model, count) {
  const sequence = model.createSequence({ ...SAMPLING_DEFAULTS, temperature: 0, seed: 0n, logitBias: [] });
  for (let at = 0; at < count; at += STEP) {
    const some = tokensOf(Math.min(STEP, count - at), at);
    await model.step([{ sequence, tokens: some, output: 'none' }]);
  }
  return sequence;
}

/** Seconds, and the share of blocks kept. */
async function measure(model) {
  const depth = flags.decode ? tokens - DECODED : 0;
  const filled = flags.decode ? await fill(model, depth) : undefined;
  const decode = (i) => model.step([{ sequence: filled, tokens: tokensOf(1, depth + i), output: 'none' }]);
  // The first token brings what a policy knows of the keys up to date.
  if (filled !== undefined) await decode(0);
  if (filled !== undefined) model.keptKeys(filled);
  const began = performance.now();
  const sequence = filled ?? (await fill(model, tokens));
  for (let i = 1; flags.decode && i < DECODED; i++) await decode(i);
  const seconds = (performance.now() - began) / 1000;
  const [kept = 1, seen = 1] = model.keptKeys(sequence);
  model.freeSequence(sequence);
  return { seconds, kept: kept / seen };
}

const wanted = flags.only?.split(',').map((name) => name.trim());
const chosen = Object.entries(flags.decode ? DECODE : POLICIES).filter(
  ([name]) => !wanted || wanted.some((part) => name.startsWith(part)),
);
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
