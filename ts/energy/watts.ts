import { checkKnown, inRange, invalid } from '../engine/check.js';
import type { Watts } from './types.js';

const RANGE = { min: 0, max: 1e6, belowMax: true };

/** @throws FrugalError `INVALID_ARGUMENT` unless it is undefined, or two numbers, 0 <= idle <= busy */
export function checkWatts(watts: unknown): Watts | undefined {
  if (watts === undefined) return undefined;
  checkKnown('watts', watts, ['idle', 'busy']);
  const { idle, busy } = watts as Watts;
  if (inRange(idle, RANGE) && inRange(busy, RANGE) && idle <= busy) return { idle, busy };
  throw invalid('watts', 'an object { idle, busy } of two numbers, 0 <= idle <= busy', watts);
}
