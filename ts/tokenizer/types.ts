import type { FrugalError } from '../errors.js';
import type { StringArray } from '../gguf/index.js';

/** Text to token ids and back, as the model file asks. Ids are 0 to `vocabSize - 1`. */
export interface Tokenizer {
  readonly vocabSize: number;
  /** `tokenizer.ggml.model` of the file: `llama` or `gpt2`. */
  readonly model: string;
  readonly bos: number | undefined;
  readonly eos: number | undefined;
  /** Every token that ends a generation: end of text, of turn, of message, and the like. */
  readonly endTokens: ReadonlySet<number>;
  /** Whether `encode` puts BOS first when `addSpecial` is on. */
  readonly addBos: boolean;
  /** Rejects with `signal.reason` when aborted, with DISPOSED after `dispose()`. */
  encode(text: string, options?: EncodeOptions): Promise<Uint32Array>;
  /**
   * The text of a whole sequence. Where encoding puts a space before the text (SentencePiece style), the
   * one space at the start, also after a leading BOS, is taken off again: `decode(await encode(t)) === t`.
   * Bytes that are not UTF-8 become U+FFFD. Throws INVALID_ARGUMENT for an id outside the vocabulary.
   */
  decode(tokens: Iterable<number>, options?: DecodeOptions): string;
  /** Text of a continuation, token by token. A leading space is kept: it separates words. */
  stream(options?: DecodeOptions): Detokenizer;
  /** What turns tokens into text, as plain data, for another thread. */
  readonly tables: DetokenizerTables;
  /** The token as the vocabulary spells it, for example `<s>`, `▁the` or `Ġthe`. */
  tokenText(id: number): string;
  /** The id of the token that the vocabulary spells this way. */
  tokenId(text: string): number | undefined;
  /** Ends what works in the background. Calls under way reject with DISPOSED. */
  dispose(): Promise<void>;
}

export interface EncodeOptions {
  /** Adds BOS and EOS where the file asks for them. @default true */
  addSpecial?: boolean;
  /**
   * Recognises control tokens such as `<|im_end|>` written in the text. Leave it off for text that
   * someone else wrote. User-defined tokens are recognised either way. @default false
   */
  parseSpecial?: boolean;
  signal?: AbortSignal;
}

export interface DecodeOptions {
  /** Writes control tokens out instead of leaving them out. @default false */
  special?: boolean;
}

/** Turns tokens into text as they come. */
export interface Detokenizer {
  /** The characters that this token completes; bytes of an unfinished character wait for the next. */
  push(token: number): string;
  /** What is left: an unfinished character becomes U+FFFD. */
  end(): string;
}

/** The parts of a `StringArray`, which can cross to another thread where its class cannot. */
export type PackedStrings = Pick<StringArray, 'buffer' | 'offsets'>;

/** All that detokenising needs. */
export interface DetokenizerTables {
  readonly tokens: PackedStrings;
  readonly model: VocabularyData['model'];
  readonly addSpacePrefix: boolean;
  readonly attributes: Uint8Array;
  readonly bos: number | undefined;
}

/** Token ids that the file names, each within the vocabulary. */
export type SpecialName = 'bos' | 'eos' | 'eot' | 'eom' | 'unknown' | 'fimPad' | 'fimRepo' | 'fimSeparator';

/** All that encoding needs, as plain data: it crosses to the thread that does the work. */
export interface VocabularyData {
  readonly model: 'llama' | 'gpt2';
  /** `tokenizer.ggml.pre`; only for `gpt2`. */
  readonly pre: string;
  /** `general.name`, which decides how special tokens treat the space after them. */
  readonly modelName: string;
  readonly tokens: PackedStrings;
  /** Pairs "left right", best first; empty for `llama`. */
  readonly merges: PackedStrings;
  /** One per token, or none. */
  readonly scores: Float32Array | undefined;
  /** `TokenType` of each token, or none when all are normal. */
  readonly types: Int32Array | undefined;
  readonly special: Readonly<Partial<Record<SpecialName, number>>>;
  readonly addSpacePrefix: boolean;
  readonly addBos: boolean | undefined;
  readonly addEos: boolean | undefined;
}

/** What is found out about a vocabulary when it is built. */
export interface VocabularyFacts {
  readonly bos: number | undefined;
  readonly eos: number | undefined;
  readonly endTokens: readonly number[];
  readonly addBos: boolean;
  readonly addEos: boolean;
  /** `Attribute` bits of each token. */
  readonly attributes: Uint8Array;
}

export interface EncodeFlags {
  readonly addSpecial: boolean;
  readonly parseSpecial: boolean;
}

/** Does the encoding, on this thread or another. */
export interface Encoder {
  readonly facts: VocabularyFacts;
  encode(text: string, flags: EncodeFlags, signal?: AbortSignal): Promise<Uint32Array>;
  dispose(): Promise<void>;
}

/** Builds an encoder. Rejects with TOKENIZER_INVALID for a bad vocabulary. */
export type OpenEncoder = (data: VocabularyData, signal?: AbortSignal) => Promise<Encoder>;

/** A FrugalError as it crosses a thread. */
export type ErrorData = Pick<FrugalError, 'code' | 'message' | 'cure' | 'data'>;
