//! AVX-512 with VNNI: one zmm register is the 16 lanes.

use super::{LANES, Q4_BYTES, Q8_BYTES, QuantBlock, Simd};
use std::arch::x86_64::*;

/// Proof that this CPU has AVX-512 F, BW, DQ, VL and VNNI, AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub struct Avx512(());

impl Avx512 {
    pub fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
    }
}

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

// SAFETY (every block below): the token proves the CPU features; every pointer comes from a
// reference to an array of exactly the bytes that are read or written.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    const COLUMNS: usize = 8;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, v: __m512, to: &mut [f32; LANES]) {
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        unsafe { _mm512_abs_ps(a) }
    }
    #[inline(always)]
    fn mul_add_exact(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn round(self, x: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps::<NEAREST>(x) }
    }
    #[inline(always)]
    fn pow2(self, n: __m512) -> __m512 {
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    fn select_less(self, a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes) }
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    fn store_f16(self, v: __m512, to: &mut [u16; LANES]) {
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtps_ph::<NEAREST>(v)) }
    }
    #[inline(always)]
    fn store_i8(self, v: __m512, to: &mut [i8; LANES]) {
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v))) }
    }
    #[inline(always)]
    fn int_to_float(self, v: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(v) }
    }

    // vpdpbusd multiplies unsigned by signed bytes: the stored offset makes weights unsigned, and
    // starting from -offset * sum(x) takes it out again.
    #[inline(always)]
    fn dot_q8<const C: usize>(self, w: &[u8; Q8_BYTES], x: [QuantBlock; C]) -> [__m512i; C] {
        unsafe {
            let mut acc = [_mm512_setzero_si512(); C];
            for c in 0..C {
                acc[c] = _mm512_set1_epi32(-128 * x[c].sum);
            }
            for group in 0..8 {
                let rows = _mm512_loadu_si512(w.as_ptr().add(group * 64).cast());
                for c in 0..C {
                    acc[c] = _mm512_dpbusd_epi32(acc[c], rows, broadcast(x[c].values, group));
                }
            }
            acc
        }
    }
    #[inline(always)]
    fn dot_q4<const C: usize>(self, w: &[u8; Q4_BYTES], x: [QuantBlock; C]) -> [__m512i; C] {
        unsafe {
            let low = _mm512_set1_epi8(15);
            let mut acc = [_mm512_setzero_si512(); C];
            for c in 0..C {
                acc[c] = _mm512_set1_epi32(-8 * x[c].sum);
            }
            for group in 0..4 {
                let both = _mm512_loadu_si512(w.as_ptr().add(group * 64).cast());
                let first = _mm512_and_si512(both, low);
                let second = _mm512_and_si512(_mm512_srli_epi16::<4>(both), low);
                for c in 0..C {
                    acc[c] = _mm512_dpbusd_epi32(acc[c], first, broadcast(x[c].values, group));
                    acc[c] = _mm512_dpbusd_epi32(acc[c], second, broadcast(x[c].values, group + 4));
                }
            }
            acc
        }
    }
}

/// Values 4 * group .. 4 * group + 4 in every lane.
#[inline(always)]
fn broadcast(values: &[i8; 32], group: usize) -> __m512i {
    let four = i32::from_le_bytes([0, 1, 2, 3].map(|i| values[group * 4 + i] as u8));
    // SAFETY: called only from methods of the token.
    unsafe { _mm512_set1_epi32(four) }
}
