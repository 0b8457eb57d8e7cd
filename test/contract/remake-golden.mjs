// Writes golden.json anew, from the scalar reference on one thread. See golden.ts.
import { existsSync, writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { runnerImport } from 'vite';
import { load } from '../../dist/index.js';

const { module: golden } = await runnerImport(resolve(import.meta.dirname, 'golden.ts'));
const digests = {};
for (const entry of golden.GOLDEN_MODELS) {
  if (entry.path !== undefined && !existsSync(entry.path)) {
    throw new Error(`${entry.path} is missing: set FRUGAL_SHARED to the folder of the reference data`);
  }
  const options = { isa: 'scalar', threads: 1, ...golden.optionsOf(entry) };
  const model = await load(golden.sourceOf(entry), options);
  digests[entry.name] = await golden.digestsOf(model, entry.prompts);
  await model.dispose();
  console.log(entry.name);
}
writeFileSync(golden.GOLDEN_FILE, `${JSON.stringify(digests, undefined, 2)}\n`);
