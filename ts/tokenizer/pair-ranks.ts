/** Pairs of token ids by rank, in a hash table of numbers: a Map would take three times the memory. */
export interface PairRanks {
  /** Keeps the rank that a pair was given first. Ranks are 0, 1, 2, ... in the order of adding. */
  add(left: number, right: number): void;
  /** The rank of a pair, or undefined. */
  get(left: number, right: number): number | undefined;
}

/** @param capacity the most pairs that will be added */
export function createPairRanks(capacity: number): PairRanks {
  const bits = Math.ceil(Math.log2(Math.max(2, 2 * capacity)));
  const mask = 2 ** bits - 1;
  const lefts = new Uint32Array(capacity);
  const rights = new Uint32Array(capacity);
  /** Rank + 1, or 0 for a free slot; a pair is in the first slot from its own on that is not another's. */
  const slots = new Uint32Array(mask + 1);
  let count = 0;
  const findSlot = (left: number, right: number): number => {
    let slot = (Math.imul(left, 0x9e3779b1) ^ Math.imul(right, 0x85ebca6b)) >>> (32 - bits);
    for (;;) {
      const rank = (slots[slot] ?? 0) - 1;
      if (rank < 0 || (lefts[rank] === left && rights[rank] === right)) return slot;
      slot = (slot + 1) & mask;
    }
  };
  return {
    add(left, right) {
      const slot = findSlot(left, right);
      lefts[count] = left;
      rights[count] = right;
      count++;
      if (slots[slot] === 0) slots[slot] = count;
    },
    get(left, right) {
      const rank = (slots[findSlot(left, right)] ?? 0) - 1;
      return rank < 0 ? undefined : rank;
    },
  };
}
