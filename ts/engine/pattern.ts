import { attentionUsage, BLOCK, headBlocks } from '../attention/index.js';
import type { AttentionUsage, HeadBlocks } from '../attention/types.js';
import { invalid } from './check.js';
import type { Engine } from './context.js';
import { promptTokens } from './generation.js';

/** What attention kept of a prompt's keys. */
export interface AttentionPattern {
  readonly promptTokens: number;
  /** Blocks of 64 positions that the prompt reaches into. */
  readonly blocks: number;
  readonly heads: readonly HeadBlocks[];
  readonly usage: AttentionUsage;
}

/**
 * Runs a text as a prompt and gives the blocks of keys that each KV head kept.
 * @param check called with the numbers of tokens and of heads before anything is computed
 * @throws FrugalError `INVALID_ARGUMENT` for a model that was loaded without `attention`, `CONTEXT_OVERFLOW`, and
 *   whatever `check` and the steps throw
 */
export async function attentionPattern(
  engine: Engine,
  text: string,
  check: (promptTokens: number) => void,
  signal: AbortSignal,
): Promise<AttentionPattern> {
  const { scheduler, attention } = engine;
  if (attention === undefined) throw invalid('attention', 'an option of load', attention);
  const settings = { addSpecial: true, parseSpecial: false, context: undefined, signal };
  const tokens = await promptTokens(engine, text, settings);
  check(tokens.length);
  const sequence = scheduler.open();
  try {
    scheduler.recordKeys(sequence);
    for (let rest = tokens; rest.length > 0; ) {
      const { consumed } = await scheduler.run(sequence, rest, 'none', signal);
      rest = rest.subarray(consumed);
    }
    const usage = attentionUsage(attention, scheduler.keptKeys(sequence)) ?? {
      options: attention,
      layers: [],
      kept: 1,
    };
    const blocks = Math.ceil(tokens.length / BLOCK);
    return {
      promptTokens: tokens.length,
      blocks,
      heads: headBlocks(scheduler.recordedKeys(sequence)),
      usage,
    };
  } finally {
    scheduler.close(sequence);
  }
}
