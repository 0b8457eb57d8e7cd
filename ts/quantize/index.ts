import { checkChoice, checkKnown, checkSignal, invalid } from '../engine/check.js';
import type { ModelSource } from '../engine/source.js';
import { type GgmlType, type GgufValue, layOutGguf } from '../gguf/index.js';
import { type Choice, chooseTypes, fileTypeOf, QUANTIZE_TYPES, type QuantizeType } from './choose.js';
import { convertTensor } from './convert.js';
import { openModel } from './open.js';
import { createOutput, type OutputFile } from './output-file.js';
import { countTensor, emptyTally, type QuantizeReport, summarise, type Tally } from './report.js';

export { QUANTIZE_TYPES, type QuantizeType } from './choose.js';
export type { QuantizeReport, TypeReport } from './report.js';

export interface QuantizeEvent {
  /** The tensor that is being converted. */
  readonly tensor: string;
  /** Elements of all tensors. */
  readonly done: number;
  readonly total: number;
}

export interface QuantizeOptions {
  /**
   * The type of the matrices; vectors and expert routers stay F32. `Q4_K_M` is a mixture of Q4_K, and Q6_K
   * where it helps most.
   */
  readonly type: QuantizeType;
  readonly onProgress?: (event: QuantizeEvent) => void;
  /** Aborts, which leaves no file behind and rejects with the signal's reason. */
  readonly signal?: AbortSignal;
}

/** The version of the block formats, which has not changed since 2023. */
const QUANTIZATION_VERSION = 2;

/**
 * Writes a model as a GGUF file with its matrices in another type. The file appears under its name only
 * when it is complete; the same input gives the same bytes on every machine. Memory is bounded by a few
 * pieces of a tensor, whatever its size.
 *
 * @param source a GGUF model with F32, F16 or BF16 weights, or a safetensors model: its folder, its file,
 * its index or its first part, with config.json and tokenizer.json beside it
 * @param path the file to write; one that is there is replaced
 * @throws FrugalError any code under "The file" and "The model"; `NON_FINITE` naming a tensor and element that
 * cannot be written; `OUTPUT_WRITE`; `INVALID_ARGUMENT`; `BACKEND_UNAVAILABLE`; on abort the signal's reason
 */
export async function quantize(
  source: ModelSource,
  path: string,
  options: QuantizeOptions,
): Promise<QuantizeReport> {
  checkKnown('quantize', options, ['type', 'onProgress', 'signal']);
  if (typeof path !== 'string' || path === '') throw invalid('path', 'the path of a file', path);
  if (options.type === undefined) throw invalid('type', `one of ${QUANTIZE_TYPES.join(', ')}`, undefined);
  const type = checkChoice('type', options.type, QUANTIZE_TYPES, 'F16');
  const signal = checkSignal(options.signal);
  if (options.onProgress !== undefined && typeof options.onProgress !== 'function')
    throw invalid('onProgress', 'a function', options.onProgress);
  signal?.throwIfAborted();
  const model = await openModel(source, signal);
  try {
    const { choices, notices } = chooseTypes(model, type);
    const layout = layOutGguf(
      describe(model.metadata, type),
      choices.map(({ tensor: { name, shape }, type }) => ({ name, type, shape })),
    );
    const output = await createOutput(path, model.paths);
    try {
      await output.write(layout.header, 0);
      const offsets = layout.tensors.map(({ offset }) => offset);
      const tallies = await writeTensors(choices, offsets, output, options, signal);
      signal?.throwIfAborted();
      await output.finish(layout.bytes);
      const summary = summarise(tallies);
      return { path, type, fileBytes: layout.bytes, ...summary, notices: [...model.notices, ...notices] };
    } finally {
      await output.abandon();
    }
  } finally {
    await model.close();
  }
}

/** The model's metadata, and what the new file is. */
function describe(metadata: ReadonlyMap<string, GgufValue>, type: QuantizeType): Map<string, GgufValue> {
  const out = new Map(metadata);
  out.set('general.file_type', { kind: 'uint32', value: fileTypeOf(type) });
  out.set('general.quantization_version', { kind: 'uint32', value: QUANTIZATION_VERSION });
  return out;
}

async function writeTensors(
  choices: readonly Choice[],
  offsets: readonly number[],
  output: OutputFile,
  { onProgress }: Pick<QuantizeOptions, 'onProgress'>,
  signal: AbortSignal | undefined,
): Promise<Map<GgmlType, Tally>> {
  const total = choices.reduce((sum, { tensor }) => sum + tensor.elements, 0);
  const tallies = new Map<GgmlType, Tally>();
  let done = 0;
  for (const [i, choice] of choices.entries()) {
    const tally = tallies.get(choice.type) ?? emptyTally();
    tallies.set(choice.type, tally);
    countTensor(tally, choice.tensor, choice.type);
    let at = offsets[i] ?? 0;
    for await (const piece of convertTensor(choice, signal)) {
      await output.write(piece.bytes, at);
      at += piece.bytes.length;
      tally.squares += piece.squares;
      tally.errors += piece.errors;
      done += piece.count;
      onProgress?.({ tensor: choice.tensor.name, done, total });
    }
  }
  return tallies;
}
