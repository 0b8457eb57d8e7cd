import type { EnergyMeter } from '../energy/types.js';

/**
 * What to save where it costs little: `speed` takes what decodes fastest; `balanced` the fewest threads within 3% of
 * that; `energy` what takes the fewest joules where they are known, else the fewest threads within 20%.
 */
export type Efficiency = 'speed' | 'balanced' | 'energy';

export const EFFICIENCIES: readonly Efficiency[] = ['speed', 'balanced', 'energy'];

/** How many threads a model computes with, and why. The number changes no result. */
export interface ThreadChoice {
  /** For prompts, and for steps of several sequences. */
  readonly prefill: number;
  /** For one token of one sequence. */
  readonly decode: number;
  readonly reason: string;
}

/** Chooses the number of threads of each step. */
export interface ThreadTuner {
  readonly choice: ThreadChoice;
  /** Before a step of so many tokens; the result is called after it. */
  begin(tokens: number): () => void;
  /** Uses so many from now on. */
  fix(threads: number): void;
}

/** One number of threads, as far as it has been measured. */
interface Candidate {
  readonly threads: number;
  readonly ms: number[];
  readonly joules: number[];
}

/** Tokens that each candidate is measured with, and after how many a slow one is not measured any more. */
const ROUNDS = 8;
const FIRST_ROUNDS = 2;
const HOPELESS = 1.5;
const SLACK: Record<Efficiency, number> = { speed: 0, balanced: 0.03, energy: 0.2 };

/** Choices of this process, so that loading a model again does not measure again. */
const known = new Map<string, ThreadChoice>();

export interface TunerOptions {
  readonly most: number;
  /** Sets the threads of steps from now on. */
  readonly set: (threads: number) => void;
  readonly efficiency: Efficiency;
  readonly meter?: EnergyMeter | undefined;
  /** What the measurement holds for: the model, and what computes it. */
  readonly key: string;
}

/** Steps with one number of threads. */
export function fixedThreads(threads: number, set: (threads: number) => void): ThreadTuner {
  let choice: ThreadChoice = { prefill: threads, decode: threads, reason: 'given' };
  return {
    get choice() {
      return choice;
    },
    begin: () => () => {},
    fix(count) {
      choice = { prefill: count, decode: count, reason: 'given' };
      set(count);
    },
  };
}

/**
 * Measures in the first tokens: candidates take turns, a token each, so that a machine that drifts does so for all.
 */
export function autoThreads({ most, set, efficiency, meter, key: of }: TunerOptions): ThreadTuner {
  const key = `${of} ${efficiency}`;
  let choice = known.get(key) ?? { prefill: most, decode: most, reason: startReason(most) };
  let left = known.has(key) || most === 1 ? [] : candidates(most);
  let turn = 0;
  let current = most;

  function use(threads: number): void {
    if (threads !== current) set(threads);
    current = threads;
  }

  function settle(): void {
    choice = { prefill: most, ...choose(left, efficiency) };
    known.set(key, choice);
    left = [];
  }

  return {
    get choice() {
      return choice;
    },
    begin(tokens) {
      const candidate = tokens === 1 ? left[turn % left.length] : undefined;
      use(candidate?.threads ?? (tokens === 1 ? choice.decode : most));
      if (candidate === undefined) return () => {};
      const span = efficiency === 'energy' ? meter?.start() : undefined;
      const began = performance.now();
      return () => {
        candidate.ms.push(performance.now() - began);
        const energy = span?.end();
        if (energy && energy.kind !== 'counted') candidate.joules.push(energy.joules);
        turn += 1;
        if (turn % left.length > 0) return;
        if (candidate.ms.length === FIRST_ROUNDS) left = withoutHopeless(left);
        if (candidate.ms.length >= ROUNDS) settle();
        turn = 0;
      };
    },
    fix(threads) {
      left = [];
      choice = { prefill: threads, decode: threads, reason: 'given' };
      current = threads;
      set(threads);
    },
  };
}

function startReason(most: number): string {
  return most === 1
    ? 'the backend has one thread: there is one core, or its variant has no threads'
    : 'all, until the first tokens are measured';
}

/** All threads, then about three quarters, a half, three eighths... of them, to one. */
export function candidates(most: number): Candidate[] {
  const counts = new Set([most]);
  for (let half = most; half >= 1; half /= 2) {
    counts.add(Math.max(1, Math.round(half * 0.75)));
    counts.add(Math.max(1, Math.round(half / 2)));
  }
  return [...counts].sort((a, b) => b - a).map((threads) => ({ threads, ms: [], joules: [] }));
}

function withoutHopeless(list: Candidate[]): Candidate[] {
  const best = Math.min(...list.map(({ ms }) => Math.min(...ms)));
  return list.filter(({ ms }) => Math.min(...ms) <= best * HOPELESS);
}

/** @param list not empty, each measured */
export function choose(list: readonly Candidate[], efficiency: Efficiency): Omit<ThreadChoice, 'prefill'> {
  const measured = list.map(({ threads, ms, joules }) => ({
    threads,
    ms: median(ms),
    joules: joules.length === ms.length ? median(joules) : Number.NaN,
  }));
  const speeds = measured.map(({ threads, ms }) => `${threads}: ${(1000 / ms).toFixed(1)}`).join(', ');
  const best = Math.min(...measured.map(({ ms }) => ms));
  const least = Math.min(...measured.map(({ joules }) => joules));
  const fewest = (fits: (each: (typeof measured)[number]) => boolean) =>
    Math.min(...measured.filter(fits).map(({ threads }) => threads));
  if (efficiency === 'energy' && !Number.isNaN(least))
    return {
      decode: fewest(({ joules }) => joules === least),
      reason: `fewest joules of ${speeds} tokens/s`,
    };
  const slack = SLACK[efficiency];
  const within = slack === 0 ? 'fastest' : `fewest within ${slack * 100}% of the fastest`;
  return { decode: fewest(({ ms }) => ms * (1 - slack) <= best), reason: `${within} of ${speeds} tokens/s` };
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const [low, high] = [sorted[(sorted.length - 1) >> 1], sorted[sorted.length >> 1]];
  return ((low ?? Number.NaN) + (high ?? Number.NaN)) / 2;
}
