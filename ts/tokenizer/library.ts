import * as tokenizers from '@huggingface/tokenizers';
import { StringArray } from '../gguf/string-array.js';
import { createPairRanks, type PairRanks } from './pair-ranks.js';
import { librarySplits, preTokenizers } from './pre-tokenizers.js';
import { invalid } from './refuse.js';
import type { Vocabulary } from './vocabulary.js';

/** Encodes a text without special tokens, slice by slice. Throws once `unwanted` is true. */
export type EncodeText = (text: string, unwanted: () => boolean) => Iterable<readonly number[]>;

/**
 * What is used of the library. Its own declarations name modules without extensions, which this package's
 * module resolution does not find.
 */
interface LibraryTokenizer {
  readonly model: {
    tokens_to_ids: ReadonlyMap<string, number>;
    bpe_ranks: ReadonlyMap<string, number>;
    unk_token: string | undefined;
    unk_token_id: number | undefined;
  };
  encode(text: string, options: { add_special_tokens: boolean }): { ids: readonly number[] };
}

/** The rank of joining two neighbours, lowest first; undefined when they do not join. */
type Rank = (left: string, right: string) => number | undefined;

/**
 * The library's table of merges, computed instead of stored. The library asks for pairs as JSON. This is
 * what lets equal scores have equal ranks, in which case it joins the leftmost pair first, and what spares
 * the hundreds of thousands of strings of a table.
 */
class Ranks extends Map<string, number> {
  readonly #rank: Rank;
  /** Asked with every pair, as nothing else comes back from the library before a text is done. */
  unwanted = (): boolean => false;

  constructor(rank: Rank) {
    super();
    this.#rank = rank;
  }

  check(): void {
    if (this.unwanted()) throw new Error('the tokens are not wanted any more');
  }

  override get(pair: string): number | undefined {
    this.check();
    const [left, right] = JSON.parse(pair) as [string, string];
    return this.#rank(left, right);
  }
}

/** @throws FrugalError `TOKENIZER_INVALID` for merges or scores that make no sense */
export function createEncodeText(vocabulary: Vocabulary): EncodeText {
  return vocabulary.data.model === 'llama' ? createSentencePiece(vocabulary) : createByteLevel(vocabulary);
}

/**
 * SentencePiece style: spaces are letters ("▁"), the pair whose joined token has the best score is joined
 * first, and what is no token in the end is spelled in bytes.
 */
function createSentencePiece(vocabulary: Vocabulary): EncodeText {
  const { ids, data } = vocabulary;
  const ranks = rankScores(vocabulary);
  const joined = joinsWords(vocabulary);
  const tokenizer = createLibrary(
    vocabulary,
    { byte_fallback: true, ignore_merges: false },
    joined ? null : { type: 'Split', pattern: { Regex: '▁*[^▁]+|▁+' }, invert: true },
  );
  const pairs = new Ranks((left, right) => {
    const id = ids.get(left + right);
    return id === undefined ? undefined : ranks[id];
  });
  const unknown = data.special.unknown ?? 0;
  tokenizer.model.unk_token = vocabulary.texts[unknown];
  tokenizer.model.unk_token_id = unknown;
  const encode = encodeWith(tokenizer, pairs);
  return function* (text, unwanted) {
    for (const slice of joined ? [text] : slices(text)) yield encode(slice.replaceAll(' ', '▁'), unwanted);
  };
}

/**
 * Whether a token goes from one word into the next. Where none does, as in most vocabularies, no join can
 * cross the start of a word, and words can be encoded one by one, which lets the library remember them.
 */
function joinsWords({ texts }: Vocabulary): boolean {
  return texts.some((text) => /[^▁]▁/u.test(text));
}

/** The place of each token's score among all scores, best first; equal scores share a place. */
function rankScores({ data, texts }: Vocabulary): Uint32Array {
  const ranks = new Uint32Array(texts.length);
  const { scores } = data;
  if (scores === undefined) return ranks;
  const wrong = scores.findIndex((score) => Number.isNaN(score));
  if (wrong >= 0) throw invalid(`the score of token ${wrong} is not a number`, { id: wrong });
  const ordered = scores.toSorted().reverse();
  const places = new Map<number, number>();
  for (const score of ordered) if (!places.has(score)) places.set(score, places.size);
  for (const [id, score] of scores.entries()) ranks[id] = places.get(score) ?? 0;
  return ranks;
}

/** Byte-level: the text is cut into words, each byte of a word is a letter, and merges join letters by their order. */
function createByteLevel(vocabulary: Vocabulary): EncodeText {
  const { ids, data } = vocabulary;
  const pre = preTokenizers.get(data.pre);
  if (pre === undefined) throw invalid(`there is no pre-tokeniser "${data.pre}"`, { pre: data.pre });
  const tokenizer = createLibrary(
    vocabulary,
    { byte_fallback: false, ignore_merges: pre.ignoreMerges },
    {
      type: 'Sequence',
      pretokenizers: [
        ...librarySplits(pre),
        { type: 'ByteLevel', add_prefix_space: false, use_regex: false },
      ],
    },
  );
  const merges = indexMerges(vocabulary);
  const pairs = new Ranks((left, right) => {
    const leftId = ids.get(left);
    const rightId = ids.get(right);
    if (leftId === undefined || rightId === undefined) return undefined;
    return merges.get(leftId, rightId);
  });
  const encode = encodeWith(tokenizer, pairs);
  return function* (text, unwanted) {
    for (const slice of slices(text)) yield encode(slice, unwanted);
  };
}

/** Characters of a slice, about: ten milliseconds or so. */
const SLICE = 1 << 14;

/**
 * A text in slices that are encoded as the whole is: every pre-tokeniser begins a word with the space between two ASCII
 * letters, whatever comes before.
 */
export function* slices(text: string): Generator<string> {
  const cut = /[A-Za-z](?= [A-Za-z])/g;
  let from = 0;
  while (text.length - from > SLICE) {
    cut.lastIndex = from + SLICE;
    const found = cut.exec(text);
    if (found === null) break;
    yield text.slice(from, found.index + 1);
    from = found.index + 1;
  }
  yield text.slice(from);
}

function encodeWith(
  tokenizer: LibraryTokenizer,
  pairs: Ranks,
): (text: string, unwanted: () => boolean) => readonly number[] {
  tokenizer.model.bpe_ranks = pairs;
  return (text, unwanted) => {
    pairs.unwanted = unwanted;
    pairs.check();
    return tokenizer.encode(text, { add_special_tokens: false }).ids;
  };
}

/** The ranks of the merges. Each must join two tokens to a third: texts would lose what it makes otherwise. */
function indexMerges({ data, ids }: Vocabulary): PairRanks {
  const merges = new StringArray(data.merges.buffer, data.merges.offsets);
  const ranks = createPairRanks(merges.length);
  let rank = 0;
  for (const merge of merges) {
    // The left part may itself begin with a space, so the first character never separates.
    const space = merge.indexOf(' ', 1);
    const left = ids.get(merge.slice(0, space));
    const right = ids.get(merge.slice(space + 1));
    const isJoin = space > 0 && left !== undefined && right !== undefined;
    if (!isJoin || !ids.has(merge.slice(0, space) + merge.slice(space + 1))) {
      throw invalid(`merge ${rank} (${JSON.stringify(merge)}) does not join two tokens to a third`, {
        rank,
        merge,
      });
    }
    ranks.add(left, right);
    rank++;
  }
  return ranks;
}

function createLibrary(
  vocabulary: Vocabulary,
  model: { byte_fallback: boolean; ignore_merges: boolean },
  preTokenizer: object | null,
): LibraryTokenizer {
  const tokenizer = new tokenizers.Tokenizer(
    {
      added_tokens: [],
      normalizer: null,
      pre_tokenizer: preTokenizer,
      post_processor: null,
      decoder: null,
      model: { type: 'BPE', vocab: {}, merges: [], ...model },
    },
    {},
  ) as LibraryTokenizer;
  // The library would copy the vocabulary through an object with one property per token.
  tokenizer.model.tokens_to_ids = vocabulary.ids;
  return tokenizer;
}
