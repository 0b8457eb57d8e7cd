// One layer's attention of a 1B model (32 heads of 64 on 8 KV heads) and nothing else, with random keys and queries: what
// policies of sparse attention take.

import { sparsePlan } from '../../dist/attention/index.js';
import { loadNative } from '../../dist/backend/native.js';
import { SAMPLING_DEFAULTS } from '../../dist/engine/options.js';
import { attentionPlan, lookupPlan } from './cases.mjs';

// Few different tokens, so that their rows, which are looked up as embeddings are, stay in the cache: that is not attention.
const [HEADS, KV_HEADS, HEAD_DIM, VOCAB, STEP] = [32, 8, 64, 2048, 512];
/** More than the share of kept blocks that time may be. */
export const ALLOWED = { fixed: 0.05, content: 0.1 };

/** Policies for prompts of so many tokens. Fixed patterns keep about as many blocks as `keep` says. */
export function policiesFor(tokens, keep) {
  const blocks = Math.max(2, Math.round((keep * tokens) / 128));
  const content = { keep, minTokens: 0 };
  return {
    window: { kind: 'fixed', policy: { policy: 'window', window: 64 * blocks } },
    longformer: {
      kind: 'fixed',
      policy: { policy: 'longformer', window: 32 * blocks, dilatedBlocks: blocks >> 1, dilation: 2 },
    },
    bigbird: { kind: 'fixed', policy: { policy: 'bigbird', window: 32 * blocks, randomBlocks: blocks >> 1 } },
    strided: { kind: 'fixed', policy: { policy: 'strided', window: 64, stride: Math.round(1 / keep) } },
    'antidiagonal, stride 8': { kind: 'content', policy: { policy: 'antidiagonal', ...content, stride: 8 } },
    'antidiagonal, stride 16': {
      kind: 'content',
      policy: { policy: 'antidiagonal', ...content, stride: 16 },
    },
    'vertical-slash': { kind: 'content', policy: { policy: 'vertical-slash', ...content } },
    lsh: { kind: 'content', policy: { policy: 'lsh', ...content } },
    quest: { kind: 'content', policy: { policy: 'quest', ...content } },
    auto: { kind: 'content', policy: { policy: 'auto' } },
  };
}

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

/** A model of one layer, which its caller disposes of. */
export const openLayer = (threads, attention) =>
  open(threads, {
    ...attentionPlan(HEADS, KV_HEADS, HEAD_DIM, { vocab: VOCAB }),
    ...(attention && { sparse: sparsePlan(attention, 1) }),
  });

/** The same without the attention: what is left is no part of its time. */
export const openLookup = (threads) => open(threads, lookupPlan(HEADS, KV_HEADS, HEAD_DIM, VOCAB));

async function open(threads, plan) {
  const backend = await loadNative();
  const model = await backend.compile(plan, { maxStepTokens: STEP, threads });
  await model.loadTensors(placements(plan), {});
  return model;
}

export const tokensOf = (count, from) =>
  Uint32Array.from({ length: count }, (_, i) => Math.imul(from + i, 2654435761) >>> 21);

/** A sequence of so many tokens. */
export async function fill(model, count) {
  const sequence = model.createSequence({ ...SAMPLING_DEFAULTS, temperature: 0, seed: 0n, logitBias: [] });
  for (let at = 0; at < count; at += STEP) {
    const some = tokensOf(Math.min(STEP, count - at), at);
    await model.step([{ sequence, tokens: some, output: 'none' }]);
  }
  return sequence;
}

/** Seconds of a prompt of so many tokens, and the share of blocks kept. */
export async function timePrompt(model, count) {
  const began = performance.now();
  const sequence = await fill(model, count);
  return settle(model, sequence, began);
}

/** Ends a measurement of a sequence. */
export function settle(model, sequence, began) {
  const seconds = (performance.now() - began) / 1000;
  const [kept = 1, seen = 1] = model.keptKeys(sequence);
  model.freeSequence(sequence);
  return { seconds, kept: kept / seen };
}
