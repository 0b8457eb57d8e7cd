import * as library from '@huggingface/tokenizers';
import { describe, expect, test } from 'vitest';
import { slices } from '../../ts/tokenizer/library.js';
import { librarySplits, preTokenizers } from '../../ts/tokenizer/pre-tokenizers.js';
import { randomNumbers, randomText } from './fixtures.js';

type Split = (text: string) => string[];

function splitter(name: string): Split {
  const pre = preTokenizers.get(name);
  if (pre === undefined) throw new Error(`no pre-tokeniser ${name}`);
  const { SequencePreTokenizer } = library as unknown as {
    SequencePreTokenizer: new (config: object) => { pre_tokenize(text: string): string[] };
  };
  const sequence = new SequencePreTokenizer({ pretokenizers: librarySplits(pre) });
  return (text) => sequence.pre_tokenize(text);
}

/** Texts and the words that each pre-tokeniser makes of them, from the rules of llama.cpp; "|" separates words. */
const splits: Record<string, [text: string, words: string][]> = {
  'llama-bpe': [
    ["I'VE 12345 it's", "I|'VE| |123|45| it|'s"],
    ['a  b\n\n c', 'a| | b|\n\n| c'],
    ['x == y!!\n\nz  ', 'x| ==| y|!!\n\n|z|  '],
    ['(foo)bar\tbaz', '(foo|)bar|\tbaz'],
    ['a   \n  b', 'a|   \n| | b'],
    ['e\u0301t', 'e|\u0301t'],
    ['\u3000漢字１２３４', '\u3000漢字|１２３|４'],
  ],
  qwen2: [
    ["We'll go: 123", "We|'ll| go|:| |1|2|3"],
    ['½ⅷ a', '½|ⅷ| a'],
  ],
  qwen35: [
    ['e\u0301t 12', 'e\u0301t| |1|2'],
    ["it's (a) !!\n", "it|'s| (|a|)| !!\n"],
  ],
  'gpt-2': [
    ["I'VE it's 12345", "I|'|VE| it|'s| 12345"],
    ['a  b\n\n c', 'a| | b|\n\n| c'],
    ['a\n\n\nb', 'a|\n\n|\n|b'],
    ['x!!\n', 'x|!!|\n'],
    ['a\u00a0\u0085b', 'a|\u00a0|\u0085|b'],
    ['\ufeffa', '\ufeff|a'],
  ],
  starcoder: [
    ['abc 123', 'abc| |1|2|3'],
    ['a1  2', 'a|1|  |2'],
    ['x² y', 'x|²| y'],
  ],
  falcon: [
    ['Hi, "you"!', 'Hi|,| |"|you|"!'],
    ["it's 12345", "it|'|s| |123|45"],
    ['a`b$c~~', 'a|`|b|$|c|~~'],
    [' 1234567', ' |123|456|7'],
    ['x€y', 'x|€|y'],
  ],
  default: [
    ['a`b 12345', 'a|`|b| |123|45'],
    [' 1234567.5', ' |123|456|7|.|5'],
    ['x١٢٣٤', 'x|١٢٣٤'],
  ],
  'deepseek-llm': [
    ['Hello world 123', 'Hello| world| |123'],
    ['a\n\nb', 'a|\n|\n|b'],
    ['x  y  ', 'x| | y|  '],
    ['漢字かな한국어', '漢字かな한국어'],
    ['a.b!? c', 'a|.|b|!?| c'],
    // These letters have a case, but not in the list of this tokeniser.
    ['аә ա', 'аә| ա'],
    // The last rule but one takes everything East Asian, stops too, but never a space.
    ['a\u3000\u3001漢', 'a|\u3000|\u3001|漢'],
    ['\u3000漢', '\u3000|漢'],
    ['\u2009漢', '\u2009|漢'],
  ],
  'deepseek-v3': [
    ['12345 漢字abcかな', '123|45| |漢字|abc|かな'],
    ["it's (a) (abc !!\n", "it|'s| (|a|)| (|abc| !!\n"],
    ['$5.00 (b)c.d', '$|5|.|00| (|b|)c|.d'],
    ['e\u0301t 한국어', 'e\u0301t| 한국어'],
    ['a   \n  b', 'a|   \n| | b'],
  ],
  'deepseek-coder': [
    ['int x = 42;', 'int| x| = |4|2|;'],
    ['a\r\nb', 'a|\r|\n|b'],
    ['if (漢字)', 'if| (|漢字|)'],
    ['x++ "y"', 'x|++| "|y|"'],
  ],
  tekken: [
    ['HelloWorld ABCdef', 'Hello|World| ABCdef'],
    ['a/b//\n12', 'a|/b|//\n|1|2'],
  ],
  'gpt-4o': [["WE'RE fooBar's 1234", "WE'RE| foo|Bar's| |123|4"]],
};

describe.each(Object.entries(splits))('%s', (name, cases) => {
  const split = splitter(name);
  test.each(cases)('%j', (text, words) => {
    expect(split(text)).toEqual(words.split('|'));
    expect(split(text).join('')).toBe(text);
  });
});

test('names that share the rules of another', () => {
  const same: Record<string, string[]> = {
    'llama-bpe': ['llama3', 'llama-v3'],
    qwen2: ['deepseek-r1-qwen'],
    'gpt-2': ['mpt'],
    starcoder: ['refact', 'command-r', 'smollm'],
  };
  for (const [name, others] of Object.entries(same)) {
    for (const other of others) expect(preTokenizers.get(other)).toEqual(preTokenizers.get(name));
  }
});

/** Words, signs and spaces of all kinds, in any order. */
const random = randomNumbers(8);
const PARTS = [
  'a',
  'it',
  "it's",
  "WE'RE",
  'fooBar',
  '12',
  '1234',
  '!?',
  '/*',
  '  ',
  ' ',
  ' ',
  '\n',
  '\r\n ',
  '漢字',
  'é',
  '\u0301',
];
const mixed = Array.from({ length: 30_000 }, () => {
  const part = PARTS[Math.floor(random() * PARTS.length)] ?? ' ';
  return random() < 0.5 ? `${part} ` : part;
}).join('');

test.each([...preTokenizers.keys()])('%s: slices of a text have the words of the whole', (name) => {
  const split = splitter(name);
  for (const text of [mixed, `${mixed}${randomText(random, 20_000)}${mixed}`]) {
    const parts = [...slices(text)];
    expect(parts.length).toBeGreaterThan(4);
    expect(parts.join('')).toBe(text);
    expect(parts.flatMap(split)).toEqual(split(text));
  }
});

const LENGTH = 100_000;
const runs: Record<string, string> = {
  letters: 'a'.repeat(LENGTH),
  'mixed case': 'aA'.repeat(LENGTH / 2),
  'spaces before a letter': `${' '.repeat(LENGTH)}x`,
  'spaces before Chinese': `${' '.repeat(LENGTH)}漢`,
  'wide spaces': `${'\u3000'.repeat(LENGTH)}あ`,
  'line ends': ' \n'.repeat(LENGTH / 2),
  digits: '1'.repeat(LENGTH),
  punctuation: "'!".repeat(LENGTH / 2),
  emoji: '😀'.repeat(LENGTH),
};

test.each([...preTokenizers.keys()])('%s: a run of any kind is no trouble', (name) => {
  const split = splitter(name);
  for (const [kind, text] of Object.entries(runs)) {
    const start = performance.now();
    const words = split(text);
    const took = performance.now() - start;
    expect(words.join('') === text, `${kind}: all of the text`).toBe(true);
    // A cost that grows with the square would take tens of seconds.
    expect(took, kind).toBeLessThan(5000);
  }
});
