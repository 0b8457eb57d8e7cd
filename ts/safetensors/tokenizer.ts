import { FrugalError } from '../errors.js';
import { type GgufValue, StringArray } from '../gguf/index.js';
import { TokenType } from '../tokenizer/attributes.js';
import type { ModelConfig } from './config.js';
import { type Fields, fieldsOf, isObject } from './fields.js';
import { byteLevelPre, spacePrefix, unsupportedTokenizer } from './pre-tokenizer.js';

export interface TokenizerExtras {
  /** tokenizer_config.json. */
  readonly settings: Fields | undefined;
  /** chat_template.jinja. */
  readonly template: string | undefined;
  readonly config: ModelConfig;
}

/** The vocabulary of tokenizer.json, a list by id. */
interface Vocabulary {
  readonly texts: string[];
  readonly types: Int32Array;
  readonly ids: Map<string, number>;
}

const PREFIX = 'tokenizer.ggml.';
const BYTE_TOKEN = /^<0x[0-9A-F]{2}>$/;
/** Below every score that a merge gives. */
const UNMERGED = -1e9;

/**
 * The `tokenizer.*` metadata of a GGUF file from tokenizer.json: byte-level BPE with a known way of cutting
 * words, or SentencePiece style BPE with byte fallback.
 * @throws FrugalError `TOKENIZER_UNSUPPORTED`, `TOKENIZER_INVALID`, `METADATA_MISSING`, `METADATA_INVALID`
 */
export function tokenizerMetadata(tokenizer: Fields, extras: TokenizerExtras): Map<string, GgufValue> {
  const model = tokenizer.need('model', tokenizer.object('model'));
  const kind = model.string('type') ?? 'BPE';
  if (kind !== 'BPE') throw unsupportedTokenizer(`a vocabulary of the type ${kind.slice(0, 40)}`, 'BPE');
  const isSentencePiece = model.boolean('byte_fallback') ?? false;
  const vocabulary = readVocabulary(tokenizer, model, extras.config, isSentencePiece);
  const merges = readMerges(model, vocabulary);
  const out = new Map<string, GgufValue>();
  const set = (key: string, value: GgufValue) => void out.set(`${PREFIX}${key}`, value);
  set('model', text(isSentencePiece ? 'llama' : 'gpt2'));
  set('pre', text(isSentencePiece ? 'default' : byteLevelPre(tokenizer, model)));
  set('tokens', strings(vocabulary.texts));
  if (isSentencePiece) {
    set('scores', { kind: 'array[float32]', value: scoresOf(merges, vocabulary) });
    set('add_space_prefix', { kind: 'bool', value: spacePrefix(tokenizer) });
  } else {
    set('merges', strings(merges.map(([left, right]) => `${left} ${right}`)));
  }
  set('token_type', { kind: 'array[int32]', value: vocabulary.types });
  setSpecial(set, tokenizer, model, vocabulary, extras);
  const template = extras.template ?? templateOf(extras.settings);
  if (template !== undefined) out.set('tokenizer.chat_template', text(template));
  return out;
}

type Setter = (key: string, value: GgufValue) => void;

function text(value: string): GgufValue {
  return { kind: 'string', value: new TextEncoder().encode(value) };
}

function strings(values: readonly string[]): GgufValue {
  const encoder = new TextEncoder();
  const encoded = values.map((value) => encoder.encode(value));
  const offsets = new Uint32Array(values.length + 1);
  for (const [i, bytes] of encoded.entries()) offsets[i + 1] = (offsets[i] ?? 0) + bytes.length;
  const buffer = new Uint8Array(offsets[values.length] ?? 0);
  for (const [i, bytes] of encoded.entries()) buffer.set(bytes, offsets[i]);
  return { kind: 'array[string]', value: new StringArray(buffer, offsets) };
}

function invalidTokenizer(problem: string, data: Record<string, unknown>): FrugalError {
  return new FrugalError('TOKENIZER_INVALID', `tokenizer.json: ${problem}`, {
    cure: 'Fetch the file again, of the same release as the weights.',
    data,
  });
}

/** Every id below the model's vocabulary size gets a token: those that no text has are unused. */
function readVocabulary(
  tokenizer: Fields,
  model: Fields,
  config: ModelConfig,
  isSentencePiece: boolean,
): Vocabulary {
  const { vocabSize } = config;
  const texts = new Array<string>(vocabSize).fill('');
  const types = new Int32Array(vocabSize).fill(TokenType.unused);
  const put = (token: string, id: unknown, type: number): void => {
    if (typeof id !== 'number' || !Number.isInteger(id) || id < 0 || id >= vocabSize) {
      const what = `the token ${JSON.stringify(token.slice(0, 60))} has the id ${String(id).slice(0, 20)}`;
      throw invalidTokenizer(`${what}; the model has ${vocabSize} (ids from 0)`, { token, id, vocabSize });
    }
    const other = types[id] === TokenType.unused ? token : texts[id];
    if (other !== token)
      throw invalidTokenizer(`the id ${id} is of two tokens`, { id, tokens: [other, token] });
    texts[id] = token;
    types[id] = type;
  };
  const vocab = model.need('vocab', model.object('vocab'));
  for (const token of vocab.keys()) {
    const isByte = isSentencePiece && BYTE_TOKEN.test(token);
    put(token, vocab.raw(token), isByte ? TokenType.byte : TokenType.normal);
  }
  const added = tokenizer.raw('added_tokens') ?? [];
  if (!Array.isArray(added)) throw tokenizer.invalid('added_tokens', 'a list');
  for (const entry of added) {
    const fields = fieldsOf('tokenizer.json: an added token', entry);
    const content = fields.need('content', fields.string('content'));
    put(content, fields.raw('id'), fields.boolean('special') ? TokenType.control : TokenType.userDefined);
  }
  const unknown = model.string('unk_token');
  const ids = new Map<string, number>();
  for (const [id, token] of texts.entries()) {
    if (types[id] === TokenType.unused) texts[id] = `[PAD${id}]`;
    else ids.set(token, id);
    if (isSentencePiece && token === unknown) types[id] = TokenType.unknown;
  }
  return { texts, types, ids };
}

/** Pairs to be joined, best first: written "left right", or as lists of two in newer files. */
function readMerges(model: Fields, { ids }: Vocabulary): (readonly [string, string])[] {
  const merges = model.raw('merges');
  if (!Array.isArray(merges)) throw model.invalid('merges', 'a list');
  return merges.map((merge: unknown, rank) => {
    const pair = typeof merge === 'string' ? merge.split(' ') : merge;
    if (Array.isArray(pair) && pair.length === 2) {
      const [left, right] = pair;
      const known = typeof left === 'string' && typeof right === 'string';
      if (known && ids.has(left) && ids.has(right) && ids.has(left + right)) return [left, right];
    }
    const shown = (JSON.stringify(merge) ?? 'nothing').slice(0, 80);
    throw invalidTokenizer(`merge ${rank} (${shown}) does not join two tokens to a third`, { rank });
  });
}

/** SentencePiece joins the pair whose token has the best score: that of the first merge that makes it. */
function scoresOf(
  merges: readonly (readonly [string, string])[],
  { texts, types, ids }: Vocabulary,
): Float32Array {
  const scores = new Float32Array(texts.length);
  for (const [id, token] of texts.entries()) {
    if (types[id] === TokenType.normal && [...token].length > 1) scores[id] = UNMERGED;
  }
  for (const [rank, [left, right]] of merges.entries()) {
    const id = ids.get(left + right) ?? 0;
    if (scores[id] === UNMERGED || scores[id] === 0) scores[id] = -1 - rank;
  }
  return scores;
}

function setSpecial(
  set: Setter,
  tokenizer: Fields,
  model: Fields,
  { ids }: Vocabulary,
  { settings, config }: TokenizerExtras,
): void {
  const found: Partial<Record<string, number>> = {};
  for (const name of ['bos', 'eos', 'unk', 'pad']) {
    const named =
      tokenText(settings?.raw(`${name}_token`)) ?? (name === 'unk' ? model.string('unk_token') : undefined);
    const id = (named === undefined ? undefined : ids.get(named)) ?? configId(config, name);
    if (id === undefined) continue;
    found[name] = id;
    const key = { bos: 'bos', eos: 'eos', unk: 'unknown', pad: 'padding' }[name];
    set(`${key}_token_id`, { kind: 'uint32', value: id });
  }
  const around = templateEnds(tokenizer);
  for (const name of ['bos', 'eos']) {
    const asked = settings?.boolean(`add_${name}_token`);
    const byTemplate = name === 'bos' ? around?.first : around?.last;
    const id = found[name];
    const value =
      around === undefined ? (asked ?? false) : byTemplate !== undefined && ids.get(byTemplate) === id;
    set(`add_${name}_token`, { kind: 'bool', value: id !== undefined && value });
  }
}

/** A token as tokenizer_config.json names it: its text, or an object that holds it. */
function tokenText(value: unknown): string | undefined {
  if (typeof value === 'string') return value;
  return isObject(value) && typeof value.content === 'string' ? value.content : undefined;
}

/** The id that config.json gives, the first of several. */
function configId({ fields, vocabSize }: ModelConfig, name: string): number | undefined {
  const value = fields.raw(`${name}_token_id`);
  const id: unknown = Array.isArray(value) ? value[0] : value;
  const valid = typeof id === 'number' && Number.isInteger(id) && id >= 0 && id < vocabSize;
  return valid ? id : undefined;
}

/**
 * The special tokens that the post-processor puts before and after a text; undefined where no template
 * decides it.
 */
function templateEnds(
  tokenizer: Fields,
): { first: string | undefined; last: string | undefined } | undefined {
  const processor = tokenizer.raw('post_processor');
  const all = isObject(processor) && Array.isArray(processor.processors) ? processor.processors : [processor];
  const template: unknown = all.find((each) => isObject(each) && each.type === 'TemplateProcessing');
  if (!isObject(template) || !Array.isArray(template.single)) return undefined;
  const special = (item: unknown): string | undefined => {
    const token = isObject(item) ? item.SpecialToken : undefined;
    return isObject(token) && typeof token.id === 'string' ? token.id : undefined;
  };
  return { first: special(template.single[0]), last: special(template.single.at(-1)) };
}

/** One template, or the one called "default" of several. */
function templateOf(settings: Fields | undefined): string | undefined {
  const value = settings?.raw('chat_template');
  if (typeof value === 'string' || !Array.isArray(value))
    return typeof value === 'string' ? value : undefined;
  const entry: unknown = value.find((each) => isObject(each) && each.name === 'default') ?? value[0];
  return isObject(entry) && typeof entry.template === 'string' ? entry.template : undefined;
}
