//! Dot products with AVX-VNNI, which CPUs have that have no AVX-512: `vpdpbusd` adds the products of four unsigned bytes with
//! four signed ones. The offset that packed weights have makes them unsigned, and sums that start from -offset * sum(x) take it
//! out again.

use super::{EIGHTS, I32x16, broadcast, held};
use crate::simd::values::Values;
use crate::simd::{ActBlock, HALVES_OFFSET, each_group};
use std::arch::x86_64::*;

/// See [`crate::simd::Simd::dot`].
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
#[inline]
pub(super) fn dot<V: Values, const C: usize>(w: &[u8], x: [&ActBlock; C]) -> [I32x16; C] {
    let mut sums = [zero(); C];
    for c in 0..C {
        sums[c] = start::<V>(x[c].start_of::<V>());
    }
    add_half::<V, 0, C>(&mut sums, w, x);
    add_half::<V, 4, C>(&mut sums, w, x);
    sums
}

/// See [`crate::simd::Simd::add_dots`].
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
#[inline]
pub(super) fn add_dots<V: Values, const C: usize>(
    sums: &mut [I32x16; C],
    w: &[u8],
    scales: I32x16,
    x: [&ActBlock; C],
) {
    add_products(sums, dot::<V, C>(w, x), scales);
}

/// See [`crate::simd::Simd::add_dot_halves`].
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
#[inline]
pub(super) fn add_dot_halves<V: Values, const C: usize>(
    sums: &mut [I32x16; C],
    w: &[u8],
    scales: I32x16,
    x: [&ActBlock; C],
) {
    add_dot_half::<V, 0, 0, C>(sums, w, scales, x);
    add_dot_half::<V, 1, 4, C>(sums, w, scales, x);
}

/// The same of half `HALF`, whose groups begin with `FIRST`.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
#[inline]
fn add_dot_half<V: Values, const HALF: usize, const FIRST: usize, const C: usize>(
    sums: &mut [I32x16; C],
    w: &[u8],
    scales: I32x16,
    x: [&ActBlock; C],
) {
    let mut dots = [zero(); C];
    for c in 0..C {
        dots[c] = start::<V>((x[c].starts[HALF], HALVES_OFFSET));
    }
    add_half::<V, FIRST, C>(&mut dots, w, x);
    // Only now: registers hold the sums until here.
    let mut numbers = scales;
    if HALF == 0 {
        numbers = I32x16(_mm256_slli_epi32::<16>(numbers.0), _mm256_slli_epi32::<16>(numbers.1));
    }
    numbers = I32x16(_mm256_srai_epi32::<16>(numbers.0), _mm256_srai_epi32::<16>(numbers.1));
    add_products(sums, dots, numbers);
}

/// Adds the products of the same four unsigned bytes with each row's four signed ones.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
#[inline]
pub(super) fn add_quads(sum: I32x16, bytes: __m256i, values: I32x16) -> I32x16 {
    I32x16(_mm256_dpbusd_avx_epi32(sum.0, bytes, values.0), _mm256_dpbusd_avx_epi32(sum.1, bytes, values.1))
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
#[inline]
fn zero() -> I32x16 {
    I32x16(_mm256_setzero_si256(), _mm256_setzero_si256())
}

/// -offset times a sum of activations, of which `kept` is minus the sum, times what is beside it.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
#[inline]
fn start<V: Values>((kept, times): (i32, i32)) -> I32x16 {
    let start = if const { (V::OFFSET as u32).is_power_of_two() } {
        let by = times.trailing_zeros() as i32 - V::OFFSET.trailing_zeros() as i32;
        _mm256_sra_epi32(_mm256_set1_epi32(kept), _mm_cvtsi32_si128(by))
    } else {
        _mm256_set1_epi32(kept / times * V::OFFSET)
    };
    I32x16(start, start)
}

/// Adds the products of four groups of values from group `FIRST` on.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
#[inline]
fn add_half<V: Values, const FIRST: usize, const C: usize>(
    sums: &mut [I32x16; C],
    w: &[u8],
    x: [&ActBlock; C],
) {
    each_group!(group in [0 1 2 3] {
        let group = FIRST + group;
        let rows = [V::group(EIGHTS[0], w, group), V::group(EIGHTS[1], w, group)];
        for c in 0..C {
            let v = broadcast(x[c], group);
            sums[c].0 = held(_mm256_dpbusd_avx_epi32(sums[c].0, rows[0], v));
            sums[c].1 = held(_mm256_dpbusd_avx_epi32(sums[c].1, rows[1], v));
        }
    });
}

/// sums += dots * scales.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
#[inline]
fn add_products<const C: usize>(sums: &mut [I32x16; C], dots: [I32x16; C], scales: I32x16) {
    for c in 0..C {
        sums[c].0 = _mm256_add_epi32(sums[c].0, _mm256_mullo_epi32(dots[c].0, scales.0));
        sums[c].1 = _mm256_add_epi32(sums[c].1, _mm256_mullo_epi32(dots[c].1, scales.1));
    }
}
