/**
 * The tensor types whose numbers the reference reads and writes: what a stored byte means, and the
 * nearest stored value to a number, as plainly as the formats can be said.
 */
import { tensorBytes } from '../gguf/writer.js';

export const WEIGHT_TYPES = ['F32', 'F16', 'BF16', 'Q8_0', 'Q4_0'] as const;
export type WeightType = (typeof WEIGHT_TYPES)[number];
/** What tensors of test files may be stored as: MXFP4 only where a model asks for it. */
export type StoredType = WeightType | 'MXFP4';

/** Reads or writes the block at byte `at`; `out` and `values` hold one block of numbers. */
interface Format {
  readonly block: number;
  readonly decode: (view: DataView, at: number, out: Float64Array) => void;
  readonly encode: (values: Float64Array, view: DataView, at: number) => void;
}

/** A format of single numbers. */
function single(
  get: (view: DataView, at: number) => number,
  put: (view: DataView, at: number, value: number) => void,
): Format {
  return {
    block: 1,
    decode(view, at, out) {
      out[0] = get(view, at);
    },
    encode: (values, view, at) => put(view, at, values[0] ?? 0),
  };
}

/** What the low three bits of an E2M1 number stand for; the fourth is the sign. */
const E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6];

const FORMATS: Record<StoredType, Format> = {
  F32: single(
    (view, at) => view.getFloat32(at, true),
    (view, at, value) => view.setFloat32(at, value, true),
  ),
  F16: single(
    (view, at) => halfValue(view.getUint16(at, true)),
    (view, at, value) => view.setUint16(at, halfBits(value), true),
  ),
  BF16: single(
    (view, at) => bfloatValue(view.getUint16(at, true)),
    (view, at, value) => view.setUint16(at, bfloatBits(value), true),
  ),
  // An F16 scale, then 32 signed bytes.
  Q8_0: {
    block: 32,
    decode(view, at, out) {
      const scale = halfValue(view.getUint16(at, true));
      out.forEach((_, i) => {
        out[i] = scale * view.getInt8(at + 2 + i);
      });
    },
    encode(values, view, at) {
      const scale = Math.max(...values.map(Math.abs)) / 127;
      view.setUint16(at, halfBits(scale), true);
      values.forEach((value, i) => {
        view.setInt8(at + 2 + i, scale === 0 ? 0 : roundHalfEven(value / scale));
      });
    },
  },
  // An F16 scale, then 16 bytes: value i in the low four bits of byte i, value i + 16 in the high ones, each plus 8.
  Q4_0: {
    block: 32,
    decode(view, at, out) {
      const scale = halfValue(view.getUint16(at, true));
      for (let i = 0; i < 16; i++) {
        const byte = view.getUint8(at + 2 + i);
        out[i] = scale * ((byte & 15) - 8);
        out[i + 16] = scale * ((byte >> 4) - 8);
      }
    },
    encode(values, view, at) {
      const scale = values.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a), 0) / -8;
      const nibble = (value = 0) => (scale === 0 ? 8 : Math.min(15, roundHalfEven(value / scale) + 8));
      view.setUint16(at, halfBits(scale), true);
      for (let i = 0; i < 16; i++) {
        view.setUint8(at + 2 + i, nibble(values[i]) | (nibble(values[i + 16]) << 4));
      }
    },
  },
  // The scale's power of two plus 127, then nibbles as in Q4_0 (OCP Microscaling Formats, 2023).
  MXFP4: {
    block: 32,
    decode(view, at, out) {
      const scale = 2 ** (view.getUint8(at) - 127);
      const value = (nibble: number) => (nibble & 8 ? -scale : scale) * (E2M1[nibble & 7] ?? 0);
      for (let i = 0; i < 16; i++) {
        const byte = view.getUint8(at + 1 + i);
        out[i] = value(byte & 15);
        out[i + 16] = value(byte >> 4);
      }
    },
    encode(values, view, at) {
      const exponent = Math.floor(Math.log2(Math.max(...values.map(Math.abs)) || 1)) - 2;
      view.setUint8(at, exponent + 127);
      const nibble = (value = 0) => {
        const magnitude = Math.abs(value) / 2 ** exponent;
        const distances = E2M1.map((each) => Math.abs(each - magnitude));
        return (value < 0 ? 8 : 0) | distances.indexOf(Math.min(...distances));
      };
      for (let i = 0; i < 16; i++) {
        view.setUint8(at + 1 + i, nibble(values[i]) | (nibble(values[i + 16]) << 4));
      }
    },
  },
};

export function isStoredType(type: string): type is StoredType {
  return type in FORMATS;
}

/** The numbers that the bytes of a tensor stand for, exactly. */
export function decode(type: StoredType, bytes: Uint8Array): Float64Array {
  const { block, decode: decodeBlock } = FORMATS[type];
  const size = tensorBytes(type, [block]);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const out = new Float64Array((bytes.length / size) * block);
  for (let b = 0; b < bytes.length / size; b++) {
    decodeBlock(view, b * size, out.subarray(b * block, (b + 1) * block));
  }
  return out;
}

/** Bytes of a tensor that stand for numbers near `values`, a whole number of blocks. */
export function encode(type: StoredType, values: Float64Array): Uint8Array {
  const { block, encode: encodeBlock } = FORMATS[type];
  const size = tensorBytes(type, [block]);
  const bytes = new Uint8Array(tensorBytes(type, [values.length]));
  const view = new DataView(bytes.buffer);
  for (let b = 0; b < values.length / block; b++) {
    encodeBlock(values.subarray(b * block, (b + 1) * block), view, b * size);
  }
  return bytes;
}

function halfValue(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1024 + fraction) * 2 ** (exponent - 25);
}

/** For magnitudes up to 65504. */
function halfBits(value: number): number {
  const magnitude = Math.abs(value);
  const exponent = Math.max(Math.floor(Math.log2(magnitude)), -14);
  // Subnormals have no leading one, and a fraction that rounds up to 2 carries into the exponent.
  const fraction = roundHalfEven(magnitude / 2 ** (exponent - 10));
  return (value < 0 ? 0x8000 : 0) | (((exponent + 14) << 10) + fraction);
}

const word = new DataView(new ArrayBuffer(4));

function bfloatValue(bits: number): number {
  word.setUint32(0, bits << 16);
  return word.getFloat32(0);
}

/** The upper half of the F32 bits, rounded to nearest even. */
function bfloatBits(value: number): number {
  word.setFloat32(0, value);
  const bits = word.getUint32(0);
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

function roundHalfEven(value: number): number {
  const floor = Math.floor(value);
  const rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 !== 0) ? floor + 1 : floor;
}
