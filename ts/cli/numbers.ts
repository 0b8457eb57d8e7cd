import { InvalidArgumentError } from 'commander';
import { type AttentionOptions, checkAttention, POLICIES } from '../attention/index.js';
import type { Watts } from '../energy/types.js';
import { describeRange, inRange, type NumberRange } from '../engine/check.js';
import { EXPERT_MEMORY_RANGE } from '../engine/load.js';
import { usageError } from './terminal.js';

/** A parser for an option's number; commander names the option in its error. */
export function numberParser(range: NumberRange): (text: string) => number {
  return (text) => {
    const value = text.trim() === '' ? Number.NaN : Number(text);
    if (!inRange(value, range)) throw new InvalidArgumentError(`It must be ${describeRange(range)}.`);
    return value;
  };
}

/** A seed: any 64-bit number. */
export function parseSeed(text: string): bigint {
  const seed = /^\d{1,20}$/.test(text) ? BigInt(text) : -1n;
  if (seed >= 0n && seed < 1n << 64n) return seed;
  throw new InvalidArgumentError('It must be an integer from 0 to 2^64 - 1.');
}

/** What a machine takes when idle and when busy: `12,65`. */
export function parseWatts(text: string): Watts {
  const numbers = text.split(',').map((part) => (part.trim() === '' ? Number.NaN : Number(part)));
  const [idle = Number.NaN, busy = Number.NaN, ...rest] = numbers;
  if (rest.length === 0 && idle >= 0 && idle <= busy && busy < 1e6) return { idle, busy };
  throw new InvalidArgumentError('It must be two numbers of watts, idle and busy, as in 12,65.');
}

/** A policy's name, or the whole option as JSON. */
export function parseAttention(text: string): AttentionOptions {
  try {
    const value: unknown = text.startsWith('{')
      ? JSON.parse(text)
      : { prefill: { policy: text }, decode: { policy: text } };
    const options = checkAttention(value);
    if (options) return options;
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    const known = POLICIES.some((policy) => policy === text);
    const hint = known
      ? `. Give it as JSON with its options, such as {"prefill":{"policy":"${text}","window":512}}`
      : '';
    throw new InvalidArgumentError(message + hint);
  }
  throw new InvalidArgumentError('It must be a policy.');
}

/** Collects an option that may be given several times. */
export function collectText(text: string, earlier: readonly string[] = []): readonly string[] {
  if (text === '') throw new InvalidArgumentError('It must not be empty.');
  return [...earlier, text];
}

/** Collects headers, each as `Name: value`; a wrong one, which may be a secret, is not repeated. */
export function collectHeaders(
  text: string,
  earlier: Readonly<Record<string, string>> = {},
): Readonly<Record<string, string>> {
  const [, name, value = ''] = /^([^:\s]+):\s*(.*)$/s.exec(text) ?? [];
  if (name === undefined) throw usageError('--header takes a name, a colon and a value');
  return { ...earlier, [name]: value };
}

const UNITS = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB'];

/** `1.5GiB` or `1500000` as a number of bytes. */
export function parseBytes(text: string): number {
  const [, number = '', unit = 'bytes'] = /^([\d.]+) ?([KMGT]iB)?$/.exec(text) ?? [];
  const bytes = Math.floor(Number(number) * 1024 ** UNITS.indexOf(unit));
  if (number !== '' && inRange(bytes, EXPERT_MEMORY_RANGE)) return bytes;
  const { min, max } = EXPERT_MEMORY_RANGE;
  throw new InvalidArgumentError(
    `It must be a number of bytes from ${min} to ${max}, also with KiB, MiB, GiB or TiB.`,
  );
}

/** `1536` as `1.5 KiB`. */
export function formatBytes(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`;
}

/** The most memory that this process has had in use. */
export function peakMemory(): string {
  return formatBytes(process.resourceUsage().maxRSS * 1024);
}

/** JSON on one line; a number too large for JSON becomes a string. */
export function toJson(value: unknown): string {
  return JSON.stringify(value, (_key, item: unknown) => {
    if (typeof item === 'bigint') return item <= Number.MAX_SAFE_INTEGER ? Number(item) : String(item);
    return item instanceof Uint32Array ? Array.from(item) : item;
  });
}
