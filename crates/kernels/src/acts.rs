//! Activations in the form that a weight format takes.

use crate::packed::ActKind;
use crate::simd::{ActBlock, QK};
use crate::view::{Aligned, Shared};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// An activation was infinite or not a number, or too large for the format it was to be rounded to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NonFinite;

/// Prepared activations of up to `rows` tokens of up to `width` values.
pub struct ActStore {
    floats: Aligned<f32>,
    blocks: Aligned<ActBlock>,
    version: AtomicU64,
}

impl ActStore {
    /// None where memory is short.
    pub fn new(rows: usize, width: usize) -> Option<Self> {
        let size = rows.checked_mul(width.next_multiple_of(QK))?;
        let blocks = (size / QK).checked_mul(2)?;
        Some(Self {
            floats: Aligned::zeroed(size.checked_mul(2)?)?,
            blocks: Aligned::zeroed(blocks)?,
            version: AtomicU64::new(0),
        })
    }

    pub fn shared(&mut self) -> SharedActs<'_> {
        SharedActs { floats: self.floats.shared(), blocks: self.blocks.shared(), version: &self.version }
    }
}

/// The store while a step runs.
#[derive(Clone, Copy)]
pub struct SharedActs<'a> {
    floats: Shared<'a, f32>,
    blocks: Shared<'a, ActBlock>,
    version: &'a AtomicU64,
}

/// One token's part of the store, to be filled.
pub struct ActRow<'a> {
    /// F32, F16 and BF16: the (rounded) values; of a pair, then what rounding left of them. Pairs of whole numbers:
    /// room for the latter.
    pub floats: &'a mut [f32],
    /// Whole numbers: the values; of a pair, then what rounding left of them.
    pub blocks: &'a mut [ActBlock],
}

/// All tokens' activations, to be multiplied with weights of `k` columns.
#[derive(Clone, Copy)]
pub struct Acts<'a> {
    pub kind: ActKind,
    pub k: usize,
    /// Columns: one or two for each token.
    pub count: usize,
    /// How far from one column to the next, in columns.
    pub stride: usize,
    /// Another one wherever any store's contents differ.
    pub version: u64,
    /// `[columns * stride][k]`.
    pub floats: &'a [f32],
    /// [columns * stride][k / 32].
    pub blocks: &'a [ActBlock],
}

impl<'a> Acts<'a> {
    /// Tokens `first..first + tokens` alone.
    pub fn part(&self, first: usize, tokens: usize) -> Self {
        let columns = self.kind.columns();
        let stored = columns * self.stride;
        let of = |per_column: usize| first * stored * per_column..(first + tokens) * stored * per_column;
        let (floats, blocks) = if self.kind.quantised() {
            (&self.floats[..0], &self.blocks[of(self.k / QK)])
        } else {
            (&self.floats[of(self.k)], &self.blocks[..0])
        };
        Acts { count: tokens * columns, floats, blocks, ..*self }
    }

    /// The values alone, without what rounding left of them.
    pub fn plain(self) -> Self {
        let columns = self.kind.columns();
        Self { kind: self.kind.plain(), count: self.count / columns, stride: self.stride * columns, ..self }
    }
}

impl<'a> SharedActs<'a> {
    /// # Safety
    /// No other thread uses token `row` of the store while the result lives.
    pub unsafe fn row(&self, kind: ActKind, row: usize, k: usize) -> ActRow<'a> {
        let floats = match kind {
            ActKind::Q8 | ActKind::Q8K => 0,
            ActKind::Q8Pair | ActKind::Q8KPair => k,
            _ => k * kind.columns(),
        };
        let blocks = if kind.quantised() { k / QK * kind.columns() } else { 0 };
        static VERSIONS: AtomicU64 = AtomicU64::new(1);
        self.version.store(VERSIONS.fetch_add(1, Relaxed), Relaxed);
        // SAFETY: the caller's promise; rows of one step do not overlap.
        unsafe {
            ActRow {
                floats: self.floats.write(row * floats..(row + 1) * floats),
                blocks: self.blocks.write(row * blocks..(row + 1) * blocks),
            }
        }
    }

    /// Copies token `from` of another store to token `to` of this one.
    ///
    /// # Safety
    /// No other thread uses token `to` of this store, or writes token `from` of the other, meanwhile.
    pub unsafe fn copy_row(&self, kind: ActKind, k: usize, to: usize, other: &Self, from: usize) {
        // SAFETY: the caller's promise; several threads may read the same token.
        let (to, from) = unsafe { (self.row(kind, to, k), other.all(kind, from + 1, k)) };
        let from = from.part(from.count / kind.columns() - 1, 1);
        if kind.quantised() {
            to.blocks.copy_from_slice(from.blocks);
        } else {
            to.floats.copy_from_slice(from.floats);
        }
    }

    /// # Safety
    /// No thread writes to the store while the result lives.
    pub unsafe fn all(&self, kind: ActKind, tokens: usize, k: usize) -> Acts<'a> {
        let count = tokens * kind.columns();
        let (floats, blocks) = if kind.quantised() { (0, count * k / QK) } else { (count * k, 0) };
        // SAFETY: the caller's promise.
        unsafe {
            let (floats, blocks) = (self.floats.read(0..floats), self.blocks.read(0..blocks));
            Acts { kind, k, count, stride: 1, version: self.version.load(Relaxed), floats, blocks }
        }
    }
}
