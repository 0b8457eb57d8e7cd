/**
 * How byte-level vocabularies cut a text into words before merging. The expressions of one entry apply in
 * turn: each cuts the pieces that the one before left, and what it does not match stays as a piece.
 *
 * The names and the splits are those of llama.cpp (`src/llama-vocab.cpp`), whose files these are; where its
 * regular expression engine sees a text differently from JavaScript's, a comment says so. `\s` means the
 * Unicode property White_Space in all of them (the library takes care of that).
 */
export interface PreTokenizer {
  readonly patterns: readonly string[];
  /** A word that is itself a token is taken whole, without merging. */
  readonly ignoreMerges: boolean;
  /** Whether BOS is added when the file does not say. */
  readonly addBos: boolean;
}

const CONTRACTION = "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]";
const SPACES = '\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+';

const GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/** The family of the GPT-4 expression; `digits` is how many are kept together. */
const gpt4 = (digits: string): string =>
  `(?:${CONTRACTION})|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|${SPACES}`;

/** As `gpt4` with single digits, but accents belong to the letters before them. */
const QWEN35 = `(?:${CONTRACTION})|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|${SPACES}`;

/** The family of the GPT-4o expression. Only ASCII letters count as having a case. */
const gpt4o = (contraction: string, digits: string): string => {
  const upper = '(?:(?![a-z])\\p{L})';
  const lower = '(?:(?![A-Z])\\p{L})';
  const lead = '[^\\r\\n\\p{L}\\p{N}]?';
  return `${lead}${upper}*${lower}+${contraction}|${lead}${upper}+${lower}*${contraction}|${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|${SPACES}`;
};

/** A character class from pairs of code points (first, last). */
const characterClass = (ranges: readonly (readonly [number, number])[]): string =>
  `[${ranges.map(([first, last]) => `\\u{${first.toString(16)}}-\\u{${last.toString(16)}}`).join('')}]`;

/** Letters with a case, as the DeepSeek tokeniser lists them: neither all of `\p{L}` nor all of `\p{LC}`. */
const DEEPSEEK_LETTERS = characterClass([
  [0x41, 0x5a],
  [0x61, 0x7a],
  [0xb5, 0xb5],
  [0xc0, 0xd6],
  [0xd8, 0xf6],
  [0xf8, 0x1ba],
  [0x1bc, 0x1bf],
  [0x1c4, 0x293],
  [0x295, 0x2af],
  [0x370, 0x373],
  [0x376, 0x377],
  [0x37b, 0x37d],
  [0x37f, 0x37f],
  [0x386, 0x386],
  [0x388, 0x38a],
  [0x38c, 0x38c],
  [0x38e, 0x3a1],
  [0x3a3, 0x3f5],
  [0x3f7, 0x481],
  [0x48a, 0x52f],
  [0x531, 0x556],
  [0x10a0, 0x10c5],
  [0x13a0, 0x13f5],
  [0x13f8, 0x13fd],
  [0x1c90, 0x1cba],
  [0x1cbd, 0x1cbf],
  [0x1d00, 0x1d2b],
  [0x1d6b, 0x1d77],
  [0x1d79, 0x1d9a],
  [0x1e00, 0x1f15],
  [0x1f18, 0x1f1d],
  [0x1f20, 0x1f45],
  [0x1f48, 0x1f4d],
  [0x1f50, 0x1f57],
  [0x1f59, 0x1f59],
  [0x1f5b, 0x1f5b],
  [0x1f5d, 0x1f5d],
  [0x1f5f, 0x1f7d],
  [0x1f80, 0x1fb4],
  [0x1fb6, 0x1fbc],
  [0x1fbe, 0x1fbe],
  [0x1fc2, 0x1fc4],
  [0x1fc6, 0x1fcc],
  [0x1fd0, 0x1fd3],
  [0x1fd6, 0x1fdb],
  [0x1fe0, 0x1fec],
  [0x1ff2, 0x1ff4],
  [0x1ff6, 0x1ffc],
  [0x2102, 0x2102],
  [0x2107, 0x2107],
  [0x210a, 0x2113],
  [0x2115, 0x2115],
  [0x2119, 0x211d],
  [0x2124, 0x2124],
  [0x2126, 0x2126],
  [0x2128, 0x2128],
  [0x212a, 0x212d],
  [0x212f, 0x2134],
  [0x2139, 0x2139],
  [0x213c, 0x213f],
  [0x2145, 0x2149],
  [0x214e, 0x214e],
  [0x2183, 0x2184],
  [0x2c00, 0x2c7b],
  [0x2c7e, 0x2ce4],
  [0x2ceb, 0x2cee],
  [0x2cf2, 0x2cf3],
  [0xa640, 0xa66d],
  [0xa680, 0xa69b],
  [0xa722, 0xa76f],
  [0xa771, 0xa787],
  [0xa78b, 0xa78e],
  [0xab70, 0xabbf],
  [0xfb00, 0xfb06],
  [0xfb13, 0xfb17],
  [0xff21, 0xff3a],
  [0xff41, 0xff5a],
  [0x10400, 0x1044f],
  [0x104b0, 0x104d3],
  [0x104d8, 0x104fb],
  [0x10c80, 0x10cb2],
  [0x10cc0, 0x10cf2],
  [0x118a0, 0x118df],
  [0x1e900, 0x1e943],
]);

/**
 * ASCII from "!" to "~" without the digits, full-width forms, quotation marks and CJK stops. The list goes
 * from U+3000, but a space outside ASCII is never in a class for llama.cpp, so this one starts behind it.
 */
const DEEPSEEK_PUNCTUATION = characterClass([
  [0x21, 0x2f],
  [0x3a, 0x7e],
  [0xff01, 0xff0f],
  [0xff1a, 0xff5e],
  [0x2018, 0x201f],
  [0x3001, 0x3002],
]);

/** U+0800 to U+9FA5 and U+AC00 to U+D7FF, less the spaces among them for the same reason. */
const DEEPSEEK_CJK = characterClass([
  [0x800, 0x167f],
  [0x1681, 0x1fff],
  [0x200b, 0x2027],
  [0x202a, 0x202e],
  [0x2030, 0x205e],
  [0x2060, 0x2fff],
  [0x3001, 0x9fa5],
  [0xac00, 0xd7ff],
]);

/** Chinese characters and both kinds of Japanese syllables. */
const DEEPSEEK3_CJK = characterClass([
  [0x4e00, 0x9fa5],
  [0x3040, 0x30ff],
]);

/** An ASCII sign belongs to the ASCII letters behind it, and accents to the letters before them. */
const DEEPSEEK3_WORDS = `[!-\\/:-@\\[-\`\\{-~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|${SPACES}`;

/** Spaces at the end of a piece. The look-behind changes no match; it keeps long runs from costing their square. */
const TRAILING_SPACES = '(?<!\\s)\\s+(?![\\s\\S])';

const DIGIT = '\\p{N}';
const THREE_DIGITS = '[0-9][0-9][0-9]';

const split = (patterns: readonly string[], options: Partial<PreTokenizer> = {}): PreTokenizer => ({
  patterns,
  ignoreMerges: false,
  addBos: false,
  ...options,
});

const gpt2 = split([GPT2]);
const starcoder = split([DIGIT, GPT2]);
const qwen2 = split([gpt4('\\p{N}')]);
const threeDigits = split([gpt4('\\p{N}{1,3}')]);
const deepseek3 = split(['\\p{N}{1,3}', `${DEEPSEEK3_CJK}+`, DEEPSEEK3_WORDS]);
const llama3 = split([gpt4('\\p{N}{1,3}')], { ignoreMerges: true, addBos: true });
const glm4 = split([gpt4('\\p{N}{1,3}')], { ignoreMerges: true });
const cased = split([gpt4o(`(?:${CONTRACTION})?`, '\\p{N}{1,3}')]);

/** By `tokenizer.ggml.pre`. */
export const preTokenizers: ReadonlyMap<string, PreTokenizer> = new Map([
  ['default', split(['[\\p{P}\\$\\+<=>\\^~\\|]+', GPT2, '\\p{N}+', THREE_DIGITS])],
  ['llama-bpe', llama3],
  ['llama3', llama3],
  ['llama-v3', llama3],
  ['falcon3', llama3],
  ['falcon-h1', llama3],
  ['pixtral', llama3],
  ['lfm2', llama3],
  ['midm-2.0', llama3],
  ['glm4', glm4],
  ['glm5', glm4],
  ['dbrx', threeDigits],
  ['smaug-bpe', threeDigits],
  ['chatglm-bpe', threeDigits],
  ['qwen2', qwen2],
  ['deepseek-r1-qwen', qwen2],
  ['stablelm2', qwen2],
  ['megrez', qwen2],
  ['hunyuan', qwen2],
  ['kormo', qwen2],
  ['solar-open', qwen2],
  ['qwen35', split([QWEN35])],
  ['gpt-2', gpt2],
  ['phi-2', gpt2],
  ['mpt', gpt2],
  ['olmo', gpt2],
  ['jais', gpt2],
  ['exaone4', gpt2],
  ['gigachat', gpt2],
  ['a.x-4.0', gpt2],
  ['mellum', gpt2],
  ['trillion', gpt2],
  ['granite-docling', gpt2],
  ['starcoder', starcoder],
  ['refact', starcoder],
  ['command-r', starcoder],
  ['smollm', starcoder],
  ['codeshell', starcoder],
  ['exaone', starcoder],
  ['minerva-7b', starcoder],
  ['falcon', split(['[\\p{P}\\$\\+<=>\\^~\\|`]+', GPT2, THREE_DIGITS])],
  [
    'deepseek-llm',
    split([
      '[\\r\\n]',
      `\\s?${DEEPSEEK_LETTERS}+`,
      `\\s?${DEEPSEEK_PUNCTUATION}+`,
      TRAILING_SPACES,
      `${DEEPSEEK_CJK}+`,
      '\\p{N}+',
    ]),
  ],
  ['deepseek-v3', deepseek3],
  ['hunyuan-dense', deepseek3],
  ['joyai-llm', deepseek3],
  ['deepseek-coder', split(['[\\r\\n]', '\\s?\\p{L}+', '\\s?\\p{P}+', `${DEEPSEEK_CJK}+`, DIGIT])],
  ['tekken', split([gpt4o('', '\\p{N}')], { ignoreMerges: true, addBos: true })],
  ['gpt-4o', cased],
  ['llama4', cased],
  ['kanana2', cased],
]);

/** A pre-tokeniser as the library is told of it. */
export function librarySplits({ patterns }: PreTokenizer): readonly object[] {
  return patterns.map((pattern) => ({
    type: 'Split',
    pattern: { Regex: pattern },
    behavior: 'Isolated',
    invert: false,
  }));
}
