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
    let mut sums = starts::<V, C>(x.map(|x| x.start_of::<V>()));
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
    let mut dots = starts::<V, C>(x.map(|x| (x.starts[0], HALVES_OFFSET)));
    add_half::<V, 0, C>(&mut dots, w, x);
    let first = |v| _mm256_srai_epi32::<16>(_mm256_slli_epi32::<16>(v));
    add_products(sums, dots, I32x16(first(scales.0), first(scales.1)));
    let mut dots = starts::<V, C>(x.map(|x| (x.starts[1], HALVES_OFFSET)));
    add_half::<V, 4, C>(&mut dots, w, x);
    add_products(sums, dots, I32x16(_mm256_srai_epi32::<16>(scales.0), _mm256_srai_epi32::<16>(scales.1)));
}

/// -offset times a sum of each column's values, of which `kept` is minus the sum, times what is beside it.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
#[inline]
fn starts<V: Values, const C: usize>(kept: [(i32, i32); C]) -> [I32x16; C] {
    kept.map(|(kept, times)| {
        let start = if const { (V::OFFSET as u32).is_power_of_two() } {
            let by = times.trailing_zeros() as i32 - V::OFFSET.trailing_zeros() as i32;
            _mm256_sra_epi32(_mm256_set1_epi32(kept), _mm_cvtsi32_si128(by))
        } else {
            _mm256_set1_epi32(kept / times * V::OFFSET)
        };
        I32x16(start, start)
    })
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
