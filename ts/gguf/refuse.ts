import { type ErrorCode, FrugalError } from '../errors.js';

const BROKEN = 'The file is damaged or was written by a faulty program: download or convert it again.';

const CURES = {
  GGUF_MAGIC: 'Give a GGUF model file; other formats must be converted to GGUF first.',
  GGUF_BIG_ENDIAN: 'Convert the file to little-endian GGUF.',
  GGUF_VERSION: 'Convert the model again with a current tool: GGUF versions 2 and 3 are read.',
  GGUF_TRUNCATED: 'Download the file again: it is shorter than its own header says.',
  GGUF_LIMIT: BROKEN,
  GGUF_DUPLICATE: BROKEN,
  GGUF_VALUE_TYPE: BROKEN,
  GGUF_TENSOR_TYPE:
    'Convert the model to one of the listed tensor types, or use a newer version of this package.',
  GGUF_SHAPE: BROKEN,
  GGUF_ALIGNMENT: BROKEN,
  GGUF_OVERLAP: BROKEN,
  GGUF_STRING: BROKEN,
  GGUF_SPLIT:
    'Put all parts of the model, from one release and with their original names, beside the first one.',
} as const satisfies Partial<Record<ErrorCode, string>>;

/** A refusal of a file: `data` holds the names, offsets and numbers of the message. */
export function refuse(
  code: keyof typeof CURES,
  message: string,
  data: Record<string, unknown>,
  options: { cure?: string; cause?: unknown } = {},
): FrugalError {
  return new FrugalError(code, message, { cure: options.cure ?? CURES[code], data, cause: options.cause });
}
