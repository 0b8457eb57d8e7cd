// What the project set out to reach, each with how it is read from the results. A target that no result speaks of is
// listed as not measured, one that is missed as missed.

const two = (bench) => bench?.rows.find(({ threads }) => threads === 2);
const one = (bench) => bench?.rows.find(({ threads }) => threads === 1);
const ratio = (value) => ({ value, text: `${value.toFixed(2)}x` });
const share = (value) => ({ value, text: `${(value * 100).toFixed(0)}%` });
const seconds = (ms) => ({ value: -ms / 1000, text: `${(ms / 1000).toFixed(2)} s` });

/** Ours that a result is compared with: what runs in a browser with ours in a browser, the rest with the native one. */
export function ownOf(results, { name }) {
  const own = ['wllama', IN_BROWSER].includes(name) ? IN_BROWSER : 'frugal';
  return results.find((each) => each.name === own);
}

/** Our own WebAssembly build among the peers. */
const IN_BROWSER = 'frugal in Chromium';

/** Peers that compute natively. */
const NATIVE_PEERS = ['node-llama-cpp', 'llama.cpp'];

/** The fastest other engine's best setting. */
function bestPeer(report, what) {
  const others = report?.results.filter(({ name }) => NATIVE_PEERS.includes(name)) ?? [];
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
  ...[
    ['', 'formats', 'prefillFormats'],
    [' with AVX2 alone on both sides', 'avx2', 'prefillAvx2'],
  ].map(([way, name, value]) => ({
    topic: 'Native speed',
    text: `prefill of 512, 1B shape, Q8_0, Q4_0, Q4_K and Q6_K${way}: at least 1.3x llama.cpp's better setting (the worst of all)`,
    least: 1.3,
    read: ({ scenario }) => when(scenario(name)?.[value], ratio),
  })),
  ...[8192, 16384].map((length) => ({
    topic: 'Native speed',
    text: `prefill of ${length.toLocaleString('en')} tokens against llama.cpp with flash attention: at least 1.3x`,
    least: 1.3,
    read: ({ scenario }) => when(scenario('long')?.[`prefill${length}`], ratio),
  })),
  {
    topic: 'Native speed',
    text: 'decode at depth 16,384 against llama.cpp: at least 1.2x',
    least: 1.2,
    read: ({ scenario }) => when(scenario('long')?.decode16384, ratio),
  },
  {
    topic: 'Native speed',
    text: 'decode beside a process that keeps a core busy: at least 45% of idle',
    least: 0.45,
    read: ({ scenario }) => when(scenario('busy')?.besideBusy, share),
  },
  {
    topic: 'Native speed',
    text: '8 sequences decoding together: at least 4x the tokens of one',
    least: 4,
    read: ({ scenario }) => when(scenario('sequences')?.eightSequences, ratio),
  },
  {
    topic: 'Energy',
    text: 'CPU time after a generation: none (at most 0.002 seconds per second)',
    least: -0.002,
    read: ({ scenario }) =>
      when(scenario('idle')?.idleCpu, (value) => ({ value: -value, text: value.toFixed(4) })),
  },
  {
    topic: 'Energy',
    text: 'CPU time while generating: at most wall time times threads, plus 10%',
    least: -1.1,
    read: ({ scenario }) =>
      when(scenario('idle')?.cpuOverThreads, (value) => ({ ...share(value), value: -value })),
  },
  {
    topic: 'Benchmarks',
    text: 'what the engine says of itself against a stopwatch outside: within 5%',
    least: -0.05,
    read: ({ scenario }) =>
      when(scenario('stopwatch')?.stopwatch, (value) => ({
        value: -value,
        text: `${(value * 100).toFixed(1)}%`,
      })),
  },
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
  {
    topic: 'Experts',
    text: 'half of the experts in memory: decode keeps at least 50%',
    least: 0.5,
    read: ({ scenario }) => when(scenario('experts')?.halfOfExperts, share),
  },
  {
    topic: 'Experts',
    text: 'half of the experts in memory: experts take at most the limit and a tenth at the peak',
    least: -1.1,
    read: ({ scenario }) =>
      when(scenario('experts')?.expertPeak, (value) => ({ ...share(value), value: -value })),
  },
  ...[
    ['fixed patterns', 'fixedAttention', 0.05],
    ['chosen by content, the choice included', 'chosenAttention', 0.1],
  ].map(([what, name, most]) => ({
    topic: 'Sparse attention',
    text: `attention at 16,384, ${what}: time over dense at most the blocks kept plus ${most * 100}% (the worst policy)`,
    least: -most,
    read: ({ scenario }) =>
      when(scenario('attention')?.[name], (value) => ({
        value: -value,
        text: `plus ${(value * 100).toFixed(1)}%`,
      })),
  })),
  ...[
    [16384, 'long', 2.5],
    [32768, 'longer', 4],
  ].map(([length, name, least]) => ({
    topic: 'Sparse attention',
    text: `prefill of ${length.toLocaleString('en')}, a tenth kept: at least ${least}x llama.cpp dense`,
    least,
    read: ({ scenario }) => when(scenario(name)?.[`sparsePrefill${length}`], ratio),
  })),
  {
    topic: 'Sparse attention',
    text: 'decode at depth 32,768, 2,048 tokens kept: at least 3x our own dense',
    least: 3,
    read: ({ scenario }) => when(scenario('deep')?.deepDecode, ratio),
  },
  {
    topic: 'WebAssembly',
    text: 'decode, 0.6B shape, Deno and Chromium, 1 and 2 threads: at least 60% of our native build (the worst of all)',
    least: 0.6,
    read: ({ scenario }) => when(scenario('wasm')?.wasmDecode, share),
  },
  {
    topic: 'WebAssembly',
    text: 'prefill, the same: at least 30% of our native build',
    least: 0.3,
    read: ({ scenario }) => when(scenario('wasm')?.wasmPrefill, share),
  },
  ...[
    ['prefill', 5],
    ['decode', 4],
  ].map(([what, least]) => ({
    topic: 'WebAssembly',
    text: `${what}, 0.6B shape, against wllama in the same browser: at least ${least}x`,
    least,
    read: ({ peers }) => againstWllama(peers('qwen3-0.6b-Q4_0'), what),
  })),
];

function againstWllama(report, what) {
  const theirs = report?.results.find(({ name }) => name === 'wllama');
  const own = theirs && ownOf(report.results, theirs);
  return own && ratio(own[what].median / theirs[what].median);
}

/** The state of a target: `met`, `missed` or `not measured here`. */
export function stateOf(target, data) {
  const got = target.read?.(data);
  if (got === undefined || Number.isNaN(got.value)) return { state: 'not measured here', text: '-' };
  return { state: got.value >= target.least ? 'met' : 'missed', text: got.text };
}
