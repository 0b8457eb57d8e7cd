import { existsSync, readFileSync } from 'node:fs';
import { expect } from 'vitest';
import { GOLDEN_MODELS, type GoldenModel, optionsOf, readGolden } from '../contract/golden.js';
import type { Run } from './engine-sites.js';

const present = GOLDEN_MODELS.filter(({ path }) => path === undefined || existsSync(path));
const bytesOf = ({ path, bytes }: GoldenModel) =>
  path === undefined ? (bytes?.() ?? new Uint8Array(0)) : readFileSync(path);
const pathOf = ({ name }: GoldenModel) => `/${encodeURIComponent(name)}`;

/** The models whose digests are known, by their path on a site. */
export const goldenFiles = (): Array<[string, Uint8Array]> =>
  present.map((model) => [pathOf(model), bytesOf(model)]);

/** Has a page compute all known digests with one module, loaded with `options`; `large` models take a while on one thread. */
export async function expectGolden(
  run: Run,
  variant: string,
  options: object,
  large: boolean,
): Promise<void> {
  const golden = readGolden();
  for (const model of present.filter((one) => large || !one.large)) {
    const { name, prompts } = model;
    const path = pathOf(model);
    const threads = variant.endsWith('threads') ? { threads: 2 } : {};
    const backend = await run('open', path, { ...options, ...optionsOf(model), ...threads });
    expect(backend).toMatchObject({ kind: 'wasm', variant });
    const digests: Record<string, string> = {};
    for (const [prompt, ids] of Object.entries(prompts)) digests[prompt] = await run('digest', path, ids);
    expect({ name, ...digests }).toEqual({ name, ...golden[name] });
    await run('close', path);
  }
}
