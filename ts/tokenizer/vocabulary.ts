import { StringArray } from '../gguf/string-array.js';
import { Attribute, attributesOf } from './attributes.js';
import { preTokenizers } from './pre-tokenizers.js';
import { invalid } from './refuse.js';
import type { PackedStrings, VocabularyData, VocabularyFacts } from './types.js';

/** A vocabulary with its texts decoded. */
export interface Vocabulary {
  readonly data: VocabularyData;
  readonly facts: VocabularyFacts;
  /** Text of each token. */
  readonly texts: readonly string[];
  /** Bytes of UTF-8 in the text of each token. */
  readonly lengths: Uint32Array;
  readonly ids: ReadonlyMap<string, number>;
}

/** Texts that end a generation wherever a vocabulary has them. */
const END_TEXTS = [
  '<|eot_id|>',
  '<|im_end|>',
  '<|end|>',
  '<|return|>',
  '<|call|>',
  '<|flush|>',
  '<|calls|>',
  '<end_of_turn>',
  '<|endoftext|>',
  '</s>',
  '<|eom_id|>',
  '<EOT>',
  '_<EOT>',
  '[EOT]',
  '[EOS]',
  '<|end_of_text|>',
  '<end_of_utterance>',
  '<eos>',
  '<turn|>',
  '<|tool_response>',
  '<｜end▁of▁sentence｜>',
  '[e~[',
] as const;

/** Texts that mark parts of code to fill in. Those that stand for "no more" also end a generation. */
const FILL_TEXTS = {
  fimPad: ['<|fim_pad|>', '<fim-pad>', '<fim_pad>', '<PAD>', '[PAD]'],
  fimRepo: ['<|fim_repo|>', '<|repo_name|>', '<fim-repo>', '<REPO>', '<reponame>'],
  fimSeparator: ['<|file_sep|>'],
} as const;

const FILL_MARKS = [
  ...['<|fim_prefix|>', '<fim-prefix>', '<fim_prefix>', '<｜fim▁begin｜>', '<PRE>', '▁<PRE>'],
  ...['<|code_prefix|>', '<|prefix|>'],
  ...['<|fim_suffix|>', '<fim-suffix>', '<fim_suffix>', '<｜fim▁hole｜>', '<SUF>', '▁<SUF>'],
  ...['<|code_suffix|>', '<|suffix|>'],
  ...['<|fim_middle|>', '<fim-middle>', '<fim_middle>', '<｜fim▁end｜>', '<MID>', '▁<MID>'],
  ...['<|code_middle|>', '<|middle|>'],
] as const;

/** Parts of a reply's frame that a reader must see, whatever the file calls them. */
const VISIBLE_TEXTS = ['<|channel|>', '<|message|>', '<|start|>', '<|constrain|>'] as const;

/** @throws FrugalError `TOKENIZER_INVALID` for a text that two tokens share, or BOS or EOS wanted but missing */
export function buildVocabulary(data: VocabularyData): Vocabulary {
  const { texts, lengths } = decodeTexts(data.tokens);
  const ids = indexTexts(texts);
  const attributes = attributesOf(data.types, texts.length);
  const endTokens = findEndTokens(data, ids, attributes);
  markStripping(data.modelName, ids, attributes);
  return {
    data,
    facts: { ...beginAndEnd(data, attributes), endTokens: [...endTokens].sort((a, b) => a - b), attributes },
    texts,
    lengths,
    ids,
  };
}

function decodeTexts(tokens: PackedStrings): { texts: string[]; lengths: Uint32Array } {
  const strings = new StringArray(tokens.buffer, tokens.offsets);
  const texts = new Array<string>(strings.length);
  const lengths = new Uint32Array(strings.length);
  for (let id = 0; id < strings.length; id++) {
    const length = (tokens.offsets[id + 1] ?? 0) - (tokens.offsets[id] ?? 0);
    // A token without text could never be told apart from others without text.
    texts[id] = length === 0 ? `[EMPTY_${id}]` : strings.at(id);
    lengths[id] = length;
  }
  return { texts, lengths };
}

function indexTexts(texts: readonly string[]): Map<string, number> {
  const ids = new Map<string, number>();
  for (const [id, text] of texts.entries()) {
    const other = ids.get(text);
    if (other === undefined) {
      ids.set(text, id);
    } else if (!text.includes('\uFFFD')) {
      // Texts that are not UTF-8 look alike once decoded; no text can contain them anyway.
      throw invalid(`tokens ${other} and ${id} are both ${JSON.stringify(text)}`, { text, ids: [other, id] });
    }
  }
  return ids;
}

/** Collects the end tokens and marks the tokens whose text is that of a control token as such. */
function findEndTokens(
  data: VocabularyData,
  ids: ReadonlyMap<string, number>,
  attributes: Uint8Array,
): Set<number> {
  const end = new Set<number>();
  const mark = (text: string, ends: boolean): void => {
    const id = ids.get(text);
    if (id === undefined) return;
    attributes[id] = (attributes[id] ?? 0) | Attribute.control;
    if (ends) end.add(id);
  };
  for (const text of END_TEXTS) mark(text, true);
  for (const text of FILL_MARKS) mark(text, false);
  for (const name of ['fimPad', 'fimRepo', 'fimSeparator'] as const) {
    const id = data.special[name];
    if (id !== undefined) end.add(id);
    else for (const text of FILL_TEXTS[name]) mark(text, true);
  }
  for (const text of VISIBLE_TEXTS) {
    const id = ids.get(text);
    if (id !== undefined) attributes[id] = Attribute.userDefined;
  }
  for (const id of [eosOf(data, attributes), data.special.eot, data.special.eom]) {
    if (id !== undefined) end.add(id);
  }
  dropFalseEnds(end, ids, attributes);
  return end;
}

/** Takes out what ends a generation elsewhere but only a part of it in vocabularies with these other tokens. */
function dropFalseEnds(end: Set<number>, ids: ReadonlyMap<string, number>, attributes: Uint8Array): void {
  const ends = (text: string): boolean => end.has(ids.get(text) ?? -1);
  const drop = (text: string, attribute: number): void => {
    const id = ids.get(text);
    if (id !== undefined && end.delete(id)) attributes[id] = attribute;
  };
  if ((ends('<|call|>') || ends('<|calls|>')) && (ends('<|return|>') || ends('<|flush|>'))) {
    drop('<|end|>', Attribute.userDefined);
  }
  if (ends('<|tool_response>')) drop('</s>', Attribute.normal);
}

/** Phi-3 models take no white space after special tokens; files do not say so except by the model's name. */
function markStripping(modelName: string, ids: ReadonlyMap<string, number>, attributes: Uint8Array): void {
  if (!/phi-?3/i.test(modelName)) return;
  const kept = new Set(['<unk>', '<s>', '<|endoftext|>'].map((text) => ids.get(text)));
  const end = ids.get('</s>');
  for (const [id, attribute] of attributes.entries()) {
    const strips = isSpecial(attribute) || id === end;
    if (strips && !kept.has(id)) attributes[id] = attribute | Attribute.stripRight;
  }
}

/** Whether a token is recognised in a text as a whole, before the rest is cut up. */
export function isSpecial(attribute: number): boolean {
  return (attribute & (Attribute.control | Attribute.userDefined | Attribute.unknown)) !== 0;
}

type Boundaries = Pick<VocabularyFacts, 'bos' | 'eos' | 'addBos' | 'addEos'>;

function beginAndEnd(data: VocabularyData, attributes: Uint8Array): Boundaries {
  const bos = bosOf(data, attributes);
  const eos = eosOf(data, attributes);
  for (const [name, wanted, id] of [
    ['bos', data.addBos, bos],
    ['eos', data.addEos, eos],
  ] as const) {
    if (wanted === true && id === undefined) {
      throw invalid(`tokenizer.ggml.add_${name}_token is true, but there is no ${name.toUpperCase()} token`, {
        key: `tokenizer.ggml.${name}_token_id`,
      });
    }
  }
  const byDefault = data.model === 'llama' || (preTokenizers.get(data.pre)?.addBos ?? false);
  return { bos, eos, addBos: bos !== undefined && (data.addBos ?? byDefault), addEos: data.addEos ?? false };
}

function bosOf(data: VocabularyData, attributes: Uint8Array): number | undefined {
  return data.special.bos ?? usual(data, attributes, { llama: 1, gpt2: 11 });
}

function eosOf(data: VocabularyData, attributes: Uint8Array): number | undefined {
  return data.special.eos ?? usual(data, attributes, { llama: 2, gpt2: 11 });
}

/**
 * The token that stands for BOS or EOS in files that name none: `<s>` and `</s>` of Llama, and token 11 of the
 * first Falcon files. In other byte-level vocabularies 11 is a plain word, so it must be a control token.
 */
function usual(
  data: VocabularyData,
  attributes: Uint8Array,
  byModel: Readonly<Record<VocabularyData['model'], number>>,
): number | undefined {
  const id = byModel[data.model];
  const attribute = attributes[id];
  if (attribute === undefined) return undefined;
  return data.model === 'llama' || (attribute & Attribute.control) !== 0 ? id : undefined;
}
