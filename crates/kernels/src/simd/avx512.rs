//! AVX-512 with VNNI: one zmm register is the 16 lanes.

use super::{ActBlock, LANES, Q4_BYTES, Q8_BYTES, Simd};
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
#[allow(clippy::undocumented_unsafe_blocks, clippy::needless_range_loop)]
impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    const COLUMNS: usize = 6;
    const TILES: usize = 2;
    const QUERIES: usize = 8;

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
    fn prefetch<T>(self, item: &T, ahead: usize) {
        let start = std::ptr::from_ref(item).cast::<i8>().wrapping_add(ahead);
        for line in 0..size_of::<T>().div_ceil(64) {
            unsafe { _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(line * 64)) }
        }
    }
    #[inline(always)]
    fn int_to_float(self, v: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(v) }
    }

    // vpdpbusd multiplies unsigned by signed bytes: the stored offset makes weights unsigned, and
    // starting from -offset * sum(x) takes it out again.
    #[inline(always)]
    fn dot_q8<const R: usize, const C: usize>(
        self,
        w: [&[u8; Q8_BYTES]; R],
        x: [&ActBlock; C],
    ) -> [[__m512i; C]; R] {
        unsafe {
            let mut acc = [[_mm512_setzero_si512(); C]; R];
            for c in 0..C {
                let start = _mm512_slli_epi32::<7>(_mm512_set1_epi32(x[c].minus_sum));
                for r in 0..R {
                    acc[r][c] = start;
                }
            }
            for group in 0..8 {
                let mut rows = [_mm512_setzero_si512(); R];
                for r in 0..R {
                    rows[r] = _mm512_loadu_si512(w[r].as_ptr().add(group * 64).cast());
                }
                for c in 0..C {
                    let v = broadcast(x[c], group);
                    for r in 0..R {
                        acc[r][c] = _mm512_dpbusd_epi32(acc[r][c], rows[r], v);
                    }
                }
            }
            acc
        }
    }
    #[inline(always)]
    fn dot_q4<const R: usize, const C: usize>(
        self,
        w: [&[u8; Q4_BYTES]; R],
        x: [&ActBlock; C],
    ) -> [[__m512i; C]; R] {
        unsafe {
            let low = _mm512_set1_epi8(15);
            let mut acc = [[_mm512_setzero_si512(); C]; R];
            for c in 0..C {
                let start = _mm512_slli_epi32::<3>(_mm512_set1_epi32(x[c].minus_sum));
                for r in 0..R {
                    acc[r][c] = start;
                }
            }
            for group in 0..4 {
                let (mut first, mut second) = ([low; R], [low; R]);
                for r in 0..R {
                    let both = _mm512_loadu_si512(w[r].as_ptr().add(group * 64).cast());
                    first[r] = _mm512_and_si512(both, low);
                    second[r] = _mm512_and_si512(_mm512_srli_epi16::<4>(both), low);
                }
                for c in 0..C {
                    let (u, v) = (broadcast(x[c], group), broadcast(x[c], group + 4));
                    for r in 0..R {
                        acc[r][c] = _mm512_dpbusd_epi32(acc[r][c], first[r], u);
                        acc[r][c] = _mm512_dpbusd_epi32(acc[r][c], second[r], v);
                    }
                }
            }
            acc
        }
    }
}

/// Values 4 * group .. 4 * group + 4 in every lane.
#[inline(always)]
fn broadcast(x: &ActBlock, group: usize) -> __m512i {
    let v = &x.values;
    let i = group * 4;
    let four = i32::from_le_bytes([v[i] as u8, v[i + 1] as u8, v[i + 2] as u8, v[i + 3] as u8]);
    // SAFETY: called only from methods of the token.
    unsafe { _mm512_set1_epi32(four) }
}
