import type { ExpertUsage, LayerRouting } from '../engine/index.js';
import { FrugalError } from '../errors.js';
import { formatBytes } from './numbers.js';
import { type LoadFlags, withModel } from './shared.js';

export interface Routing extends ExpertUsage {
  readonly text: string;
  readonly promptTokens: number;
  /** Experts that a token is routed to. */
  readonly topK: number;
}

/** Experts side by side in the table. */
const COLUMNS = 16;

/**
 * Runs a text as a prompt and counts its routes. The one token that follows it is drawn but not computed.
 * @throws FrugalError `UNSUPPORTED_FEATURE` for a model without experts, and whatever `load` and `complete` throw
 */
export function readRouting(
  path: string,
  text: string,
  flags: Pick<LoadFlags, 'ctx' | 'kvCache' | 'header'>,
  signal: AbortSignal,
): Promise<Routing> {
  return withModel(path, flags, signal, async (model) => {
    const options = { maxTokens: 1, temperature: 0, expertUsage: true, signal };
    const { usage } = await model.complete(text, options);
    if (!usage.experts) {
      throw new FrugalError('UNSUPPORTED_FEATURE', `${model.info.name} has no experts to route to`, {
        cure: 'Use --routing with a mixture-of-experts model.',
        data: { architecture: model.info.architecture },
      });
    }
    const topK = model.info.expertLayers[0]?.topK ?? 0;
    return { text, promptTokens: usage.promptTokens, topK, ...usage.experts };
  });
}

export function formatRouting({ promptTokens, topK, bytesPerToken, layers }: Routing): string {
  return [
    `${promptTokens} token${promptTokens === 1 ? '' : 's'}, each routed to ${topK} experts of ${layers.length} layers`,
    `expert weights read per token: ${formatBytes(bytesPerToken)}`,
    'balance: entropy of the tokens per expert over that of even ones; peak: the busiest expert over the mean',
    '',
    ...formatTable(layers),
    '',
  ].join('\n');
}

/** A row for each layer, a column for each expert; where there are many, further columns follow below. */
function formatTable(layers: readonly LayerRouting[]): string[] {
  const experts = Math.max(0, ...layers.map(({ tokens }) => tokens.length));
  const names = Array.from({ length: experts }, (_, i) => `#${i}`);
  const counts = layers.flatMap(({ tokens }) => tokens.map(String));
  const width = 1 + Math.max(3, ...[...names, ...counts].map((text) => text.length));
  const row = (head: readonly string[], cells: readonly string[]) =>
    [
      ...head.map((text, i) => text.padStart(i === 0 ? 5 : 9)),
      ...cells.map((text) => text.padStart(width)),
    ].join('');
  const lines: string[] = [];
  for (let first = 0; first < experts; first += COLUMNS) {
    if (first > 0) lines.push('');
    lines.push(row(['layer', 'balance', 'peak'], names.slice(first, first + COLUMNS)));
    for (const { block, balance, peak, tokens } of layers) {
      const figures = [`${block}`, balance.toFixed(3), peak.toFixed(2)];
      lines.push(row(figures, tokens.slice(first, first + COLUMNS).map(String)));
    }
  }
  return lines;
}
