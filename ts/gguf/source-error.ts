import { FrugalError } from '../errors.js';

/** A `SOURCE_READ` error: `name` is the source, `problem` what went wrong. */
export function sourceError(
  name: string,
  problem: string,
  cure: string,
  data: Record<string, unknown> = {},
  cause?: unknown,
): FrugalError {
  return new FrugalError('SOURCE_READ', `${name}: ${problem}`, {
    cure,
    data: { source: name, ...data },
    cause,
  });
}

/** Refuses a range that is not within a source of `size` bytes, before anything is allocated. */
export function checkRange(name: string, size: number, offset: number, length: number): void {
  const whole = Number.isSafeInteger(offset) && Number.isSafeInteger(length);
  if (whole && offset >= 0 && length >= 0 && offset + length <= size) return;
  throw sourceError(
    name,
    `bytes ${offset} to ${offset + length} were asked for, but there are ${size}`,
    'Ask for a range within the source.',
    { offset, length, size },
  );
}
