import { FrugalError } from '../errors.js';
import type { Value } from './jinja.js';

/** How large a value is, with everything in it counted as often as it appears. */
export interface Measure {
  /** Characters, and NODE_SIZE for each value. */
  readonly size: number;
  readonly nodes: number;
  /** Levels of lists and objects. */
  readonly depth: number;
}

/** What one value counts beside its characters: about what it takes in memory. */
export const NODE_SIZE = 16;
const MAX_VALUE_DEPTH = 64;
const MAX_NESTING = 256;
const MAX_MILLISECONDS = 600;

/** Counts what a running template uses up. Every method throws TEMPLATE_FAILED at a limit. */
export interface Meter {
  /** Before a node is evaluated. */
  enter(): void;
  /** After it, however it ended. */
  leave(): void;
  /** Refuses a value that is too large. */
  check(value: Value | undefined): Measure;
  /** Refuses an operation whose result would be too large, before it is run. */
  room(size: number): void;
  /** From now on no value may be larger. */
  limit(size: number): void;
}

export function createMeter(): Meter {
  const deadline = performance.now() + MAX_MILLISECONDS;
  // Lists and objects never change once made, so that each is measured once.
  const known = new WeakMap<Value, Measure>();
  let nesting = 0;
  let maxSize = Number.POSITIVE_INFINITY;

  const room = (size: number): void => {
    if (size > maxSize) throw exceeded(`makes a value of more than ${maxSize} characters`);
  };

  const measureAll = (items: Iterable<Value | undefined>, own: number): Measure => {
    let [size, nodes, depth] = [NODE_SIZE + own, 1, 0];
    for (const item of items) {
      // A namespace can change after it was measured, and could even come to hold itself.
      if (item?.type === 'NamespaceValue') throw exceeded('puts a namespace into another value');
      const inner = measure(item);
      size += inner.size;
      nodes += inner.nodes;
      depth = Math.max(depth, inner.depth);
      room(size);
    }
    if (depth >= MAX_VALUE_DEPTH) throw exceeded(`nests values more than ${MAX_VALUE_DEPTH} deep`);
    return { size, nodes, depth: depth + 1 };
  };

  const measureContents = (value: Value): Measure | undefined => {
    if (Array.isArray(value.value)) return measureAll(value.value as Value[], 0);
    if (!(value.value instanceof Map)) return undefined;
    const entries = value.value as Map<string, Value>;
    let keys = 0;
    for (const key of entries.keys()) keys += key.length;
    return measureAll(entries.values(), keys);
  };

  const measure = (value: Value | undefined): Measure => {
    if (typeof value?.value === 'string') {
      return { size: NODE_SIZE + value.value.length, nodes: 1, depth: 0 };
    }
    if (value === undefined || typeof value.value !== 'object' || value.value === null) return SCALAR;
    const found = known.get(value) ?? measureContents(value) ?? SCALAR;
    if (value.type !== 'NamespaceValue') known.set(value, found);
    return found;
  };

  return {
    enter() {
      nesting += 1;
      if (nesting > MAX_NESTING) throw exceeded(`nests more than ${MAX_NESTING} deep`);
      if (performance.now() > deadline) throw exceeded(`takes longer than ${MAX_MILLISECONDS} ms`);
    },
    leave() {
      nesting -= 1;
    },
    check(value) {
      const measured = measure(value);
      room(measured.size);
      return measured;
    },
    room,
    limit(size) {
      maxSize = size;
    },
  };
}

const SCALAR: Measure = { size: NODE_SIZE, nodes: 1, depth: 0 };

export function exceeded(what: string): FrugalError {
  return new FrugalError('TEMPLATE_FAILED', `the chat template ${what}`, {
    cure: 'pass another chat template in the options',
    data: { limit: what },
  });
}
