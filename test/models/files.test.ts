import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { openFile } from '../../ts/gguf/file-source.js';
import { openGguf } from '../../ts/gguf/index.js';
import { buildPlan } from '../../ts/models/index.js';
import { checkPlan } from './check-plan.js';

const root = fileURLToPath(new URL('../..', import.meta.url));
const models = join(process.env.FRUGAL_SHARED ?? join(root, '../shared'), 'models');
const present = existsSync(models);
if (!present) console.log(`plans of real files: not run, ${models} is absent`);

const QUANTS = ['F32', 'F16', 'BF16', 'Q8_0', 'Q4_0', 'Q4_K', 'Q6_K'];

async function planOf(name: string, tensorTypes: readonly string[] = QUANTS) {
  const file = await openGguf(await openFile(join(models, name)));
  try {
    return buildPlan(file, { tensorTypes });
  } finally {
    await file.close();
  }
}

describe.runIf(present)('plans of real files', () => {
  it('is well-formed for stories260K.gguf', async () => {
    const { plan, facts, placements } = await planOf('stories260K.gguf');
    checkPlan(plan);
    expect(plan).toMatchObject({ vocabSize: 512, contextLength: 512 });
    expect(plan.kvLayers).toEqual(Array(5).fill({ kvHeads: 4, headDim: 8 }));
    expect(facts).toMatchObject({
      blockCount: 5,
      heads: 8,
      embeddingLength: 64,
      kvBytesPerToken: 5 * 2 * 4 * 8 * 2,
    });
    expect(facts.weightBytes).toBe(facts.parameters * 4);
    expect(placements.every((place) => place.source.path === join(models, 'stories260K.gguf'))).toBe(true);
  });

  it.each([
    'tiny-llama-q4_0.gguf',
    'tiny-llama-q8_0.gguf',
    'tiny-llama-q4_k_m.gguf',
    'tiny-qwen3-q4_k_m.gguf',
  ])('is well-formed for %s', async (name) => {
    const { plan, facts } = await planOf(name);
    checkPlan(plan);
    expect(facts).toMatchObject({ vocabSize: 32_000, contextLength: 2048, blockCount: 4, kvHeads: 4 });
    expect(plan.ropes[0]?.layout).toBe(name.includes('qwen') ? 'neox' : 'interleaved');
  });

  it('refuses formats by name until the backend has them', async () => {
    await expect(planOf('tiny-llama-q4_k_m.gguf', ['F32', 'Q4_0'])).rejects.toMatchObject({
      code: 'UNSUPPORTED_TENSOR_TYPE',
      message: expect.stringContaining('Q4_K; supported for it are F32, Q4_0'),
    });
  });

  it('plans a mixture of experts, which reads only what it routes to', async () => {
    const { plan, facts } = await planOf('tiny-moe-q4_0.gguf');
    const op = plan.ops.find((op) => op.op === 'experts');
    expect(op).toMatchObject({ topK: 2, normalise: true, gates: 'gates', out: 'x' });
    expect(facts.bytesPerToken).toBeLessThan(facts.weightBytes * 0.6);
  });
});
