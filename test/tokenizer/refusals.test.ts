import { expect, test } from 'vitest';
import { createTokenizer } from '../../ts/tokenizer/index.js';
import { byteLevel, metadataOf, sentencePiece, Type, type Values } from './fixtures.js';

const spm = (more: Values): Values => sentencePiece([{ text: '▁' }, { text: 'a' }], more);
const bpe = (more: Values, merges = ['a b']): Values => byteLevel(merges, [], more);
const without = (values: Values, key: string): Values =>
  Object.fromEntries(Object.entries(values).filter(([name]) => name !== key));

const cases: [what: string, values: Values, code: string, named: string][] = [
  ['an unknown model', bpe({ model: 'unigram-x' }), 'TOKENIZER_UNSUPPORTED', '"unigram-x"'],
  ['what is supported instead', bpe({ model: 'bert' }), 'TOKENIZER_UNSUPPORTED', 'llama, gpt2'],
  ['an unknown pre-tokeniser', bpe({ pre: 'gpt-9' }), 'TOKENIZER_UNSUPPORTED', '"gpt-9"'],
  ['the pre-tokenisers there are', bpe({ pre: 'gpt-9' }), 'TOKENIZER_UNSUPPORTED', 'starcoder'],
  ['no model', without(bpe({}), 'model'), 'METADATA_MISSING', 'tokenizer.ggml.model'],
  ['no tokens', bpe({ tokens: [] }), 'TOKENIZER_INVALID', 'no tokens'],
  ['tokens left out', without(bpe({}), 'tokens'), 'METADATA_MISSING', 'tokenizer.ggml.tokens'],
  ['no merges', without(bpe({}), 'merges'), 'METADATA_MISSING', 'tokenizer.ggml.merges'],
  ['too few scores', spm({ scores: new Float32Array(7) }), 'TOKENIZER_INVALID', 'scores has 7'],
  [
    'a score that is no number',
    spm({ scores: new Float32Array(261).fill(Number.NaN, 5, 6) }),
    'TOKENIZER_INVALID',
    '5',
  ],
  ['too many types', spm({ token_type: new Int32Array(999) }), 'TOKENIZER_INVALID', 'token_type has 999'],
  ['scores of another kind', spm({ scores: ['1'] }), 'METADATA_INVALID', 'tokenizer.ggml.scores'],
  ['a merge without a right part', bpe({ merges: ['ab'] }), 'TOKENIZER_INVALID', '"ab"'],
  [
    'a merge of what is no token',
    bpe({ merges: ['a b', 'ab zz'] }),
    'TOKENIZER_INVALID',
    'merge 1 ("ab zz")',
  ],
  [
    'a merge to what is no token',
    { ...byteLevel(['a b']), merges: ['a b', 'b a'] },
    'TOKENIZER_INVALID',
    'merge 1 ("b a")',
  ],
  ['an id outside', spm({ eos_token_id: 261 }), 'TOKENIZER_INVALID', 'eos_token_id is 261'],
  ['an id below 0', spm({ bos_token_id: -1 }), 'TOKENIZER_INVALID', 'bos_token_id is -1'],
  ['BOS wanted but missing', bpe({ add_bos_token: true }), 'TOKENIZER_INVALID', 'BOS'],
  [
    'one text twice',
    byteLevel([], [{ text: 'a', type: Type.normal }], {}),
    'TOKENIZER_INVALID',
    '97 and 256',
  ],
];

test.each(cases)('%s', async (_what, values, code, named) => {
  const refusal = createTokenizer(metadataOf(values));
  await expect(refusal).rejects.toMatchObject({ name: 'FrugalError', code });
  await expect(refusal).rejects.toThrow(named);
});

test('a refusal by the thread of a large vocabulary is the same', async () => {
  const extra = Array.from({ length: 3000 }, (_, i) => ({ text: `token ${i % 2999}` }));
  await expect(createTokenizer(metadataOf(byteLevel([], extra)))).rejects.toMatchObject({
    name: 'FrugalError',
    code: 'TOKENIZER_INVALID',
    cure: expect.stringMatching(/convert/i),
    data: { text: 'token 0', ids: [256, 3255] },
  });
});

test('tokens without text and tokens that are not UTF-8 are no reason to refuse', async () => {
  const tokenizer = await createTokenizer(metadataOf(byteLevel([], [{ text: '\uFFFD' }, { text: '' }])));
  expect(tokenizer.decode(await tokenizer.encode('a'))).toBe('a');
  expect(tokenizer.vocabSize).toBe(258);
});
