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
        Some(Self {
            floats: Aligned::zeroed(size)?,
            values: Aligned::zeroed(size)?,
            scales: Aligned::zeroed(size / QK)?,
            sums: Aligned::zeroed(size / QK)?,
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
    /// F32, F16 and BF16: the (rounded) values.
    pub floats: &'a mut [f32],
    /// Q8: values within -127..=127, and per block of 32 the scale and the sum of the values.
    pub values: &'a mut [i8],
    pub scales: &'a mut [f32],
    pub sums: &'a mut [i32],
}

/// All tokens' activations, to be multiplied with weights of `k` columns.
#[derive(Clone, Copy)]
pub struct Acts<'a> {
    pub k: usize,
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
        let float_len = if kind == ActKind::Q8 { 0 } else { k };
        let value_len = if kind == ActKind::Q8 { k } else { 0 };
        let blocks = value_len / QK;
        // SAFETY: the caller's promise; rows of one step do not overlap.
        unsafe {
            ActRow {
                floats: self.floats.write(row * float_len..(row + 1) * float_len),
                values: self.values.write(row * value_len..(row + 1) * value_len),
                scales: self.scales.write(row * blocks..(row + 1) * blocks),
                sums: self.sums.write(row * blocks..(row + 1) * blocks),
            }
        }
    }

    /// # Safety
    /// No thread writes to the store while the result lives.
    pub unsafe fn all(&self, kind: ActKind, count: usize, k: usize) -> Acts<'a> {
        let floats = if kind == ActKind::Q8 { 0 } else { count * k };
        let values = if kind == ActKind::Q8 { count * k } else { 0 };
        // SAFETY: the caller's promise.
        unsafe {
            Acts {
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
