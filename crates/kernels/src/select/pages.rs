//! Blocks by upper bounds of their keys, after Quest (Tang et al., 2024, arXiv:2406.10774): of a small
//! page's keys the lowest and highest value of each dimension are kept, which bound its scores. Quest's
//! pages hold 16 keys; bounds grow loose with the dimensions, so these are smaller, and in 8 bits.
//!
//! The most that q · k can be for any key within the bounds is the sum over dimensions of the larger of
//! q * lowest and q * highest: that with the highest where q is positive, and with the lowest where it is
//! negative. So it is a product of twice as many dimensions, the lowest and the highest values as a row of
//! weights and the negative and the positive parts of q as a column, and 16 pages are computed at once.
//!
//! Bounds lie far above the scores that keys have, but by much the same for all pages. How far a page's bound
//! stands out from a query's others tells more than the bound: a key that one query alone looks for stands
//! out by 8 deviations and more where chance comes to 5 (heads of 64, scores with a deviation of 1).

use super::{Keys, Queries, Room, SUB};
use crate::kernels::attention::{BLOCK, MAX_HEAD_DIM};
use crate::simd::{ActBlock, LANES, QK};
use crate::table::KernelTable;
use std::ops::Range;

/// One dimension group's values: of 16 pages four bytes each, in a cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct PageVector(pub [u8; LANES * 4]);

impl PageVector {
    /// The bits of 16 floats, as vectors are stored.
    pub(crate) fn words_mut(&mut self) -> &mut [f32; LANES] {
        // SAFETY: as many bytes, aligned to more, and any bits are a float.
        unsafe { &mut *self.0.as_mut_ptr().cast() }
    }
}

/// What the bytes are larger by than the values that they stand for.
const OFFSET: i16 = 128;

/// The bounds of one KV head's whole blocks, so far.
#[derive(Default)]
pub struct Bounds {
    /// [pages / 16][lowest of all dimensions, highest], four dimensions in a vector: a tile of Q8_0's values.
    /// Lanes past the last page mean nothing.
    tiles: Vec<PageVector>,
    /// [pages / 16]: what each page's values are multiplied by.
    scales: Vec<[f32; LANES]>,
    blocks: usize,
}

/// Keys of a page.
fn page_keys(head_dim: usize) -> usize {
    if head_dim > 128 { 4 } else { 8 }
}

fn pages_per_block(head_dim: usize) -> usize {
    BLOCK / page_keys(head_dim)
}

/// Values of the lowest or of the highest of a page: those past the head's dimensions are 0.
pub(crate) fn padded_dim(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}

/// Blocks of 32 values of a page, and of a query.
pub(crate) fn row_blocks(head_dim: usize) -> usize {
    2 * padded_dim(head_dim) / QK
}

impl Bounds {
    /// Takes in the blocks up to `blocks`, all of them whole; or forgets those beyond, which may change.
    pub fn update(&mut self, table: &KernelTable, keys: Keys, blocks: usize) {
        let (dim, page) = (keys.head_dim, page_keys(keys.head_dim));
        let vectors = (blocks * pages_per_block(dim)).div_ceil(LANES);
        let nothing = PageVector([OFFSET as u8; LANES * 4]);
        self.tiles.resize(vectors * row_blocks(dim) * QK / 4, nothing);
        self.scales.resize(vectors, [0.0; LANES]);
        let mut room = Room::new();
        let mut wide = vec![[0.0; LANES]; SUB * dim];
        for block in self.blocks.min(blocks)..blocks {
            (table.widen)(keys.block(table, block, &mut room), &mut wide);
            for (sub, of_sub) in wide.chunks_exact(dim).enumerate() {
                for first in (0..LANES).step_by(page) {
                    let index = block * pages_per_block(dim) + (sub * LANES + first) / page;
                    self.set(index, of_sub, first..first + page);
                }
            }
        }
        self.blocks = blocks;
    }

    /// Leaves all but the first `blocks`.
    pub fn forget(&mut self, blocks: usize) {
        self.blocks = self.blocks.min(blocks);
    }

    /// Writes the bounds of some keys of a sub-block.
    fn set(&mut self, page: usize, of_sub: &[[f32; LANES]], keys: std::ops::Range<usize>) {
        let mut room = [[0.0f32; 2]; MAX_HEAD_DIM];
        let bounds = &mut room[..of_sub.len()];
        let mut largest = 0.0f32;
        for (bounds, of_dim) in bounds.iter_mut().zip(of_sub) {
            *bounds = extremes(of_dim[keys.clone()].as_chunks().0);
            for x in bounds.map(f32::abs) {
                largest = if x > largest { x } else { largest };
            }
        }
        let by = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        let dim = padded_dim(of_sub.len());
        let (tile, lane) = (page / LANES, page % LANES);
        let to = &mut self.tiles[tile * 2 * dim / 4..][..2 * dim / 4];
        for (d, bounds) in bounds.iter().enumerate() {
            for (at, x) in [d, dim + d].into_iter().zip(bounds) {
                to[at / 4].0[lane * 4 + at % 4] = (i16::from(nearest_byte(x * by)) + OFFSET) as u8;
            }
        }
        self.scales[tile][lane] = largest / 127.0;
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.tiles.capacity() * size_of::<PageVector>() + self.scales.capacity() * size_of::<[f32; LANES]>()
    }
}

/// The lowest and the highest.
fn extremes(values: &[[f32; 4]]) -> [f32; 2] {
    let (mut low, mut high) = (values[0], values[0]);
    for x in &values[1..] {
        for i in 0..4 {
            low[i] = if x[i] < low[i] { x[i] } else { low[i] };
            high[i] = if x[i] > high[i] { x[i] } else { high[i] };
        }
    }
    let [low, high] =
        [low, high.map(|x| -x)].map(|x| x.into_iter().fold(f32::INFINITY, |a, x| if x < a { x } else { a }));
    [low, -high]
}

/// How far the bounds of each of the `blocks` stand out from others of the same query, in deviations: the
/// most of any page for any query.
pub fn bounds(table: &KernelTable, bounds: &Bounds, queries: &Queries, blocks: Range<usize>) -> Vec<f32> {
    assert!(blocks.end <= bounds.blocks, "{blocks:?} of {} blocks", bounds.blocks);
    if blocks.is_empty() {
        return Vec::new();
    }
    let (dim, per_block) = (queries.head_dim, pages_per_block(queries.head_dim));
    // A vector may hold pages of a block before the first.
    let first = blocks.start * per_block / LANES;
    let (before, blocks) = (blocks.start - first * LANES / per_block, blocks.end - first * LANES / per_block);
    let (vectors, row) = ((blocks * per_block).div_ceil(LANES), row_blocks(dim));
    let at_once = table.page_rows;
    let mut most = vec![[f32::NEG_INFINITY; LANES]; vectors];
    let mut scores = vec![[0.0f32; LANES]; at_once.min(queries.heads * queries.tokens) * vectors];
    let mut halves = vec![ActBlock::new(0.0, [0; QK]); at_once * row];
    for some in queries.values.chunks(at_once * dim) {
        let rows = some.len() / dim;
        let halves = &mut halves[..rows * row];
        (table.sign_halves)(some, dim, halves);
        let tiles = &bounds.tiles[first * row * QK / 4..][..vectors * row * QK / 4];
        let scales = &bounds.scales[first..][..vectors];
        (table.page_scores)(&PageScores { tiles, scales, queries: halves }, &mut scores);
        let scores = &mut scores[..rows * vectors];
        for row in scores.chunks_exact_mut(vectors) {
            row.as_flattened_mut()[blocks * per_block..].fill(0.0);
        }
        (table.stand_out)(scores, blocks * per_block, &mut most);
    }
    let pages = most.as_flattened().chunks_exact(per_block).take(blocks).skip(before);
    pages.map(|pages| pages.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })).collect()
}

/// The nearest whole number, of two the even one, of at most 127 in magnitude: the last byte of its sum with
/// 1.5 * 2^23, which leaves no bits for fractions. `round_ties_even` calls a function for each number where the
/// compiler may not expect SSE4.1, and casts to whole numbers are checked.
fn nearest_byte(x: f32) -> i8 {
    const WHOLE: f32 = 12_582_912.0;
    (x + WHOLE).to_bits() as i8
}

/// Bounds of pages for some queries.
pub struct PageScores<'a> {
    /// [vectors][groups of four values]
    pub tiles: &'a [PageVector],
    /// `[vectors]`
    pub scales: &'a [[f32; LANES]],
    /// [rows][blocks of 32 values]; their scales do not count.
    pub queries: &'a [ActBlock],
}

impl PageScores<'_> {
    /// Blocks of 32 values of a row.
    pub fn blocks(&self) -> usize {
        self.tiles.len() / self.scales.len() * 4 / QK
    }
}
