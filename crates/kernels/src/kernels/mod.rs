//! One generic body per kernel, over the SIMD trait.

// Loops over const-sized groups of accumulators index several arrays side by side.
#![allow(clippy::needless_range_loop)]

pub mod attend;
pub mod attention;
pub mod matmul;
mod products;
pub mod rows;
mod scales;

use crate::exp::{LN_2_HIGH, LN_2_LOW, LOG2_E, LOWEST_POWER, OVERFLOW, POLYNOMIAL, POWER, UNDERFLOW};
use crate::simd::{LANES, Simd};

/// The vector twin of [`crate::exp::exp`], for arguments that are not NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    let [y] = exp_negative(s, [x]);
    s.select_less(s.splat(OVERFLOW), x, s.splat(f32::INFINITY), y)
}

/// The same for arguments that are not over 0; several at once, step by step, as each step waits for
/// the last. (No closures: they would not be compiled for the ISA.)
#[inline(always)]
pub(crate) fn exp_negative<S: Simd, const N: usize>(s: S, x: [S::F; N]) -> [S::F; N] {
    let (mut n, mut r) = (x, x);
    for i in 0..N {
        n[i] = s.round(s.mul(x[i], s.splat(LOG2_E)));
    }
    for i in 0..N {
        r[i] = s.mul_add_exact(n[i], s.splat(-LN_2_HIGH), x[i]);
    }
    for i in 0..N {
        r[i] = s.sub(r[i], s.mul(n[i], s.splat(LN_2_LOW)));
    }
    let mut p = [s.splat(POLYNOMIAL[0]); N];
    for &c in &POLYNOMIAL[1..] {
        for i in 0..N {
            p[i] = s.add(s.mul(p[i], r[i]), s.splat(c));
        }
    }
    for i in 0..N {
        p[i] = s.add(s.add(s.mul(p[i], s.mul(r[i], r[i])), r[i]), s.splat(1.0));
    }
    for i in 0..N {
        p[i] = s.select_less(x[i], s.splat(UNDERFLOW), s.splat(0.0), s.scale(p[i], n[i]));
    }
    p
}

/// The vector twin of [`crate::exp::power`]; several at once, as above.
#[inline(always)]
pub(crate) fn powers<S: Simd, const N: usize>(s: S, x: [S::F; N]) -> [S::F; N] {
    let (mut n, mut r, mut p) = (x, x, x);
    for i in 0..N {
        r[i] = s.max(x[i], s.splat(LOWEST_POWER));
        n[i] = s.round(r[i]);
    }
    for i in 0..N {
        r[i] = s.sub(r[i], n[i]);
    }
    for i in 0..N {
        p[i] = s.add(s.mul(s.splat(POWER[0]), r[i]), s.splat(POWER[1]));
    }
    for i in 0..N {
        p[i] = s.scale(s.add(s.mul(p[i], r[i]), s.splat(POWER[2])), n[i]);
    }
    p
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
