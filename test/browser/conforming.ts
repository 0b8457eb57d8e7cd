import { expect } from 'vitest';
import { load } from '../../ts/index.js';
import { fixtures, suiteModels } from '../conformance/fixtures.js';
import { CASES, type Outcome, runCases } from '../conformance/suite.js';
import type { Run } from './engine-sites.js';

/** The suite's models, by their path on a site. */
export const suiteFiles = (): Array<[string, Uint8Array]> =>
  Object.entries(suiteModels()).map(([name, bytes]) => [`/suite/${name}`, bytes]);

let native: Promise<Record<string, Outcome>> | undefined;

/** Has a page run the suite, which must come to what it comes to natively. */
export async function expectConforming(run: Run, options: object): Promise<void> {
  native ??= runCases({ load }, { ...fixtures({ threads: 2 }, false), pinned: [] });
  const expected = await native;
  const outcomes = await run('conform', { chunk: 7, ...options });
  expect(outcomes).toEqual(expected);
  expect(Object.keys(outcomes)).toEqual(Object.keys(CASES));
  expect(Object.values(outcomes).filter((outcome) => 'failure' in outcome)).toEqual([]);
}
