/** The rows of a two-dimensional little-endian float32 `.npy` file, format version 1, in C order. */
export function readRows(file: Uint8Array): Float32Array[] {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const start = 10 + view.getUint16(8, true);
  const header = new TextDecoder('latin1').decode(file.subarray(0, start));
  const [, rows = '', columns = ''] = /'<f4'.*False.*\((\d+), (\d+)\)/.exec(header) ?? [];
  const width = Number(columns);
  if (start + Number(rows) * width * 4 !== file.length || width === 0)
    throw new Error(`not such a file: ${header}`);
  return Array.from({ length: Number(rows) }, (_, row) =>
    Float32Array.from({ length: width }, (_, i) => view.getFloat32(start + (row * width + i) * 4, true)),
  );
}
