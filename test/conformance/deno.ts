// Run by Deno: the suite on the modules that are named, one line of JSON for each.
import { lacking } from '../../dist/backend/wasm/variant.js';
import { load } from '../../dist/deno.js';
import { fixtures } from './fixtures.ts';
import { runCases } from './suite.ts';

const runs = JSON.parse(process.argv[2] ?? '[]');
console.log(JSON.stringify({ lacks: lacking(undefined) }));
for (const { options, large } of runs) {
  console.log(JSON.stringify({ options, outcomes: await runCases({ load }, fixtures(options, large)) }));
}
