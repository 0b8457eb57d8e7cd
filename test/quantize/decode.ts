/** Reads the block formats as their definition says, in plain JavaScript numbers: the tests' own reading. */

function half(view: DataView, at: number): number {
  const bits = view.getUint16(at, true);
  const fraction = bits & 0x3ff;
  const exponent = (bits >> 10) & 31;
  const sign = bits & 0x8000 ? -1 : 1;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

function brain(view: DataView, at: number): number {
  const wide = new DataView(new ArrayBuffer(4));
  wide.setUint32(0, view.getUint16(at, true) << 16);
  return wide.getFloat32(0);
}

function q4k(view: DataView, at: number, out: number[]): void {
  const d = half(view, at);
  const dmin = half(view, at + 2);
  const byte = (i: number) => view.getUint8(at + 4 + i);
  for (let sub = 0; sub < 8; sub += 1) {
    const low = sub < 4;
    const scale = low ? byte(sub) & 63 : (byte(sub + 4) & 15) | ((byte(sub - 4) >> 6) << 4);
    const min = low ? byte(sub + 4) & 63 : (byte(sub + 4) >> 4) | ((byte(sub) >> 6) << 4);
    for (let i = 0; i < 32; i += 1) {
      const pair = byte(12 + 32 * (sub >> 1) + i);
      out.push(d * scale * (sub & 1 ? pair >> 4 : pair & 15) - dmin * min);
    }
  }
}

function q6k(view: DataView, at: number, out: number[]): void {
  const d = half(view, at + 208);
  for (let i = 0; i < 256; i += 1) {
    const part = i >> 7;
    const quarter = (i & 127) >> 5;
    const lane = i & 31;
    const low = view.getUint8(at + 64 * part + lane + (quarter & 1 ? 32 : 0));
    const high = view.getUint8(at + 128 + 32 * part + lane) >> (2 * quarter);
    const level = (quarter < 2 ? low & 15 : low >> 4) | ((high & 3) << 4);
    out.push(d * view.getInt8(at + 192 + (i >> 4)) * (level - 32));
  }
}

type ReadBlock = (view: DataView, at: number, out: number[]) => void;

const BLOCKS: Readonly<Record<string, readonly [bytes: number, read: ReadBlock]>> = {
  F32: [4, (view, at, out) => out.push(view.getFloat32(at, true))],
  F16: [2, (view, at, out) => out.push(half(view, at))],
  BF16: [2, (view, at, out) => out.push(brain(view, at))],
  Q8_0: [
    34,
    (view, at, out) => {
      for (let i = 0; i < 32; i += 1) out.push(half(view, at) * view.getInt8(at + 2 + i));
    },
  ],
  Q4_0: [
    18,
    (view, at, out) => {
      for (let i = 0; i < 32; i += 1) {
        const pair = view.getUint8(at + 2 + (i & 15));
        out.push(half(view, at) * ((i < 16 ? pair & 15 : pair >> 4) - 8));
      }
    },
  ],
  Q4_K: [144, q4k],
  Q6_K: [210, q6k],
};

/** The values of a tensor's bytes. */
export function decode(type: string, bytes: Uint8Array): number[] {
  const found = BLOCKS[type];
  if (found === undefined) throw new Error(`no reading of ${type}`);
  const [size, read] = found;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const out: number[] = [];
  for (let at = 0; at < bytes.length; at += size) read(view, at, out);
  return out;
}

/** The root mean square of the differences over that of the values. */
export function relativeError(values: ArrayLike<number>, others: ArrayLike<number>): number {
  let squares = 0;
  let errors = 0;
  for (let i = 0; i < values.length; i += 1) {
    squares += (values[i] ?? 0) ** 2;
    errors += ((values[i] ?? 0) - (others[i] ?? 0)) ** 2;
  }
  return Math.sqrt(errors / squares);
}
