import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { describe, expect, test } from 'vitest';
import { openFile } from '../../ts/gguf/file-source.js';
import { openGguf } from '../../ts/gguf/index.js';
import { createTokenizer, type Tokenizer } from '../../ts/tokenizer/index.js';
import { hasShared, randomNumbers, randomText, SHARED } from './fixtures.js';

const PLAIN = { addSpecial: false, parseSpecial: false };

async function withTokenizer(path: string, use: (tokenizer: Tokenizer) => Promise<void>): Promise<void> {
  const model = await openGguf(await openFile(resolve(SHARED, path)));
  try {
    const tokenizer = await createTokenizer(model.metadata);
    try {
      await use(tokenizer);
    } finally {
      await tokenizer.dispose();
    }
  } finally {
    await model.close();
  }
}

function readVectors(path: string): { text: string; ids: number[] }[] {
  const texts = readFileSync(resolve(SHARED, `${path}.inp`), 'utf8').split('\n__ggml_vocab_test__\n');
  const lines = readFileSync(resolve(SHARED, `${path}.out`), 'utf8')
    .trimEnd()
    .split('\n');
  return texts.map((text, i) => ({ text, ids: (lines[i] ?? '').split(' ').filter(Boolean).map(Number) }));
}

const expected = {
  'llama-spm': { bos: 1, eos: 2, addBos: true, endTokens: [2] },
  'llama-bpe': { bos: 128000, eos: 128001, addBos: true, endTokens: [128001, 128009] },
  'gpt-2': { bos: 50256, eos: 50256, addBos: false, endTokens: [50256] },
  starcoder: { bos: 0, eos: 0, addBos: false, endTokens: [0, 4] },
  // 128247 is "</s>", which this vocabulary happens to have as a word.
  qwen2: { bos: 151643, eos: 151643, addBos: false, endTokens: [128247, 151643, 151645] },
};

describe.each(Object.entries(expected))('%s', (name, facts) => {
  const path = `vocabs/ggml-vocab-${name}.gguf`;

  test.runIf(hasShared(path))('splits every reference text exactly', async () => {
    await withTokenizer(path, async (tokenizer) => {
      const vectors = readVectors(path);
      expect(vectors.length).toBeGreaterThan(40);
      for (const { text, ids } of vectors) {
        expect({ text, ids: [...(await tokenizer.encode(text, PLAIN))] }).toEqual({ text, ids });
        expect(tokenizer.decode(ids)).toBe(text);
      }
      const { bos, eos, addBos } = tokenizer;
      expect({ bos, eos, addBos, endTokens: [...tokenizer.endTokens] }).toEqual(facts);
    });
  });

  test.runIf(hasShared(path))('gives random text back', async () => {
    await withTokenizer(path, async (tokenizer) => {
      const random = randomNumbers(7);
      for (let length = 1; length <= 400; length = Math.ceil(length * 1.2)) {
        const text = randomText(random, length);
        const ids = await tokenizer.encode(text);
        expect(tokenizer.decode(ids)).toBe(text);
        const stream = tokenizer.stream();
        const streamed = [...ids].map((id) => stream.push(id)).join('') + stream.end();
        expect(tokenizer.model === 'llama' ? streamed.slice(1) : streamed).toBe(text);
      }
    });
  });

  test.runIf(hasShared(path))('takes a few seconds at most for a long text', async () => {
    await withTokenizer(path, async (tokenizer) => {
      const words = 'The quick brown fox, 12345 of them, jumps over the lazy dog.\n'.repeat(2460);
      const text = `${words}${'ab'.repeat(12_500)}${'漢字'.repeat(6250)}${' '.repeat(12_500)}`;
      expect(text.length).toBeGreaterThan(200_000);
      // Computing time: others may have the machine meanwhile.
      const start = process.cpuUsage();
      const ids = await tokenizer.encode(text);
      const { user, system } = process.cpuUsage(start);
      expect((user + system) / 1000).toBeLessThan(5000);
      expect(tokenizer.decode(ids)).toBe(text);
    });
  });
});

test.runIf(hasShared('models/stories260K.gguf'))(
  'a small model: BOS, the space before, and back',
  async () => {
    await withTokenizer('models/stories260K.gguf', async (tokenizer) => {
      expect(tokenizer.vocabSize).toBe(512);
      const ids = await tokenizer.encode('Once upon a time');
      expect([...ids]).toEqual([1, 403, 407, 261, 378]);
      expect([...ids].map((id) => tokenizer.tokenText(id))).toEqual(['<s>', '▁Once', '▁upon', '▁a', '▁time']);
      expect(tokenizer.decode(ids)).toBe('Once upon a time');
      expect(tokenizer.tokenId('▁time')).toBe(378);
    });
  },
);
