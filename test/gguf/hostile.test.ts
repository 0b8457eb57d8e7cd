import { afterAll, expect, test } from 'vitest';
import { FrugalError } from '../../ts/errors.js';
import { openGguf } from '../../ts/gguf/index.js';
import { hostileFiles } from './hostile.js';
import { memorySource } from './sources.js';

const MIB = 1024 * 1024;
const SEED = 20_240_607;
const COUNT = 3000;

const outcomes = new Map<string, number>();

/** Opens one file; the outcome is an error's code or `opened`. Anything else fails the test. */
async function outcome(name: string, bytes: Uint8Array): Promise<string> {
  const source = memorySource(bytes);
  const memory = process.memoryUsage().arrayBuffers;
  const start = performance.now();
  const result = await openGguf(source).then(
    (model) => model,
    (error: unknown) => error,
  );
  const took = performance.now() - start;
  const grown = process.memoryUsage().arrayBuffers - memory;
  if (took >= 1000) throw new Error(`${name}: ${took} ms`);
  if (grown >= 64 * MIB) throw new Error(`${name}: ${grown} bytes of memory`);
  if (source.counts.bytes >= 64 * MIB) throw new Error(`${name}: ${source.counts.bytes} bytes read`);
  if (result instanceof FrugalError) return result.code;
  if (typeof result !== 'object' || result === null || !('tensors' in result)) {
    throw new Error(`${name}: neither a model nor a FrugalError`, { cause: result });
  }
  checkPlaces(name, result.tensors as Awaited<ReturnType<typeof openGguf>>['tensors'], bytes.length);
  return 'opened';
}

/** A file that is opened must have every tensor within it, apart from the others. */
function checkPlaces(
  name: string,
  tensors: Awaited<ReturnType<typeof openGguf>>['tensors'],
  size: number,
): void {
  const sorted = [...tensors.values()].sort((a, b) => a.offset - b.offset);
  sorted.forEach((tensor, i) => {
    const end = tensor.offset + tensor.bytes;
    if (end > (sorted[i + 1]?.offset ?? size)) throw new Error(`${name}: ${tensor.name} reaches to ${end}`);
  });
}

test(`${COUNT} hostile files (seed ${SEED}) are refused by a typed error or opened`, {
  timeout: 120_000,
}, async () => {
  const before = process.memoryUsage().rss;
  let files = 0;
  for (const { name, bytes } of hostileFiles(SEED, COUNT)) {
    const code = await outcome(name, bytes);
    outcomes.set(code, (outcomes.get(code) ?? 0) + 1);
    files += 1;
  }
  expect(files).toBeGreaterThanOrEqual(2000);
  expect(process.memoryUsage().rss - before).toBeLessThan(256 * MIB);
  // The set would prove little if it did not reach every check that one file can fail.
  for (const code of [
    'GGUF_MAGIC',
    'GGUF_BIG_ENDIAN',
    'GGUF_VERSION',
    'GGUF_TRUNCATED',
    'GGUF_LIMIT',
    'GGUF_DUPLICATE',
    'GGUF_VALUE_TYPE',
    'GGUF_TENSOR_TYPE',
    'GGUF_SHAPE',
    'GGUF_ALIGNMENT',
    'GGUF_OVERLAP',
    'GGUF_STRING',
    'GGUF_SPLIT',
    'opened',
  ]) {
    expect([code, outcomes.get(code) ?? 0]).not.toEqual([code, 0]);
  }
});

test('a truncation within the header or the tensors is always refused', async () => {
  for (const { name, bytes, base } of hostileFiles(SEED, 0)) {
    if (base !== 'truncated') break;
    const code = await outcome(name, bytes);
    // After the last tensor's data nothing is missing but padding.
    const whole = name.startsWith('truncated after data of output.weight');
    expect([name, code]).toEqual([name, whole ? 'opened' : 'GGUF_TRUNCATED']);
  }
});

test('the same seed gives the same files, another seed others', () => {
  const names = (seed: number) => [...hostileFiles(seed, 2500)].map((file) => file.name).join('\n');
  expect(names(7)).toBe(names(7));
  expect(names(7)).not.toBe(names(8));
});

afterAll(() => {
  console.log([...outcomes].map(([code, count]) => `${code} ${count}`).join(', '));
});
