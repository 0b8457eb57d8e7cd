import { expect, test } from 'vitest';
import { createTokenizer, type EncodeOptions } from '../../ts/tokenizer/index.js';
import { byteLevel, metadataOf, randomNumbers, sentencePiece, Type, type Values } from './fixtures.js';

const PLAIN = { addSpecial: false };

async function texts(values: Values, text: string, options: EncodeOptions = PLAIN): Promise<string[]> {
  const tokenizer = await createTokenizer(metadataOf(values));
  const ids = await tokenizer.encode(text, options);
  await tokenizer.dispose();
  return [...ids].map((id) => tokenizer.tokenText(id));
}

test('merges are applied by rank, then from the left', async () => {
  expect(await texts(byteLevel(['b c', 'a b', 'bc d']), 'abcd')).toEqual(['a', 'bcd']);
  expect(await texts(byteLevel(['a a']), 'aaaaa')).toEqual(['aa', 'aa', 'a']);
  expect(await texts(byteLevel(['Ġ a']), 'a a')).toEqual(['a', 'Ġa']);
});

test('llama-bpe takes a word that is a token whole; others reach it by merges only', async () => {
  const extra = [{ text: 'abc' }];
  expect(await texts(byteLevel(['b c'], extra, { pre: 'llama-bpe' }), 'abc')).toEqual(['abc']);
  expect(await texts(byteLevel(['b c'], extra, { pre: 'qwen2' }), 'abc')).toEqual(['a', 'bc']);
});

test('the best score is joined first, equal scores from the left', async () => {
  const tokens = [
    { text: '▁', score: -10 },
    { text: 'a', score: -10 },
    { text: 'b', score: -10 },
    { text: 'ab', score: -2.5 },
    { text: 'ba', score: -2.25 },
    { text: 'bb', score: -2.5 },
  ];
  const values = sentencePiece(tokens, { add_space_prefix: false });
  expect(await texts(values, 'aba')).toEqual(['a', 'ba']);
  expect(await texts(values, 'abb')).toEqual(['ab', 'b']);
  expect(await texts(values, 'bbb')).toEqual(['bb', 'b']);
  expect(await texts(values, 'abab')).toEqual(['a', 'ba', 'b']);
});

test('a SentencePiece token may go on into the next word', async () => {
  const tokens = [
    { text: '▁' },
    { text: 'a' },
    { text: 'b' },
    { text: 'a▁', score: 1 },
    { text: 'a▁b', score: 2 },
  ];
  expect(await texts(sentencePiece(tokens), 'a b')).toEqual(['▁', 'a▁b']);
});

test('what is no token is spelled in bytes', async () => {
  const tokens = [{ text: '▁' }, { text: 'a' }];
  expect(await texts(sentencePiece(tokens), 'aé')).toEqual(['▁', 'a', '<0xC3>', '<0xA9>']);
  expect(await texts(byteLevel(), 'é')).toEqual(['Ã', '©']);
});

test('half of a surrogate pair is encoded as U+FFFD', async () => {
  const replaced = ['ï', '¿', '½'];
  expect(await texts(byteLevel(), 'a\ud83d')).toEqual(['a', ...replaced]);
  expect(await texts(byteLevel(), '\ude00a')).toEqual([...replaced, 'a']);
});

test('without bytes, what is no token is unknown', async () => {
  const values = { model: 'llama', tokens: ['<unk>', '▁', 'a'], scores: new Float32Array(3) };
  expect(await texts({ ...values, unknown_token_id: 0 }, 'aéa')).toEqual(['▁', 'a', '<unk>', 'a']);
});

test('BOS and EOS are added where the file asks', async () => {
  const spm = [{ text: '▁' }, { text: 'a' }];
  const all = { addSpecial: true };
  expect(await texts(sentencePiece(spm), 'a', all)).toEqual(['<s>', '▁', 'a']);
  expect(await texts(sentencePiece(spm), '', all)).toEqual(['<s>']);
  expect(await texts(sentencePiece(spm), '', PLAIN)).toEqual([]);
  expect(await texts(sentencePiece(spm, { add_bos_token: false }), 'a', all)).toEqual(['▁', 'a']);
  expect(await texts(sentencePiece(spm, { add_eos_token: true }), 'a', all)).toEqual([
    '<s>',
    '▁',
    'a',
    '</s>',
  ]);
  const extra = [{ text: '<|begin|>', type: Type.control }];
  const bos = { bos_token_id: 256 };
  expect(await texts(byteLevel([], extra, bos), 'a', all)).toEqual(['a']);
  expect(await texts(byteLevel([], extra, { ...bos, add_bos_token: true }), 'a', all)).toEqual([
    '<|begin|>',
    'a',
  ]);
  expect(await texts(byteLevel([], extra, { ...bos, pre: 'llama-bpe' }), 'a', all)).toEqual([
    '<|begin|>',
    'a',
  ]);
});

test('control tokens are recognised only when asked, user-defined ones always, the longest first', async () => {
  const values = byteLevel(
    [],
    [
      { text: '<|a|>', type: Type.control },
      { text: '<|a|><|b|>', type: Type.control },
      { text: '=>', type: Type.userDefined },
      { text: '==>', type: Type.userDefined },
    ],
  );
  expect(await texts(values, 'x==>y=>', PLAIN)).toEqual(['x', '==>', 'y', '=>']);
  const parse = { addSpecial: false, parseSpecial: true };
  expect(await texts(values, '<|a|><|a|><|b|>=>', parse)).toEqual(['<|a|>', '<|a|><|b|>', '=>']);
  expect(await texts(values, '<|a|>', PLAIN)).toEqual([...'<|a|>']);
});

test('a word of code to fill in counts as control, whatever the file calls it', async () => {
  const values = byteLevel([], [{ text: '<|fim_prefix|>', type: Type.userDefined }]);
  expect(await texts(values, '<|fim_prefix|>', PLAIN)).toHaveLength(14);
  expect(await texts(values, '<|fim_prefix|>', { ...PLAIN, parseSpecial: true })).toHaveLength(1);
});

test('each text after a special token gets the space before it', async () => {
  const values = sentencePiece([{ text: '▁' }, { text: 'a' }]);
  const parse = { addSpecial: false, parseSpecial: true };
  expect(await texts(values, 'a</s>a', parse)).toEqual(['▁', 'a', '</s>', '▁', 'a']);
});

test('Phi-3 takes no white space after special tokens', async () => {
  const tokens = [{ text: '▁' }, { text: 'a' }, { text: '<|user|>', type: Type.control }];
  const parse = { addSpecial: false, parseSpecial: true };
  const phi = sentencePiece(tokens, { 'general.name': 'Phi-3-mini' });
  expect(await texts(phi, '<|user|>\n a<s> a', parse)).toEqual(['<|user|>', '▁', 'a', '<s>', '▁', '▁', 'a']);
  const other = sentencePiece(tokens, { 'general.name': 'Other' });
  expect(await texts(other, '<|user|> a', parse)).toEqual(['<|user|>', '▁', '▁', 'a']);
});

test('end tokens: those the file names and those known by their text', async () => {
  const ends = async (extra: string[], more: Values = {}): Promise<string[]> => {
    const tokens = extra.map((text) => ({ text, type: Type.control }));
    const tokenizer = await createTokenizer(metadataOf(byteLevel([], tokens, more)));
    return [...tokenizer.endTokens].map((id) => tokenizer.tokenText(id));
  };
  expect(await ends(['<stop>', '<go>'], { eos_token_id: 256 })).toEqual(['<stop>']);
  expect(await ends(['<a>', '<b>', '<c>'], { eot_token_id: 257, eom_token_id: 258 })).toEqual(['<b>', '<c>']);
  const known = ['<|eot_id|>', '<|im_end|>', '<end_of_turn>', '<|endoftext|>', '</s>', '<EOT>', '<|eom_id|>'];
  expect(await ends(['<x>', ...known])).toEqual(known);
  expect(await ends(['<|end|>'])).toEqual(['<|end|>']);
  // In the Harmony format this one only closes a part of the reply.
  expect(await ends(['<|end|>', '<|return|>', '<|call|>'])).toEqual(['<|return|>', '<|call|>']);
});

/** Joins neighbours by definition: the pair of the lowest rank, of equals the leftmost, again and again. */
function joinSlowly(letters: string[], rank: (left: string, right: string) => number | undefined): string[] {
  const parts = [...letters];
  for (;;) {
    let best = Number.POSITIVE_INFINITY;
    let place = -1;
    for (let i = 0; i + 1 < parts.length; i++) {
      const found = rank(parts[i] ?? '', parts[i + 1] ?? '') ?? Number.POSITIVE_INFINITY;
      if (found < best) [best, place] = [found, i];
    }
    if (place < 0) return parts;
    parts.splice(place, 2, `${parts[place]}${parts[place + 1]}`);
  }
}

test.each(['words apart', 'tokens across words'])('SentencePiece joins as defined: %s', async (kind) => {
  const random = randomNumbers(17);
  const pick = (from: string): string => from[Math.floor(random() * from.length)] ?? '';
  for (let round = 0; round < 30; round++) {
    const words = new Set([...'▁abc']);
    while (words.size < 40) {
      const inner = kind === 'words apart' ? 'abc' : 'abc▁';
      const length = 1 + Math.floor(random() * 3);
      words.add(pick('▁abc') + Array.from({ length }, () => pick(inner)).join(''));
    }
    // Few different scores, so that many are equal.
    const tokens = [...words].map((text) => ({ text, score: -Math.floor(random() * 8) / 4 }));
    const scores = new Map(tokens.map(({ text, score }) => [text, -score]));
    const text = Array.from({ length: 60 }, () => pick('aabbcc ')).join('');
    const letters = [...` ${text}`.replaceAll(' ', '▁')];
    const joined = joinSlowly(letters, (left, right) => scores.get(left + right));
    expect(await texts(sentencePiece(tokens), text)).toEqual(joined);
  }
});

test('byte-level merges join as defined', async () => {
  const random = randomNumbers(19);
  for (let round = 0; round < 30; round++) {
    const known = [...'abc'];
    const merges: string[] = [];
    while (merges.length < 40) {
      const side = (): string => known[Math.floor(random() * known.length)] ?? 'a';
      const [left, right] = [side(), side()];
      if (merges.includes(`${left} ${right}`) || left.length + right.length > 6) continue;
      merges.push(`${left} ${right}`);
      if (!known.includes(left + right)) known.push(left + right);
    }
    const ranks = new Map(merges.map((merge, rank) => [merge, rank]));
    const text = Array.from({ length: 80 }, () => 'abc'[Math.floor(random() * 3)]).join('');
    const joined = joinSlowly([...text], (left, right) => ranks.get(`${left} ${right}`));
    expect(await texts(byteLevel(merges), text)).toEqual(joined);
  }
});
