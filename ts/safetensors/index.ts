import { posix } from 'node:path';
import { FrugalError } from '../errors.js';
import type { GgufValue } from '../gguf/index.js';
import { readExactly } from '../gguf/read-exactly.js';
import type { ByteSource } from '../gguf/source.js';
import { sourceError } from '../gguf/source-error.js';
import type { SourceModel } from '../quantize/types.js';
import { readConfig } from './config.js';
import { type Fields, readJson } from './fields.js';
import { readSafetensors, type SafeTensor } from './header.js';
import { modelTensors } from './tensors.js';
import { tokenizerMetadata } from './tokenizer.js';

export { readSafetensors } from './header.js';

const MAX_CONFIG = 4 << 20;
const MAX_TOKENIZER = 64 << 20;
const MAX_PARTS = 4096;

/** Whether a name is that of safetensors weights, or of the index of their parts. */
export function isSafetensors(name: string): boolean {
  return /\.safetensors(\.index\.json)?$/.test(name);
}

/**
 * Opens a model of safetensors weights with config.json, tokenizer.json and, where they are,
 * tokenizer_config.json and chat_template.jinja beside them, as what a GGUF file of it would hold. The
 * source belongs to the model from here on.
 *
 * @param source the file of weights, the first of its parts, or their index
 * @throws FrugalError `SAFETENSORS_INVALID`, `UNKNOWN_ARCHITECTURE`, `UNSUPPORTED_FEATURE`, `MISSING_TENSOR`,
 * `TENSOR_SHAPE`, `UNSUPPORTED_TENSOR_TYPE`, `METADATA_MISSING`, `METADATA_INVALID`, `TOKENIZER_UNSUPPORTED`,
 * `TOKENIZER_INVALID`, `SOURCE_READ`
 */
export async function openSafetensorsModel(source: ByteSource, signal?: AbortSignal): Promise<SourceModel> {
  const sources = [source];
  const close = async () => {
    await Promise.allSettled(sources.map((each) => each.close()));
  };
  try {
    const beside = besides(source, signal);
    const config = readConfig(
      await readJson(await beside('config.json'), MAX_CONFIG, signal),
      nameOf(source),
    );
    const stored = await readParts(source, sources, signal);
    const { tensors, notices } = modelTensors(config, stored);
    const metadata = new Map<string, GgufValue>(config.metadata);
    const tokenizer = await readJson(await beside('tokenizer.json'), MAX_TOKENIZER, signal);
    const settings = await optional(beside, 'tokenizer_config.json', (file) =>
      readJson(file, MAX_CONFIG, signal),
    );
    const template = await optional(beside, 'chat_template.jinja', (file) => readText(file, signal));
    const vocabulary = tokenizerMetadata(tokenizer, { settings, template, config });
    for (const [key, value] of vocabulary) metadata.set(key, value);
    return {
      name: source.name,
      architecture: config.architecture,
      metadata,
      tensors,
      notices,
      paths: sources.flatMap(({ path }) => (path === undefined ? [] : [path])),
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
}

type Beside = (name: string) => Promise<ByteSource>;

function besides(source: ByteSource, signal?: AbortSignal): Beside {
  return async (name) => {
    if (source.sibling !== undefined) return source.sibling(name, signal);
    throw sourceError(source.name, `has no files beside it, so no ${name}`, 'Give the path of a file.');
  };
}

async function optional<T>(
  beside: Beside,
  name: string,
  read: (source: ByteSource) => Promise<T>,
): Promise<T | undefined> {
  const found = await beside(name).catch(() => undefined);
  return found === undefined ? undefined : read(found);
}

async function readText(source: ByteSource, signal?: AbortSignal): Promise<string> {
  try {
    if (source.size > MAX_CONFIG)
      throw sourceError(source.name, `has ${source.size} bytes, too many for a template`, 'Remove it.');
    return new TextDecoder().decode(await readExactly(source, 0, source.size, signal));
  } finally {
    await source.close();
  }
}

/** The name of the model: that of its folder where its file has none of its own. */
function nameOf(source: ByteSource): string {
  const path = source.name.replaceAll('\\', '/').replace(/[?#].*$/, '');
  const file = posix.basename(path).replace(/(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?$/, '');
  return file === 'model' || file === '' ? posix.basename(posix.dirname(path)) : file;
}

/** The tensors of all parts by name. */
async function readParts(
  source: ByteSource,
  sources: ByteSource[],
  signal?: AbortSignal,
): Promise<Map<string, SafeTensor>> {
  const beside = besides(source, signal);
  const index = await openIndex(source, beside, signal);
  const files = index === undefined ? [source] : [];
  for (const name of index ?? []) {
    const part = await beside(name);
    sources.push(part);
    files.push(part);
  }
  const tensors = new Map<string, SafeTensor>();
  for (const file of files) {
    for (const tensor of await readSafetensors(file, signal)) {
      const other = tensors.get(tensor.name);
      if (other !== undefined) throw twice(tensor, other);
      tensors.set(tensor.name, tensor);
    }
  }
  return tensors;
}

function twice(tensor: SafeTensor, other: SafeTensor): FrugalError {
  const message = `${tensor.source.name}: the tensor ${tensor.name} is also in ${other.source.name}`;
  return new FrugalError('SAFETENSORS_INVALID', message, {
    cure: 'Keep only the parts of one release of the model in the folder.',
    data: { tensor: tensor.name },
  });
}

/** The names of a model's parts, or undefined for a model of one file. */
async function openIndex(
  source: ByteSource,
  beside: Beside,
  signal?: AbortSignal,
): Promise<string[] | undefined> {
  if (source.name.endsWith('.index.json')) {
    // Reading it closes it, as does the model, which is allowed.
    return partNames(await readJson(source, MAX_CONFIG * 4, signal));
  }
  const part = /([^/\\]*)-\d{5}-of-\d{5}\.safetensors$/.exec(source.name);
  if (part === null) return undefined;
  const index = await beside(`${part[1]}.safetensors.index.json`);
  return partNames(await readJson(index, MAX_CONFIG * 4, signal));
}

function partNames(index: Fields): string[] {
  const map = index.need('weight_map', index.object('weight_map'));
  const names = new Set<string>();
  for (const tensor of map.keys()) {
    const name = map.need(tensor, map.string(tensor));
    // Parts lie beside the index and nowhere else.
    if (!/^[\w.-]+\.safetensors$/.test(name))
      throw map.invalid(tensor, 'the name of a file beside the index');
    names.add(name);
  }
  if (names.size < 1 || names.size > MAX_PARTS)
    throw index.invalid('weight_map', `a map to 1 to ${MAX_PARTS} files`);
  return [...names].sort();
}
