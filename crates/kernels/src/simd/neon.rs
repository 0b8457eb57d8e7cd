//! NEON: four q registers are the 16 lanes. Integer dot products have two forms, with and without
//! the dot product instructions that ARMv8.2 added.

use super::values::Values;
use super::{ActBlock, LANES, Simd, Words, Work};
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

/// One of the four registers: four rows.
#[derive(Clone, Copy)]
struct Quad(usize);

#[allow(clippy::undocumented_unsafe_blocks)]
// SAFETY (every block below): `Quad` is used only by methods of the token; loads stay within a slice.
impl Words for Quad {
    type I = int32x4_t;

    #[inline(always)]
    fn load_words(self, from: &[u8], index: usize) -> int32x4_t {
        unsafe { vreinterpretq_s32_u8(vld1q_u8(from[index * 64 + self.0 * 16..][..16].as_ptr())) }
    }
    #[inline(always)]
    fn and_bits(self, v: int32x4_t, bits: u32) -> int32x4_t {
        unsafe { vandq_s32(v, vdupq_n_s32(bits as i32)) }
    }
    #[inline(always)]
    fn or(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        unsafe { vorrq_s32(a, b) }
    }
    #[inline(always)]
    fn shift_left(self, v: int32x4_t, by: usize) -> int32x4_t {
        unsafe { vshlq_s32(v, vdupq_n_s32(by as i32)) }
    }
    #[inline(always)]
    fn shift_right(self, v: int32x4_t, by: usize) -> int32x4_t {
        unsafe { vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(v), vdupq_n_s32(-(by as i32)))) }
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], v: int32x4_t) -> int32x4_t {
        unsafe { vreinterpretq_s32_u8(vqtbl1q_u8(vld1q_u8(table.as_ptr()), vreinterpretq_u8_s32(v))) }
    }
}

/// The same for all rows, a quad and its index at a time.
macro_rules! each_quad {
    ($quad:ident => $value:expr) => {{
        let of = |at: usize| {
            let $quad = (Quad(at), at);
            $value
        };
        [of(0), of(1), of(2), of(3)]
    }};
}

impl<const DOT: bool> Words for Neon<DOT> {
    type I = I32x16;

    #[inline(always)]
    fn load_words(self, from: &[u8], index: usize) -> I32x16 {
        each_quad!(quad => quad.0.load_words(from, index))
    }
    #[inline(always)]
    fn and_bits(self, v: I32x16, bits: u32) -> I32x16 {
        each_quad!(quad => quad.0.and_bits(v[quad.1], bits))
    }
    #[inline(always)]
    fn or(self, a: I32x16, b: I32x16) -> I32x16 {
        each_quad!(quad => quad.0.or(a[quad.1], b[quad.1]))
    }
    #[inline(always)]
    fn shift_left(self, v: I32x16, by: usize) -> I32x16 {
        each_quad!(quad => quad.0.shift_left(v[quad.1], by))
    }
    #[inline(always)]
    fn shift_right(self, v: I32x16, by: usize) -> I32x16 {
        each_quad!(quad => quad.0.shift_right(v[quad.1], by))
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], v: I32x16) -> I32x16 {
        each_quad!(quad => quad.0.lookup(table, v[quad.1]))
    }
}

// SAFETY (every block below): the token proves the CPU features; every pointer comes from a
// reference to an array of exactly the bytes that are read or written.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const DOT: bool> Simd for Neon<DOT> {
    type F = F32x16;
    const COLUMNS: usize = 4;
    const TILES: usize = 1;
    const QUERIES: usize = 4;

    #[inline(always)]
    fn call<W: Work<Self>>(self, work: W) -> W::Output {
        #[target_feature(enable = "neon,dotprod")]
        #[inline(never)]
        fn entry_dot<S, W: Work<S>>(s: S, work: W) -> W::Output {
            work.run(s)
        }
        #[target_feature(enable = "neon")]
        #[inline(never)]
        fn entry<S, W: Work<S>>(s: S, work: W) -> W::Output {
            work.run(s)
        }
        if const { DOT } { unsafe { entry_dot(self, work) } } else { unsafe { entry(self, work) } }
    }
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
    fn min(self, a: F32x16, b: F32x16) -> F32x16 {
        quads!(vminq_f32(a, b))
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
    fn max_lane(self, v: F32x16) -> f32 {
        unsafe { vmaxvq_f32(vmaxq_f32(vmaxq_f32(v[0], v[1]), vmaxq_f32(v[2], v[3]))) }
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
    fn load_i8(self, from: &[i8; LANES]) -> F32x16 {
        let halves = unsafe {
            let v = vld1q_s8(from.as_ptr());
            let (low, high) = (vmovl_s8(vget_low_s8(v)), vmovl_s8(vget_high_s8(v)));
            [vget_low_s16(low), vget_high_s16(low), vget_low_s16(high), vget_high_s16(high)]
        };
        let words = quads!(vmovl_s16(halves));
        quads!(vcvtq_f32_s32(words))
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
    fn sum_i8(self, from: &[i8; LANES]) -> i32 {
        unsafe { vaddlvq_s8(vld1q_s8(from.as_ptr())) as i32 }
    }
    #[inline(always)]
    fn prefetch<T: ?Sized>(self, item: &T) {
        const LEAD: usize = 2 << 10;
        let start = std::ptr::from_ref(item).cast::<u8>().wrapping_add(LEAD);
        for line in 0..size_of_val(item).div_ceil(64) {
            let line = start.wrapping_add(line * 64);
            unsafe { asm!("prfm pldl2keep, [{line}]", line = in(reg) line, options(nostack, readonly)) }
        }
    }
    #[inline(always)]
    fn int_to_float(self, v: I32x16) -> F32x16 {
        quads!(vcvtq_f32_s32(v))
    }
    #[inline(always)]
    fn splat_int(self, n: i32) -> I32x16 {
        unsafe { [vdupq_n_s32(n); 4] }
    }
    #[inline(always)]
    fn add_ints(self, a: I32x16, b: I32x16) -> I32x16 {
        quads!(vaddq_s32(a, b))
    }

    #[inline(always)]
    fn float_bits(self, v: I32x16) -> F32x16 {
        quads!(vreinterpretq_f32_s32(v))
    }
    #[inline(always)]
    fn int_bits(self, v: F32x16) -> I32x16 {
        quads!(vreinterpretq_s32_f32(v))
    }
    #[inline(always)]
    fn add_sevens(self, sum: I32x16, bytes: I32x16, values: I32x16) -> I32x16 {
        let (bytes, values) = (quads!(vreinterpretq_s8_s32(bytes)), quads!(vreinterpretq_s8_s32(values)));
        if DOT { quads!(sdot_rows(sum, bytes, values)) } else { quads!(mull_rows(sum, bytes, values)) }
    }
    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> I32x16 {
        let words = unsafe {
            let v = vld1q_u8(from.as_ptr());
            let (low, high) = (vmovl_u8(vget_low_u8(v)), vmovl_u8(vget_high_u8(v)));
            [vget_low_u16(low), vget_high_u16(low), vget_low_u16(high), vget_high_u16(high)]
        };
        let words = quads!(vmovl_u16(words));
        quads!(vreinterpretq_s32_u32(words))
    }
    #[inline(always)]
    fn load_u16(self, from: &[u16; LANES]) -> I32x16 {
        let halves = load_u16(from);
        let words = quads!(vmovl_u16(halves));
        quads!(vreinterpretq_s32_u32(words))
    }
    #[inline(always)]
    fn load_pairs(self, from: &[u8; LANES * 2]) -> I32x16 {
        let p = from.as_ptr().cast::<i8>();
        let bytes = unsafe { [vld1_s8(p), vld1_s8(p.add(8)), vld1_s8(p.add(16)), vld1_s8(p.add(24))] };
        let pairs = quads!(vmovl_s8(bytes));
        quads!(vreinterpretq_s32_s16(pairs))
    }
    #[inline(always)]
    fn pairs(self, n: i16) -> I32x16 {
        unsafe { [vreinterpretq_s32_s16(vdupq_n_s16(n)); 4] }
    }
    #[inline(always)]
    fn add_to_pairs(self, v: I32x16, n: i16) -> I32x16 {
        let n = unsafe { [vdupq_n_s16(n); 4] };
        let v = quads!(vreinterpretq_s16_s32(v));
        let sums = quads!(vaddq_s16(v, n));
        quads!(vreinterpretq_s32_s16(sums))
    }
    #[inline(always)]
    fn add_pair_dot(self, sum: I32x16, numbers: &[i16; 2], pairs: I32x16) -> I32x16 {
        let [first, second] = numbers.map(i32::from);
        let (low, high) = (quads!(low_half(pairs)), quads!(high_half(pairs)));
        let [first, second] = unsafe { [[vdupq_n_s32(first); 4], [vdupq_n_s32(second); 4]] };
        let sums = quads!(vmlaq_s32(sum, low, first));
        quads!(vmlaq_s32(sums, high, second))
    }

    #[inline(always)]
    fn dot<V: Values, const R: usize, const C: usize>(
        self,
        w: [&[u8]; R],
        x: [&ActBlock; C],
    ) -> [[I32x16; C]; R] {
        let mut sums = [[self.splat_int(0); C]; R];
        for r in 0..R {
            let dots = block_dots::<V, DOT, C>(w[r], x);
            for c in 0..C {
                let [first, second] = dots[c];
                sums[r][c] = quads!(vaddq_s32(first, second));
            }
        }
        sums
    }
    #[inline(always)]
    fn add_dots<V: Values, const R: usize, const C: usize>(
        self,
        sums: &mut [[I32x16; C]; R],
        w: [&[u8]; R],
        scales: [I32x16; R],
        x: [&ActBlock; C],
    ) {
        let dots = self.dot::<V, R, C>(w, x);
        for r in 0..R {
            for c in 0..C {
                let (sum, dot, scale) = (sums[r][c], dots[r][c], scales[r]);
                sums[r][c] = quads!(vmlaq_s32(sum, dot, scale));
            }
        }
    }
    #[inline(always)]
    fn add_dot_halves<V: Values, const R: usize, const C: usize>(
        self,
        sums: &mut [[I32x16; C]; R],
        w: [&[u8]; R],
        scales: [I32x16; R],
        x: [&ActBlock; C],
    ) {
        for r in 0..R {
            let scales = scales[r];
            let (low, high) = (quads!(low_half(scales)), quads!(high_half(scales)));
            let dots = block_dots::<V, DOT, C>(w[r], x);
            for c in 0..C {
                let (sum, [first, second]) = (sums[r][c], dots[c]);
                let sum = quads!(vmlaq_s32(sum, first, low));
                sums[r][c] = quads!(vmlaq_s32(sum, second, high));
            }
        }
    }
}

/// Each column's dot products of the two halves of a block with all rows.
#[inline(always)]
fn block_dots<V: Values, const DOT: bool, const C: usize>(w: &[u8], x: [&ActBlock; C]) -> [[I32x16; 2]; C] {
    // SAFETY: called only from methods of the token.
    unsafe {
        let mut dots = [[[vdupq_n_s32(0); 4]; 2]; C];
        for quad in 0..4 {
            let of_quad = dot_quad::<V, DOT, C>(Quad(quad), w, x);
            for c in 0..C {
                dots[c][0][quad] = of_quad[c][0];
                dots[c][1][quad] = of_quad[c][1];
            }
        }
        dots
    }
}

/// The two signed 16-bit numbers of every word.
#[inline(always)]
unsafe fn low_half(pairs: int32x4_t) -> int32x4_t {
    // SAFETY: called only from methods of the token.
    unsafe { vshrq_n_s32::<16>(vshlq_n_s32::<16>(pairs)) }
}

#[inline(always)]
unsafe fn high_half(pairs: int32x4_t) -> int32x4_t {
    // SAFETY: called only from methods of the token.
    unsafe { vshrq_n_s32::<16>(pairs) }
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

/// Adds to each of four rows' sums its four values of `rows` times its four of `x`.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn sdot_rows(sums: int32x4_t, rows: int8x16_t, x: int8x16_t) -> int32x4_t {
    let mut sums = sums;
    // SAFETY: the instruction is there; registers alone are touched.
    unsafe {
        asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) sums, in(vreg) rows, in(vreg) x,
            options(pure, nomem, nostack, preserves_flags));
    }
    sums
}

/// The same without dot product instructions. Two products of at most 127 * 128 fit into 16 bits.
#[inline(always)]
unsafe fn mull_rows(sums: int32x4_t, rows: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: called only from methods of the token.
    unsafe {
        let low = vmull_s8(vget_low_s8(rows), vget_low_s8(x));
        vpadalq_s16(sums, vpaddq_s16(low, vmull_high_s8(rows, x)))
    }
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

/// Four rows' values of a group as signed bytes, with the offset that is left in them.
#[inline(always)]
fn signed_group<V: Values>(quad: Quad, w: &[u8], group: usize) -> int8x16_t {
    let bytes = V::group(quad, w, group);
    // SAFETY: called only from methods of the token.
    unsafe {
        let wide = veorq_s8(vreinterpretq_s8_s32(bytes), vdupq_n_s8(-128));
        if V::MAX > 127 { wide } else { vreinterpretq_s8_s32(bytes) }
    }
}

/// Each column's dot products of the two halves of a block with the quad's rows. What bytes are larger
/// by than their values is taken out by starting from -offset * sum(x).
#[inline(always)]
unsafe fn dot_quad<V: Values, const DOT: bool, const C: usize>(
    quad: Quad,
    w: &[u8],
    x: [&ActBlock; C],
) -> [[int32x4_t; 2]; C] {
    let offset = if V::MAX > 127 { 0 } else { V::OFFSET };
    // SAFETY: called only from methods of the token, which proves the features.
    unsafe {
        let mut sums = [[vdupq_n_s32(0); 2]; C];
        for half in 0..2 {
            let rows = [
                signed_group::<V>(quad, w, half * 4),
                signed_group::<V>(quad, w, half * 4 + 1),
                signed_group::<V>(quad, w, half * 4 + 2),
                signed_group::<V>(quad, w, half * 4 + 3),
            ];
            for c in 0..C {
                let start = vdupq_n_s32(offset * x[c].minus_halves[half] as i32);
                sums[c][half] = if DOT {
                    sdot_16(start, rows, load_values(x[c], half))
                } else {
                    mull_16(start, rows, x[c], half * 4)
                };
            }
        }
        sums
    }
}

/// As [`sdot_16`], without dot product instructions. Two products are added in 16 bits: |w| <= 128 times
/// |x| <= 127, twice, is 32,512, and fits.
#[inline(always)]
unsafe fn mull_16(sums: int32x4_t, rows: [int8x16_t; 4], x: &ActBlock, group: usize) -> int32x4_t {
    // SAFETY: called only from methods of the token.
    unsafe {
        let mut pairs = [vdupq_n_s32(0); 2];
        for i in [0, 2] {
            let (a, b) = (rows[i], rows[i + 1]);
            let (v, u) = (broadcast(x, group + i), broadcast(x, group + i + 1));
            let low = vmlal_s8(vmull_s8(vget_low_s8(a), v), vget_low_s8(b), u);
            let high = vmlal_s8(vmull_s8(vget_high_s8(a), v), vget_high_s8(b), u);
            pairs = [vpadalq_s16(pairs[0], low), vpadalq_s16(pairs[1], high)];
        }
        vaddq_s32(sums, vpaddq_s32(pairs[0], pairs[1]))
    }
}
