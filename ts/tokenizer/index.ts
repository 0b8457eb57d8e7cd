import { invalidArgument } from '../errors.js';
import type { GgufMetadata, StringArray } from '../gguf/index.js';
import { checkToken, createDetokenization } from './detokenizer.js';
import { openEncoder } from './encoder.js';
import { readVocabulary } from './metadata.js';
import type { OpenEncoder, Tokenizer } from './types.js';

export type {
  Detokenizer,
  DetokenizerTables,
  EncodeOptions,
  Tokenizer,
} from './types.js';

export interface TokenizerOptions {
  /** Stops the building of the vocabulary. */
  signal?: AbortSignal;
  /** Where encoding is done. @default a thread of its own in Node, the calling thread elsewhere */
  openEncoder?: OpenEncoder;
}

/**
 * Builds the tokeniser that a GGUF file describes: `tokenizer.ggml.model` `llama` (SentencePiece style) or
 * `gpt2` (byte-level BPE). It splits texts exactly as llama.cpp does.
 *
 * @throws FrugalError `TOKENIZER_UNSUPPORTED` for an unknown model or pre-tokeniser, `TOKENIZER_INVALID` for
 *   a vocabulary that contradicts itself, `METADATA_MISSING`, `METADATA_INVALID`
 * @throws the reason of `options.signal` once it is aborted
 */
export async function createTokenizer(
  metadata: GgufMetadata,
  options: TokenizerOptions = {},
): Promise<Tokenizer> {
  const { signal } = options;
  signal?.throwIfAborted();
  if (typeof metadata?.strings !== 'function')
    throw invalidArgument('metadata', 'the metadata of an opened GGUF model', metadata);
  const data = readVocabulary(metadata);
  const tokens = metadata.strings('tokenizer.ggml.tokens');
  const encoder = await (options.openEncoder ?? openEncoder)(data, signal);
  const { facts } = encoder;
  const tables = {
    tokens: data.tokens,
    model: data.model,
    addSpacePrefix: data.addSpacePrefix,
    attributes: facts.attributes,
    bos: facts.bos,
  };
  return {
    ...createDetokenization(tables),
    tables,
    vocabSize: tokens.length,
    model: data.model,
    bos: facts.bos,
    eos: facts.eos,
    endTokens: new Set(facts.endTokens),
    addBos: facts.addBos,
    encode(text, { addSpecial = true, parseSpecial = false, signal: encodeSignal } = {}) {
      return encoder.encode(text, { addSpecial, parseSpecial }, encodeSignal);
    },
    tokenText(id) {
      checkToken(id, tokens.length);
      return tokens.at(id);
    },
    tokenId: (text) => findToken(tokens, new TextEncoder().encode(text)),
    dispose: () => encoder.dispose(),
  };
}

/** Looks through the bytes of all tokens: about a millisecond, where an index would take far longer to build. */
function findToken({ buffer, offsets, length }: StringArray, wanted: Uint8Array): number | undefined {
  if (wanted.length === 0) return undefined;
  for (let id = 0; id < length; id++) {
    const start = offsets[id] ?? 0;
    if ((offsets[id + 1] ?? 0) - start !== wanted.length) continue;
    let same = 0;
    while (same < wanted.length && buffer[start + same] === wanted[same]) same++;
    if (same === wanted.length) return id;
  }
  return undefined;
}
