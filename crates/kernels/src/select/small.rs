//! Keys in seven bits and queries in eight, for scores that only choose: whole numbers are multiplied four at a time.
//!
//! What all keys have in common adds the same to all of a query's scores, of which only the differences count, but
//! would leave the bits to a few dimensions that are large in every key (as in SageAttention: Zhang et al., 2024,
//! arXiv:2410.02367). So the mean of the first block's keys is taken from all of them.

use super::pages::{PageVector, padded_dim};
use super::scores::magnitude;
use super::{Keys, Queries, Room, SUB};
use crate::kernels::attention::BLOCK;
use crate::kernels::{padded, tree_sum};
use crate::simd::{LANES, Simd};
use crate::table::KernelTable;
use std::ops::Range;

/// The largest value of a key, and what its bytes are larger by than their values.
pub(crate) const MOST: f32 = 63.0;
pub(crate) const OFFSET: i32 = 64;
/// A float of this size has no fraction, and its last byte is a whole number that was added, larger by the offset.
const WHOLE: f32 = 12_582_912.0 + OFFSET as f32;

/// The keys of some of one KV head's whole blocks. Made for a step's blocks of queries and then left, as they are half as
/// large as an F16 cache's.
#[derive(Default)]
pub struct SmallKeys {
    /// The first of the blocks.
    first: usize,
    /// The mean key of block 0.
    less: Vec<f32>,
    /// [blocks][4 sub-blocks][groups of four dimensions]
    values: Vec<PageVector>,
    /// [blocks][4 sub-blocks]: what each key's values are multiplied by.
    scales: Vec<[f32; LANES]>,
}

/// Vectors of 16 rows of so many dimensions.
pub(crate) fn vectors(dim: usize) -> usize {
    dim.div_ceil(4)
}

impl SmallKeys {
    /// Leaves all keys, but keeps their room.
    pub fn clear(&mut self) {
        self.less.clear();
        self.values.clear();
        self.scales.clear();
    }

    /// Takes in blocks, all of them whole, of which the first is none before the first one taken in.
    pub fn update(&mut self, table: &KernelTable, keys: Keys, blocks: Range<usize>) {
        if self.scales.is_empty() {
            self.first = blocks.start;
        }
        assert!(blocks.start >= self.first, "blocks before {}", self.first);
        let (dim, mut room) = (keys.head_dim, Room::new());
        if self.less.is_empty() && !blocks.is_empty() {
            self.less = mean_key(table, keys.block(table, 0, &mut room), dim);
        }
        let (of_block, there) = (SUB * vectors(dim), self.scales.len() / SUB);
        let count = there.max(blocks.end - self.first);
        self.values.resize(count * of_block, PageVector([0; LANES * 4]));
        self.scales.resize(count * SUB, [0.0; LANES]);
        for i in there..count {
            let shrinking =
                Shrinking { keys: keys.block(table, self.first + i, &mut room), less: &self.less };
            let (values, scales) = (&mut self.values[i * of_block..], &mut self.scales[i * SUB..]);
            (table.shrink_keys)(&shrinking, values, scales);
        }
    }

    /// A block's values and scales.
    pub(super) fn block(&self, block: usize) -> (&[PageVector], &[[f32; LANES]]) {
        let block = block - self.first;
        let of_block = self.values.len() / self.scales.len() * SUB;
        (&self.values[block * of_block..][..of_block], &self.scales[block * SUB..][..SUB])
    }
}

/// Of 64 keys, `[sub-blocks][dim][16 keys]`.
pub(super) fn mean_key(table: &KernelTable, keys: &[[u16; LANES]], dim: usize) -> Vec<f32> {
    let mut wide = vec![[0.0; LANES]; keys.len()];
    (table.widen)(keys, &mut wide);
    let subs: [&[[f32; LANES]]; SUB] = std::array::from_fn(|sub| &wide[sub * dim..][..dim]);
    let sum = |d: usize| {
        let lanes = |lane: usize| subs.iter().fold(0.0, |sum, sub| sum + sub[d][lane]);
        tree_sum(std::array::from_fn(lanes))
    };
    (0..dim).map(|d| sum(d) / BLOCK as f32).collect()
}

/// Keys that are to have seven bits.
pub struct Shrinking<'a> {
    /// `[sub-blocks][dim][16 keys]`
    pub keys: &'a [[u16; LANES]],
    /// `[dim]`: what is taken from each of them.
    pub less: &'a [f32],
}

/// `values`: [sub-blocks][groups of four dimensions], 64 larger than they are, those past the last dimension 0;
/// `scales`: [sub-blocks].
#[inline(always)]
pub fn shrink_keys<S: Simd>(s: S, job: &Shrinking, values: &mut [PageVector], scales: &mut [[f32; LANES]]) {
    let dim = job.less.len();
    let subs = job.keys.chunks_exact(dim).zip(values.chunks_exact_mut(vectors(dim)));
    for ((keys, values), scale) in subs.zip(scales) {
        let mut most = s.splat(0.0);
        for (key, less) in keys.iter().zip(job.less) {
            most = s.max(most, s.abs(s.sub(s.load_f16(key), s.splat(*less))));
        }
        s.store(s.div(most, s.splat(MOST)), scale);
        let none = s.splat(0.0);
        let by = s.select_less(none, most, s.div(s.splat(MOST), most), none);
        for ((keys, less), to) in keys.chunks(4).zip(job.less.chunks(4)).zip(values) {
            let mut bytes = s.splat_int(0);
            for (i, (key, less)) in keys.iter().zip(less).enumerate() {
                let x = s.mul(s.sub(s.load_f16(key), s.splat(*less)), by);
                let byte = s.and_bits(s.int_bits(s.add(x, s.splat(WHOLE))), 0xff);
                bytes = s.or(bytes, s.shift_left(byte, i * 8));
            }
            s.store(s.float_bits(bytes), to.words_mut());
        }
    }
}

/// What goes with a query's values in eight bits.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SmallRow {
    /// What its values are multiplied by.
    pub scale: f32,
    /// Where sums of its products with keys start, which takes out what their bytes are larger by.
    pub start: i32,
}

/// Rows (`[rows][dim]`) in eight bits. `values`: `[rows][vectors of 16 dimensions]`, those past the last one 0.
#[inline(always)]
pub fn shrink_rows<S: Simd>(s: S, rows: &[f32], dim: usize, values: &mut [[i8; LANES]], of: &mut [SmallRow]) {
    let vectors = padded_dim(dim) / LANES;
    for ((row, values), of) in rows.chunks_exact(dim).zip(values.chunks_exact_mut(vectors)).zip(of) {
        let (whole, rest) = row.as_chunks::<LANES>();
        let rest = padded(rest);
        let largest = magnitude(s, whole, &rest);
        let by = s.splat(if largest > 0.0 { 127.0 / largest } else { 0.0 });
        let mut sum = 0;
        for (i, to) in values.iter_mut().enumerate() {
            let part = whole.get(i).unwrap_or(&rest);
            s.store_i8(s.mul(s.load(part), by), to);
            sum += s.sum_i8(to);
        }
        *of = SmallRow { scale: largest / 127.0, start: -OFFSET * sum };
    }
}

/// Queries in eight bits.
pub(super) struct SmallQueries {
    values: Vec<[i8; LANES]>,
    rows: Vec<SmallRow>,
    tokens: usize,
}

impl SmallQueries {
    pub fn new(table: &KernelTable, queries: &Queries) -> Self {
        let (dim, rows) = (queries.head_dim, queries.heads * queries.tokens);
        let mut values = vec![[0; LANES]; rows * padded_dim(dim) / LANES];
        let mut of = vec![SmallRow::default(); rows];
        (table.shrink_rows)(&queries.values, dim, &mut values, &mut of);
        Self { values, rows: of, tokens: queries.tokens }
    }

    /// A query's values, four dimensions at a time, and what goes with them.
    pub fn row(&self, head: usize, token: usize) -> (&[[i8; 4]], SmallRow) {
        let row = head * self.tokens + token;
        let vectors = self.values.len() / self.rows.len();
        (self.values[row * vectors..][..vectors].as_flattened().as_chunks().0, self.rows[row])
    }
}
