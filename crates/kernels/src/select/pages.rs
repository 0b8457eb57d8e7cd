//! Blocks by upper bounds of their keys, after Quest (Tang et al., 2024, arXiv:2406.10774): of a small
//! page's keys the lowest and highest value of each dimension are kept, which bound its scores. Quest's
//! pages hold 16 keys; bounds grow loose with the dimensions, so larger heads have smaller pages.

use super::{Budget, Keys, Queries, choose};
use crate::float16::{f16_to_f32, f32_to_f16};
use crate::kernels::attention::BLOCK;
use crate::kernels::padded;
use crate::simd::LANES;
use crate::table::KernelTable;

/// The bounds of one KV head's whole blocks, so far.
#[derive(Default)]
pub struct Bounds {
    /// [pages][lowest, highest][head_dim padded to 16].
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

impl Bounds {
    /// Takes in the blocks up to `blocks`, all of them whole; or forgets those beyond, which may change.
    pub fn update(&mut self, keys: Keys, blocks: usize) {
        let vectors = keys.head_dim.div_ceil(LANES);
        let per_block = BLOCK / page_keys(keys.head_dim) * 2 * vectors;
        self.pages.truncate(blocks * per_block);
        self.blocks = self.blocks.min(blocks);
        for block in self.blocks..blocks {
            for sub in keys.block(block).chunks_exact(keys.head_dim) {
                self.add_sub_block(sub, vectors);
            }
        }
        self.blocks = blocks;
    }

    fn add_sub_block(&mut self, sub: &[[u16; LANES]], vectors: usize) {
        let page = page_keys(sub.len());
        for first in (0..LANES).step_by(page) {
            let mut bounds = vec![[0u16; LANES]; 2 * vectors];
            for (d, keys) in sub.iter().enumerate() {
                let values = || keys[first..first + page].iter().map(|&bits| f16_to_f32(bits));
                let lowest = values().fold(f32::INFINITY, f32::min);
                let highest = values().fold(f32::NEG_INFINITY, f32::max);
                bounds[d / LANES][d % LANES] = f32_to_f16(lowest);
                bounds[vectors + d / LANES][d % LANES] = f32_to_f16(highest);
            }
            self.pages.extend(bounds);
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
    let vectors = queries.head_dim.div_ceil(LANES);
    let per_block = BLOCK / page_keys(queries.head_dim) * 2 * vectors;
    assert!(blocks <= bounds.blocks, "{blocks} of {} blocks", bounds.blocks);
    let mut scores = vec![f32::NEG_INFINITY; blocks];
    for row in queries.rows() {
        let query: Vec<[f32; LANES]> = row.chunks(LANES).map(padded).collect();
        let blocks = bounds.pages.chunks_exact(per_block);
        for (score, block) in scores.iter_mut().zip(blocks) {
            for page in block.chunks_exact(2 * vectors) {
                let most = (table.page_bounds)(&query, page);
                *score = if most > *score { most } else { *score };
            }
        }
    }
    choose(&scores, Budget { mass: 1.0, ..budget })
}
