// Run by Deno and by Node. Arguments: what loads (a module of dist), model, threads, sizes as JSON. Prints one object.

import process from 'node:process';
import { measureModel } from '../lib/measure.mjs';

const [module, file, threads, sizes] = process.argv.slice(2);
const { load } = await import(`../../dist/${module}`);
const model = await load(file, { threads: Number(threads) });
const result = await measureModel(model, JSON.parse(sizes));
console.log(JSON.stringify({ ...result, backend: model.info.backend }));
await model.dispose();
process.exit(0);
