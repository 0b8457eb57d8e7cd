import { FrugalError } from '../errors.js';
import type { GgufMetadata, StringArray } from '../gguf/index.js';
import { preTokenizers } from './pre-tokenizers.js';
import { invalid } from './refuse.js';
import type { PackedStrings, SpecialName, VocabularyData } from './types.js';

const MODELS = ['llama', 'gpt2'] as const;
const PREFIX = 'tokenizer.ggml.';

const SPECIAL_KEYS: Readonly<Record<SpecialName, string>> = {
  bos: 'bos_token_id',
  eos: 'eos_token_id',
  eot: 'eot_token_id',
  eom: 'eom_token_id',
  unknown: 'unknown_token_id',
  fimPad: 'fim_pad_token_id',
  fimRepo: 'fim_rep_token_id',
  fimSeparator: 'fim_sep_token_id',
};

const NO_STRINGS: PackedStrings = { buffer: new Uint8Array(0), offsets: new Uint32Array(1) };

/**
 * Reads what encoding needs from a file's metadata and checks what can be checked without looking at each
 * token; the rest is checked when the vocabulary is built.
 *
 * @throws FrugalError `TOKENIZER_UNSUPPORTED`, `TOKENIZER_INVALID`, `METADATA_MISSING`, `METADATA_INVALID`
 */
export function readVocabulary(metadata: GgufMetadata): VocabularyData {
  const model = supported('model', metadata.string(`${PREFIX}model`), MODELS);
  const pre =
    model === 'gpt2'
      ? supported('pre', metadata.optionalString(`${PREFIX}pre`) ?? 'default', [...preTokenizers.keys()])
      : 'default';
  const tokens = metadata.strings(`${PREFIX}tokens`);
  if (tokens.length === 0) throw invalid('the vocabulary has no tokens', { count: 0 });
  return {
    model,
    pre,
    modelName: metadata.optionalString('general.name') ?? '',
    tokens: pack(tokens),
    merges: model === 'gpt2' ? pack(metadata.strings(`${PREFIX}merges`)) : NO_STRINGS,
    scores: model === 'llama' ? readScores(metadata, tokens.length) : undefined,
    types: readTypes(metadata, tokens.length),
    special: readSpecial(metadata, tokens.length),
    addSpacePrefix: model === 'llama' && (metadata.optionalBoolean(`${PREFIX}add_space_prefix`) ?? true),
    addBos: metadata.optionalBoolean(`${PREFIX}add_bos_token`),
    addEos: metadata.optionalBoolean(`${PREFIX}add_eos_token`),
  };
}

function supported<T extends string>(key: string, found: string, known: readonly T[]): T {
  const match = known.find((name) => name === found);
  if (match !== undefined) return match;
  throw new FrugalError(
    'TOKENIZER_UNSUPPORTED',
    `${PREFIX}${key} "${found}" is not supported; supported are: ${known.join(', ')}`,
    {
      cure: 'Use a model whose tokeniser is supported, or a newer version of this package.',
      data: { key: `${PREFIX}${key}`, found, supported: known },
    },
  );
}

function pack(strings: StringArray): PackedStrings {
  return { buffer: strings.buffer, offsets: strings.offsets };
}

function readScores(metadata: GgufMetadata, count: number): Float32Array | undefined {
  const scores = metadata.optionalNumbers(`${PREFIX}scores`);
  if (scores === undefined) return undefined;
  checkLength('scores', scores.length, count);
  return scores instanceof Float32Array ? scores : Float32Array.from(scores);
}

function readTypes(metadata: GgufMetadata, count: number): Int32Array | undefined {
  const types = metadata.optionalNumbers(`${PREFIX}token_type`);
  if (types === undefined) return undefined;
  checkLength('token_type', types.length, count);
  return types instanceof Int32Array ? types : Int32Array.from(types);
}

function checkLength(key: string, length: number, count: number): void {
  if (length === count) return;
  throw invalid(`${PREFIX}${key} has ${length} entries for ${count} tokens`, { key, length, count });
}

function readSpecial(metadata: GgufMetadata, count: number): VocabularyData['special'] {
  const special: Partial<Record<SpecialName, number>> = {};
  for (const [name, key] of Object.entries(SPECIAL_KEYS) as [SpecialName, string][]) {
    const id = metadata.optionalNumber(`${PREFIX}${key}`);
    if (id === undefined) continue;
    if (!Number.isInteger(id) || id < 0 || id >= count) {
      throw invalid(`${PREFIX}${key} is ${id}, outside the vocabulary of ${count} tokens`, {
        key,
        id,
        count,
      });
    }
    special[name] = id;
  }
  return special;
}
