/** Every way a call can fail. The code is stable; messages may change. */
export type ErrorCode =
  // The file
  | 'GGUF_MAGIC'
  | 'GGUF_BIG_ENDIAN'
  | 'GGUF_VERSION'
  | 'GGUF_TRUNCATED'
  | 'GGUF_LIMIT'
  | 'GGUF_DUPLICATE'
  | 'GGUF_VALUE_TYPE'
  | 'GGUF_TENSOR_TYPE'
  | 'GGUF_SHAPE'
  | 'GGUF_ALIGNMENT'
  | 'GGUF_OVERLAP'
  | 'GGUF_STRING'
  | 'GGUF_SPLIT'
  | 'SAFETENSORS_INVALID'
  | 'METADATA_MISSING'
  | 'METADATA_INVALID'
  | 'SOURCE_READ'
  | 'SOURCE_CHECKSUM'
  | 'CACHE_UNAVAILABLE'
  | 'CACHE_QUOTA'
  | 'CACHE_BUSY'
  // The model
  | 'UNKNOWN_ARCHITECTURE'
  | 'UNSUPPORTED_TENSOR_TYPE'
  | 'UNSUPPORTED_FEATURE'
  | 'MISSING_TENSOR'
  | 'TENSOR_SHAPE'
  | 'PLAN_INVALID'
  | 'TOKENIZER_UNSUPPORTED'
  | 'TOKENIZER_INVALID'
  | 'TEMPLATE_MISSING'
  | 'TEMPLATE_FAILED'
  // The call
  | 'INVALID_ARGUMENT'
  | 'CONTEXT_OVERFLOW'
  | 'RECORD_INVALID'
  | 'OUTPUT_WRITE'
  | 'NON_FINITE'
  | 'OUT_OF_MEMORY'
  | 'DISPOSED'
  | 'BACKEND_UNAVAILABLE'
  | 'INTERNAL';

const BRAND = Symbol.for('frugal.error');

/**
 * The one error class of the public API. The message says what was found and what was expected;
 * `cure` says what to do about it.
 */
export class FrugalError extends Error {
  override readonly name = 'FrugalError';
  readonly code: ErrorCode;
  readonly cure: string;
  /** The names, offsets and numbers in the message, for programs. */
  readonly data: Readonly<Record<string, unknown>>;
  readonly [BRAND] = true;

  constructor(
    code: ErrorCode,
    message: string,
    options: { cure: string; data?: Record<string, unknown>; cause?: unknown },
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.cure = options.cure;
    this.data = options.data ?? {};
  }
}

/** Recognises a FrugalError from any copy of this package or any realm. */
export function isFrugalError(value: unknown): value is FrugalError {
  return typeof value === 'object' && value !== null && BRAND in value;
}

/** A value as it appears in messages: short, and never the contents of something large. */
export function show(value: unknown): string {
  if (typeof value === 'string')
    return value.length > 60 ? `${JSON.stringify(value.slice(0, 60))}...` : JSON.stringify(value);
  if (typeof value === 'bigint') return `${value}n`;
  if (typeof value === 'function') return 'a function';
  if (Array.isArray(value)) return `an array of ${value.length}`;
  if (typeof value !== 'object' || value === null) return String(value);
  const name: unknown = value.constructor?.name;
  return typeof name === 'string' ? `a ${name} object` : 'an object without a constructor';
}

/** @returns the error `INVALID_ARGUMENT` that names the field, what it allows and what it got */
export function invalid(field: string, allowed: string, got: unknown, cure?: string): FrugalError {
  return new FrugalError('INVALID_ARGUMENT', `${field} must be ${allowed}, got ${show(got)}`, {
    cure: cure ?? `Pass ${allowed} as ${field}, or leave it out.`,
    data: { field, allowed, got: show(got) },
  });
}

/** The same for an argument that a call cannot do without. */
export function invalidArgument(field: string, allowed: string, got: unknown): FrugalError {
  return invalid(field, allowed, got, `Pass ${allowed} as ${field}.`);
}
