//! NEON: four q registers are the 16 lanes. Integer dot products have two forms, with and without
//! the dot product instructions that ARMv8.2 added.

use super::{LANES, Q4_BYTES, Q8_BYTES, QK, QuantBlock, Simd};
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

// SAFETY (every block below): the token proves the CPU features; every pointer comes from a
// reference to an array of exactly the bytes that are read or written.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const DOT: bool> Simd for Neon<DOT> {
    type F = F32x16;
    type I = I32x16;
    const COLUMNS: usize = 4;

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
    fn int_to_float(self, v: I32x16) -> F32x16 {
        quads!(vcvtq_f32_s32(v))
    }

    #[inline(always)]
    fn dot_q8<const C: usize>(self, w: &[u8; Q8_BYTES], x: [QuantBlock; C]) -> [I32x16; C] {
        // SAFETY: the token proves the CPU features.
        unsafe { if DOT { dot_q8_sdot(w, x) } else { dot_q8_mull(w, x) } }
    }
    #[inline(always)]
    fn dot_q4<const C: usize>(self, w: &[u8; Q4_BYTES], x: [QuantBlock; C]) -> [I32x16; C] {
        // SAFETY: the token proves the CPU features.
        unsafe { if DOT { dot_q4_sdot(w, x) } else { dot_q4_mull(w, x) } }
    }
}

/// # Safety
/// The CPU has the dot product instructions.
#[inline(always)]
unsafe fn dot_q8_sdot<const C: usize>(w: &[u8; Q8_BYTES], x: [QuantBlock; C]) -> [I32x16; C] {
    // SAFETY: the caller's promise; every load is inside `w` or a column's values.
    unsafe {
        let mut acc = [[vdupq_n_s32(0); 4]; C];
        for half in 0..2 {
            let rows = |group: usize, quad: usize| signed(w, (half * 4 + group) * 4 + quad);
            for c in 0..C {
                let v = vld1q_s8(x[c].values.as_ptr().add(half * 16));
                for quad in 0..4 {
                    let sum = &mut acc[c][quad];
                    *sum = sdot::<0>(*sum, rows(0, quad), v);
                    *sum = sdot::<1>(*sum, rows(1, quad), v);
                    *sum = sdot::<2>(*sum, rows(2, quad), v);
                    *sum = sdot::<3>(*sum, rows(3, quad), v);
                }
            }
        }
        acc
    }
}
