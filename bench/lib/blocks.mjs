// Random weights of every type: what the bytes are does not change the speed, but numbers must stay finite.

/**
 * Writes an F16 of about 2^-9 (or, with another exponent, of 2^(exponent - 15)), some of its bits random. Of either
 * sign: stored values are not 0 in the mean, and such weights would send every token to the same experts.
 */
const scale =
  (exponent, ...places) =>
  (view, at, power) => {
    for (const place of places)
      view.setUint16(at + place, ((exponent + power) << 10) | (view.getUint16(at + place) & 0x80ff), true);
  };

/** Elements and bytes of a block, and how random bytes become a sensible one. */
export const BLOCKS = {
  F32: {
    elements: 1,
    bytes: 4,
    fix: (view, at, power) =>
      view.setFloat32(at, (view.getUint16(at) / 65536 - 0.5) * 2 ** (power - 4), true),
  },
  F16: {
    elements: 1,
    bytes: 2,
    fix: (view, at, power) =>
      view.setUint16(at, (view.getUint16(at) & 0x83ff) | (0x2400 + (power << 10)), true),
  },
  BF16: {
    elements: 1,
    bytes: 2,
    fix: (view, at, power) =>
      view.setUint16(at, (view.getUint16(at) & 0x807f) | (0x3c80 + (power << 7)), true),
  },
  Q8_0: { elements: 32, bytes: 34, fix: scale(3, 0) },
  Q4_0: { elements: 32, bytes: 18, fix: scale(7, 0) },
  Q4_1: { elements: 32, bytes: 20, fix: scale(7, 0, 2) },
  Q5_0: { elements: 32, bytes: 22, fix: scale(6, 0) },
  Q5_1: { elements: 32, bytes: 24, fix: scale(6, 0, 2) },
  Q2_K: { elements: 256, bytes: 84, fix: scale(5, 80, 82) },
  Q3_K: { elements: 256, bytes: 110, fix: scale(3, 108) },
  Q4_K: { elements: 256, bytes: 144, fix: scale(2, 0, 2) },
  Q5_K: { elements: 256, bytes: 176, fix: scale(2, 0, 2) },
  Q6_K: { elements: 256, bytes: 210, fix: scale(1, 208) },
  IQ4_NL: { elements: 32, bytes: 18, fix: scale(4, 0) },
  IQ4_XS: { elements: 256, bytes: 136, fix: scale(1, 0) },
  MXFP4: {
    elements: 32,
    bytes: 17,
    fix: (view, at, power) => view.setUint8(at, (0x74 + power) | (view.getUint8(at) & 1)),
  },
};

/**
 * A seeded run of whole blocks, to be repeated over a tensor, of values 2^power as large as usual. A prime number of
 * them, so that no two rows are alike: of experts with the same gates only the first would ever be used.
 */
export function pattern(type, power = 0) {
  const { bytes, fix } = BLOCKS[type];
  const buffer = new Uint8Array(bytes * 65521);
  let state = 0x9e3779b9;
  for (let i = 0; i < buffer.length; i++) {
    // xorshift32 (Marsaglia, 2003)
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    buffer[i] = state >>> 24;
  }
  const view = new DataView(buffer.buffer);
  for (let at = 0; at < buffer.length; at += bytes) fix(view, at, power);
  return buffer;
}

/** Bytes of `elements` values. */
export function sizeOf(type, elements) {
  const block = BLOCKS[type];
  return (elements / block.elements) * block.bytes;
}
