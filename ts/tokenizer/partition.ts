import { Attribute } from './attributes.js';
import { isSpecial, type Vocabulary } from './vocabulary.js';

/** A piece of a text: a string still to be encoded, or a token. */
export type Piece = string | number;

/** Cuts the special tokens out of a text. */
export type Partition = (text: string, parseSpecial: boolean) => readonly Piece[];

/** What C calls white space, which is what is stripped around special tokens. */
const LEADING_SPACE = /^[ \t-\r]+/;

/**
 * Longer tokens are cut out of the whole text before shorter ones, as llama.cpp does. Where tokens overlap
 * in a text, this is not the same as taking the longest at the leftmost place.
 */
export function createPartition({ texts, lengths, facts }: Vocabulary): Partition {
  const special = [...facts.attributes.keys()]
    .filter((id) => isSpecial(facts.attributes[id] ?? 0) && lengths[id] !== 0)
    .sort((a, b) => (lengths[b] ?? 0) - (lengths[a] ?? 0));
  return (text, parseSpecial) => {
    let pieces: Piece[] = text === '' ? [] : [text];
    for (const id of special) {
      const attribute = facts.attributes[id] ?? 0;
      if (!parseSpecial && (attribute & (Attribute.control | Attribute.unknown)) !== 0) continue;
      const token = texts[id] ?? '';
      // Most texts have few special tokens; without this test each of them would copy the list.
      if (!text.includes(token)) continue;
      const strip = (attribute & Attribute.stripRight) !== 0;
      pieces = pieces.flatMap((piece) => (typeof piece === 'string' ? cut(piece, token, id, strip) : piece));
    }
    return pieces;
  };
}

function cut(text: string, token: string, id: number, stripRight: boolean): Piece[] {
  const parts = text.split(token);
  return parts.flatMap((part, index) => {
    const rest = index > 0 && stripRight ? part.replace(LEADING_SPACE, '') : part;
    const piece: Piece[] = rest === '' ? [] : [rest];
    return index > 0 ? [id, ...piece] : piece;
  });
}
