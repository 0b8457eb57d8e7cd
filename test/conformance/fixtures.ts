import { existsSync, readFileSync } from 'node:fs';
import type { LoadOptions } from '../../ts/portable.js';
import { GOLDEN_MODELS, type GoldenModel, optionsOf, readGolden } from '../contract/golden.js';
import { type MixtureOptions, mixtureSpec } from '../contract/mixture-model.js';
import { tinyLlama } from '../gguf/tiny-llama.js';
import { writeGguf } from '../gguf/writer.js';
import type { Fixtures, PinnedModel } from './suite.js';

const TEMPLATE =
  '{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}';

const MIXTURE: MixtureOptions = {
  seed: 60,
  blocks: 2,
  width: 64,
  heads: 2,
  kvHeads: 2,
  headDim: 32,
  feedForward: 128,
  contextLength: 256,
  types: ['Q8_0', 'Q4_0'],
  experts: 6,
  topK: 2,
};

const pinnedModels = (large: boolean) =>
  GOLDEN_MODELS.filter((model) => isThere(model) && (large || model.large !== true));

/** The bytes of the suite's own models. */
export function suiteModels(): Record<'model' | 'mixture', Uint8Array<ArrayBuffer>> {
  const metadata = [{ key: 'tokenizer.chat_template', kind: 'string', value: TEMPLATE }] as const;
  return {
    model: tinyLlama({ metadata: [...metadata] }).bytes,
    mixture: writeGguf(mixtureSpec(MIXTURE)).bytes,
  };
}

/** The pinned models that are there; `large` adds those that take seconds. */
export function fixtures(options: LoadOptions, large: boolean): Fixtures {
  const { model, mixture } = suiteModels();
  return {
    model: new Blob([model]),
    mixture: new Blob([mixture]),
    pinned: pinnedModels(large).map(pinned),
    options,
  };
}

export const isThere = ({ path }: GoldenModel): boolean => path === undefined || existsSync(path);

/** All bytes as a Blob, so that they come the way they come in a browser. */
function pinned(model: GoldenModel): PinnedModel {
  const { name, path, bytes, prompts } = model;
  const parts = path === undefined ? (bytes ? [bytes()] : []) : [readFileSync(path)];
  return { name, source: new Blob(parts), settings: optionsOf(model), prompts };
}

/** What the logits of the pinned models must be. */
export function goldenOf(large: boolean): Record<string, Record<string, string> | undefined> {
  const golden = readGolden();
  return Object.fromEntries(pinnedModels(large).map(({ name }) => [name, golden[name]]));
}
