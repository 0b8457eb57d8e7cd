const MAGIC = Uint8Array.of(0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59); // \x93NUMPY
const PRELUDE = MAGIC.length + 2 + 2; // magic, version, header length
const ALIGNMENT = 64;

/**
 * The header of a NumPy file, format version 1.0, for a little-endian float32 array in C order.
 * Described in NumPy's documentation, `numpy.lib.format`.
 */
export function npyHeader(shape: readonly number[]): Uint8Array {
  const dims = shape.length === 1 ? `${shape[0]},` : shape.join(', ');
  const dictionary = `{'descr': '<f4', 'fortran_order': False, 'shape': (${dims}), }`;
  const total = Math.ceil((PRELUDE + dictionary.length + 1) / ALIGNMENT) * ALIGNMENT;
  const header = new Uint8Array(total).fill(0x20);
  header.set(MAGIC);
  header.set([1, 0], MAGIC.length);
  new DataView(header.buffer).setUint16(MAGIC.length + 2, total - PRELUDE, true);
  header.set(new TextEncoder().encode(dictionary), PRELUDE);
  header[total - 1] = 0x0a;
  return header;
}

/** The bytes of a row, in little-endian order as every supported machine has them; a view. */
export function rowBytes(row: Float32Array): Uint8Array {
  return new Uint8Array(row.buffer, row.byteOffset, row.byteLength);
}
