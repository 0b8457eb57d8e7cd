//! Fused quantised matrix multiplication.
//!
//! ```text
//! for each tile of 16 rows:                      the packed weights are read once, in order
//!   for each group of columns (tokens):
//!     for each block along K, ascending:         one lane is one output: the order never changes
//!       exact integer dot products, or products that are exact in f32
//!       acc += (d_w * d_x) * dot                 two rounded products, one rounded sum
//!     bias, then residual or gate, then store
//! ```
//!
//! Columns go in groups so that a weight vector in a register serves several tokens; a token's
//! result does not depend on the group it is in.

use super::rows::{Activation, gated};
use crate::acts::Acts;
use crate::packed::{Format, Matrix};
use crate::simd::{LANES, Q4_BYTES, Q8_BYTES, QK, QuantBlock, Simd};
use crate::view::Shared;
use std::ops::Range;

/// out = x · wᵀ + bias, or out += x · wᵀ + bias, for some tiles of w.
pub struct LinearJob<'a> {
    pub weight: &'a Matrix,
    pub tiles: Range<usize>,
    pub acts: Acts<'a>,
    pub bias: Option<&'a [f32]>,
    /// Add to what `out` holds.
    pub add: bool,
    /// [tokens, width]; the job's own are the columns of its tiles' rows.
    pub out: Shared<'a, f32>,
    pub width: usize,
}

/// out = activation(x · gateᵀ) * (x · upᵀ), for some tiles of both matrices.
pub struct GluJob<'a> {
    pub gate: &'a Matrix,
    pub up: &'a Matrix,
    pub tiles: Range<usize>,
    pub acts: Acts<'a>,
    pub activation: Activation,
    pub out: Shared<'a, f32>,
    pub width: usize,
}

#[inline(always)]
pub fn linear<S: Simd>(s: S, job: &LinearJob) {
    for tile in job.tiles.clone() {
        let mut column = 0;
        while column < job.acts.count {
            column += match group::<S>(job.acts.count - column) {
                8 => linear_columns::<S, 8>(s, job, tile, column),
                4 => linear_columns::<S, 4>(s, job, tile, column),
                2 => linear_columns::<S, 2>(s, job, tile, column),
                _ => linear_columns::<S, 1>(s, job, tile, column),
            };
        }
    }
}

#[inline(always)]
pub fn glu<S: Simd>(s: S, job: &GluJob) {
    for tile in job.tiles.clone() {
        let mut column = 0;
        while column < job.acts.count {
            column += match group::<S>(job.acts.count - column) {
                8 => glu_columns::<S, 8>(s, job, tile, column),
                4 => glu_columns::<S, 4>(s, job, tile, column),
                2 => glu_columns::<S, 2>(s, job, tile, column),
                _ => glu_columns::<S, 1>(s, job, tile, column),
            };
        }
    }
}

/// The most columns, up to the ISA's own, that `left` fills.
#[inline(always)]
pub(crate) fn group<S: Simd>(left: usize) -> usize {
    [8, 4, 2, 1].into_iter().find(|&size| size <= left && size <= S::COLUMNS).unwrap_or(1)
}

#[inline(always)]
fn linear_columns<S: Simd, const C: usize>(s: S, job: &LinearJob, tile: usize, column: usize) -> usize {
    let sums = multiply::<S, C>(s, job.weight, tile, &job.acts, column);
    let row = tile * LANES;
    let rows = (job.weight.rows() - row).min(LANES);
    let mut bias = [0.0; LANES];
    if let Some(from) = job.bias {
        bias[..rows].copy_from_slice(&from[row..row + rows]);
    }
    let per_token = job.acts.kind.columns();
    for c in (0..C).step_by(per_token) {
        let mut values = [0.0; LANES];
        let sum = if per_token == 2 { s.add(sums[c], sums[(c + 1) % C]) } else { sums[c] };
        let sum = if job.bias.is_some() { s.add(sum, s.load(&bias)) } else { sum };
        s.store(sum, &mut values);
        let at = (column + c) / per_token * job.width + row;
        // SAFETY: rows of this tile belong to this job alone.
        let out = unsafe { job.out.write(at..at + rows) };
        if job.add {
            for (out, value) in out.iter_mut().zip(values) {
                *out += value;
            }
        } else {
            out.copy_from_slice(&values[..rows]);
        }
    }
    C
}

#[inline(always)]
fn glu_columns<S: Simd, const C: usize>(s: S, job: &GluJob, tile: usize, column: usize) -> usize {
    let gates = multiply::<S, C>(s, job.gate, tile, &job.acts, column);
    let ups = multiply::<S, C>(s, job.up, tile, &job.acts, column);
    let row = tile * LANES;
    let rows = (job.gate.rows() - row).min(LANES);
    let per_token = job.acts.kind.columns();
    for c in (0..C).step_by(per_token) {
        let mut values = [0.0; LANES];
        let (mut gate, mut up) = (gates[c], ups[c]);
        if per_token == 2 {
            gate = s.add(gate, gates[(c + 1) % C]);
            up = s.add(up, ups[(c + 1) % C]);
        }
        s.store(gated(s, job.activation, gate, up), &mut values);
        let at = (column + c) / per_token * job.width + row;
        // SAFETY: rows of this tile belong to this job alone.
        unsafe { job.out.write(at..at + rows) }.copy_from_slice(&values[..rows]);
    }
    C
}

/// One tile times C columns: lane j of result c is row j's product with column c.
#[inline(always)]
fn multiply<S: Simd, const C: usize>(
    s: S,
    weight: &Matrix,
    tile: usize,
    acts: &Acts,
    column: usize,
) -> [S::F; C] {
    let bytes = weight.tile(tile);
    match weight.format() {
        Format::F32 => multiply_f32::<S, C>(s, bytes, acts, column),
        Format::F16 => multiply_half::<S, C, false>(s, bytes, acts, column),
        Format::BF16 => multiply_half::<S, C, true>(s, bytes, acts, column),
        Format::Q8_0 => multiply_q8::<S, C>(s, bytes, acts, column),
        Format::Q4_0 => multiply_q4::<S, C>(s, bytes, acts, column),
    }
}

#[inline(always)]
fn columns<const C: usize>(floats: &[f32], k: usize, column: usize) -> [&[f32]; C] {
    std::array::from_fn(|c| &floats[(column + c) * k..(column + c + 1) * k])
}

#[inline(always)]
fn multiply_f32<S: Simd, const C: usize>(s: S, bytes: &[u8], acts: &Acts, column: usize) -> [S::F; C] {
    let x = columns::<C>(acts.floats, acts.k, column);
    let mut sums = [s.splat(0.0); C];
    for (k, row) in as_f32(bytes).iter().take(acts.k).enumerate() {
        let w = s.load(row);
        for c in 0..C {
            sums[c] = s.add(sums[c], s.mul(w, s.splat(x[c][k])));
        }
    }
    sums
}

#[inline(always)]
fn multiply_half<S: Simd, const C: usize, const BF16: bool>(
    s: S,
    bytes: &[u8],
    acts: &Acts,
    column: usize,
) -> [S::F; C] {
    let x = columns::<C>(acts.floats, acts.k, column);
    let mut sums = [s.splat(0.0); C];
    for (k, row) in as_u16(bytes).iter().take(acts.k).enumerate() {
        let w = if BF16 { s.load_bf16(row) } else { s.load_f16(row) };
        for c in 0..C {
            sums[c] = s.mul_add_exact(w, s.splat(x[c][k]), sums[c]);
        }
    }
    sums
}

/// C columns' blocks: values [c][block], scales and sums likewise.
struct QuantColumns<'a, const C: usize> {
    values: [&'a [[i8; QK]]; C],
    scales: [&'a [f32]; C],
    sums: [&'a [i32]; C],
}

impl<'a, const C: usize> QuantColumns<'a, C> {
    #[inline(always)]
    fn new(acts: &Acts<'a>, column: usize) -> Self {
        let blocks = acts.k / QK;
        let of = |c: usize| (column + c) * blocks..(column + c + 1) * blocks;
        Self {
            values: std::array::from_fn(|c| &acts.values.as_chunks::<QK>().0[of(c)]),
            scales: std::array::from_fn(|c| &acts.scales[of(c)]),
            sums: std::array::from_fn(|c| &acts.sums[of(c)]),
        }
    }

    #[inline(always)]
    fn block(&self, b: usize) -> [QuantBlock<'a>; C] {
        std::array::from_fn(|c| QuantBlock { values: &self.values[c][b], sum: self.sums[c][b] })
    }
}

#[inline(always)]
fn multiply_q8<S: Simd, const C: usize>(s: S, bytes: &[u8], acts: &Acts, column: usize) -> [S::F; C] {
    let x = QuantColumns::<C>::new(acts, column);
    let (values, scales) = bytes.split_at(acts.k / QK * Q8_BYTES);
    let mut sums = [s.splat(0.0); C];
    for (b, (block, scale)) in values.as_chunks::<Q8_BYTES>().0.iter().zip(as_u16(scales)).enumerate() {
        let dots = s.dot_q8::<C>(block, x.block(b));
        accumulate(s, &mut sums, scale, &x, b, dots);
    }
    sums
}

#[inline(always)]
fn multiply_q4<S: Simd, const C: usize>(s: S, bytes: &[u8], acts: &Acts, column: usize) -> [S::F; C] {
    let x = QuantColumns::<C>::new(acts, column);
    let (values, scales) = bytes.split_at(acts.k / QK * Q4_BYTES);
    let mut sums = [s.splat(0.0); C];
    for (b, (block, scale)) in values.as_chunks::<Q4_BYTES>().0.iter().zip(as_u16(scales)).enumerate() {
        let dots = s.dot_q4::<C>(block, x.block(b));
        accumulate(s, &mut sums, scale, &x, b, dots);
    }
    sums
}

#[inline(always)]
fn accumulate<S: Simd, const C: usize>(
    s: S,
    sums: &mut [S::F; C],
    scale: &[u16; LANES],
    x: &QuantColumns<C>,
    b: usize,
    dots: [S::I; C],
) {
    let d = s.load_f16(scale);
    for c in 0..C {
        let t = s.mul(d, s.splat(x.scales[c][b]));
        sums[c] = s.add(sums[c], s.mul(t, s.int_to_float(dots[c])));
    }
}

fn as_f32(bytes: &[u8]) -> &[[f32; LANES]] {
    // SAFETY: every byte pattern is a valid f32; align_to checks the alignment.
    let (before, rows, _) = unsafe { bytes.align_to::<[f32; LANES]>() };
    assert!(before.is_empty());
    rows
}

fn as_u16(bytes: &[u8]) -> &[[u16; LANES]] {
    // SAFETY: every byte pattern is a valid u16; align_to checks the alignment.
    let (before, rows, _) = unsafe { bytes.align_to::<[u16; LANES]>() };
    assert!(before.is_empty());
    rows
}
