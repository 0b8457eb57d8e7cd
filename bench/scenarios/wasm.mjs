// Whole models with WebAssembly against the native build: Node, Deno and Chromium, with one thread and with two.

import { join } from 'node:path';
import { ROOT } from '../../scripts/lib/steps.mjs';
import { lastJson, run } from '../lib/child.mjs';
import { measureInChromium } from '../lib/chromium.mjs';
import { DENO_FLAGS, findDeno } from '../lib/deno.mjs';
import { compared, eachInTurn, ratioOf } from '../lib/turns.mjs';

const CHILD = join(ROOT, 'bench', 'scenarios', 'wasm-child.mjs');
const SIZES = { prompt: 256, generate: 48 };

function runtimes({ chromium, leftMs }, file) {
  const child = (program, flags, module) => async (threads) =>
    lastJson(
      await run(program, [...flags, CHILD, module, file, threads, JSON.stringify(SIZES)], {
        limitMs: leftMs(),
      }),
    );
  const deno = findDeno();
  return {
    native: child(process.execPath, [], 'index.js'),
    'Node (WebAssembly)': child(process.execPath, [], 'wasm.js'),
    ...(deno && { Deno: child(deno, DENO_FLAGS, 'deno.js') }),
    ...(chromium && {
      Chromium: (threads) => measureInChromium(chromium, file, { ...SIZES, threads, limitMs: leftMs() }),
    }),
  };
}

/** One model, all runtimes; each with every number of threads. */
async function measureFile(context, type) {
  const file = await context.model('qwen3-0.6b', type);
  const isas = {};
  const things = Object.entries(runtimes(context, file)).flatMap(([name, call]) =>
    [1, 2].map((threads) => {
      const title = `${type}, ${threads} thread${threads === 1 ? '' : 's'}, ${name}`;
      const measure = async () => {
        const { prefill, decode, backend } = await call(threads);
        isas[title] = backend.isa;
        return { prefill: prefill[0], decode: decode[0] };
      };
      return [title, measure];
    }),
  );
  const turns = await eachInTurn(context, Object.fromEntries(things));
  const native = (name) => turns.results.find((each) => each.name === name.replace(/, [^,]*$/, ', native'));
  const shares = turns.results.map((each) =>
    ['prefill', 'decode'].map((what) => ratioOf(each, native(each.name), what)),
  );
  return { turns, shares, isas };
}

export const wasm = {
  name: 'wasm',
  text: `whole models with WebAssembly against our own native build: a prompt of ${SIZES.prompt}, and the ${SIZES.generate} tokens after it`,
  async run(context) {
    const parts = [];
    for (const type of ['Q4_0', 'Q8_0']) parts.push(await measureFile(context, type));
    const percent = (share) => `${(share * 100).toFixed(0)}%`;
    const rows = parts.flatMap(({ turns, shares, isas }) =>
      compared(turns, ['prefill', 'decode'])
        .table.slice(1)
        .map(([name, prefill, decode], i) => [
          ...[name, isas[name], prefill, percent(shares[i][0]), decode, percent(shares[i][1])],
        ]),
    );
    // Node lacks relaxed SIMD, and is not what the targets are about.
    const counted = parts.flatMap(({ turns, shares }) =>
      shares.filter((_, i) => /Deno|Chromium/.test(turns.results[i].name)),
    );
    const least = (at) => (counted.length > 0 ? Math.min(...counted.map((pair) => pair[at])) : undefined);
    return {
      table: [['', 'instructions', 'prefill', 'of native', 'decode', 'of native'], ...rows],
      values: { wasmPrefill: least(0), wasmDecode: least(1) },
    };
  },
};
