import { checkPicture, drawPicture } from '../attention/picture.js';
import type { AttentionOptions, AttentionUsage } from '../attention/types.js';
import { engineOf } from '../engine/model.js';
import { attentionPattern } from '../engine/pattern.js';
import { createOutput } from '../quantize/output-file.js';
import { type LoadFlags, type PromptFlags, requirePrompt, withModel } from './shared.js';

export interface AttentionFlags extends PromptFlags, Pick<LoadFlags, 'ctx' | 'kvCache' | 'header'> {
  /** Where the picture goes. */
  readonly attention: string;
  readonly policy?: AttentionOptions;
}

/** What was drawn. */
export interface Drawn extends AttentionUsage {
  readonly file: string;
  readonly promptTokens: number;
  /** Triangles of the picture, and blocks of keys filled in all of them. */
  readonly heads: number;
  readonly keptBlocks: number;
}

const DEFAULT: AttentionOptions = { prefill: { policy: 'auto' }, decode: { policy: 'auto' } };

/**
 * Runs a text as a prompt and draws which blocks of keys each layer and KV head keeps.
 * @throws FrugalError `OUTPUT_WRITE`, `INVALID_ARGUMENT`, and whatever `load` and the prompt throw
 */
export async function drawAttention(
  path: string,
  flags: AttentionFlags,
  signal: AbortSignal,
): Promise<Drawn> {
  const text = await requirePrompt(flags);
  const output = await createOutput(flags.attention, [path, flags.file ?? '-']);
  try {
    const load = { ...flags, attention: flags.policy ?? DEFAULT };
    const { name, pattern } = await withModel(path, load, signal, async (model) => {
      const { blockCount, kvHeads } = model.info;
      const check = (promptTokens: number) => checkPicture(promptTokens, blockCount * kvHeads);
      return { name: model.info.name, pattern: await attentionPattern(engineOf(model), text, check, signal) };
    });
    const { heads, usage, promptTokens } = pattern;
    const bytes = new TextEncoder().encode(drawPicture({ ...pattern, name, text }));
    await output.write(bytes, 0);
    await output.finish(bytes.length);
    const keptBlocks = heads.reduce(
      (sum, { rows }) => rows.reduce((most, { keys }) => most + keys.length, sum),
      0,
    );
    return { file: flags.attention, promptTokens, heads: heads.length, keptBlocks, ...usage };
  } catch (error) {
    await output.abandon();
    throw error;
  }
}

export function formatDrawn({ file, promptTokens, heads, keptBlocks, kept, mass }: Drawn): string {
  const held = mass === undefined ? '' : `, about ${(mass * 100).toFixed(1)}% of the attention mass`;
  return (
    `${file}: ${promptTokens} tokens, ${heads} KV heads of all layers; ` +
    `${keptBlocks} blocks kept, ${(kept * 100).toFixed(1)}%${held}\n`
  );
}
