import { FrugalError } from '../errors.js';
import { GGML_TYPES, type GgufModel, type GgufTensor, type GgufValue } from '../gguf/index.js';
import { readExactly } from '../gguf/read-exactly.js';
import type { SourceModel, SourceTensor } from './types.js';

/** Keys that describe the file rather than the model. */
const OF_THE_FILE = /^(general\.alignment|split\..*)$/;

/** An open GGUF model as a source, which closes it. */
export function ggufModel(gguf: GgufModel): SourceModel {
  const metadata = new Map<string, GgufValue>();
  const notices: string[] = [];
  for (const key of gguf.metadata.keys()) {
    const value = gguf.metadata.get(key);
    if (value === undefined || OF_THE_FILE.test(key)) continue;
    if (value.kind === 'array[array]') {
      notices.push(`the metadata key ${key} holds arrays of arrays, which no model uses; it is left out`);
    } else {
      metadata.set(key, value);
    }
  }
  return {
    name: gguf.parts[0]?.name ?? 'the model',
    architecture: gguf.metadata.string('general.architecture'),
    metadata,
    tensors: [...gguf.tensors.values()].map((tensor) => sourceTensor(gguf, tensor)),
    notices,
    paths: gguf.parts.flatMap(({ path }) => (path === undefined ? [] : [path])),
    close: () => gguf.close(),
  };
}

function sourceTensor(
  gguf: GgufModel,
  { name, type, shape, elements, part, offset }: GgufTensor,
): SourceTensor {
  const { block, bytes } = GGML_TYPES[type];
  return {
    name,
    type,
    shape,
    elements,
    unit: block,
    async read(start, count, signal) {
      const source = gguf.parts[part];
      if (source === undefined) {
        throw new FrugalError('INTERNAL', `the tensor ${name} lies in part ${part}, which is not open`, {
          cure: 'Report this as a defect of frugal.',
          data: { tensor: name, part },
        });
      }
      return readExactly(source, offset + (start / block) * bytes, (count / block) * bytes, signal);
    },
  };
}
