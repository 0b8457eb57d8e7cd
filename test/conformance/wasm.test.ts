import { execFile } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { promisify } from 'node:util';
import { gzipSync } from 'node:zlib';
import { describe, expect, it } from 'vitest';
import type { Glue } from '../../ts/backend/wasm/glue.js';
import { nodeHost } from '../../ts/backend/wasm/host-node.js';
import { createInstance } from '../../ts/backend/wasm/instance.js';
import { residentBytes } from '../../ts/backend/wasm/size.js';
import {
  chooseVariant,
  type Lacks,
  lacking,
  NOT_ISOLATED,
  WASM_VARIANTS,
} from '../../ts/backend/wasm/variant.js';
import { loadWasm } from '../../ts/backend/wasm.js';
import { openGguf } from '../../ts/gguf/index.js';
import { blobSource, load } from '../../ts/index.js';
import { buildPlan } from '../../ts/models/index.js';
import { mixtureSpec } from '../contract/mixture-model.js';
import { tinyLlama } from '../gguf/tiny-llama.js';
import { writeGguf } from '../gguf/writer.js';

const ROOT = resolve(import.meta.dirname, '../..');
const FOLDER = resolve(ROOT, 'dist/wasm');
const MOST_COMPRESSED = 500_000;

const NOTHING: Lacks = { simd: undefined, relaxed: undefined, threads: undefined, memory64: undefined };

describe('the module that is used', () => {
  it.each<[string, Partial<Lacks>, string]>([
    ['relaxed-simd-threads', {}, 'relaxed SIMD passed its self-test; memory can be shared'],
    [
      'simd128-threads',
      { relaxed: 'it failed its self-test' },
      'it failed its self-test; memory can be shared',
    ],
    ['relaxed-simd', { threads: 'not isolated' }, 'relaxed SIMD passed its self-test; not isolated'],
    ['simd128', { relaxed: 'old', threads: 'not isolated' }, 'old; not isolated'],
  ])('is %s where %o is lacking', (variant, lacks, reason) => {
    expect(chooseVariant({ ...NOTHING, ...lacks }, {})).toMatchObject({ variant, reason });
  });

  it.each<[string, Partial<Lacks>]>([
    ['relaxed-simd-memory64-threads', {}],
    ['relaxed-simd-memory64', { threads: 'not isolated' }],
    ['relaxed-simd-threads', { memory64: 'none' }],
    ['simd128-threads', { relaxed: 'old' }],
  ])('is %s for weights that need 64-bit addresses, where %o is lacking', (variant, lacks) => {
    const { reason, memory64 } = chooseVariant({ ...NOTHING, ...lacks }, { large: true });
    expect([variant, memory64]).toEqual([variant, variant.includes('memory64')]);
    expect(reason.includes('the weights need 64-bit memory')).toBe(memory64);
  });

  it('is without relaxed SIMD where simd128 is asked for', () => {
    expect(chooseVariant(NOTHING, { isa: 'simd128' })).toMatchObject({ variant: 'simd128-threads' });
  });

  it('is none where there is no SIMD, or not what the one asked for needs', () => {
    const refused = { code: 'BACKEND_UNAVAILABLE', message: expect.stringContaining('none here') };
    const choose = (lacks: Partial<Lacks>) => () =>
      chooseVariant({ ...NOTHING, ...lacks }, { variant: 'relaxed-simd-memory64-threads' });
    for (const lack of ['simd', 'relaxed', 'threads', 'memory64']) {
      expect(choose({ [lack]: 'none here' })).toThrow(expect.objectContaining(refused));
    }
  });

  it('is refused in a page that is not isolated with the headers that make it so', () => {
    const choose = () => chooseVariant({ ...NOTHING, threads: NOT_ISOLATED }, { variant: 'simd128-threads' });
    const headers = ['Cross-Origin-Opener-Policy: same-origin', 'Cross-Origin-Embedder-Policy: require-corp'];
    for (const header of headers)
      expect(choose).toThrow(expect.objectContaining({ cure: expect.stringContaining(header) }));
  });

  it('is the only one that is fetched, once for all models', async () => {
    const fetched: string[] = [];
    const host = {
      ...nodeHost,
      compile(url: URL) {
        fetched.push(url.pathname.split('/').at(-1) ?? '');
        return nodeHost.compile(url);
      },
    };
    // The tests before it use no modules.
    const options = { variant: 'simd128-threads' } as const;
    const [first] = [await loadWasm(host, options), await loadWasm(host, options)];
    expect(fetched).toEqual(['simd128-threads.wasm']);
    expect(first.isas).toEqual(['simd128', 'scalar']);
  });

  // None at all, and only that of the instance which tells what a module can do.
  it.each([0, 1])('is without threads where %i memories can be reserved that they share', async (count) => {
    const { Memory } = WebAssembly;
    let left = count;
    WebAssembly.Memory = class extends Memory {
      constructor(descriptor: WebAssembly.MemoryDescriptor) {
        if (descriptor.shared && left-- <= 0) throw new RangeError('could not allocate memory');
        super(descriptor);
      }
    };
    try {
      await using model = await load(new Blob([tinyLlama().bytes]), { backend: 'wasm', threads: 2 });
      const { variant, reason, notes } = model.backend;
      expect([variant?.includes('threads'), notes?.length]).toEqual([false, 1]);
      expect(reason).toContain('no memory can be reserved');
      await expect(loadWasm(nodeHost, { variant: 'simd128-threads' })).rejects.toMatchObject({
        code: 'OUT_OF_MEMORY',
        message: expect.stringContaining('simd128-threads: could not allocate memory'),
        cure: expect.stringContaining('without threads'),
      });
    } finally {
      WebAssembly.Memory = Memory;
    }
  });
});

it.each([
  ['frugal', 'native'],
  ['frugal/wasm', 'wasm'],
])('%s is %s in Node', async (name, kind) => {
  const program = `
    import { load } from '${name}';
    const model = await load(process.argv[1]);
    console.log(model.backend.kind, model.info.notes.length);
    await model.dispose();`;
  const path = resolve(ROOT, 'models/stories-moe-q8_0.gguf');
  const flags = ['--input-type=module', '--eval', program];
  const { stdout, stderr } = await promisify(execFile)(process.execPath, [...flags, path], { cwd: ROOT });
  expect([stdout, stderr]).toEqual([`${kind} 0\n`, '']);
});

it('more threads than listeners an emitter takes without a warning end in silence', async () => {
  const warnings: Error[] = [];
  const note = (warning: Error) => warnings.push(warning);
  process.on('warning', note);
  await using backend = await load(new Blob([tinyLlama().bytes]), {
    ...{ backend: 'wasm', variant: 'simd128-threads', threads: 12 },
  } as const);
  expect(backend.info.backend.threads).toBe(12);
  await backend.dispose();
  // Warnings are told on the next tick.
  await new Promise(setImmediate);
  process.off('warning', note);
  expect(warnings).toEqual([]);
});

it.each([
  ['simd128', {}, 32],
  ['simd128', { attention: { decode: { policy: 'quest' } } }, 64],
  ['simd128-threads', {}, 256],
] as const)(
  'by %s with %o, prompts are taken in steps of %i tokens, as an abort waits for a step where it must',
  async (variant, options, chunk) => {
    const source = new Blob([tinyLlama().bytes]);
    await using model = await load(source, { backend: 'wasm', variant, ...options });
    expect(model.info.chunk).toBe(chunk);
  },
);

it('steps are long where they read experts, which they stop for', async () => {
  const bytes = await readFile(resolve(ROOT, 'models/stories-moe-q8_0.gguf'));
  const options = { backend: 'wasm', variant: 'simd128', expertMemory: 2e6 } as const;
  await using model = await load(new Blob([new Uint8Array(bytes)]), options);
  expect(model.info.chunk).toBe(256);
});

it('threads are at most 64 where nobody asks for more, and fewer help where they do not start', async () => {
  let started = 0;
  const startThread: typeof nodeHost.startThread = ({ onFailure }) => {
    started += 1;
    onFailure('no more threads');
    return { post() {}, hold() {}, end: async () => {} };
  };
  const backend = await loadWasm({ ...nodeHost, cores: 300, startThread }, { variant: 'simd128-threads' });
  const gguf = await openGguf(blobSource(new Blob([tinyLlama().bytes])));
  const { plan } = buildPlan(gguf, { tensorTypes: backend.tensorTypes });
  for (const [threads, expected] of [
    [undefined, 64],
    [70, 70],
  ]) {
    started = 0;
    const compiling = backend.compile(plan, { maxStepTokens: 16, ...(threads && { threads }) });
    await expect(compiling).rejects.toMatchObject({
      code: 'BACKEND_UNAVAILABLE',
      message: expect.stringContaining('no more threads'),
      cure: expect.stringContaining('ask for fewer threads'),
    });
    expect(started).toBe(expected);
  }
});

it('each module is small enough, and all are there', () => {
  const names = readdirSync(FOLDER).filter((name) => name.endsWith('.wasm'));
  expect(names.sort()).toEqual(WASM_VARIANTS.map((name) => `${name}.wasm`).sort());
  for (const name of names) {
    const { length } = gzipSync(readFileSync(resolve(FOLDER, name)), { level: 9 });
    console.log(`${name}: ${length} bytes compressed`);
    expect(length).toBeLessThan(MOST_COMPRESSED);
  }
});

it('weights that 32 bits cannot address are refused with what they need and what there is', async () => {
  const backend = await loadWasm(nodeHost, { variant: 'simd128' });
  const gguf = await openGguf(blobSource(new Blob([tinyLlama().bytes])));
  const { plan } = buildPlan(gguf, { tensorTypes: backend.tensorTypes });
  const [first, ...rest] = plan.tensors;
  if (first === undefined) throw new Error('a plan without tensors');
  const huge = { ...first, type: 'F32' as const, rows: 2 ** 24, cols: 256 };
  const compiling = backend.compile({ ...plan, tensors: [huge, ...rest] }, { maxStepTokens: 16 });
  await expect(compiling).rejects.toMatchObject({
    code: 'OUT_OF_MEMORY',
    message: expect.stringMatching(/need 171\d{8} bytes, and WebAssembly has at most 4294967296/),
    cure: expect.stringContaining('64-bit memory'),
  });
});

it('the size of the weights is what the module keeps', async () => {
  const backend = await loadWasm(nodeHost, { variant: 'simd128' });
  const shape = { blocks: 2, width: 64, heads: 2, kvHeads: 2, headDim: 32, feedForward: 96 };
  const types = ['Q4_0', 'Q8_0', 'F16'] as const;
  const spec = mixtureSpec({ seed: 1, contextLength: 64, types, experts: 4, topK: 2, ...shape });
  const gguf = await openGguf(blobSource(new Blob([writeGguf(spec).bytes])));
  const { plan } = buildPlan(gguf, { tensorTypes: backend.tensorTypes });
  const model = await backend.compile(plan, { maxStepTokens: 16 });
  const share = residentBytes(plan) / model.weightBytes;
  const limited = [1000, 2000].map((limit) => residentBytes(plan, limit));
  await model.dispose();
  expect((limited[1] ?? 0) - (limited[0] ?? 0)).toBe(1000);
  // Packing adds a few bytes for each row of tiles.
  expect(share).toBeGreaterThan(0.9);
  expect(share).toBeLessThanOrEqual(1);
});

it('experts that 32 bits cannot address are kept where they are, where a limit is given', async () => {
  const backend = await loadWasm(nodeHost, { variant: 'simd128' });
  const shape = { blocks: 1, width: 64, heads: 2, kvHeads: 2, headDim: 32, feedForward: 1 << 15 };
  const spec = mixtureSpec({ seed: 1, contextLength: 64, types: ['Q4_0'], experts: 2, topK: 2, ...shape });
  const gguf = await openGguf(blobSource(new Blob([writeGguf(spec).bytes])));
  const { plan } = buildPlan(gguf, { tensorTypes: backend.tensorTypes });
  const count = 2000;
  const many = {
    ...plan,
    tensors: plan.tensors.map((tensor) => {
      if (tensor.experts !== undefined) return { ...tensor, experts: count };
      return tensor.name.includes('ffn_gate_inp') ? { ...tensor, rows: count } : tensor;
    }),
    buffers: plan.buffers.map((buffer) => (buffer.width === 2 ? { ...buffer, width: count } : buffer)),
  };
  const compiling = backend.compile(many, { maxStepTokens: 16 });
  await expect(compiling).rejects.toMatchObject({
    code: 'OUT_OF_MEMORY',
    cure: expect.stringContaining('expertMemory'),
  });
  const expertMemory = 32 << 20;
  const model = await backend.compile(many, { maxStepTokens: 16, expertMemory });
  expect(model.weightBytes).toBeLessThan(expertMemory + (8 << 20));
  expect(model.weightBytes).toBeGreaterThan(0.7 * expertMemory);
  await model.dispose();
});

it('an instance that crashed takes no more calls', () => {
  const glue = {} as Glue;
  const instance = createInstance(glue, new WebAssembly.Memory({ initial: 1 }), 2 ** 32);
  const refusal = () => {
    throw new Error('INVALID_ARGUMENT\nthreads is 0\nUse more.');
  };
  expect(() => instance.call(refusal)).toThrow('threads is 0');
  expect(instance.call(() => 3)).toBe(3);
  expect(instance.ask(() => 3, 0)).toBe(3);
  const trap = () => {
    throw new WebAssembly.RuntimeError('unreachable');
  };
  expect(() => instance.call(trap)).toThrow(expect.objectContaining({ code: 'INTERNAL' }));
  expect(() => instance.call(() => 3)).toThrow('unreachable');
  expect(instance.ask(() => 3, 0)).toBe(0);
});

it('an instance that was released takes no more calls, and says why', async () => {
  const instance = createInstance({} as Glue, new WebAssembly.Memory({ initial: 1 }), 2 ** 32);
  await instance.release();
  await instance.release();
  expect(() => instance.call(() => 3)).toThrow(expect.objectContaining({ code: 'DISPOSED' }));
  expect(instance.ask(() => 3, 0)).toBe(0);
});

it('the self-test of this runtime agrees with what runs', () => {
  const { simd, threads } = lacking(undefined);
  expect([simd, threads]).toEqual([undefined, undefined]);
});
