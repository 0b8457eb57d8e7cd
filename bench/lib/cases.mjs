// Plans of a few operations, one for each kernel: what they compute is known, so their speed can be read in
// bytes and operations per second.

import { BLOCKS, pattern, sizeOf } from './blocks.mjs';

const VOCAB = 64;

/** Builds a plan op by op; every tensor gets random weights, vectors get ones. */
function createPlan(width, vocab = VOCAB) {
  const plan = {
    version: 1,
    name: 'microbenchmark',
    vocabSize: vocab,
    contextLength: 1 << 15,
    kvLayers: [],
    tensors: [],
    buffers: [],
    ropes: [],
    ops: [],
    hidden: 'hidden',
  };
  const buffer = (name, size, rows = 'tokens') => {
    if (!plan.buffers.some((each) => each.name === name)) plan.buffers.push({ name, width: size, rows });
    return name;
  };
  const tensor = (type, rows, cols, experts) => {
    const name = `t${plan.tensors.length}`;
    plan.tensors.push({ name, type, rows, cols, ...(experts && { experts }) });
    return name;
  };
  const embed = (out, size) =>
    plan.ops.push({ op: 'embed', table: tensor('F32', vocab, size), out: buffer(out, size) });
  embed('x', width);
  return {
    plan,
    buffer,
    tensor,
    embed,
    add: (op) => plan.ops.push(op),
    norm: (x, size, out = x) =>
      plan.ops.push({ op: 'rms_norm', x, weight: tensor('F32', 1, size), out, eps: 1e-5 }),
    /** The end that every plan has. */
    finish(x = 'x', size = width, type = 'F32') {
      plan.ops.push({ op: 'select_outputs', x, out: buffer('hidden', size, 'outputs') });
      plan.ops.push({ op: 'logits', x: 'hidden', weight: tensor(type, vocab, size) });
      return plan;
    },
  };
}

/** `layers` times to `inner` and back, a norm before each so that numbers stay of one size. */
function matmulPlan(type, width, inner, layers) {
  const of = createPlan(width);
  for (let i = 0; i < layers; i++) {
    of.norm('x', width);
    of.add({ op: 'linear', x: 'x', weight: of.tensor(type, inner, width), out: of.buffer('y', inner) });
    of.norm('y', inner);
    of.add({ op: 'linear', x: 'y', weight: of.tensor(type, width, inner), out: 'x' });
  }
  return of.finish();
}

function matmul(type, width, inner, layers, batch) {
  const weights = layers * 2 * width * inner;
  return {
    name: `matmul ${type} ${width}x${inner} batch ${batch}`,
    group: `matmul ${type} ${width}x${inner}`,
    plan: () => matmulPlan(type, width, inner, layers),
    tokens: batch,
    bytes: sizeOf(type, weights),
    ops: 2 * weights * batch,
    arithmetic: ['F32', 'F16', 'BF16'].includes(type) ? 'float' : 'int8',
    unit: batch <= 8 ? 'bytes' : 'ops',
  };
}

function gluCase(type, batch) {
  const [width, inner, layers] = [2048, 8192, 1];
  const weights = layers * 3 * width * inner;
  return {
    name: `gate+up+down ${type} ${width}x${inner} batch ${batch}`,
    group: `glu ${type}`,
    plan() {
      const of = createPlan(width);
      const tensors = { gate: of.tensor(type, inner, width), up: of.tensor(type, inner, width) };
      of.norm('x', width);
      of.add({ op: 'glu', x: 'x', ...tensors, activation: 'silu', out: of.buffer('y', inner) });
      of.add({ op: 'linear', x: 'y', weight: of.tensor(type, width, inner), out: 'x', add: true });
      return of.finish();
    },
    tokens: batch,
    bytes: sizeOf(type, weights),
    ops: 2 * weights * batch,
    arithmetic: 'int8',
    unit: batch <= 8 ? 'bytes' : 'ops',
  };
}

function expertsCase(type, batch, [width, inner, experts, topK], label) {
  const used = Math.min(experts, topK * batch);
  return {
    name: `${label} ${type} ${width}x${inner}, ${topK} of ${experts}, batch ${batch}`,
    group: `experts ${type} ${width} ${experts}`,
    plan() {
      const of = createPlan(width);
      of.norm('x', width, of.buffer('n', width));
      of.add({
        op: 'linear',
        x: 'n',
        weight: of.tensor('F32', experts, width),
        out: of.buffer('gates', experts),
        precise: true,
      });
      const matrices = {
        gate: of.tensor(type, inner, width, experts),
        up: of.tensor(type, inner, width, experts),
        down: of.tensor(type, width, inner, experts),
      };
      of.add({
        ...{ op: 'experts', x: 'n', gates: 'gates', ...matrices, activation: 'silu', out: 'x' },
        ...{ topK, normalise: true, scale: 1 },
      });
      return of.finish();
    },
    tokens: batch,
    bytes: sizeOf(type, used * 3 * width * inner),
    ops: 2 * 3 * width * inner * topK * batch,
    arithmetic: 'int8',
    unit: batch <= 8 ? 'bytes' : 'ops',
  };
}

/** Embeddings for queries, keys and values: what a plan of attention does beside it. */
function startAttention(heads, kvHeads, headDim, vocab) {
  const of = createPlan(heads * headDim, vocab);
  of.embed('k', kvHeads * headDim);
  of.embed('v', kvHeads * headDim);
  return of;
}

export const lookupPlan = (heads, kvHeads, headDim, vocab) =>
  startAttention(heads, kvHeads, headDim, vocab).finish('x');

/** Queries, keys and values are embeddings: no matrix is in the way. */
export function attentionPlan(heads, kvHeads, headDim, { window, vocab } = {}) {
  const of = startAttention(heads, kvHeads, headDim, vocab);
  of.plan.kvLayers.push({ kvHeads, headDim });
  of.add({
    ...{ op: 'attention', q: 'x', k: 'k', v: 'v', out: of.buffer('y', heads * headDim), layer: 0, heads },
    ...(window && { window }),
  });
  return of.finish('y');
}

/** @param depth tokens in the cache before; each measured step adds `tokens` to a sequence of its own */
function attention(heads, kvHeads, headDim, tokens, depth, window) {
  const seen = (position) => Math.min(position + 1, window ?? Number.POSITIVE_INFINITY);
  let pairs = 0;
  for (let i = 0; i < tokens; i++) pairs += seen(depth + i);
  const shape = `${heads}/${kvHeads} heads of ${headDim}`;
  const what = tokens === 1 ? `decode at ${depth}` : `prefill ${tokens}`;
  return {
    name: `attention ${shape}, ${what}${window ? `, window ${window}` : ''}`,
    group: `attention ${heads} ${kvHeads} ${headDim} ${window ?? ''}`,
    plan: () => attentionPlan(heads, kvHeads, headDim, { window }),
    tokens,
    depth,
    bytes: 2 * 2 * kvHeads * headDim * pairs,
    ops: 4 * heads * headDim * pairs,
    arithmetic: 'float',
    unit: tokens === 1 ? 'bytes' : 'ops',
  };
}

/** Row by row: so many norms, or rotations of all heads, one after another. */
function rowsCase(what, width, tokens) {
  const repeats = 32;
  return {
    name: `${what} of ${width}, ${tokens} rows`,
    group: `${what} ${width}`,
    plan() {
      const of = createPlan(width);
      of.plan.ropes.push({
        ...{ dims: 128, base: 10000, layout: 'neox', factor: 1, extFactor: 0, attnFactor: 1 },
        ...{ betaFast: 32, betaSlow: 1, originalContext: 4096 },
      });
      // Every rope of a plan is used.
      of.add({ op: 'rope', x: 'x', rope: 0, headDim: 128 });
      for (let i = 0; i < repeats; i++) {
        if (what === 'norm') of.norm('x', width);
        else of.add({ op: 'rope', x: 'x', rope: 0, headDim: 128 });
      }
      return of.finish();
    },
    tokens,
    bytes: repeats * tokens * width * 8,
    ops: repeats * tokens * width * 3,
    arithmetic: 'float',
    unit: 'bytes',
    cached: true,
  };
}

/** The projection to the vocabulary and the choice of a token. */
function sampling(vocab, temperature) {
  const [width, type] = [256, 'Q8_0'];
  return {
    name: `logits ${type} ${width}x${vocab} and sampling, temperature ${temperature}`,
    group: `sampling ${temperature}`,
    plan: () => createPlan(width, vocab).finish('x', width, type),
    tokens: 1,
    temperature,
    bytes: sizeOf(type, vocab * width),
    ops: 2 * vocab * width,
    arithmetic: 'int8',
    unit: 'bytes',
  };
}

export function allCases() {
  const batches = [1, 8, 128, 512];
  return [
    ...Object.keys(BLOCKS).flatMap((type) => batches.map((batch) => matmul(type, 2048, 8192, 2, batch))),
    ...['Q8_0', 'Q4_0'].flatMap((type) => [1, 512].map((batch) => matmul(type, 1024, 3072, 4, batch))),
    ...[1, 512].map((batch) => matmul('Q4_0', 4096, 14336, 1, batch)),
    ...batches.map((batch) => gluCase('Q4_0', batch)),
    ...batches.map((batch) => expertsCase('Q4_0', batch, [2048, 768, 64, 8], 'experts')),
    ...[1, 128].map((batch) => expertsCase('Q8_0', batch, [32, 32, 128, 8], 'router')),
    attention(32, 8, 64, 64, 0),
    attention(32, 8, 64, 2048, 0),
    attention(32, 8, 64, 1, 4096),
    attention(16, 8, 128, 64, 0),
    attention(16, 8, 128, 2048, 0),
    attention(16, 8, 128, 1, 4096),
    attention(32, 8, 64, 2048, 0, 512),
    rowsCase('norm', 2048, 128),
    rowsCase('rope', 2048, 128),
    sampling(128256, 0),
    sampling(128256, 0.8),
  ];
}

/** Where the weights of a plan lie: random blocks, repeated; norms are ones. */
export function placementsOf(plan) {
  const patterns = new Map();
  const source = (bytes, ones) => ({
    name: 'random',
    size: bytes.length,
    async read(offset, length) {
      if (ones) return new Uint8Array(ones.buffer, offset, length);
      const out = new Uint8Array(length);
      // The pattern is whole blocks, so that it may start again anywhere.
      for (let at = 0; at < length; ) {
        const from = (offset + at) % bytes.length;
        const part = Math.min(length - at, bytes.length - from);
        out.set(bytes.subarray(from, from + part), at);
        at += part;
      }
      return out;
    },
    async close() {},
  });
  return plan.tensors.map(({ type, rows, cols, experts = 1 }, tensor) => {
    if (!patterns.has(type)) patterns.set(type, pattern(type));
    const ones = rows === 1 ? new Float32Array(cols).fill(1) : undefined;
    const bytes = sizeOf(type, rows * cols * experts);
    return { tensor, source: source(patterns.get(type), ones), offset: 0, bytes };
  });
}
