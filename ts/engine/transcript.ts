/** Tokens in four bytes each, and half as much in room for more: a list of numbers takes two to three times that. */
export interface TokenList {
  readonly length: number;
  push(token: number): void;
  /** The first `end` of them, until the next `push`. @default all */
  view(end?: number): Uint32Array;
}

/** A text in pieces, joined as they come: kept as a chain, each would take 50 bytes more. */
export interface TextList {
  push(piece: string): void;
  text(): string;
}

const FIRST_ROOM = 64;
/** Pieces that are joined at a time. */
const JOINED = 1024;

export function createTokenList(): TokenList {
  let room = new Uint32Array(FIRST_ROOM);
  let length = 0;
  return {
    get length() {
      return length;
    },
    push(token) {
      if (length === room.length) {
        const larger = new Uint32Array(length + (length >> 1));
        larger.set(room);
        room = larger;
      }
      room[length++] = token;
    },
    view: (end = length) => room.subarray(0, Math.min(end, length)),
  };
}

export function createTextList(): TextList {
  let joined: string[] = [];
  let pieces: string[] = [];
  return {
    push(piece) {
      if (pieces.push(piece) < JOINED) return;
      joined.push(pieces.join(''));
      pieces = [];
    },
    text() {
      const whole = [...joined, ...pieces].join('');
      [joined, pieces] = [[whole], []];
      return whole;
    },
  };
}
