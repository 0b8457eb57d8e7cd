//! One generic body per kernel, over the SIMD trait.

// Loops over const-sized groups of accumulators index several arrays side by side.
#![allow(clippy::needless_range_loop)]

pub mod attention;
pub mod matmul;
pub mod rows;
mod scales;

use crate::exp::{LN_2_HIGH, LN_2_LOW, LOG2_E, OVERFLOW, POLYNOMIAL, UNDERFLOW};
use crate::simd::{LANES, Simd};

/// The vector twin of [`crate::exp::exp`], for arguments that are not NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    let n = s.round(s.mul(x, s.splat(LOG2_E)));
    let r = s.sub(s.sub(x, s.mul(n, s.splat(LN_2_HIGH))), s.mul(n, s.splat(LN_2_LOW)));
    let mut p = s.splat(POLYNOMIAL[0]);
    for &c in &POLYNOMIAL[1..] {
        p = s.add(s.mul(p, r), s.splat(c));
    }
    let y = s.add(s.add(s.mul(p, s.mul(r, r)), r), s.splat(1.0));
    let scaled = s.mul(y, s.pow2(n));
    let capped = s.select_less(s.splat(OVERFLOW), x, s.splat(f32::INFINITY), scaled);
    s.select_less(x, s.splat(UNDERFLOW), s.splat(0.0), capped)
}

/// The vector twin of [`crate::exp::softcap`].
#[inline(always)]
pub(crate) fn softcap<S: Simd>(s: S, x: S::F, cap: f32) -> S::F {
    let u = s.mul(x, s.splat(1.0 / cap));
    let half = s.div(s.splat(2.0), s.add(s.splat(1.0), exp(s, s.add(u, u))));
    s.mul(s.splat(cap), s.sub(s.splat(1.0), half))
}

/// The fixed tree over 16 virtual lanes: 8, 4, 2, 1.
#[inline(always)]
pub(crate) fn tree_sum(mut lanes: [f32; LANES]) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

/// Up to 16 values, the rest 0.
#[inline(always)]
pub(crate) fn padded(values: &[f32]) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    lanes[..values.len()].copy_from_slice(values);
    lanes
}
