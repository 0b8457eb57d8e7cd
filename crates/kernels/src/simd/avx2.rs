//! AVX2 with FMA and F16C: two ymm registers are the 16 lanes.

use super::{ActBlock, LANES, Q4_BYTES, Q8_BYTES, Simd};
use std::arch::x86_64::*;

/// Proof that this CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    pub fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
    }
}

impl Avx2 {
    #[inline(always)]
    fn zero(self) -> I32x16 {
        // SAFETY: the token proves the CPU features.
        let v = unsafe { _mm256_setzero_si256() };
        I32x16(v, v)
    }
}

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

#[derive(Clone, Copy)]
pub struct F32x16(__m256, __m256);
#[derive(Clone, Copy)]
pub struct I32x16(__m256i, __m256i);

// SAFETY (every block below): the token proves the CPU features; every pointer comes from a
// reference to an array of exactly the bytes that are read or written.
#[allow(clippy::undocumented_unsafe_blocks, clippy::needless_range_loop)]
impl Simd for Avx2 {
    type F = F32x16;
    type I = I32x16;
    const COLUMNS: usize = 4;
    const TILES: usize = 1;
    const QUERIES: usize = 4;

    #[inline(always)]
    fn splat(self, x: f32) -> F32x16 {
        let v = unsafe { _mm256_set1_ps(x) };
        F32x16(v, v)
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> F32x16 {
        unsafe { F32x16(_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))) }
    }
    #[inline(always)]
    fn store(self, v: F32x16, to: &mut [f32; LANES]) {
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), v.0);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), v.1);
        }
    }
    #[inline(always)]
    fn add(self, a: F32x16, b: F32x16) -> F32x16 {
        unsafe { F32x16(_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn sub(self, a: F32x16, b: F32x16) -> F32x16 {
        unsafe { F32x16(_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn mul(self, a: F32x16, b: F32x16) -> F32x16 {
        unsafe { F32x16(_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn div(self, a: F32x16, b: F32x16) -> F32x16 {
        unsafe { F32x16(_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn max(self, a: F32x16, b: F32x16) -> F32x16 {
        unsafe { F32x16(_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)) }
    }
    #[inline(always)]
    fn abs(self, a: F32x16) -> F32x16 {
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            F32x16(_mm256_andnot_ps(sign, a.0), _mm256_andnot_ps(sign, a.1))
        }
    }
    #[inline(always)]
    fn mul_add_exact(self, a: F32x16, b: F32x16, c: F32x16) -> F32x16 {
        unsafe { F32x16(_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)) }
    }
    #[inline(always)]
    fn round(self, x: F32x16) -> F32x16 {
        unsafe { F32x16(_mm256_round_ps::<NEAREST>(x.0), _mm256_round_ps::<NEAREST>(x.1)) }
    }
    #[inline(always)]
    fn pow2(self, n: F32x16) -> F32x16 {
        F32x16(pow2(n.0), pow2(n.1))
    }
    #[inline(always)]
    fn select_less(self, a: F32x16, b: F32x16, yes: F32x16, no: F32x16) -> F32x16 {
        unsafe {
            F32x16(
                _mm256_blendv_ps(no.0, yes.0, _mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0)),
                _mm256_blendv_ps(no.1, yes.1, _mm256_cmp_ps::<_CMP_LT_OQ>(a.1, b.1)),
            )
        }
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> F32x16 {
        unsafe {
            let p: *const __m128i = from.as_ptr().cast();
            F32x16(_mm256_cvtph_ps(_mm_loadu_si128(p)), _mm256_cvtph_ps(_mm_loadu_si128(p.add(1))))
        }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> F32x16 {
        unsafe {
            let p: *const __m128i = from.as_ptr().cast();
            F32x16(widen_bf16(_mm_loadu_si128(p)), widen_bf16(_mm_loadu_si128(p.add(1))))
        }
    }
    #[inline(always)]
    fn store_f16(self, v: F32x16, to: &mut [u16; LANES]) {
        unsafe {
            let p: *mut __m128i = to.as_mut_ptr().cast();
            _mm_storeu_si128(p, _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v.0));
            _mm_storeu_si128(p.add(1), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v.1));
        }
    }
    #[inline(always)]
    fn store_i8(self, v: F32x16, to: &mut [i8; LANES]) {
        unsafe {
            // The packs work within 128-bit halves: the permutation puts the lanes in order.
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(v.0), _mm256_cvtps_epi32(v.1));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.as_mut_ptr().cast(), bytes);
        }
    }
    #[inline(always)]
    fn prefetch<T>(self, item: &T, ahead: usize) {
        let start = std::ptr::from_ref(item).cast::<i8>().wrapping_add(ahead);
        for line in 0..size_of::<T>().div_ceil(64) {
            unsafe { _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(line * 64)) }
        }
    }
    #[inline(always)]
    fn int_to_float(self, v: I32x16) -> F32x16 {
        unsafe { F32x16(_mm256_cvtepi32_ps(v.0), _mm256_cvtepi32_ps(v.1)) }
    }

    #[inline(always)]
    fn dot_q8<const R: usize, const C: usize>(
        self,
        w: [&[u8; Q8_BYTES]; R],
        x: [&ActBlock; C],
    ) -> [[I32x16; C]; R] {
        let zero = self.zero();
        let mut acc = [[zero; C]; R];
        for r in 0..R {
            acc[r] = tile_q8(w[r], x);
        }
        acc
    }

    #[inline(always)]
    fn dot_q4<const R: usize, const C: usize>(
        self,
        w: [&[u8; Q4_BYTES]; R],
        x: [&ActBlock; C],
    ) -> [[I32x16; C]; R] {
        let zero = self.zero();
        let mut acc = [[zero; C]; R];
        for r in 0..R {
            acc[r] = tile_q4(w[r], x);
        }
        acc
    }
}

/// vpmaddubsw adds two products in 16 bits. |w| <= 128 times |x| <= 127, twice, is 32,512: it fits.
#[inline(always)]
fn tile_q8<const C: usize>(w: &[u8; Q8_BYTES], x: [&ActBlock; C]) -> [I32x16; C] {
    // SAFETY: called only from methods of the token; the pointer stays within the block.
    unsafe {
        let ones = _mm256_set1_epi16(1);
        let flip = _mm256_set1_epi8(-128);
        let p: *const __m256i = w.as_ptr().cast();
        let mut acc = [I32x16(_mm256_setzero_si256(), _mm256_setzero_si256()); C];
        for group in 0..8 {
            let a = _mm256_xor_si256(_mm256_loadu_si256(p.add(group * 2)), flip);
            let b = _mm256_xor_si256(_mm256_loadu_si256(p.add(group * 2 + 1)), flip);
            let (abs_a, abs_b) = (_mm256_abs_epi8(a), _mm256_abs_epi8(b));
            for c in 0..C {
                let v = broadcast(x[c], group);
                let pairs_a = _mm256_maddubs_epi16(abs_a, _mm256_sign_epi8(v, a));
                let pairs_b = _mm256_maddubs_epi16(abs_b, _mm256_sign_epi8(v, b));
                acc[c].0 = _mm256_add_epi32(acc[c].0, _mm256_madd_epi16(pairs_a, ones));
                acc[c].1 = _mm256_add_epi32(acc[c].1, _mm256_madd_epi16(pairs_b, ones));
            }
        }
        acc
    }
}

/// Eight groups of two products of 15 * 127 are 30,480: the 16-bit sums hold a whole block.
#[inline(always)]
fn tile_q4<const C: usize>(w: &[u8; Q4_BYTES], x: [&ActBlock; C]) -> [I32x16; C] {
    // SAFETY: called only from methods of the token; the pointer stays within the block.
    unsafe {
        let low = _mm256_set1_epi8(15);
        let p: *const __m256i = w.as_ptr().cast();
        let mut pairs = [(_mm256_setzero_si256(), _mm256_setzero_si256()); C];
        for group in 0..4 {
            let a = _mm256_loadu_si256(p.add(group * 2));
            let b = _mm256_loadu_si256(p.add(group * 2 + 1));
            let first = (_mm256_and_si256(a, low), _mm256_and_si256(b, low));
            let second = (
                _mm256_and_si256(_mm256_srli_epi16::<4>(a), low),
                _mm256_and_si256(_mm256_srli_epi16::<4>(b), low),
            );
            for c in 0..C {
                let (u, v) = (broadcast(x[c], group), broadcast(x[c], group + 4));
                pairs[c].0 = _mm256_add_epi16(pairs[c].0, _mm256_maddubs_epi16(first.0, u));
                pairs[c].1 = _mm256_add_epi16(pairs[c].1, _mm256_maddubs_epi16(first.1, u));
                pairs[c].0 = _mm256_add_epi16(pairs[c].0, _mm256_maddubs_epi16(second.0, v));
                pairs[c].1 = _mm256_add_epi16(pairs[c].1, _mm256_maddubs_epi16(second.1, v));
            }
        }
        let ones = _mm256_set1_epi16(1);
        let mut acc = [I32x16(ones, ones); C];
        for c in 0..C {
            let offset = _mm256_set1_epi32(8 * x[c].minus_sum);
            acc[c].0 = _mm256_add_epi32(_mm256_madd_epi16(pairs[c].0, ones), offset);
            acc[c].1 = _mm256_add_epi32(_mm256_madd_epi16(pairs[c].1, ones), offset);
        }
        acc
    }
}

/// Values 4 * group .. 4 * group + 4 in every lane.
#[inline(always)]
fn broadcast(x: &ActBlock, group: usize) -> __m256i {
    let v = &x.values;
    let i = group * 4;
    let four = i32::from_le_bytes([v[i] as u8, v[i + 1] as u8, v[i + 2] as u8, v[i + 3] as u8]);
    // SAFETY: called only from methods of the token.
    unsafe { _mm256_set1_epi32(four) }
}

#[inline(always)]
fn widen_bf16(v: __m128i) -> __m256 {
    // SAFETY: called only from methods of the token.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(v))) }
}

#[inline(always)]
fn pow2(n: __m256) -> __m256 {
    // SAFETY: called only from methods of the token.
    unsafe {
        let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
    }
}
