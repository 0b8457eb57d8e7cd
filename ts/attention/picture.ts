import { invalid } from '../engine/check.js';
import { FrugalError } from '../errors.js';
import { BLOCK, sparsePlan } from './index.js';
import type { AttentionUsage, HeadBlocks } from './types.js';

/** What a picture shows: one small triangle for each layer (down) and KV head (across). */
export interface PictureContent {
  /** The model's name. */
  readonly name: string;
  readonly text: string;
  readonly promptTokens: number;
  /** Of 64 positions. */
  readonly blocks: number;
  readonly heads: readonly HeadBlocks[];
  readonly usage: AttentionUsage;
}

/** Blocks down and across a triangle at most: 32,768 tokens. */
const MOST_BLOCKS = 512;
/** Squares of all triangles at most: those of 32,768 tokens for 32 layers of 8 KV heads. */
const MOST_SQUARES = 2 ** 25 + 2 ** 17;
/** Characters of the text, and of the model's name, that are shown: wide ones fit too. */
const SHOWN = 52;

/** Sizes in pixels of a triangle that is neither too small to see nor too large for a screen. */
const SQUARE = 5;
const [SMALLEST, LARGEST] = [80, 240];
const [GAP, MARGIN, LABEL, LINE] = [14, 28, 132, 18];

/**
 * Whether the picture of so many tokens, for so many KV heads of all layers together, can be drawn.
 * @throws FrugalError `INVALID_ARGUMENT`
 */
export function checkPicture(promptTokens: number, heads: number): void {
  const blocks = Math.ceil(promptTokens / BLOCK);
  if (blocks > MOST_BLOCKS)
    throw invalid('The text', `of at most ${MOST_BLOCKS * BLOCK} tokens to be drawn`, promptTokens, SHORTER);
  const squares = (heads * blocks * (blocks + 1)) / 2;
  if (squares <= MOST_SQUARES) return;
  throw new FrugalError(
    'INVALID_ARGUMENT',
    `a picture of ${squares} squares (${heads} KV heads, ${blocks} blocks) is too large: at most ${MOST_SQUARES}`,
    { cure: SHORTER, data: { squares, heads, blocks, most: MOST_SQUARES } },
  );
}

const SHORTER = 'Use a shorter text.';

/** Characters that XML does not allow, even escaped: lone surrogates too. */
const FORBIDDEN = /[^\t\n\r\u0020-\uD7FF\uE000-\uFFFD\u{10000}-\u{10FFFF}]/gu;

export function escapeXml(text: string): string {
  const names: Record<string, string> = {
    '&': '&amp;',
    '<': '&lt;',
    '>': '&gt;',
    '"': '&quot;',
    "'": '&apos;',
  };
  return text.replace(FORBIDDEN, '\uFFFD').replace(/[&<>"']/g, (character) => names[character] ?? '');
}

/** Draws the blocks that were kept. Its triangles are in units of blocks, so each unit of their lines is one kept block. */
export function drawPicture(content: PictureContent): string {
  const { blocks, heads } = content;
  const size = Math.min(LARGEST, Math.max(SMALLEST, SQUARE * blocks));
  const layers = [...new Set(heads.map(({ layer }) => layer))];
  const across = Math.max(1, ...heads.map(({ head }) => head + 1));
  const lines = headLines(content);
  const top = MARGIN + lines.length * LINE + 3 * LINE;
  const left = MARGIN + LABEL;
  const width = Math.max(left + across * (size + GAP) - GAP + MARGIN, 760);
  const height = top + layers.length * (size + GAP) - GAP + MARGIN;
  const names = Array.from({ length: across }, (_, head) =>
    label(left + head * (size + GAP) + size / 2, top - 8, `KV head ${head}`, 'middle'),
  );
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" role="img" aria-labelledby="title desc">`,
    `<title id="title">${escapeXml(`Keys that attention keeps: ${shorten(content.name)}`)}</title>`,
    `<desc id="desc">${escapeXml(description(content, layers.length, across))}</desc>`,
    STYLE,
    `<defs><path id="seen" d="${staircase(blocks)}"/></defs>`,
    `<rect class="ground" width="${width}" height="${height}"/>`,
    ...lines.map((line, i) => label(MARGIN, MARGIN + (i + 0.7) * LINE, line, 'start', i === 0 ? 'head' : '')),
    ...legend(MARGIN, MARGIN + lines.length * LINE),
    ...names,
    ...layers.flatMap((layer, i) => layerLabels(content, layer, MARGIN, top + i * (size + GAP))),
    ...heads.map((head) =>
      triangle(
        head,
        blocks,
        left + head.head * (size + GAP),
        top + layers.indexOf(head.layer) * (size + GAP),
        size,
      ),
    ),
    '</svg>\n',
  ].join('\n');
}

const STYLE = `<style>
text { font: 12px system-ui, sans-serif; fill: #1c2733; }
.head { font-weight: 600; font-size: 15px; }
.ground { fill: #ffffff; }
.seen { fill: #dfe5ec; }
.kept { stroke: #1f5fa8; stroke-width: 1; fill: none; shape-rendering: crispEdges; }
.square { fill: #1f5fa8; }
</style>`;

function label(x: number, y: number, text: string, anchor: 'start' | 'middle', style = ''): string {
  const styled = style === '' ? '' : ` class="${style}"`;
  return `<text x="${x}" y="${y}" text-anchor="${anchor}"${styled}>${escapeXml(text)}</text>`;
}

/** Every block of keys up to the queries' own, for each block of queries: one square more in each row. */
function staircase(blocks: number): string {
  return `M0 0${'h1v1'.repeat(blocks)}H0z`;
}

function triangle(
  { layer, head, rows }: HeadBlocks,
  blocks: number,
  x: number,
  y: number,
  size: number,
): string {
  const lines = rows.map(({ block, keys }) =>
    runs(keys).map(([first, count]) => `M${first} ${block}.5h${count}`),
  );
  return (
    `<svg x="${x}" y="${y}" width="${size}" height="${size}" viewBox="0 0 ${blocks} ${blocks}">` +
    `<title>layer ${layer}, KV head ${head}</title>` +
    `<use href="#seen" class="seen"/><path class="kept" d="${lines.flat().join('')}"/></svg>`
  );
}

/** Ascending numbers as runs of consecutive ones: the first, and how many. */
function runs(keys: Uint32Array): [number, number][] {
  const found: [number, number][] = [];
  for (const key of keys) {
    const last = found.at(-1);
    if (last && last[0] + last[1] === key) last[1] += 1;
    else found.push([key, 1]);
  }
  return found;
}

function layerLabels({ usage }: PictureContent, layer: number, x: number, y: number): string[] {
  const { kept = 1, mass } = usage.layers[layer] ?? {};
  const lines = [
    `layer ${layer}`,
    `kept ${percent(kept)}`,
    ...(mass === undefined ? [] : [`mass ${mass.toFixed(4)}`]),
  ];
  const { prefill } = usage.options;
  if (Array.isArray(prefill) && prefill.length > 1) lines.push(prefill[layer]?.policy ?? '');
  return lines.map((line, i) => label(x, y + (i + 0.8) * LINE, line, 'start', i === 0 ? 'head' : ''));
}

function legend(x: number, y: number): string[] {
  const square = (at: number, style: string) =>
    `<rect class="${style}" x="${x + at}" y="${y + 2}" width="12" height="12"/>`;
  return [
    square(0, 'square'),
    label(x + 18, y + 12, 'kept', 'start'),
    square(64, 'seen'),
    label(x + 82, y + 12, 'left out', 'start'),
    label(x + 150, y + 12, `a square: ${BLOCK} queries (down) and ${BLOCK} keys (across)`, 'start'),
  ];
}

function headLines({ name, text, promptTokens, usage }: PictureContent): string[] {
  const { mass } = usage;
  return [
    `Keys that attention keeps: ${shorten(name)}`,
    ...policyLines(usage),
    `kept ${percent(usage.kept)} of the blocks` +
      (mass === undefined ? '' : `, which hold about ${percent(mass)} of the attention mass`),
    `${promptTokens} tokens: ${shorten(text)}`,
  ];
}

/** The beginning of a text, in one line. */
function shorten(text: string): string {
  const line = text
    .slice(0, 16 * SHOWN)
    .replaceAll(/\s+/g, ' ')
    .trim();
  const characters = [...line];
  return characters.length > SHOWN ? `${characters.slice(0, SHOWN).join('')}...` : line;
}

/** Names of a plan's fields as the options have them. */
const NAMES: Readonly<Record<string, string>> = {
  recent: 'window',
  tokens: 'minTokens',
  dilated: 'dilatedBlocks',
  random: 'randomBlocks',
};

/** The policies with their parameters, also those that were not given. */
function policyLines({ options, layers }: AttentionUsage): string[] {
  const planned = sparsePlan(options, layers.length);
  const one = (name: 'prefill' | 'decode') => {
    const given = options[name];
    const first = Array.isArray(given) ? given[0] : given;
    if (planned[name].length > 1) return `${name}: a policy for each layer`;
    const { policy: _, ...fields } = planned[name][0] ?? { policy: 'dense' };
    const parameters = Object.entries(fields)
      .filter(
        ([field, value]) => value !== 0 && !Array.isArray(value) && !(field === 'dilation' && value === 1),
      )
      .map(([field, value]) => `${NAMES[field] ?? field} ${value}`);
    return [`${name}: ${first?.policy ?? 'dense'}`, ...parameters].join(', ');
  };
  return [one('prefill'), one('decode')];
}

function description(content: PictureContent, layers: number, across: number): string {
  const { promptTokens, usage } = content;
  return (
    `${layers} layers down and ${across} KV heads across, each a triangle of the blocks of ${BLOCK} keys that blocks of ` +
    `${BLOCK} queries of a prompt of ${promptTokens} tokens see. Filled squares are kept: ${percent(usage.kept)} of what the queries see. ` +
    `${policyLines(usage).join('; ')}.`
  );
}

function percent(share: number): string {
  return `${(share * 100).toFixed(1)}%`;
}
