//! NEON: four q registers are the 16 lanes. Integer dot products have two forms, with and without
//! the dot product instructions that ARMv8.2 added.

use super::{ActBlock, LANES, Q4_BYTES, Q8_BYTES, Simd};
use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

/// Proof that this CPU has NEON, and where DOT is set also its dot product instructions.
#[derive(Clone, Copy)]
pub struct Neon<const DOT: bool>(());

impl<const DOT: bool> Neon<DOT> {
    pub fn detect() -> Option<Self> {
        let has = is_aarch64_feature_detected!("neon") && (!DOT || is_aarch64_feature_detected!("dotprod"));
        has.then_some(Self(()))
    }
}

type F32x16 = [float32x4_t; 4];
type I32x16 = [int32x4_t; 4];

/// An operation on each of the four registers.
macro_rules! quads {
    ($op:ident($($arg:ident),+)) => {
        // SAFETY: used only in methods of the token.
        unsafe {
            [$op($($arg[0]),+), $op($($arg[1]),+), $op($($arg[2]),+), $op($($arg[3]),+)]
        }
    };
}

/// The dot products of each tile's block, its four quads of rows one after another. (No closures:
/// they may not inherit the dot product feature.)
macro_rules! by_tiles {
    ($dot:ident($w:ident, $x:ident)) => {
        // SAFETY: used only in methods of the token, which proves the features.
        unsafe {
            let mut sums = [[[vdupq_n_s32(0); 4]; C]; R];
            for r in 0..R {
                let w = $w[r];
                let quads = [$dot(w, $x, 0), $dot(w, $x, 1), $dot(w, $x, 2), $dot(w, $x, 3)];
                for c in 0..C {
                    sums[r][c] = [quads[0][c], quads[1][c], quads[2][c], quads[3][c]];
                }
            }
            sums
        }
    };
}

// SAFETY (every block below): the token proves the CPU features; every pointer comes from a
// reference to an array of exactly the bytes that are read or written.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const DOT: bool> Simd for Neon<DOT> {
    type F = F32x16;
    type I = I32x16;
    const COLUMNS: usize = 4;
    const TILES: usize = 1;
    const QUERIES: usize = 4;

    #[inline(always)]
    fn splat(self, x: f32) -> F32x16 {
        unsafe { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> F32x16 {
        let p = from.as_ptr();
        unsafe { [vld1q_f32(p), vld1q_f32(p.add(4)), vld1q_f32(p.add(8)), vld1q_f32(p.add(12))] }
    }
    #[inline(always)]
    fn store(self, v: F32x16, to: &mut [f32; LANES]) {
        let p = to.as_mut_ptr();
        unsafe {
            vst1q_f32(p, v[0]);
            vst1q_f32(p.add(4), v[1]);
            vst1q_f32(p.add(8), v[2]);
            vst1q_f32(p.add(12), v[3]);
        }
    }
    #[inline(always)]
    fn add(self, a: F32x16, b: F32x16) -> F32x16 {
        quads!(vaddq_f32(a, b))
    }
    #[inline(always)]
    fn sub(self, a: F32x16, b: F32x16) -> F32x16 {
        quads!(vsubq_f32(a, b))
    }
    #[inline(always)]
    fn mul(self, a: F32x16, b: F32x16) -> F32x16 {
        quads!(vmulq_f32(a, b))
    }
    #[inline(always)]
    fn div(self, a: F32x16, b: F32x16) -> F32x16 {
        quads!(vdivq_f32(a, b))
    }
    #[inline(always)]
    fn max(self, a: F32x16, b: F32x16) -> F32x16 {
        quads!(vmaxq_f32(a, b))
    }
    #[inline(always)]
    fn abs(self, a: F32x16) -> F32x16 {
        quads!(vabsq_f32(a))
    }
    #[inline(always)]
    fn mul_add_exact(self, a: F32x16, b: F32x16, c: F32x16) -> F32x16 {
        quads!(vfmaq_f32(c, a, b))
    }
    #[inline(always)]
    fn round(self, x: F32x16) -> F32x16 {
        quads!(vrndnq_f32(x))
    }
    #[inline(always)]
    fn pow2(self, n: F32x16) -> F32x16 {
        quads!(pow2(n))
    }
    #[inline(always)]
    fn select_less(self, a: F32x16, b: F32x16, yes: F32x16, no: F32x16) -> F32x16 {
        let less = quads!(vcltq_f32(a, b));
        quads!(vbslq_f32(less, yes, no))
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> F32x16 {
        let halves = load_u16(from);
        quads!(widen_f16(halves))
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> F32x16 {
        let halves = load_u16(from);
        quads!(widen_bf16(halves))
    }
    #[inline(always)]
    fn store_f16(self, v: F32x16, to: &mut [u16; LANES]) {
        let halves = quads!(narrow_f16(v));
        let p = to.as_mut_ptr();
        unsafe {
            vst1_u16(p, halves[0]);
            vst1_u16(p.add(4), halves[1]);
            vst1_u16(p.add(8), halves[2]);
            vst1_u16(p.add(12), halves[3]);
        }
    }
    #[inline(always)]
    fn store_i8(self, v: F32x16, to: &mut [i8; LANES]) {
        let words = quads!(vcvtnq_s32_f32(v));
        let words = quads!(vmovn_s32(words));
        unsafe {
            let low = vmovn_s16(vcombine_s16(words[0], words[1]));
            let high = vmovn_s16(vcombine_s16(words[2], words[3]));
            vst1q_s8(to.as_mut_ptr(), vcombine_s8(low, high));
        }
    }
    #[inline(always)]
    fn prefetch<T>(self, item: &T, ahead: usize) {
        let start = std::ptr::from_ref(item).cast::<u8>().wrapping_add(ahead);
        for line in 0..size_of::<T>().div_ceil(64) {
            let line = start.wrapping_add(line * 64);
            unsafe { asm!("prfm pldl2keep, [{line}]", line = in(reg) line, options(nostack, readonly)) }
        }
    }
    #[inline(always)]
    fn int_to_float(self, v: I32x16) -> F32x16 {
        quads!(vcvtq_f32_s32(v))
    }

    #[inline(always)]
    fn dot_q8<const R: usize, const C: usize>(
        self,
        w: [&[u8; Q8_BYTES]; R],
        x: [&ActBlock; C],
    ) -> [[I32x16; C]; R] {
        if DOT { by_tiles!(sdot_q8(w, x)) } else { by_tiles!(mull_q8(w, x)) }
    }
    #[inline(always)]
    fn dot_q4<const R: usize, const C: usize>(
        self,
        w: [&[u8; Q4_BYTES]; R],
        x: [&ActBlock; C],
    ) -> [[I32x16; C]; R] {
        if DOT { by_tiles!(sdot_q4(w, x)) } else { by_tiles!(mull_q4(w, x)) }
    }
}

#[inline(always)]
fn load_u16(from: &[u16; LANES]) -> [uint16x4_t; 4] {
    let p = from.as_ptr();
    // SAFETY: called only from methods of the token; the loads cover the array.
    unsafe { [vld1_u16(p), vld1_u16(p.add(4)), vld1_u16(p.add(8)), vld1_u16(p.add(12))] }
}

// The two F16 conversions are instructions of every CPU with NEON, but their intrinsics came to
// stable Rust only lately. They round as the FPCR says: to nearest, ties to even.

#[inline(always)]
unsafe fn widen_f16(halves: uint16x4_t) -> float32x4_t {
    let wide;
    // SAFETY: called only from methods of the token; registers alone are touched.
    unsafe {
        asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) wide, in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags));
    }
    wide
}

#[inline(always)]
unsafe fn narrow_f16(v: float32x4_t) -> uint16x4_t {
    let halves;
    // SAFETY: as above.
    unsafe {
        asm!("fcvtn {0:v}.4h, {1:v}.4s", out(vreg) halves, in(vreg) v,
            options(pure, nomem, nostack, preserves_flags));
    }
    halves
}

#[inline(always)]
unsafe fn widen_bf16(halves: uint16x4_t) -> float32x4_t {
    // SAFETY: called only from methods of the token.
    unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(halves)) }
}

#[inline(always)]
unsafe fn pow2(n: float32x4_t) -> float32x4_t {
    // SAFETY: called only from methods of the token.
    unsafe {
        let biased = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
        vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
    }
}

/// Bytes 16 * index .. 16 * index + 16 of a packed block: four values of each of four rows.
#[inline(always)]
fn load_rows<const N: usize>(w: &[u8; N], index: usize) -> uint8x16_t {
    let rows = &w.as_chunks::<16>().0[index];
    // SAFETY: called only from methods of the token; the load covers the array.
    unsafe { vld1q_u8(rows.as_ptr()) }
}

/// The same of an 8-bit block, whose stored offset of 128 is the sign bit flipped.
#[inline(always)]
fn load_signed(w: &[u8; Q8_BYTES], index: usize) -> int8x16_t {
    // SAFETY: called only from methods of the token.
    unsafe { vreinterpretq_s8_u8(veorq_u8(load_rows(w, index), vdupq_n_u8(0x80))) }
}

/// The low and the high nibbles of the same of a 4-bit block: values 0..=15.
#[inline(always)]
fn load_nibbles(w: &[u8; Q4_BYTES], index: usize) -> [int8x16_t; 2] {
    let both = load_rows(w, index);
    // SAFETY: called only from methods of the token.
    unsafe {
        [vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15))), vreinterpretq_s8_u8(vshrq_n_u8::<4>(both))]
    }
}

/// A column's values 16 * half .. 16 * half + 16.
#[inline(always)]
fn load_values(x: &ActBlock, half: usize) -> int8x16_t {
    let values = &x.values.as_chunks::<16>().0[half];
    // SAFETY: called only from methods of the token; the load covers the array.
    unsafe { vld1q_s8(values.as_ptr()) }
}

/// Values 4 * group .. 4 * group + 4 twice.
#[inline(always)]
fn broadcast(x: &ActBlock, group: usize) -> int8x8_t {
    let four = i32::from_le_bytes(x.values.as_chunks::<4>().0[group].map(|value| value as u8));
    // SAFETY: called only from methods of the token.
    unsafe { vreinterpret_s8_s32(vdup_n_s32(four)) }
}

/// Adds to each of four rows' sums the row's four values of `rows` times values
/// 4 * GROUP .. 4 * GROUP + 4 of `x`.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn sdot<const GROUP: usize>(sums: int32x4_t, rows: int8x16_t, x: int8x16_t) -> int32x4_t {
    let mut sums = sums;
    // SAFETY: the instruction is there; registers alone are touched.
    unsafe {
        asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{group}]",
            inout(vreg) sums, in(vreg) rows, in(vreg) x, group = const GROUP,
            options(pure, nomem, nostack, preserves_flags));
    }
    sums
}

/// Four groups of values of `rows` with all 16 values of `x`.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn sdot_16(sums: int32x4_t, rows: [int8x16_t; 4], x: int8x16_t) -> int32x4_t {
    let sums = sdot::<0>(sums, rows[0], x);
    let sums = sdot::<1>(sums, rows[1], x);
    let sums = sdot::<2>(sums, rows[2], x);
    sdot::<3>(sums, rows[3], x)
}

// What follows gives each column's dot products with rows 4 * quad .. 4 * quad + 4 of a block.

#[inline(always)]
unsafe fn sdot_q8<const C: usize>(w: &[u8; Q8_BYTES], x: [&ActBlock; C], quad: usize) -> [int32x4_t; C] {
    // SAFETY: called only where the token proves the dot product instructions.
    unsafe {
        let mut sums = [vdupq_n_s32(0); C];
        for half in 0..2 {
            let rows = [0, 1, 2, 3].map(|group| load_signed(w, (half * 4 + group) * 4 + quad));
            for c in 0..C {
                sums[c] = sdot_16(sums[c], rows, load_values(x[c], half));
            }
        }
        sums
    }
}

#[inline(always)]
unsafe fn sdot_q4<const C: usize>(w: &[u8; Q4_BYTES], x: [&ActBlock; C], quad: usize) -> [int32x4_t; C] {
    // SAFETY: called only where the token proves the dot product instructions.
    unsafe {
        let both = [0, 1, 2, 3].map(|group| load_nibbles(w, group * 4 + quad));
        let (first, second) = (both.map(|nibbles| nibbles[0]), both.map(|nibbles| nibbles[1]));
        let mut sums = [vdupq_n_s32(0); C];
        for c in 0..C {
            // Starting from 8 * -sum(x) takes the stored offset out.
            let offset = vdupq_n_s32(8 * x[c].minus_sum);
            let sum = sdot_16(offset, first, load_values(x[c], 0));
            sums[c] = sdot_16(sum, second, load_values(x[c], 1));
        }
        sums
    }
}

// Two products are added in 16 bits. |w| <= 128 times |x| <= 127, twice, is 32,512: it fits.
#[inline(always)]
unsafe fn mull_q8<const C: usize>(w: &[u8; Q8_BYTES], x: [&ActBlock; C], quad: usize) -> [int32x4_t; C] {
    // SAFETY: called only from methods of the token.
    unsafe {
        let mut pairs = [[vdupq_n_s32(0); 2]; C];
        for pair in 0..4 {
            let group = pair * 2;
            let a = load_signed(w, group * 4 + quad);
            let b = load_signed(w, (group + 1) * 4 + quad);
            for c in 0..C {
                let (v, u) = (broadcast(x[c], group), broadcast(x[c], group + 1));
                let low = vmlal_s8(vmull_s8(vget_low_s8(a), v), vget_low_s8(b), u);
                let high = vmlal_s8(vmull_s8(vget_high_s8(a), v), vget_high_s8(b), u);
                pairs[c] = [vpadalq_s16(pairs[c][0], low), vpadalq_s16(pairs[c][1], high)];
            }
        }
        let mut sums = [vdupq_n_s32(0); C];
        for c in 0..C {
            sums[c] = vpaddq_s32(pairs[c][0], pairs[c][1]);
        }
        sums
    }
}

// Eight groups of products of 15 * 127, then two such sums, are 30,480: 16 bits hold a whole block.
#[inline(always)]
unsafe fn mull_q4<const C: usize>(w: &[u8; Q4_BYTES], x: [&ActBlock; C], quad: usize) -> [int32x4_t; C] {
    // SAFETY: called only from methods of the token.
    unsafe {
        let mut products = [[vdupq_n_s16(0); 2]; C];
        for group in 0..4 {
            let [a, b] = load_nibbles(w, group * 4 + quad);
            for c in 0..C {
                let (v, u) = (broadcast(x[c], group), broadcast(x[c], group + 4));
                let [low, high] = products[c];
                products[c] = [
                    vmlal_s8(vmlal_s8(low, vget_low_s8(a), v), vget_low_s8(b), u),
                    vmlal_s8(vmlal_s8(high, vget_high_s8(a), v), vget_high_s8(b), u),
                ];
            }
        }
        let mut sums = [vdupq_n_s32(0); C];
        for c in 0..C {
            let pairs = vpaddq_s16(products[c][0], products[c][1]);
            sums[c] = vpadalq_s16(vdupq_n_s32(8 * x[c].minus_sum), pairs);
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::float16::{f16_to_f32, f32_to_f16};
    use crate::simd::QK;

    /// Both forms where the CPU has both.
    fn check_dots<const DOT: bool, const C: usize>(
        w8: &[u8; Q8_BYTES],
        w4: &[u8; Q4_BYTES],
        x: &[[i8; QK]; C],
    ) {
        let Some(token) = Neon::<DOT>::detect() else {
            println!("no dot product instructions: their form was not run");
            return;
        };
        let blocks = x.map(|values| ActBlock {
            scale: 1.0,
            minus_sum: -values.iter().map(|&x| x as i32).sum::<i32>(),
            values,
        });
        let columns = blocks.each_ref();
        let ([got8], [got4]) = (token.dot_q8([w8], columns), token.dot_q4([w4], columns));
        for c in 0..C {
            for lane in 0..LANES {
                let (mut want8, mut want4) = (0, 0);
                for (k, &x) in x[c].iter().enumerate() {
                    want8 += (w8[k / 4 * 64 + lane * 4 + k % 4] as i32 - 128) * x as i32;
                    let byte = w4[k % 16 / 4 * 64 + lane * 4 + k % 4];
                    want4 += ((if k < 16 { byte & 15 } else { byte >> 4 }) as i32 - 8) * x as i32;
                }
                let sum = |sums: I32x16| {
                    // SAFETY: four i32 fill the register exactly.
                    let quad: [i32; 4] = unsafe { std::mem::transmute(sums[lane / 4]) };
                    quad[lane % 4]
                };
                assert_eq!(sum(got8[c]), want8, "8-bit, dot {DOT}, column {c} of {C}, lane {lane}");
                assert_eq!(sum(got4[c]), want4, "4-bit, dot {DOT}, column {c} of {C}, lane {lane}");
            }
        }
    }

    #[test]
    fn both_forms_of_the_dot_products_are_exact() {
        let mixed = |i: usize| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8;
        for byte in [None, Some(0x00), Some(0xff), Some(0x80), Some(0x0f), Some(0xf0)] {
            let w8 = std::array::from_fn(|i| byte.unwrap_or(mixed(i)));
            let w4 = std::array::from_fn(|i| byte.unwrap_or(mixed(i + 1000)));
            let any = std::array::from_fn(|k| (mixed(k + 2000) as i8).max(-127));
            let turns = std::array::from_fn(|k| if mixed(k + 3000) & 1 == 0 { 127 } else { -127 });
            let x = [[-127; QK], [127; QK], any, turns];
            check_dots::<false, 4>(&w8, &w4, &x);
            check_dots::<true, 4>(&w8, &w4, &x);
            for x in x {
                check_dots::<false, 1>(&w8, &w4, &[x]);
                check_dots::<true, 1>(&w8, &w4, &[x]);
            }
        }
    }

    #[test]
    fn f16_conversions_equal_the_plain_ones() {
        let token = Neon::<false>::detect().unwrap();
        let mut back = [0; LANES];
        let mut wide = [0.0; LANES];
        for first in (0..=u16::MAX).step_by(LANES) {
            let halves: [u16; LANES] = std::array::from_fn(|lane| first + lane as u16);
            token.store(token.load_f16(&halves), &mut wide);
            let plain = halves.map(f16_to_f32);
            assert_eq!(wide.map(f32::to_bits), plain.map(f32::to_bits), "{first:04x}");
            // The value itself, and the floats around the middle between it and the next one.
            for offset in [0, 0xfff, 0x1000, 0x1001] {
                let x = plain.map(|x| f32::from_bits(x.to_bits() + offset));
                token.store_f16(token.load(&x), &mut back);
                assert_eq!(back, x.map(f32_to_f16), "{first:04x} + {offset:x}");
            }
        }
    }
}
