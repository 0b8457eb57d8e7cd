//! Activations in the form that a weight format takes.

use crate::packed::ActKind;
use crate::simd::QK;
use crate::view::{Aligned, Shared};

/// An activation was infinite or not a number, or too large for the format it was to be rounded to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NonFinite;

/// Prepared activations of up to `rows` tokens of up to `width` values.
pub struct ActStore {
    floats: Aligned<f32>,
    values: Aligned<i8>,
    scales: Aligned<f32>,
    sums: Aligned<i32>,
}

impl ActStore {
    /// None where memory is short.
    pub fn new(rows: usize, width: usize) -> Option<Self> {
        let size = rows.checked_mul(width.next_multiple_of(QK))?;
        let values = size.checked_mul(ActKind::Q8Pair.columns())?;
        Some(Self {
            floats: Aligned::zeroed(size)?,
            values: Aligned::zeroed(values)?,
            scales: Aligned::zeroed(values / QK)?,
            sums: Aligned::zeroed(values / QK)?,
        })
    }

    pub fn shared(&mut self) -> SharedActs<'_> {
        SharedActs {
            floats: self.floats.shared(),
            values: self.values.shared(),
            scales: self.scales.shared(),
            sums: self.sums.shared(),
        }
    }
}

/// The store while a step runs.
#[derive(Clone, Copy)]
pub struct SharedActs<'a> {
    floats: Shared<'a, f32>,
    values: Shared<'a, i8>,
    scales: Shared<'a, f32>,
    sums: Shared<'a, i32>,
}

/// One token's part of the store, to be filled.
pub struct ActRow<'a> {
    /// F32, F16 and BF16: the (rounded) values. Q8Pair: room for what rounding leaves.
    pub floats: &'a mut [f32],
    /// Q8: values within -127..=127, and per block of 32 the scale and the sum of the values.
    /// Q8Pair: first those of the values, then those of what rounding left.
    pub values: &'a mut [i8],
    pub scales: &'a mut [f32],
    pub sums: &'a mut [i32],
}

/// All tokens' activations, to be multiplied with weights of `k` columns.
#[derive(Clone, Copy)]
pub struct Acts<'a> {
    pub kind: ActKind,
    pub k: usize,
    /// Columns: one or two for each token.
    pub count: usize,
    pub floats: &'a [f32],
    pub values: &'a [i8],
    pub scales: &'a [f32],
    pub sums: &'a [i32],
}

impl<'a> SharedActs<'a> {
    /// # Safety
    /// No other thread uses token `row` of the store while the result lives.
    pub unsafe fn row(&self, kind: ActKind, row: usize, k: usize) -> ActRow<'a> {
        let floats = if kind == ActKind::Q8 { 0 } else { k };
        let values = if kind.quantised() { k * kind.columns() } else { 0 };
        let blocks = values / QK;
        // SAFETY: the caller's promise; rows of one step do not overlap.
        unsafe {
            ActRow {
                floats: self.floats.write(row * floats..(row + 1) * floats),
                values: self.values.write(row * values..(row + 1) * values),
                scales: self.scales.write(row * blocks..(row + 1) * blocks),
                sums: self.sums.write(row * blocks..(row + 1) * blocks),
            }
        }
    }

    /// # Safety
    /// No thread writes to the store while the result lives.
    pub unsafe fn all(&self, kind: ActKind, tokens: usize, k: usize) -> Acts<'a> {
        let count = tokens * kind.columns();
        let (floats, values) = if kind.quantised() { (0, count * k) } else { (count * k, 0) };
        // SAFETY: the caller's promise.
        unsafe {
            Acts {
                kind,
                k,
                count,
                floats: self.floats.read(0..floats),
                values: self.values.read(0..values),
                scales: self.scales.read(0..values / QK),
                sums: self.sums.read(0..values / QK),
            }
        }
    }
}
