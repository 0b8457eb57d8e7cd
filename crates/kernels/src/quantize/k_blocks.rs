//! Blocks of 256 with two levels of scales: sub-blocks have small integers that multiply the F16
//! scale of the whole.
//!
//! The search: fit every sub-block by itself; choose the F16 scale so that the largest fits; then a
//! few rounds in which each sub-block's integers try their neighbours and the F16 scales are fitted
//! again to all levels, for as long as the error falls.

use super::fit::{
    Levels, Range, Sum, covering16, fit_range, fit_scale, importance, nearest, quantised, quantised_range,
    scale16,
};
use super::half;
use crate::float16::f16_to_f32;

const ROUNDS: usize = 3;

fn split<const N: usize, const M: usize>(values: &[f32]) -> [[f32; N]; M] {
    std::array::from_fn(|j| values[j * N..(j + 1) * N].try_into().expect("a sub-block"))
}

/// The nearest integer to `value / unit` from `low` to `high`.
fn steps(value: f32, unit: f32, low: f32, high: f32) -> i32 {
    if unit == 0.0 { 0 } else { nearest((value / unit).clamp(low, high)) as i32 }
}

// Q4_K: 256 values, 144 bytes: d and dmin (F16), eight scales and eight minimums of 6 bits, then levels of
// 4 bits. value = d * scale * level - dmin * min, per sub-block of 32.

const TOP4: f32 = 15.0;
const STARTS4: [f32; 17] =
    [0.9, 0.93, 0.95, 0.97, 0.985, 1.0, 1.015, 1.03, 1.05, 1.07, 1.09, 1.11, 1.13, 1.15, 1.18, 1.21, 1.25];

#[derive(Clone, Copy)]
struct Q4 {
    d: u16,
    dmin: u16,
    scales: [i32; 8],
    mins: [i32; 8],
    levels: [[f32; 32]; 8],
    error: f32,
}

pub fn encode_q4_k(values: &[f32], to: &mut [u8]) {
    let values: [[f32; 32]; 8] = split(values);
    let weights = values.map(|sub| importance(&sub));
    let ranges: [Range; 8] = std::array::from_fn(|j| fit_range(&values[j], &weights[j], TOP4, &STARTS4));
    let largest = |of: fn(&Range) -> f32| ranges.iter().map(of).fold(0.0f32, f32::max);
    let d = covering16(largest(|range| range.scale) / 63.0, 63.0);
    let dmin = covering16(largest(|range| range.min) / 63.0, 63.0);
    let mut best = search_q4_k(&values, &weights, d, dmin, |j, d, dmin| {
        (steps(ranges[j].scale, d, 0.0, 63.0), steps(ranges[j].min, dmin, 0.0, 63.0))
    });
    for _ in 0..ROUNDS {
        let (d, dmin) = refit_q4_k(&values, &weights, &best);
        let found = search_q4_k(&values, &weights, d, dmin, |j, _, _| (best.scales[j], best.mins[j]));
        if found.error >= best.error {
            break;
        }
        best = found;
    }
    write_q4_k(&best, to);
}

/// The best integers beside those that `start` gives.
fn search_q4_k(
    values: &[[f32; 32]; 8],
    weights: &[[f32; 32]; 8],
    d: u16,
    dmin: u16,
    start: impl Fn(usize, f32, f32) -> (i32, i32),
) -> Q4 {
    let (unit, min_unit) = (f16_to_f32(d), f16_to_f32(dmin));
    let mut out = Q4 { d, dmin, scales: [0; 8], mins: [0; 8], levels: [[0.0; 32]; 8], error: 0.0 };
    for j in 0..8 {
        let (scale, min) = start(j, unit, min_unit);
        let mut least = f32::INFINITY;
        for (s, m) in neighbours(scale, min) {
            let range = Range { scale: unit * s as f32, min: min_unit * m as f32 };
            let (levels, error) = quantised_range(&values[j], &weights[j], range, TOP4);
            if error < least {
                least = error;
                (out.scales[j], out.mins[j], out.levels[j]) = (s, m, levels);
            }
        }
        out.error += least;
    }
    out
}

/// The pair itself first, then those one step away that 6 bits can hold.
fn neighbours(scale: i32, min: i32) -> impl Iterator<Item = (i32, i32)> {
    const AROUND: [(i32, i32); 9] =
        [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (1, 1), (-1, 1), (1, -1)];
    AROUND
        .into_iter()
        .map(move |(s, m)| (scale + s, min + m))
        .filter(|(s, m)| (0..64).contains(s) && (0..64).contains(m))
}

/// The two F16 scales that fit the levels best: the least squares of `x = d * a - dmin * b`.
fn refit_q4_k(values: &[[f32; 32]; 8], weights: &[[f32; 32]; 8], best: &Q4) -> (u16, u16) {
    let [mut aa, mut ab, mut bb, mut ax, mut bx] = [Sum::ZERO; 5];
    for j in 0..8 {
        let b = best.mins[j] as f32;
        for i in 0..32 {
            let (x, w) = (values[j][i], weights[j][i]);
            let a = best.scales[j] as f32 * best.levels[j][i];
            aa.add(i, w * (a * a));
            ab.add(i, w * (a * b));
            bb.add(i, w * (b * b));
            ax.add(i, w * (a * x));
            bx.add(i, w * (b * x));
        }
    }
    let [aa, ab, bb, ax, bx] = [aa, ab, bb, ax, bx].map(Sum::total);
    let determinant = aa * bb - ab * ab;
    if determinant > 0.0 {
        let (d, dmin) = ((bb * ax - ab * bx) / determinant, (ab * ax - aa * bx) / determinant);
        if d > 0.0 && dmin > 0.0 {
            return (scale16(d), scale16(dmin));
        }
    }
    let d = if aa > 0.0 && bb == 0.0 && ax > 0.0 { scale16(ax / aa) } else { best.d };
    (d, best.dmin)
}

fn write_q4_k(block: &Q4, to: &mut [u8]) {
    to[..2].copy_from_slice(&block.d.to_le_bytes());
    to[2..4].copy_from_slice(&block.dmin.to_le_bytes());
    let (scales, levels) = to[4..].split_at_mut(12);
    for j in 0..4 {
        let [s, m, s4, m4] =
            [block.scales[j], block.mins[j], block.scales[j + 4], block.mins[j + 4]].map(|v| v as u8);
        scales[j] = s | (s4 >> 4) << 6;
        scales[j + 4] = m | (m4 >> 4) << 6;
        scales[j + 8] = (s4 & 15) | (m4 & 15) << 4;
    }
    for (pair, bytes) in levels.chunks_exact_mut(32).enumerate() {
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = block.levels[2 * pair][i] as u8 | (block.levels[2 * pair + 1][i] as u8) << 4;
        }
    }
}

pub fn decode_q4_k(from: &[u8], values: &mut [f32]) {
    let (d, dmin) = (half(from), half(&from[2..]));
    let (scales, levels) = from[4..].split_at(12);
    for (j, values) in values.chunks_exact_mut(32).enumerate() {
        let (scale, min) = if j < 4 {
            (scales[j] & 63, scales[j + 4] & 63)
        } else {
            let low = scales[j + 4];
            ((low & 15) | (scales[j - 4] >> 6) << 4, (low >> 4) | (scales[j] >> 6) << 4)
        };
        for (i, x) in values.iter_mut().enumerate() {
            let q = levels[32 * (j / 2) + i] >> (4 * (j % 2)) & 15;
            *x = (d * scale as f32) * q as f32 - dmin * min as f32;
        }
    }
}

// Q6_K: 256 values, 210 bytes: the low 4 bits of the levels, their high 2 bits, sixteen scales of 8 bits, d
// (F16). value = d * scale * (level - 32), per sub-block of 16.

const LEVELS6: Levels = Levels { low: -32.0, high: 31.0 };
const STARTS6: [f32; 11] = [0.94, 0.955, 0.97, 0.98, 0.99, 1.0, 1.01, 1.02, 1.03, 1.045, 1.06];

#[derive(Clone, Copy)]
struct Q6 {
    d: u16,
    scales: [i32; 16],
    levels: [[f32; 16]; 16],
    error: f32,
}

pub fn encode_q6_k(values: &[f32], to: &mut [u8]) {
    let values: [[f32; 16]; 16] = split(values);
    let weights = values.map(|sub| importance(&sub));
    let scales: [f32; 16] =
        std::array::from_fn(|j| fit_scale(&values[j], &weights[j], LEVELS6, &STARTS6).scale);
    let peak = scales.iter().fold(0.0f32, |peak, &s| if s.abs() > peak.abs() { s } else { peak });
    let d = covering16(peak / -128.0, 128.0);
    let mut best = search_q6_k(&values, &weights, d, |j, d| steps(scales[j], d, -128.0, 127.0));
    for _ in 0..ROUNDS {
        let d = refit_q6_k(&values, &weights, &best);
        let found = search_q6_k(&values, &weights, d, |j, _| best.scales[j]);
        if found.error >= best.error {
            break;
        }
        best = found;
    }
    write_q6_k(&best, to);
}

fn search_q6_k(
    values: &[[f32; 16]; 16],
    weights: &[[f32; 16]; 16],
    d: u16,
    start: impl Fn(usize, f32) -> i32,
) -> Q6 {
    let unit = f16_to_f32(d);
    let mut out = Q6 { d, scales: [0; 16], levels: [[0.0; 16]; 16], error: 0.0 };
    for j in 0..16 {
        let scale = start(j, unit);
        let mut least = f32::INFINITY;
        for s in [scale, scale - 1, scale + 1].into_iter().filter(|s| (-128..128).contains(s)) {
            let found = quantised(&values[j], &weights[j], unit * s as f32, LEVELS6);
            if found.error < least {
                least = found.error;
                (out.scales[j], out.levels[j]) = (s, found.levels);
            }
        }
        out.error += least;
    }
    out
}

fn refit_q6_k(values: &[[f32; 16]; 16], weights: &[[f32; 16]; 16], best: &Q6) -> u16 {
    let (mut aa, mut ax) = (Sum::ZERO, Sum::ZERO);
    for j in 0..16 {
        for i in 0..16 {
            let (x, w) = (values[j][i], weights[j][i]);
            let a = best.scales[j] as f32 * best.levels[j][i];
            aa.add(i, w * (a * a));
            ax.add(i, w * (a * x));
        }
    }
    let (aa, ax) = (aa.total(), ax.total());
    if aa > 0.0 && ax != 0.0 { scale16(ax / aa) } else { best.d }
}

/// Where value i of a half lies: its low bits' byte and shift, its high bits' byte and shift.
fn place6(i: usize) -> (usize, usize, usize, usize) {
    (i % 64, 4 * (i / 64), i % 32, 2 * (i / 32))
}

fn write_q6_k(block: &Q6, to: &mut [u8]) {
    to.fill(0);
    for (n, level) in block.levels.iter().flatten().enumerate() {
        let q = (level + 32.0) as u8;
        let (low, low_shift, high, high_shift) = place6(n % 128);
        to[64 * (n / 128) + low] |= (q & 15) << low_shift;
        to[128 + 32 * (n / 128) + high] |= (q >> 4) << high_shift;
    }
    for (j, &scale) in block.scales.iter().enumerate() {
        to[192 + j] = scale as i8 as u8;
    }
    to[208..].copy_from_slice(&block.d.to_le_bytes());
}

pub fn decode_q6_k(from: &[u8], values: &mut [f32]) {
    let d = half(&from[208..]);
    for (n, x) in values.iter_mut().enumerate() {
        let (low, low_shift, high, high_shift) = place6(n % 128);
        let low = from[64 * (n / 128) + low] >> low_shift & 15;
        let high = from[128 + 32 * (n / 128) + high] >> high_shift & 3;
        let scale = from[192 + n / 16] as i8;
        *x = (d * scale as f32) * ((low | high << 4) as f32 - 32.0);
    }
}
