import { fieldsOf, invalid, isRecord } from '../engine/check.js';

/**
 * A list, or an object of named fields, as a plain copy: structured clone refuses proxies, which reactive frameworks
 * hand out. What it holds stays as it is, and so does any other value.
 */
export function plainValue(value: unknown): unknown {
  if (Array.isArray(value)) return [...value];
  return isRecord(value) ? fieldsOf(value) : value;
}

/**
 * Options, as {@link fieldsOf} gives them, whose values are plain copies.
 * @throws FrugalError `INVALID_ARGUMENT` naming the first that cannot be copied
 */
export function plainOptions<T extends object>(options: T): T {
  const copies = Object.entries(options).map(([name, value]) => {
    const copy = plainValue(value);
    if (!isPlain(copy)) throw invalid(name, 'plain data', value);
    return [name, copy];
  });
  return Object.fromEntries(copies) as T;
}

/** Whether it crosses to another thread: functions and symbols do not, wherever they are in it. */
function isPlain(value: unknown): boolean {
  if (typeof value !== 'object') return typeof value !== 'function' && typeof value !== 'symbol';
  try {
    structuredClone(value);
    return true;
  } catch {
    return false;
  }
}
