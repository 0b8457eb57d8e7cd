//! Least-squares fits of scales and minimums to the values of a block.

use crate::float16::{f16_to_f32, f32_to_f16};

/// The levels of a format: the integers from `low` to `high`.
#[derive(Clone, Copy)]
pub struct Levels {
    pub low: f32,
    pub high: f32,
}

const LARGEST: u16 = 0x7bff;

/// The F16 bits of a scale: within range, and zero only for zero, as integers can make up for a
/// scale that is too large but not for one that is gone.
pub fn scale16(scale: f32) -> u16 {
    let sign = ((scale.to_bits() >> 16) & 0x8000) as u16;
    let bits = f32_to_f16(scale.abs()).min(LARGEST);
    if bits == 0 && scale != 0.0 { sign | 1 } else { sign | bits }
}

/// As `scale16`, but never so far below that `times` steps of it fall half a step short of
/// `scale * times`: among the smallest F16 values that would cut off the largest value.
pub fn covering16(scale: f32, times: f32) -> u16 {
    let bits = scale16(scale);
    let short = f16_to_f32(bits).abs() * (times + 0.5) < scale.abs() * times;
    if short && bits & 0x7fff < LARGEST { bits + 1 } else { bits }
}

/// To the nearest integer, ties to even, for magnitudes below 2^22: the sum has no room for a
/// fraction.
#[inline(always)]
pub fn nearest(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 * 2^23
    (x + SHIFT) - SHIFT
}

/// Eight values in a row.
#[inline(always)]
fn eight(values: &[f32], at: usize) -> [f32; WAYS] {
    values[at..at + WAYS].try_into().expect("whole eights")
}

/// Whatever is done to eight places is done by whole registers.
#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; WAYS] {
    std::array::from_fn(f)
}

#[inline(always)]
fn level(x: f32, levels: Levels) -> f32 {
    let x = if x > levels.low { x } else { levels.low };
    nearest(if x < levels.high { x } else { levels.high })
}

/// `1 / x`, and 0 for 0.
pub fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

const WAYS: usize = 8;

/// Eight sums side by side, so that compilers can use registers of any width without changing the order.
#[derive(Clone, Copy)]
pub struct Sum([f32; WAYS]);

impl Sum {
    pub const ZERO: Self = Self([0.0; WAYS]);

    #[inline(always)]
    pub fn add(&mut self, i: usize, x: f32) {
        self.0[i % WAYS] += x;
    }

    /// Adds the values of eight places in a row, the first a multiple of eight.
    #[inline(always)]
    fn add_all(&mut self, x: [f32; WAYS]) {
        for (sum, x) in self.0.iter_mut().zip(x) {
            *sum += x;
        }
    }

    pub fn total(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }
}

/// How much each value's error counts: large values meet large activations more often, but no
/// value is free.
pub fn importance<const N: usize>(values: &[f32; N]) -> [f32; N] {
    let mut squares = Sum::ZERO;
    for (i, x) in values.iter().enumerate() {
        squares.add(i, x * x);
    }
    let typical = (squares.total() / N as f32).sqrt();
    values.map(|x| typical + x.abs())
}

/// A scale and how much of the weighted squares it explains.
#[derive(Clone, Copy)]
pub struct Scale {
    pub scale: f32,
    gain: f32,
}

/// The scale for which `scale * level` is nearest to the values, over all starts at both ends of the
/// levels.
pub fn fit_scale<const N: usize>(
    values: &[f32; N],
    weights: &[f32; N],
    levels: Levels,
    starts: &[f32],
) -> Scale {
    let peak = values.iter().fold(0.0f32, |peak, &x| if x.abs() > peak.abs() { x } else { peak });
    let mut best = Scale { scale: 0.0, gain: 0.0 };
    if peak == 0.0 {
        return best;
    }
    for end in [levels.low, levels.high] {
        for &start in starts {
            let found = refit(values, weights, levels, end * start / peak);
            if found.gain > best.gain {
                best = found;
            }
        }
    }
    best
}

/// The best scale for the levels that `inverse` gives the values.
#[inline(always)]
fn refit<const N: usize>(values: &[f32; N], weights: &[f32; N], levels: Levels, inverse: f32) -> Scale {
    let (mut products, mut squares) = (Sum::ZERO, Sum::ZERO);
    for at in (0..N).step_by(WAYS) {
        let (x, w) = (eight(values, at), eight(weights, at));
        let q = each(|i| level(x[i] * inverse, levels));
        let weighted = each(|i| w[i] * q[i]);
        products.add_all(each(|i| weighted[i] * x[i]));
        squares.add_all(each(|i| weighted[i] * q[i]));
    }
    let (products, squares) = (products.total(), squares.total());
    if squares == 0.0 {
        return Scale { scale: 0.0, gain: 0.0 };
    }
    let scale = products / squares;
    Scale { scale, gain: products * scale }
}

/// A block's levels under a scale, their weighted squared error, and the scale that fits them best.
pub struct Quantised<const N: usize> {
    pub levels: [f32; N],
    pub error: f32,
    pub scale: f32,
}

pub fn quantised<const N: usize>(
    values: &[f32; N],
    weights: &[f32; N],
    scale: f32,
    levels: Levels,
) -> Quantised<N> {
    let by = inverse(scale);
    let mut out = [0.0; N];
    let (mut products, mut squares, mut errors) = (Sum::ZERO, Sum::ZERO, Sum::ZERO);
    for at in (0..N).step_by(WAYS) {
        let (x, w) = (eight(values, at), eight(weights, at));
        let q = each(|i| level(x[i] * by, levels));
        let difference = each(|i| scale * q[i] - x[i]);
        let weighted = each(|i| w[i] * q[i]);
        out[at..at + WAYS].copy_from_slice(&q);
        products.add_all(each(|i| weighted[i] * x[i]));
        squares.add_all(each(|i| weighted[i] * q[i]));
        errors.add_all(each(|i| w[i] * (difference[i] * difference[i])));
    }
    let squares = squares.total();
    let scale = if squares == 0.0 { scale } else { products.total() / squares };
    Quantised { levels: out, error: errors.total(), scale }
}

/// `value = scale * level - min`, with neither below zero.
#[derive(Clone, Copy, Default)]
pub struct Range {
    pub scale: f32,
    pub min: f32,
}

/// The range that is nearest to the values, for levels from 0 to `top`.
pub fn fit_range<const N: usize>(values: &[f32; N], weights: &[f32; N], top: f32, starts: &[f32]) -> Range {
    let (mut low, mut high) = (0.0f32, values[0]);
    for &x in values {
        low = if x < low { x } else { low };
        high = if x > high { x } else { high };
    }
    if high == low {
        return Range { scale: 0.0, min: -low };
    }
    let (mut best, mut most) = (Range { scale: (high - low) / top, min: -low }, f32::NEG_INFINITY);
    for &start in starts {
        let by = Range { scale: (high - low) / (top * start), min: -low };
        let found = refit_range(values, weights, top, by);
        if found.1 > most {
            (best, most) = found;
        }
    }
    // From where the fit has moved, once more.
    let again = refit_range(values, weights, top, best);
    if again.1 > most { again.0 } else { best }
}

/// The best range for the levels that `range` gives the values, and how much of the squares it explains.
#[inline(always)]
fn refit_range<const N: usize>(
    values: &[f32; N],
    weights: &[f32; N],
    top: f32,
    range: Range,
) -> (Range, f32) {
    let by = inverse(range.scale);
    let levels = Levels { low: 0.0, high: top };
    let [mut w, mut wx, mut wq, mut wqq, mut wxq] = [Sum::ZERO; 5];
    for at in (0..N).step_by(WAYS) {
        let (x, weight) = (eight(values, at), eight(weights, at));
        let q = each(|i| level((x[i] + range.min) * by, levels));
        let weighted = each(|i| weight[i] * q[i]);
        w.add_all(weight);
        wx.add_all(each(|i| weight[i] * x[i]));
        wq.add_all(weighted);
        wqq.add_all(each(|i| weighted[i] * q[i]));
        wxq.add_all(each(|i| weighted[i] * x[i]));
    }
    let [w, wx, wq, wqq, wxq] = [w, wx, wq, wqq, wxq].map(Sum::total);
    let determinant = w * wqq - wq * wq;
    if determinant > 0.0 {
        let scale = (w * wxq - wx * wq) / determinant;
        let base = (wqq * wx - wq * wxq) / determinant;
        if scale > 0.0 && base <= 0.0 {
            return (Range { scale, min: -base }, scale * wxq + base * wx);
        }
    }
    if wqq == 0.0 {
        return (Range::default(), 0.0);
    }
    let scale = (wxq / wqq).max(0.0);
    (Range { scale, min: 0.0 }, scale * wxq)
}

/// A block's levels under a range, and their weighted squared error.
pub fn quantised_range<const N: usize>(
    values: &[f32; N],
    weights: &[f32; N],
    range: Range,
    top: f32,
) -> ([f32; N], f32) {
    let by = inverse(range.scale);
    let levels = Levels { low: 0.0, high: top };
    let mut out = [0.0; N];
    let mut errors = Sum::ZERO;
    for at in (0..N).step_by(WAYS) {
        let (x, w) = (eight(values, at), eight(weights, at));
        let q = each(|i| level((x[i] + range.min) * by, levels));
        let difference = each(|i| (range.scale * q[i] - range.min) - x[i]);
        out[at..at + WAYS].copy_from_slice(&q);
        errors.add_all(each(|i| w[i] * (difference[i] * difference[i])));
    }
    (out, errors.total())
}
