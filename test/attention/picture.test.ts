import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { type AttentionOptions, BLOCK } from '../../ts/attention/index.js';
import { checkPicture, drawPicture, escapeXml } from '../../ts/attention/picture.js';
import { engineOf } from '../../ts/engine/model.js';
import { type AttentionPattern, attentionPattern } from '../../ts/engine/pattern.js';
import { load } from '../../ts/index.js';
import { frugal } from '../cli/program.js';
import { randomModelSpec } from '../contract/random-model.js';
import { writeGguf } from '../gguf/writer.js';

const [LAYERS, KV_HEADS] = [2, 2];
const MODEL = new Blob([
  writeGguf(
    randomModelSpec({
      architecture: 'llama',
      blocks: LAYERS,
      width: 64,
      heads: 4,
      kvHeads: KV_HEADS,
      headDim: 32,
      feedForward: 96,
      contextLength: 1024,
      types: ['Q8_0'],
      seed: 410,
    }),
  ).bytes,
]);
const EMBEDDED = resolve(import.meta.dirname, '../../models/stories-moe-q4_0.gguf');
const TEXT = 'abc defg <h> & "i" '.repeat(40);
const folder = await mkdtemp(join(tmpdir(), 'frugal-picture-'));
const FILE = join(folder, 'refused.svg');
afterAll(() => rm(folder, { recursive: true }));

async function patternOf(attention: AttentionOptions, more: object = {}): Promise<AttentionPattern> {
  await using model = await load(MODEL, { contextLength: 1024, attention, ...more });
  return await attentionPattern(engineOf(model), TEXT, () => {}, new AbortController().signal);
}

const draw = (pattern: AttentionPattern, text = TEXT, name = 'random') =>
  drawPicture({ ...pattern, text, name });

/** The filled squares of each triangle: [block of queries, block of keys]. */
function filled(svg: string): [number, number][][] {
  return [...svg.matchAll(/<path class="kept" d="([^"]*)"/g)].map(([, path = '']) =>
    [...path.matchAll(/M(\d+) (\d+)\.5h(\d+)/g)].flatMap(([, first, row, count]) =>
      Array.from({ length: Number(count) }, (_, i): [number, number] => [Number(row), Number(first) + i]),
    ),
  );
}

const chosen = { keep: 0.3, minTokens: 64 };

describe('the picture of what attention keeps', () => {
  it.each([
    { policy: 'antidiagonal', ...chosen },
    { policy: 'lsh', ...chosen },
    { policy: 'bigbird', window: 70, randomBlocks: 2 },
    { policy: 'dense' },
  ] as const)('$policy: the squares filled are what usage.attention says of all queries', async (policy) => {
    const pattern = await patternOf({ prefill: policy });
    const { blocks, usage, promptTokens } = pattern;
    const triangles = filled(draw(pattern));
    expect(triangles).toHaveLength(LAYERS * KV_HEADS);
    expect(blocks).toBeGreaterThan(9);
    const queries = (row: number) => Math.min(BLOCK, promptTokens - row * BLOCK);
    const rows = Array.from({ length: blocks }, (_, row) => row);
    const seen = rows.reduce((sum, row) => sum + (row + 1) * queries(row), 0) * KV_HEADS;
    usage.layers.forEach(({ kept }, layer) => {
      const ofLayer = triangles.slice(layer * KV_HEADS, (layer + 1) * KV_HEADS).flat();
      expect(ofLayer.reduce((sum, [row]) => sum + queries(row), 0) / seen).toBeCloseTo(kept, 12);
    });
    for (const squares of triangles) {
      expect(new Set(squares.map(String)).size).toBe(squares.length);
      for (const [row, key] of squares) expect(key).toBeLessThanOrEqual(row);
    }
  });

  it('a window is a band, and its sinks a column', async () => {
    const [window, sinks] = [150, 3];
    const pattern = await patternOf({ prefill: { policy: 'window', window, sinks } });
    const band = Array.from({ length: pattern.blocks }, (_, row) => {
      const first = Math.max(0, Math.floor((row * BLOCK + 1 - window) / BLOCK));
      const near = Array.from({ length: row + 1 - first }, (_, i) => first + i);
      return [...new Set([0, ...near])].map((key): [number, number] => [row, key]);
    }).flat();
    for (const squares of filled(draw(pattern))) expect(squares).toEqual(band);
  });

  it.each(['simd128', 'simd128-threads'])('is the same under WebAssembly, %s', async (variant) => {
    const attention = { prefill: { policy: 'antidiagonal', ...chosen } } as const;
    const native = await patternOf(attention);
    const wasm = await patternOf(attention, { backend: 'wasm', variant });
    expect(draw(wasm)).toBe(draw(native));
  });

  it('names the policy with all of its parameters, and says what it shows', async () => {
    const svg = draw(await patternOf({ prefill: { policy: 'antidiagonal', ...chosen } }));
    expect(svg).toContain('prefill: antidiagonal, keep 0.3, minTokens 64, stride 16, mass 1');
    expect(svg).toContain('decode: dense');
    expect(svg).toMatch(
      /^<svg [^>]*role="img" aria-labelledby="title desc">\n<title id="title">.+<\/title>\n<desc id="desc">/,
    );
    expect(svg).toMatch(/kept \d+\.\d% of the blocks, which hold about \d+\.\d% of the attention mass/);
  });

  it('layers with policies of their own are named', async () => {
    const svg = draw(await patternOf({ prefill: [{ policy: 'dense' }, { policy: 'window', window: 64 }] }));
    expect(svg).toMatch(/>dense<[\s\S]*>window</);
  });

  it('escapes names and texts, and leaves out what XML cannot hold', async () => {
    const pattern = await patternOf({ prefill: { policy: 'window', window: 64 } });
    const svg = draw(pattern, `</text><script>"a" & 'b'\u0000\uD800\n😀`, '<b>"model"</b>');
    for (const wrong of ['<script', '<b>', '\u0000', '\uD800\n']) expect(svg).not.toContain(wrong);
    expect(svg).toContain('&lt;/text&gt;&lt;script&gt;&quot;a&quot; &amp; &apos;b&apos;\uFFFD\uFFFD 😀');
    expect(escapeXml('a<b>&"c"\'')).toBe('a&lt;b&gt;&amp;&quot;c&quot;&apos;');
    expect(draw(pattern, 'x'.repeat(100_000)).length).toBeLessThan(20_000);
  });

  it('texts and pictures that are too large are refused before anything is computed', async () => {
    expect(() => checkPicture(32_768, 256)).not.toThrow();
    expect(() => checkPicture(32_769, 1)).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('32768 tokens') }),
    );
    expect(() => checkPicture(32_768, 300)).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT', data: expect.objectContaining({ heads: 300 }) }),
    );
  });

  it('a model without the option has no pattern', async () => {
    await using model = await load(MODEL, { contextLength: 1024 });
    const pattern = attentionPattern(engineOf(model), TEXT, () => {}, new AbortController().signal);
    await expect(pattern).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });
});

describe('frugal inspect --attention', () => {
  const args = (file: string, ...more: string[]) => ['inspect', EMBEDDED, '--attention', file, ...more];
  const policy = '{"prefill":{"policy":"window","window":64}}';

  it('writes the picture and says what is kept', async () => {
    const file = join(folder, 'kept.svg');
    const text = 'The cat sat on the mat. '.repeat(30);
    const { code, stdout, stderr } = await frugal(args(file, '-p', text, '--policy', policy, '--json'));
    expect([code, stderr]).toEqual([0, '']);
    const { attention } = JSON.parse(stdout);
    const triangles = filled(await readFile(file, 'utf8'));
    expect(triangles).toHaveLength(attention.heads);
    expect(triangles.flat()).toHaveLength(attention.keptBlocks);
    expect(attention.kept).toBeLessThan(1);
    const plain = await frugal(args(file, '-p', text, '--policy', policy));
    expect(plain.stdout).toContain(`${attention.keptBlocks} blocks kept`);
  });

  it.each<[string, string[], string, number, string]>([
    ['a folder that is not there', ['-p', 'x'], join(folder, 'none', 'a.svg'), 1, 'OUTPUT_WRITE'],
    ['a folder', ['-p', 'x'], folder, 1, 'OUTPUT_WRITE'],
    ['the model itself', ['-p', 'x'], EMBEDDED, 1, 'INVALID_ARGUMENT'],
    ['a text longer than the context', ['-p', 'word '.repeat(600)], FILE, 1, 'CONTEXT_OVERFLOW'],
    ['no text', [], FILE, 2, 'give a text'],
    ['routing too', ['-p', 'x', '--routing', 'y'], FILE, 2, 'not both'],
    ['an unknown policy', ['-p', 'x', '--policy', 'guess'], FILE, 2, 'one of dense, window'],
    ['a policy without its options', ['-p', 'x', '--policy', 'window'], FILE, 2, 'Give it as JSON'],
  ])('refuses %s', async (_, more, file, code, said) => {
    const outcome = await frugal(args(file, ...more));
    expect([outcome.code, outcome.stderr]).toEqual([code, expect.stringContaining(said)]);
    expect(await readdir(folder)).not.toContain('refused.svg');
  });

  it('its options go with it alone', async () => {
    const { code, stderr } = await frugal(['inspect', EMBEDDED, '-p', 'x']);
    expect([code, stderr]).toEqual([2, expect.stringContaining('--attention')]);
  });
});
