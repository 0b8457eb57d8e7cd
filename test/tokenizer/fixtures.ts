import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { GgufMetadata, type GgufValue, StringArray } from '../../ts/gguf/index.js';

/** Where the reference data is. */
export const SHARED = resolve(process.env.FRUGAL_SHARED ?? resolve(import.meta.dirname, '../../../shared'));

/** Whether the named reference data is there; says what is not run when it is not. */
export function hasShared(path: string): boolean {
  if (existsSync(resolve(SHARED, path))) return true;
  console.warn(`not run, for want of ${resolve(SHARED, path)} (set FRUGAL_SHARED): tests of ${path}`);
  return false;
}

export const Type = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;

/** A token: its text, type and score. */
export interface TestToken {
  text: string;
  type?: number;
  score?: number;
}

export type Values = Record<string, string | number | boolean | string[] | Int32Array | Float32Array>;

/** Metadata with the values of a plain object; keys are after `tokenizer.ggml.` unless they have a dot. */
export function metadataOf(values: Values): GgufMetadata {
  const entries = Object.entries(values).map(([key, value]): [string, GgufValue] => [
    key.includes('.') ? key : `tokenizer.ggml.${key}`,
    toValue(value),
  ]);
  return new GgufMetadata('test.gguf', new Map(entries));
}

function toValue(value: Values[string]): GgufValue {
  if (typeof value === 'string') return { kind: 'string', value: new TextEncoder().encode(value) };
  if (typeof value === 'number') return { kind: 'int32', value };
  if (typeof value === 'boolean') return { kind: 'bool', value };
  if (value instanceof Int32Array) return { kind: 'array[int32]', value };
  if (value instanceof Float32Array) return { kind: 'array[float32]', value };
  return { kind: 'array[string]', value: stringArray(value) };
}

function stringArray(strings: readonly string[]): StringArray {
  const parts = strings.map((text) => new TextEncoder().encode(text));
  const offsets = new Uint32Array(parts.length + 1);
  parts.forEach((part, i) => {
    offsets[i + 1] = (offsets[i] ?? 0) + part.length;
  });
  const buffer = new Uint8Array(offsets[parts.length] ?? 0);
  parts.forEach((part, i) => {
    buffer.set(part, offsets[i]);
  });
  return new StringArray(buffer, offsets);
}

/** The 256 letters of the byte-level alphabet, by byte. */
export const LETTERS: readonly string[] = (() => {
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => {
    const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    return String.fromCodePoint(printable ? byte : next++);
  });
})();

/**
 * A byte-level vocabulary: the 256 letters (ids are bytes), then the results of `merges` ("left right"), then
 * `extra`.
 */
export function byteLevel(merges: string[] = [], extra: TestToken[] = [], more: Values = {}): Values {
  const joined = merges.map((merge) => merge.replace(' ', ''));
  const texts = [...new Set([...LETTERS, ...joined]), ...extra.map(({ text }) => text)];
  const types = new Int32Array(texts.length).fill(Type.normal);
  extra.forEach(({ type }, i) => {
    types[texts.length - extra.length + i] = type ?? Type.normal;
  });
  return { model: 'gpt2', pre: 'gpt-2', tokens: texts, token_type: types, merges, ...more };
}

/** A SentencePiece vocabulary: unknown, BOS, EOS, the 256 bytes (id 3 + byte), then `tokens`. */
export function sentencePiece(tokens: TestToken[], more: Values = {}): Values {
  const all: TestToken[] = [
    { text: '<unk>', type: Type.unknown },
    { text: '<s>', type: Type.control },
    { text: '</s>', type: Type.control },
    ...LETTERS.map((_, byte) => ({
      text: `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`,
      type: Type.byte,
    })),
    ...tokens,
  ];
  return {
    model: 'llama',
    tokens: all.map(({ text }) => text),
    token_type: Int32Array.from(all, ({ type }) => type ?? Type.normal),
    scores: Float32Array.from(all, ({ score }) => score ?? 0),
    ...more,
  };
}

/** A repeatable stream of random numbers from 0 to below 1. */
export function randomNumbers(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Random text of all lengths of UTF-8, spaces and line ends; no surrogates, and no "▁", which is a space. */
export function randomText(random: () => number, length: number): string {
  const ranges = [
    [0x20, 0x7e],
    [0x09, 0x0d],
    [0xa0, 0x24f],
    [0x370, 0x5ff],
    [0x900, 0xd7f],
    [0x2000, 0x206f],
    [0x3000, 0x30ff],
    [0x4e00, 0x9fff],
    [0xfe00, 0xffff],
    [0x1f300, 0x1faff],
    [0x00, 0x1f],
    [0x20, 0x20],
  ] as const;
  let text = '';
  for (let i = 0; i < length; i++) {
    const [first, last] = ranges[Math.floor(random() * ranges.length)] ?? [0x20, 0x7e];
    text += String.fromCodePoint(first + Math.floor(random() * (last - first + 1)));
  }
  return text;
}
