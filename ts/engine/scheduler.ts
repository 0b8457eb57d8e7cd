import { onAbort } from '../abort.js';
import type {
  BackendModel,
  ExpertCounts,
  SamplerSettings,
  StepEntry,
  StepOutput,
  StepResult,
} from '../backend/types.js';
import { FrugalError } from '../errors.js';
import { fixedThreads, type ThreadChoice, type ThreadTuner } from './threads.js';

/** What became of a request: the first `consumed` of its tokens are in the sequence now. */
export interface StepOutcome {
  readonly consumed: number;
  /** For `sample`, once all tokens are consumed. */
  readonly token?: number;
  /** Rows for the consumed tokens (`all-logits`, `all-hidden`), or one row once all are consumed (`last-logits`). */
  readonly values?: Float32Array;
}

export interface SchedulerLimits {
  /** The most tokens in one step. */
  readonly maxStepTokens: number;
  /** The most tokens of one prompt in one step. */
  readonly chunk: number;
  /**
   * Cuts prompts only where a block of so many positions ends: what attention keeps may depend on all of a block's
   * queries. @default 1
   */
  readonly block?: number;
}

/**
 * Merges what all sequences of a model ask for into steps of the backend, one at a time.
 *
 * A step takes the single-token requests (sequences that generate) first, in order of arrival, and fills up with
 * pieces of prompts. While others generate, a step holds only few prompt tokens, so that a long prompt does not hold
 * them up. A request is answered after one step, perhaps for its first tokens only, and the caller asks again: that
 * puts it at the end of the queue, which makes the turns fair, and a caller that does not ask pauses itself alone.
 *
 * A step fails as a whole. When a sequence of it was freed meanwhile, the others run again without it; otherwise each
 * request runs again by itself, so that an error reaches only those that cause it.
 */
export interface Scheduler {
  readonly limits: SchedulerLimits;
  /** @throws FrugalError `DISPOSED` */
  open(sampler?: SamplerSettings): number;
  /**
   * Appends tokens to a sequence. On abort the promise rejects at once with the signal's reason and the sequence is
   * freed, because the step in progress may or may not have changed it.
   */
  run(sequence: number, tokens: Uint32Array, output: StepOutput, signal?: AbortSignal): Promise<StepOutcome>;
  /** Frees a sequence, also one in a running step; its request rejects. Twice is harmless. */
  close(sequence: number, reason?: unknown): void;
  isOpen(sequence: number): boolean;
  /** Starts to count which experts a sequence's tokens are routed to. */
  countExperts(sequence: number): void;
  /** Ends counting; undefined where it never began, or the sequence is closed. */
  expertCounts(sequence: number): ExpertCounts | undefined;
  /** See `BackendModel.keptKeys`. */
  keptKeys(sequence: number): Float64Array;
  /** See `BackendModel.recordKeys`. */
  recordKeys(sequence: number): void;
  /** See `BackendModel.recordedKeys`. */
  recordedKeys(sequence: number): Uint32Array;
  /** Leaves an open sequence, that no request is for, as it was after its first `length` tokens. */
  rewind(sequence: number, length: number): void;
  kvBytes(): number;
  /** See `BackendModel.setThreads`. */
  setThreads(threads: number): void;
  readonly threads: ThreadChoice;
  /** @throws FrugalError `DISPOSED` once disposed */
  assertLive(): void;
  /** Rejects every request with `DISPOSED` and frees everything. */
  dispose(): Promise<void>;
}

interface Pending {
  readonly sequence: number;
  readonly tokens: Uint32Array;
  readonly output: StepOutput;
  settled: boolean;
  resolve(outcome: StepOutcome): void;
  reject(reason: unknown): void;
}

/** One request's share of a step. */
interface Share {
  readonly pending: Pending;
  readonly take: number;
}

/** Prompt tokens in a step that also generates: enough to use the kernels well, short enough to wait for. */
const MIXED_PROMPT_TOKENS = 64;

export function createScheduler(
  model: BackendModel,
  limits: SchedulerLimits,
  tuner: ThreadTuner = fixedThreads(model.info.threads, model.setThreads),
): Scheduler {
  /** Sequences, and how many tokens each holds. */
  const live = new Map<number, number>();
  const block = limits.block ?? 1;
  const pendings = new Map<number, Pending>();
  const queue: Pending[] = [];
  let pumping = false;
  /** The last step's single tokens left too little room for a prompt's next block: the next step is for prompts alone. */
  let promptsTurn = false;
  let stepping = Promise.resolve();
  let disposal: Promise<void> | undefined;

  async function pump(): Promise<void> {
    if (pumping) return;
    pumping = true;
    for (;;) {
      // With several sequences, every consumer gets the chance to ask for its next token before the step forms.
      if (live.size > 1) await nextTask();
      const room = { tokens: limits.maxStepTokens, logitRows: model.maxLogitRows };
      const chunk = Math.max(limits.chunk, block);
      const batch = takeBatch(queue, room, { chunk, promptsTurn }, (pending, take) =>
        wholeBlocks(pending, take, live.get(pending.sequence) ?? 0, block),
      );
      if (batch.length === 0) {
        // Prompts of which not even a step of their own has room for a part: nobody would ever ask for them again.
        const stuck = queue.filter((pending) => !pending.settled && isPrompt(pending));
        if (stuck.length === 0) break;
        for (const pending of stuck) pending.reject(noRoom(pending));
        promptsTurn = false;
        continue;
      }
      promptsTurn = batch.every(isSingle) && queue.some(isPrompt);
      stepping = runBatch(model, batch, tuner, ({ pending, take }) => {
        const held = live.get(pending.sequence);
        if (held !== undefined) live.set(pending.sequence, held + take);
      });
      await stepping;
    }
    pumping = false;
  }

  function assertLive(): void {
    if (disposal) throw disposed('The model');
  }

  function close(sequence: number, reason: unknown = disposed('The sequence')): void {
    if (!live.delete(sequence)) return;
    pendings.get(sequence)?.reject(reason);
    model.freeSequence(sequence);
  }

  return {
    limits,
    assertLive,
    close,
    isOpen: (sequence) => live.has(sequence),
    countExperts: (sequence) => model.countExperts(sequence),
    expertCounts: (sequence) => (live.has(sequence) ? model.expertCounts(sequence) : undefined),
    keptKeys: (sequence) => (live.has(sequence) ? model.keptKeys(sequence) : new Float64Array(0)),
    recordKeys: (sequence) => model.recordKeys(sequence),
    recordedKeys: (sequence) => (live.has(sequence) ? model.recordedKeys(sequence) : new Uint32Array(0)),
    rewind(sequence, length) {
      const held = live.get(sequence);
      if (held === undefined || held <= length) return;
      live.set(sequence, length);
      model.rewind(sequence, length);
    },
    kvBytes: () => (disposal ? 0 : model.kvBytes()),
    setThreads(threads) {
      assertLive();
      tuner.fix(threads);
    },
    get threads() {
      return tuner.choice;
    },
    open(sampler) {
      assertLive();
      const sequence = model.createSequence(sampler);
      live.set(sequence, 0);
      return sequence;
    },
    async run(sequence, tokens, output, signal) {
      const abort = () => close(sequence, signal?.reason);
      if (signal?.aborted) {
        abort();
        throw signal.reason;
      }
      assertLive();
      if (!live.has(sequence)) throw disposed('The sequence');
      if (pendings.has(sequence)) throw busy();
      const release = onAbort(signal, abort);
      const { pending, outcome } = createPending(sequence, tokens, output);
      pendings.set(sequence, pending);
      queue.push(pending);
      void pump();
      try {
        return await outcome;
      } finally {
        if (pendings.get(sequence) === pending) pendings.delete(sequence);
        release();
      }
    },
    dispose() {
      disposal ??= (async () => {
        for (const pending of pendings.values()) pending.reject(disposed('The model'));
        // A step in progress is cut short by losing its sequences, and has ended before the model goes.
        for (const sequence of live.keys()) model.freeSequence(sequence);
        live.clear();
        await stepping;
        await model.dispose();
      })();
      return disposal;
    },
  };
}

function createPending(
  sequence: number,
  tokens: Uint32Array,
  output: StepOutput,
): { pending: Pending; outcome: Promise<StepOutcome> } {
  let settle: Pick<Pending, 'resolve' | 'reject'> | undefined;
  const outcome = new Promise<StepOutcome>((resolve, reject) => {
    settle = { resolve, reject };
  });
  const pending: Pending = {
    sequence,
    tokens,
    output,
    settled: false,
    resolve(value) {
      pending.settled = true;
      settle?.resolve(value);
    },
    reject(reason) {
      pending.settled = true;
      settle?.reject(reason);
    },
  };
  return { pending, outcome };
}

const isPrompt = ({ tokens }: Pending) => tokens.length > 1;
const isSingle = ({ pending }: Share) => !isPrompt(pending);

/** What is left of a step while it is put together. */
interface Room {
  tokens: number;
  logitRows: number;
}

/** Takes the next step's requests out of the queue. */
function takeBatch(
  queue: Pending[],
  room: Room,
  { chunk, promptsTurn }: { readonly chunk: number; readonly promptsTurn: boolean },
  cut: (pending: Pending, take: number) => number,
): Share[] {
  const waiting = queue.filter((pending) => !pending.settled);
  const prompts = waiting.filter(isPrompt);
  const decodes = promptsTurn && prompts.length > 0 ? [] : waiting.filter((pending) => !isPrompt(pending));
  const most = Math.min(room.tokens, room.logitRows);
  // Half of a step is kept for prompts, or a crowd of generating sequences would starve them.
  const decodeLimit = prompts.length > 0 ? Math.ceil(most / 2) : most;
  const batch: Share[] = decodes.slice(0, decodeLimit).map((pending) => ({ pending, take: 1 }));
  room.tokens -= batch.length;
  room.logitRows -= batch.length;
  if (batch.length > 0) room.tokens = Math.min(room.tokens, MIXED_PROMPT_TOKENS);
  for (const pending of prompts) {
    const take = takePrompt(pending, room, chunk, cut);
    if (take > 0) batch.push({ pending, take });
  }
  const taken = new Set(batch.map((share) => share.pending));
  queue.splice(0, queue.length, ...waiting.filter((pending) => !taken.has(pending)));
  return batch;
}

/** How many tokens of a prompt go into the step; takes them off its room. */
function takePrompt(
  pending: Pending,
  room: Room,
  chunk: number,
  cut: (pending: Pending, take: number) => number,
): number {
  const { tokens, output } = pending;
  const most = Math.min(room.tokens, chunk, tokens.length);
  let take = cut(pending, output === 'all-logits' ? Math.min(most, room.logitRows) : most);
  if (output === 'all-logits') {
    room.logitRows -= take;
  } else if (take === tokens.length && (output === 'sample' || output === 'last-logits')) {
    if (room.logitRows > 0) room.logitRows -= 1;
    else take = cut(pending, take - 1);
  }
  room.tokens -= take;
  return take;
}

/** The part of a prompt that ends where a block of positions does, unless it is all of it. */
function wholeBlocks({ tokens }: Pending, take: number, held: number, block: number): number {
  if (take === tokens.length) return take;
  return Math.max(0, take - ((held + take) % block));
}

/** Runs one step and answers its requests; never rejects. */
async function runBatch(
  model: BackendModel,
  batch: readonly Share[],
  tuner: ThreadTuner,
  appended: (share: Share) => void,
): Promise<void> {
  const shares = batch.filter((share) => !share.pending.settled);
  if (shares.length === 0) return;
  let results: StepResult[];
  try {
    // A model that has crashed takes no number of threads either.
    const ended = tuner.begin(shares.reduce((sum, { take }) => sum + take, 0));
    results = await model.step(shares.map(toEntry));
    ended();
  } catch (error) {
    await recover(model, shares, error, tuner, appended);
    return;
  }
  for (const [i, share] of shares.entries()) {
    appended(share);
    answer(share, results[i]);
  }
}

async function recover(
  model: BackendModel,
  shares: readonly Share[],
  error: unknown,
  tuner: ThreadTuner,
  appended: (share: Share) => void,
): Promise<void> {
  const left = shares.filter((share) => !share.pending.settled);
  if (left.length < shares.length) {
    await runBatch(model, left, tuner, appended);
  } else if (left.length === 1) {
    left[0]?.pending.reject(error);
  } else {
    for (const share of left) await runBatch(model, [share], tuner, appended);
  }
}

function toEntry({ pending, take }: Share): StepEntry {
  const whole = take === pending.tokens.length;
  const everyRow = pending.output === 'all-logits' || pending.output === 'all-hidden';
  return {
    sequence: pending.sequence,
    tokens: whole ? pending.tokens : pending.tokens.slice(0, take),
    output: whole || everyRow ? pending.output : 'none',
  };
}

function answer({ pending, take }: Share, result: StepResult | undefined): void {
  if (pending.settled) return;
  if (result === undefined) {
    const message = 'The backend answered a step with too few results';
    pending.reject(
      new FrugalError('INTERNAL', message, { cure: 'Report this with the model and the call.' }),
    );
    return;
  }
  pending.resolve({
    consumed: take,
    ...(result.token === undefined ? {} : { token: result.token }),
    ...(result.values === undefined ? {} : { values: result.values }),
  });
}

function noRoom({ tokens, output }: Pending): FrugalError {
  return new FrugalError(
    'INTERNAL',
    `No step has room for ${tokens.length} tokens with the output ${output}`,
    {
      cure: 'Report this with the model and the call.',
    },
  );
}

export function disposed(what: string, again = 'Load the model again'): FrugalError {
  return new FrugalError('DISPOSED', `${what} is disposed`, {
    cure: `${again}, and dispose it only after its last use.`,
  });
}

export function busy(): FrugalError {
  return new FrugalError('INVALID_ARGUMENT', 'The sequence is still working on an earlier call', {
    cure: 'Await the earlier call, or use one sequence per caller.',
  });
}

/** Continues after tasks that are ready now: sooner than a timer where the runtime has `setImmediate`. */
function nextTask(): Promise<void> {
  const { setImmediate } = globalThis as { setImmediate?: (run: () => void) => unknown };
  return new Promise((resolve) => {
    if (setImmediate) setImmediate(resolve);
    else setTimeout(resolve, 0);
  });
}
