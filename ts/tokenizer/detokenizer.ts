import { FrugalError } from '../errors.js';
import { Attribute } from './attributes.js';
import type { DecodeOptions, Detokenizer, DetokenizerTables } from './types.js';

const SPACE = 0x20;
/** "▁", which stands for a space in SentencePiece style. */
const MARK = [0xe2, 0x96, 0x81] as const;

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

/** Bytes that grow as tokens are written. */
interface Output {
  bytes: Uint8Array;
  length: number;
}

/** Writes the bytes from `start` to `end` of the vocabulary to `output`, which has room for them. */
type WriteBytes = (from: Uint8Array, start: number, end: number, output: Output) => void;

/** Tokens back to text, from the bytes of the file: nothing is prepared, so nothing has to be kept. */
export interface Detokenization {
  decode(tokens: Iterable<number>, options?: DecodeOptions): string;
  stream(options?: DecodeOptions): Detokenizer;
}

export function createDetokenization(tables: DetokenizerTables): Detokenization {
  const { attributes, bos, addSpacePrefix } = tables;
  const { buffer, offsets } = tables.tokens;
  const count = offsets.length - 1;
  const writeNormal = tables.model === 'llama' ? writeSentencePiece : writeByteLevel;
  const write = (id: number, special: boolean, output: Output): void => {
    checkToken(id, count);
    const writeBytes = writerOf(attributes[id] ?? 0, special, writeNormal);
    if (writeBytes === undefined) return;
    const start = offsets[id] ?? 0;
    const end = offsets[id + 1] ?? 0;
    makeRoom(output, end - start);
    writeBytes(buffer, start, end, output);
  };
  return {
    decode(ids, { special = false } = {}) {
      const output = createOutput(1024);
      let textStart = 0;
      let position = 0;
      for (const id of ids) {
        write(id, special, output);
        if (position++ === 0 && id === bos) textStart = output.length;
      }
      if (addSpacePrefix && output.length > textStart && output.bytes[textStart] === SPACE) {
        output.bytes.copyWithin(textStart, textStart + 1, output.length);
        output.length--;
      }
      return createDecoder().decode(output.bytes.subarray(0, output.length));
    },
    stream({ special = false } = {}) {
      // The decoder of the platform keeps unfinished characters back and replaces invalid bytes.
      const decoder = createDecoder();
      const output = createOutput(64);
      return {
        push(token) {
          output.length = 0;
          write(token, special, output);
          return decoder.decode(output.bytes.subarray(0, output.length), { stream: true });
        },
        end: () => decoder.decode(),
      };
    },
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

/** How a token is written; undefined when it has no text. */
function writerOf(attribute: number, special: boolean, writeNormal: WriteBytes): WriteBytes | undefined {
  if ((attribute & (Attribute.control | Attribute.unknown)) !== 0) return special ? writeAsIs : undefined;
  if ((attribute & Attribute.userDefined) !== 0) return writeAsIs;
  if ((attribute & Attribute.normal) !== 0) return writeNormal;
  return (attribute & Attribute.byte) !== 0 ? writeByteToken : undefined;
}

function createDecoder(): TextDecoder {
  return new TextDecoder('utf-8', { ignoreBOM: true });
}

function createOutput(room: number): Output {
  return { bytes: new Uint8Array(room), length: 0 };
}

function makeRoom(output: Output, more: number): void {
  const needed = output.length + more;
  if (needed <= output.bytes.length) return;
  const bytes = new Uint8Array(Math.max(needed, 2 * output.bytes.length));
  bytes.set(output.bytes.subarray(0, output.length));
  output.bytes = bytes;
}

function writeAsIs(from: Uint8Array, start: number, end: number, output: Output): void {
  for (let i = start; i < end; i++) output.bytes[output.length++] = from[i] ?? 0;
}

function writeSentencePiece(from: Uint8Array, start: number, end: number, output: Output): void {
  for (let i = start; i < end; ) {
    const isMark = i + 2 < end && from[i] === MARK[0] && from[i + 1] === MARK[1] && from[i + 2] === MARK[2];
    output.bytes[output.length++] = isMark ? SPACE : (from[i] ?? 0);
    i += isMark ? MARK.length : 1;
  }
}

/** The letters of the alphabet take one or two bytes; other letters stand for no byte and stay as they are. */
function writeByteLevel(from: Uint8Array, start: number, end: number, output: Output): void {
  for (let i = start; i < end; ) {
    const first = from[i] ?? 0;
    const isPair = first >= 0xc2 && first <= 0xc5 && i + 1 < end;
    const letter = isPair ? ((first & 0x1f) << 6) | ((from[i + 1] ?? 0) & 0x3f) : first;
    const byte = first < 0x80 || isPair ? (BYTE_OF_LETTER[letter] ?? -1) : -1;
    if (byte >= 0) output.bytes[output.length++] = byte;
    else writeAsIs(from, i, isPair ? i + 2 : i + 1, output);
    i += isPair ? 2 : 1;
  }
}

/** A token that is spelled `<0x0A>` and stands for that byte. */
function writeByteToken(from: Uint8Array, start: number, end: number, output: Output): void {
  const hex = /^<0x([0-9A-Fa-f]{2})>$/.exec(
    String.fromCharCode(...from.subarray(start, Math.min(end, start + 7))),
  )?.[1];
  if (hex !== undefined) output.bytes[output.length++] = Number.parseInt(hex, 16);
}
