import { availableParallelism } from 'node:os';
import { translateAsync } from '../backend/model.js';
import { loadAddon, type Quantized } from '../backend/native.js';
import { FrugalError } from '../errors.js';
import { GGML_TYPES } from '../gguf/index.js';
import type { Choice } from './choose.js';

/** Elements that are read, converted and written at a time: what bounds the memory. */
const PIECE_ELEMENTS = 2 << 20;

/** A piece of a tensor in its new type. */
export interface Piece {
  /** The first element, and how many there are. */
  readonly start: number;
  readonly count: number;
  readonly bytes: Uint8Array;
  /** Sums over the piece: of the squares of the values, and of those of the differences. */
  readonly squares: number;
  readonly errors: number;
}

/** Converts the values of a piece. */
type Convert = (bytes: Uint8Array) => Promise<Quantized>;

/**
 * The tensor in its new type, piece by piece. While one piece is converted, on the addon's threads, the
 * next is read.
 * @throws FrugalError `NON_FINITE` naming the tensor and the element, `SOURCE_READ`, `BACKEND_UNAVAILABLE`
 */
export async function* convertTensor(choice: Choice, signal?: AbortSignal): AsyncGenerator<Piece> {
  const { tensor, type } = choice;
  const convert = converter(choice);
  const step = Math.max(tensor.unit, GGML_TYPES[type].block);
  const piece = Math.max(1, Math.floor(PIECE_ELEMENTS / step)) * step;
  const read = (start: number) => {
    const bytes = tensor.read(start, Math.min(piece, tensor.elements - start), signal);
    // It is awaited when its turn comes, unless the piece before it fails.
    bytes.catch(() => undefined);
    return bytes;
  };
  let next = read(0);
  for (let start = 0; start < tensor.elements; start += piece) {
    signal?.throwIfAborted();
    const values = await next;
    if (start + piece < tensor.elements) next = read(start + piece);
    const found = await convert(values);
    if (found.badElement !== undefined) throw badElement(choice, start + found.badElement, found.badValue);
    const { bytes, squares, errors } = found;
    yield { start, count: Math.min(piece, tensor.elements - start), bytes, squares, errors };
  }
}

function converter({ tensor, type }: Choice): Convert {
  const readable = tensor.type === 'F32' || tensor.type === 'F16' || tensor.type === 'BF16';
  // Blocks that stay as they are: nothing is lost, whatever they hold.
  if (!readable) return async (bytes) => ({ bytes, squares: 0, errors: 0 });
  const addon = loadAddon();
  const threads = availableParallelism();
  return (bytes) => translateAsync(() => addon.quantizeValues(tensor.type, type, bytes, threads));
}

function badElement({ tensor, type }: Choice, element: number, value: number | undefined): FrugalError {
  const [row = 1] = tensor.shape;
  const place = `row ${Math.floor(element / row)}, column ${element % row}`;
  const data = { tensor: tensor.name, element, type };
  if (value === undefined) {
    return new FrugalError('NON_FINITE', `the tensor ${tensor.name} holds NaN or an infinity at ${place}`, {
      cure: 'The weights are damaged: fetch the model again, or use another release of it.',
      data,
    });
  }
  return new FrugalError(
    'NON_FINITE',
    `the tensor ${tensor.name} holds ${value} at ${place}, which is more than ${type} can hold`,
    { cure: 'Choose BF16, which holds every magnitude that F32 does.', data: { ...data, value } },
  );
}
