// Run by Bun: the suite natively and on the modules that are named, one line of JSON for each.
import { lacking } from '../../dist/backend/wasm/variant.js';
import { load } from '../../dist/index.js';
import { load as loadWasm } from '../../dist/wasm.js';
import { fixtures } from './fixtures.ts';
import { runCases } from './suite.ts';

const runs = JSON.parse(process.argv[2] ?? '[]');
console.log(JSON.stringify({ lacks: lacking(undefined) }));
for (const { options, large } of runs) {
  const api = { load: options.variant === undefined ? load : loadWasm };
  console.log(JSON.stringify({ options, outcomes: await runCases(api, fixtures(options, large)) }));
}
