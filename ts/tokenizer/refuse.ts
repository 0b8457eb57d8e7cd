import { FrugalError } from '../errors.js';

/** A vocabulary that contradicts itself. */
export function invalid(message: string, data: Record<string, unknown>): FrugalError {
  return new FrugalError('TOKENIZER_INVALID', `The tokeniser of the file is not valid: ${message}`, {
    cure: 'Convert the model again with a current tool, or download another release of it.',
    data,
  });
}

/** A call to a tokeniser that has been disposed of. */
export function disposed(): FrugalError {
  return new FrugalError('DISPOSED', 'The tokeniser has been disposed of', {
    cure: 'Load the model again, or dispose of it later.',
  });
}
