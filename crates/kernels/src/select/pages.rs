//! Blocks by upper bounds of their keys, after Quest (Tang et al., 2024, arXiv:2406.10774): of a small
//! page's keys the lowest and highest value of each dimension are kept, which bound its scores. Quest's
//! pages hold 16 keys; bounds grow loose with the dimensions, so larger heads have smaller pages.
//!
//! The most that q · k can be for any key within the bounds is the sum over dimensions of the larger of
//! q * lowest and q * highest: that with the highest where q is positive, and with the lowest where it is
//! negative. So it is a product of twice as many dimensions, the lowest and the highest values as a key and
//! the negative and the positive parts of q as a query, and is computed like 16 keys' scores at once.

use super::{Budget, Keys, Queries, Room, RowScores, choose};
use crate::kernels::attention::BLOCK;
use crate::simd::LANES;
use crate::table::KernelTable;

/// Whole numbers in the order of the F16 values with these bits: those of negative values are turned round.
fn ordered(bits: u16) -> i16 {
    let bits = bits as i16;
    bits ^ ((bits >> 15) & i16::MAX)
}

/// What [`ordered`] was given.
fn f16_bits(ordered: i16) -> u16 {
    (ordered ^ ((ordered >> 15) & i16::MAX)) as u16
}

/// The bounds of one KV head's whole blocks, so far.
#[derive(Default)]
pub struct Bounds {
    /// [pages / 16][lowest head_dim, highest head_dim][16 pages]; lanes past the last page mean nothing.
    pages: Vec<[u16; LANES]>,
    blocks: usize,
}

/// Keys of a page.
fn page_keys(head_dim: usize) -> usize {
    match head_dim {
        0..=96 => 16,
        97..=128 => 8,
        _ => 4,
    }
}

fn pages_per_block(head_dim: usize) -> usize {
    BLOCK / page_keys(head_dim)
}

/// Queries whose bounds are computed at once.
const ROWS: usize = 16;

impl Bounds {
    /// Takes in the blocks up to `blocks`, all of them whole; or forgets those beyond, which may change.
    pub fn update(&mut self, table: &KernelTable, keys: Keys, blocks: usize) {
        let (dim, page) = (keys.head_dim, page_keys(keys.head_dim));
        let vectors = (blocks * pages_per_block(dim)).div_ceil(LANES) * 2 * dim;
        self.pages.resize(vectors, [0; LANES]);
        let mut room = Room::new();
        for block in self.blocks.min(blocks)..blocks {
            for (sub, of_sub) in keys.block(table, block, &mut room).chunks_exact(dim).enumerate() {
                for first in (0..LANES).step_by(page) {
                    let index = block * pages_per_block(dim) + (sub * LANES + first) / page;
                    self.set(index, of_sub, first..first + page);
                }
            }
        }
        self.blocks = blocks;
    }

    /// Writes the bounds of some keys of a sub-block.
    fn set(&mut self, page: usize, of_sub: &[[u16; LANES]], keys: std::ops::Range<usize>) {
        let dim = of_sub.len();
        let to = &mut self.pages[page / LANES * 2 * dim..][..2 * dim];
        for (d, of_dim) in of_sub.iter().enumerate() {
            let (mut lowest, mut highest) = (i16::MAX, i16::MIN);
            for &bits in &of_dim[keys.clone()] {
                let key = ordered(bits);
                lowest = lowest.min(key);
                highest = highest.max(key);
            }
            to[d][page % LANES] = f16_bits(lowest);
            to[dim + d][page % LANES] = f16_bits(highest);
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.pages.capacity() * size_of::<[u16; LANES]>()
    }
}

/// The blocks among the first `blocks` that hold the pages of the highest bounds for any of the queries.
pub fn bounds(
    table: &KernelTable,
    bounds: &Bounds,
    queries: &Queries,
    blocks: usize,
    budget: Budget,
) -> Vec<u32> {
    assert!(blocks <= bounds.blocks, "{blocks} of {} blocks", bounds.blocks);
    let (dim, per_block) = (2 * queries.head_dim, pages_per_block(queries.head_dim));
    let vectors = (blocks * per_block).div_ceil(LANES);
    let keys = &bounds.pages[..vectors * dim];
    let mut most = vec![[f32::NEG_INFINITY; LANES]; vectors];
    let mut scores = vec![[0.0f32; LANES]; ROWS.min(queries.heads * queries.tokens) * vectors];
    let (mut halves, mut values) = (Vec::with_capacity(ROWS * dim), queries.values.as_slice());
    while !values.is_empty() {
        let (some, rest) = values.split_at(values.len().min(ROWS * queries.head_dim));
        halves.clear();
        for row in some.chunks_exact(queries.head_dim) {
            halves.extend(row.iter().map(|&q| if q < 0.0 { q } else { 0.0 }));
            halves.extend(row.iter().map(|&q| if q < 0.0 { 0.0 } else { q }));
        }
        (table.row_scores)(&RowScores { keys, dim, queries: &halves, scale: 1.0 }, &mut scores);
        for row in scores.chunks_exact(vectors.max(1)).take(halves.len() / dim) {
            for (most, x) in most.as_flattened_mut().iter_mut().zip(row.as_flattened()) {
                *most = if *x > *most { *x } else { *most };
            }
        }
        values = rest;
    }
    let pages = most.as_flattened().chunks_exact(per_block).take(blocks);
    let scores: Vec<f32> =
        pages.map(|pages| pages.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })).collect();
    choose(&scores, Budget { mass: 1.0, ..budget })
}
