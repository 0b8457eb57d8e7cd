/**
 * A list, or an object of named fields, as a plain copy: structured clone refuses proxies, which reactive frameworks
 * hand out. What it holds stays as it is, and so does any other value.
 */
export function plainValue(value: unknown): unknown {
  if (Array.isArray(value)) return [...value];
  const isFields = Object.prototype.toString.call(value) === '[object Object]';
  return isFields ? { ...(value as object) } : value;
}

/** Options whose values are plain copies. */
export function plainOptions<T extends object>(options: T): T {
  return Object.fromEntries(Object.entries(options).map(([name, value]) => [name, plainValue(value)])) as T;
}
