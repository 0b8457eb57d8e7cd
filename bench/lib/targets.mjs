// What the project set out to reach, each with how it is read from the results. A target that no result speaks of is
// listed as not measured, one that is missed as missed.

const two = (bench) => bench?.rows.find(({ threads }) => threads === 2);
const one = (bench) => bench?.rows.find(({ threads }) => threads === 1);
const ratio = (value) => ({ value, text: `${value.toFixed(2)}x` });
const share = (value) => ({ value, text: `${(value * 100).toFixed(0)}%` });
const seconds = (ms) => ({ value: -ms / 1000, text: `${(ms / 1000).toFixed(2)} s` });

/** The fastest other engine's best setting. */
function bestPeer(report, what) {
  const others = report?.results.filter(({ name }) => !['frugal', 'wllama'].includes(name)) ?? [];
  return others.length > 0 ? Math.max(...others.map((each) => each[what].median)) : undefined;
}

function againstPeer(report, what, pick) {
  const own = report?.results.find(({ name }) => name === 'frugal');
  const peer = bestPeer(report, what);
  return own && peer ? ratio((pick(own)?.median ?? Number.NaN) / peer) : undefined;
}

function when(value, make) {
  return value === undefined || Number.isNaN(value) ? undefined : make(value);
}

/** Each: { topic, text, least, read(data) -> { value, text } | undefined }; met where value >= least. */
export const TARGETS = [
  ...['Q8_0', 'Q4_0', 'Q4_K', 'Q6_K', 'F16'].map((type) => ({
    topic: 'Native speed',
    text: `decode, 1B shape, ${type}: share of the read bandwidth, at least 90%`,
    least: 0.9,
    read: ({ model }) => when(two(model(`llama-1b-${type}`))?.bandwidthShare, share),
  })),
  ...['Q8_0', 'Q4_0', 'Q4_K', 'Q6_K'].map((type) => ({
    topic: 'Native speed',
    text: `prefill of 512, 1B shape, ${type}: share of the int8 peak, at least 65%`,
    least: 0.65,
    read: ({ model }) => when(two(model(`llama-1b-${type}`))?.computeShare, share),
  })),
  {
    topic: 'Native speed',
    text: 'prefill of 512, 1B shape, F16: share of the f32 peak, at least 75%',
    least: 0.75,
    read: ({ model }) => when(two(model('llama-1b-F16'))?.computeShare, share),
  },
  ...['llama-1b-Q8_0', 'llama-1b-Q4_0', 'qwen3-0.6b-Q4_0'].flatMap((name) => [
    {
      topic: 'Native speed',
      text: `prefill, ${name}: against the best setting of the best native peer, at least 1.3x`,
      least: 1.3,
      read: ({ peers }) => againstPeer(peers(name), 'prefill', (own) => own.prefill),
    },
    {
      topic: 'Native speed',
      text: `decode, ${name}: never below the best native peer`,
      least: 1,
      read: ({ peers }) => againstPeer(peers(name), 'decode', (own) => own.steps ?? own.decode),
    },
  ]),
  {
    topic: 'Native speed',
    text: "text streamed through the API, 1B Q4_0: share of the engine's own steps, at least 97%",
    least: 0.97,
    read({ model }) {
      const row = two(model('llama-1b-Q4_0'));
      return row?.stream && share(row.stream.median / row.decode.median);
    },
  },
  {
    topic: 'Native speed',
    text: 'prefill with 2 threads against 1, 1B Q4_0: at least 1.9x',
    least: 1.9,
    read({ model }) {
      const of = model('llama-1b-Q4_0');
      return one(of) && two(of) && ratio(two(of).prefill.median / one(of).prefill.median);
    },
  },
  {
    topic: 'Native speed',
    text: 'load to the first token of a prompt of 16, 1B Q4_0, cached file: at most 0.6 s',
    least: -0.6,
    read: ({ model }) => when(model('llama-1b-Q4_0')?.loadToFirstTokenMs.median, seconds),
  },
  {
    topic: 'Native speed',
    text: 'prefill of 8,192 and 16,384 tokens against llama.cpp with flash attention: at least 1.3x',
  },
  { topic: 'Native speed', text: 'decode at depth 16,384 against llama.cpp: at least 1.2x' },
  { topic: 'Native speed', text: 'decode beside a process that keeps a core busy: at least 45% of idle' },
  { topic: 'Native speed', text: '8 sequences decoding together: at least 4x the tokens of one' },
  {
    topic: 'Experts',
    text: 'decode, 12 layers of 64 experts, Q4_0: share of the bandwidth on active bytes, at least 85%',
    least: 0.85,
    read: ({ model }) => when(two(model('qwen3-moe-small-Q4_0'))?.bandwidthShare, share),
  },
  {
    topic: 'Experts',
    text: 'prefill of 512, the same shape: against the best native peer, at least 1.6x',
    least: 1.6,
    read: ({ peers }) => againstPeer(peers('qwen3-moe-small-Q4_0'), 'prefill', (own) => own.prefill),
  },
  { topic: 'Experts', text: 'half of the experts in memory: decode keeps at least 50%' },
  { topic: 'Sparse attention', text: 'attention time over dense: at most the blocks kept plus 5% or 10%' },
  { topic: 'Sparse attention', text: 'prefill of 16,384, a tenth kept: at least 2.5x llama.cpp dense' },
  { topic: 'Sparse attention', text: 'decode at depth 32,768, 2,048 tokens kept: at least 3x our own dense' },
  {
    topic: 'WebAssembly',
    text: 'decode against our native build: at least 60%',
    least: 0.6,
    read: ({ kernels }) => wasmShare(kernels, /^matmul Q4_0 .* batch 1$/),
  },
  {
    topic: 'WebAssembly',
    text: 'prefill against our native build: at least 30%',
    least: 0.3,
    read: ({ kernels }) => wasmShare(kernels, /^matmul Q4_0 .* batch 512$/),
  },
  { topic: 'WebAssembly', text: 'against wllama in the same browser: at least 5x prefill and 4x decode' },
];

/** The smallest ratio of native to WASM time over kernels. */
function wasmShare(kernels, pattern) {
  const of = kernels?.results.filter(({ name }) => pattern.test(name)) ?? [];
  const shares = of
    .filter(({ kind }) => kind === 'wasm')
    .map(({ name, ms }) => {
      const native = of.filter((each) => each.name === name && each.kind === 'native').map((each) => each.ms);
      return Math.min(...native) / ms;
    });
  return shares.length > 0 ? share(Math.min(...shares)) : undefined;
}

/** The state of a target: `met`, `missed` or `not measured here`. */
export function stateOf(target, data) {
  const got = target.read?.(data);
  if (got === undefined || Number.isNaN(got.value)) return { state: 'not measured here', text: '-' };
  return { state: got.value >= target.least ? 'met' : 'missed', text: got.text };
}
