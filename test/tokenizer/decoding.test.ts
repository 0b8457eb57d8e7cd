import { expect, test } from 'vitest';
import { createTokenizer } from '../../ts/tokenizer/index.js';
import { byteLevel, metadataOf, randomNumbers, randomText, sentencePiece, Type } from './fixtures.js';

const SPECIAL = [
  { text: '<|end|>', type: Type.control },
  { text: 'é  ', type: Type.userDefined },
  { text: '<spare>', type: Type.unused },
];

const vocabularies = {
  'byte-level': byteLevel(['Ġ t', 'h e', 'Ġt he', 'Ã ©', 'ð Ł'], SPECIAL),
  SentencePiece: sentencePiece([...'▁abcé漢'].map((text) => ({ text })).concat([{ text: '▁a' }])),
};

test.each(Object.entries(vocabularies))(
  '%s: any text comes back, whole and in a stream',
  async (name, values) => {
    const tokenizer = await createTokenizer(metadataOf(values));
    const random = randomNumbers(11);
    for (let round = 0; round < 200; round++) {
      const text = randomText(random, 1 + Math.floor(random() * 60));
      const ids = await tokenizer.encode(text);
      expect(tokenizer.decode(ids)).toBe(text);
      const stream = tokenizer.stream();
      let streamed = '';
      for (const id of ids) {
        const piece = stream.push(id);
        // Never half a character, which would show as U+FFFD or half of a surrogate pair.
        expect(piece.isWellFormed() && (!piece.includes('\uFFFD') || text.includes('\uFFFD'))).toBe(true);
        streamed += piece;
      }
      streamed += stream.end();
      expect(streamed).toBe(name === 'SentencePiece' ? ` ${text}` : text);
    }
    await tokenizer.dispose();
  },
);

test('random tokens: the stream says what the whole says', async () => {
  const tokenizer = await createTokenizer(metadataOf(vocabularies['byte-level']));
  const random = randomNumbers(13);
  for (let round = 0; round < 300; round++) {
    const ids = Array.from({ length: 40 }, () => Math.floor(random() * tokenizer.vocabSize));
    for (const special of [false, true]) {
      const stream = tokenizer.stream({ special });
      const streamed = ids.map((id) => stream.push(id)).join('') + stream.end();
      expect(streamed).toBe(tokenizer.decode(ids, { special }));
    }
  }
  await tokenizer.dispose();
});

test('a character waits for its last byte; one that never comes is U+FFFD', async () => {
  const tokenizer = await createTokenizer(metadataOf(vocabularies['byte-level']));
  const stream = tokenizer.stream();
  expect([0xf0, 0x9f, 0x98, 0x80].map((byte) => stream.push(byte))).toEqual(['', '', '', '😀']);
  expect(stream.push(0xe6)).toBe('');
  expect(stream.push(0x41)).toBe('\uFFFDA');
  expect(stream.push(0xe6)).toBe('');
  expect(stream.end()).toBe('\uFFFD');
  expect(tokenizer.decode([0xef, 0xbb, 0xbf, 0x41])).toBe('\uFEFFA');
});

test('control tokens are left out or written, unused ones have no text, user-defined ones are as they are', async () => {
  const tokenizer = await createTokenizer(metadataOf(vocabularies['byte-level']));
  const [end, own, spare] = [tokenizer.vocabSize - 3, tokenizer.vocabSize - 2, tokenizer.vocabSize - 1];
  const ids = [0x41, end, own, spare, 0x42];
  expect(tokenizer.decode(ids)).toBe('Aé  B');
  expect(tokenizer.decode(ids, { special: true })).toBe('A<|end|>é  B');
  expect(tokenizer.tokenText(end)).toBe('<|end|>');
  expect(tokenizer.tokenId('<|end|>')).toBe(end);
  expect(tokenizer.tokenId('Ġthe')).toBe(259 - 1);
  expect([tokenizer.tokenId('nothing'), tokenizer.tokenId('')]).toEqual([undefined, undefined]);
});

test('SentencePiece: only the one space at the start of a whole text goes, never that of a continuation', async () => {
  const tokenizer = await createTokenizer(metadataOf(vocabularies.SentencePiece));
  const id = (text: string): number => tokenizer.tokenId(text) ?? -1;
  const [a, b, space] = [id('▁a'), id('b'), id('▁')];
  expect(tokenizer.decode([a, b, a])).toBe('ab a');
  expect(tokenizer.decode([1, a, b])).toBe('ab');
  expect(tokenizer.decode([1, space, a])).toBe(' a');
  expect(tokenizer.decode([1, a], { special: true })).toBe('<s>a');
  expect(tokenizer.decode([b, a])).toBe('b a');
  expect(tokenizer.decode([])).toBe('');
  expect(tokenizer.stream().push(a)).toBe(' a');
  const bare = await createTokenizer(
    metadataOf(sentencePiece([{ text: '▁a' }], { add_space_prefix: false })),
  );
  expect(bare.decode([259])).toBe(' a');
});

test.each([-1, 1.5, 100_000, Number.NaN])('%d is refused as a token', async (id) => {
  const tokenizer = await createTokenizer(metadataOf(vocabularies['byte-level']));
  for (const call of [
    () => tokenizer.decode([id]),
    () => tokenizer.stream().push(id),
    () => tokenizer.tokenText(id),
  ]) {
    expect(call).toThrowError(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  }
});
