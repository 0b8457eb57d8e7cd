/** Bits of a memory's limits in a module. */
const HAS_MAXIMUM = 0x01;
const SHARED = 0x02;
const ADDRESSES_64 = 0x04;

/** A module of one function, with one page of memory that it imports. */
function moduleOf(body: readonly number[], memory = 0): Uint8Array<ArrayBuffer> {
  const code = [0, ...body, 0x0b];
  return Uint8Array.from([
    ...[0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00],
    // Type: no parameters, no results.
    ...[0x01, 0x04, 0x01, 0x60, 0x00, 0x00],
    // Import: "m" "m", a memory of one page (shared ones name a maximum too).
    ...[0x02, memory & HAS_MAXIMUM ? 0x09 : 0x08, 0x01, 0x01, 0x6d, 0x01, 0x6d, 0x02],
    ...(memory & HAS_MAXIMUM ? [memory, 0x01, 0x01] : [memory, 0x01]),
    // One function of that type, exported as "f".
    ...[0x03, 0x02, 0x01, 0x00],
    ...[0x07, 0x05, 0x01, 0x01, 0x66, 0x00, 0x00],
    ...[0x0a, code.length + 2, 0x01, code.length, ...code],
  ]);
}

/** `v128.load` of the 16 bytes at an address below 64. */
const load = (address: number) => [0x41, address, 0xfd, 0x00, 0x00, 0x00];

/** `memory[0..16] = i32x4.relaxed_dot_i8x16_i7x16_add_s(memory[16..32], memory[32..48], memory[48..64])` */
const RELAXED_DOT = moduleOf([
  ...[0x41, 0x00],
  ...load(16),
  ...load(32),
  ...load(48),
  ...[0xfd, 0x93, 0x02],
  ...[0xfd, 0x0b, 0x00, 0x00],
]);

/** `i8x16.popcnt` of the first bytes: one of the last instructions that SIMD got. */
const SIMD = moduleOf([...[0x41, 0x00], ...load(0), ...[0xfd, 0x62], ...[0xfd, 0x0b, 0x00, 0x00]]);

/** An atomic fence and a notification on shared memory. */
const ATOMICS = moduleOf(
  [...[0xfe, 0x03, 0x00], ...[0x41, 0x00, 0x41, 0x00, 0xfe, 0x00, 0x02, 0x00, 0x1a]],
  HAS_MAXIMUM | SHARED,
);

/** `v128.load` at a 64-bit address. */
const MEMORY64 = moduleOf([...[0x42, 0x00, 0xfd, 0x00, 0x00, 0x00], 0x1a], ADDRESSES_64);

export function supportsSimd(): boolean {
  return WebAssembly.validate(SIMD);
}

export function supportsSharedMemory(): boolean {
  return WebAssembly.validate(ATOMICS);
}

export function supportsMemory64(): boolean {
  if (!WebAssembly.validate(MEMORY64)) return false;
  try {
    // Engines from before the standard give such a memory another form of description.
    new WebAssembly.Memory({ address: 'i64', initial: 1n } as unknown as WebAssembly.MemoryDescriptor);
    return true;
  } catch {
    return false;
  }
}

/**
 * Whether the relaxed dot product gives the exact sums that are promised while its second operand is
 * within 0 to 127. Some engines compute it wrongly in one of their compilers.
 */
export function probeRelaxedDot(): 'right' | 'wrong' | 'absent' {
  if (!WebAssembly.validate(RELAXED_DOT)) return 'absent';
  const memory = new WebAssembly.Memory({ initial: 1 });
  const { exports } = new WebAssembly.Instance(new WebAssembly.Module(RELAXED_DOT), { m: { m: memory } });
  const dot = exports.f as () => void;
  const edges = [-128, -127, -1, 0, 1, 64, 127];
  for (const a of edges) {
    for (const b of [0, 1, 15, 64, 126, 127]) {
      for (const mixed of edges) if (!rightFor(memory, dot, [a, mixed, a, -1 - mixed], b)) return 'wrong';
    }
  }
  return 'right';
}

function rightFor(memory: WebAssembly.Memory, dot: () => void, quad: readonly number[], b: number): boolean {
  const bytes = new Int8Array(memory.buffer, 16, 32);
  const words = new Int32Array(memory.buffer);
  for (let i = 0; i < 16; i++) {
    bytes[i] = quad[i % 4] ?? 0;
    // The weights differ within a group of four, so that pairs which are mixed up show.
    bytes[16 + i] = i % 4 === 3 ? 127 - b : b;
  }
  words.fill(1 << 24, 12, 16);
  dot();
  const sum = quad.reduce((total, a, i) => total + a * (i === 3 ? 127 - b : b), 1 << 24);
  return [0, 1, 2, 3].every((lane) => words[lane] === sum);
}
