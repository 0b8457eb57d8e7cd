import { FrugalError } from '../errors.js';
import type { StringArray } from '../gguf/index.js';
import { Attribute } from './attributes.js';
import type { DecodeOptions, Detokenizer, VocabularyData, VocabularyFacts } from './types.js';

const NOTHING = new Uint8Array(0);
const SPACE = 0x20;
/** "▁", which stands for a space in SentencePiece style. */
const MARK = [0xe2, 0x96, 0x81] as const;
const BYTE_TOKEN = /^<0x([0-9A-Fa-f]{2})>$/;

const encoder = new TextEncoder();

/** The byte that each letter of the byte-level alphabet stands for, by code point; -1 for other letters. */
const BYTE_OF_LETTER = byteLevelAlphabet();

/**
 * Printable Latin-1 stands for itself; the other 68 byte values are the letters from U+0100 on, in order.
 */
function byteLevelAlphabet(): Int16Array {
  const alphabet = new Int16Array(0x100 + 68).fill(-1);
  let next = 0x100;
  for (let byte = 0; byte < 0x100; byte++) {
    const printable = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad);
    alphabet[printable ? byte : next++] = byte;
  }
  return alphabet;
}

/** Tokens back to bytes and text. Each token is decoded when it is asked for, from the bytes of the file. */
export interface Detokenization {
  decode(tokens: Iterable<number>, options?: DecodeOptions): string;
  stream(options?: DecodeOptions): Detokenizer;
}

export function createDetokenization(
  tokens: StringArray,
  data: Pick<VocabularyData, 'model' | 'addSpacePrefix'>,
  facts: Pick<VocabularyFacts, 'attributes' | 'bos'>,
): Detokenization {
  const bytesOf = data.model === 'llama' ? sentencePieceBytes : byteLevelBytes;
  const piece = (id: number, special: boolean): Uint8Array => {
    checkToken(id, tokens.length);
    const attribute = facts.attributes[id] ?? 0;
    if ((attribute & (Attribute.control | Attribute.unknown)) !== 0) {
      return special ? tokens.bytes(id) : NOTHING;
    }
    if ((attribute & Attribute.userDefined) !== 0) return tokens.bytes(id);
    if ((attribute & Attribute.normal) !== 0) return bytesOf(tokens, id);
    return (attribute & Attribute.byte) !== 0 ? byteTokenBytes(tokens.at(id)) : NOTHING;
  };
  return {
    decode(ids, { special = false } = {}) {
      const pieces: Uint8Array[] = [];
      let atStart = data.addSpacePrefix;
      for (const id of ids) {
        const bytes = piece(id, special);
        pieces.push(atStart && bytes[0] === SPACE ? bytes.subarray(1) : bytes);
        atStart &&= id === facts.bos && pieces.length === 1;
      }
      return decodeLossy(pieces);
    },
    stream: ({ special = false } = {}) => createStream((id) => piece(id, special)),
  };
}

/** @throws FrugalError `INVALID_ARGUMENT` when `id` is no token */
export function checkToken(id: number, count: number): void {
  if (Number.isInteger(id) && id >= 0 && id < count) return;
  throw new FrugalError('INVALID_ARGUMENT', `${id} is not a token; tokens are 0 to ${count - 1}`, {
    cure: 'Give token ids of this model, as encode() returns them.',
    data: { id, count },
  });
}

/** The decoder of the platform keeps unfinished characters back and replaces invalid bytes. */
function createStream(piece: (id: number) => Uint8Array): Detokenizer {
  const decoder = new TextDecoder('utf-8', { ignoreBOM: true });
  return {
    push: (token) => decoder.decode(piece(token), { stream: true }),
    end: () => decoder.decode(),
  };
}

function decodeLossy(pieces: readonly Uint8Array[]): string {
  const all = new Uint8Array(pieces.reduce((total, piece) => total + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    all.set(piece, at);
    at += piece.length;
  }
  return new TextDecoder('utf-8', { ignoreBOM: true }).decode(all);
}

function sentencePieceBytes(tokens: StringArray, id: number): Uint8Array {
  const bytes = tokens.bytes(id).slice();
  let length = 0;
  for (let i = 0; i < bytes.length; ) {
    const isMark = bytes[i] === MARK[0] && bytes[i + 1] === MARK[1] && bytes[i + 2] === MARK[2];
    bytes[length++] = isMark ? SPACE : (bytes[i] ?? 0);
    i += isMark ? MARK.length : 1;
  }
  return bytes.subarray(0, length);
}

function byteLevelBytes(tokens: StringArray, id: number): Uint8Array {
  const bytes: number[] = [];
  for (const letter of tokens.at(id)) {
    const byte = BYTE_OF_LETTER[letter.codePointAt(0) ?? 0] ?? -1;
    // A letter outside the alphabet stands for no byte; it is shown as it is.
    if (byte >= 0) bytes.push(byte);
    else bytes.push(...encoder.encode(letter));
  }
  return Uint8Array.from(bytes);
}

function byteTokenBytes(text: string): Uint8Array {
  const hex = BYTE_TOKEN.exec(text)?.[1];
  return hex === undefined ? NOTHING : Uint8Array.of(Number.parseInt(hex, 16));
}
