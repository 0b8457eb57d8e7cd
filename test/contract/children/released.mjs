// Reports resident memory before models are loaded, and a while after each was disposed of. All are kept.
import { load } from '../../../dist/wasm.js';
import { args, report, sleep, status } from './process.mjs';

const LOADS = 4;
const WHILE_MS = 500;

const { path, variant } = args;
const levels = [status('VmRSS')];
const models = [];
for (let i = 0; i < LOADS; i += 1) {
  const model = await load(path, { threads: 2, contextLength: 256, variant });
  models.push(model);
  await model.complete([1, 2, 3], { maxTokens: 2, ignoreEnd: true });
  const loaded = status('VmRSS');
  await model.dispose();
  await sleep(WHILE_MS);
  if (loaded - levels[0] < model.info.packedBytes) throw new Error('the weights were never in memory');
  levels.push(status('VmRSS'));
}
report({ levels });
