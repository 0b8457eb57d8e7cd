//! Content-based choice of key blocks for block-sparse attention: which blocks of 64 keys a block of
//! queries needs most, found at a fraction of the cost of looking at all keys.
//!
//! | method | idea | source |
//! |---|---|---|
//! | antidiagonal | the scores of one pair in `stride` along antidiagonals | XAttention, arXiv:2503.16428 |
//! | vertical-slash | keys and distances that the last and the longest query attend to | MInference, arXiv:2407.02490 |
//! | lsh | keys whose random rotations agree with a query's | Reformer, arXiv:2001.04451 |
//! | bounds | bounds of small pages' keys, in 8 bits | Quest, arXiv:2406.10774 |
//!
//! All choose among blocks that lie wholly before the queries' own block; the caller always keeps that
//! one. Results are the same on every ISA and do not depend on threads: scores are computed in a fixed
//! order, ties go to the lower block, and random numbers follow from a seed and a counter.

// Loops over const-sized groups of accumulators index several arrays side by side.
#![allow(clippy::needless_range_loop)]

mod antidiagonal;
pub(crate) mod bounds;
mod lsh;
mod mass;
pub(crate) mod pages;
mod scores;
pub(crate) mod small;
mod vertical_slash;

pub use antidiagonal::antidiagonal;
pub use bounds::{page_scores, sign_halves, stand_out};
pub use lsh::{Hashes, MAX_ROUNDS, Rotations, lsh};
pub use mass::kept_mass;
pub use pages::{Bounds, PageScores, PageVector, bounds};
pub use scores::{
    Hashing, LaneScales, PackedKeys, RowScores, SampledScores, Sums, add_shares, buckets, expand_keys,
    round_halves, row_scores, row_sums, sampled_sums, softmax, widen,
};
pub use small::{Shrinking, SmallKeys, SmallRow, shrink_keys, shrink_rows};
pub use vertical_slash::vertical_slash;

use crate::kernels::attention::{BLOCK, CacheType, key_len, read_q8, runs};
use crate::kernels::tree_sum;
use crate::simd::LANES;
use crate::table::KernelTable;
use crate::view::Shared;
use std::cmp::Ordering;

/// Sub-blocks of 16 keys in a block.
pub const SUB: usize = BLOCK / LANES;

/// One KV head's keys of a sequence, in pages of 64 positions.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    pub cache: CacheType,
    pub pages: &'a [Shared<'a, u16>],
    /// At which word the head's keys start in each page.
    pub at: usize,
    pub head_dim: usize,
}

/// Room for a block's keys, where a page does not hold them as F16.
pub type Room = Vec<[u16; LANES]>;

impl<'a> Keys<'a> {
    /// The keys from a block on, which is the first then.
    pub fn from(self, block: usize) -> Self {
        Self { pages: &self.pages[block..], ..self }
    }

    /// The keys of a block as F16, `[sub-blocks][head_dim][16 keys]`; those of a Q8_0 cache are rounded to it.
    pub fn block<'b>(&self, table: &KernelTable, index: usize, room: &'b mut Room) -> &'b [[u16; LANES]]
    where
        'a: 'b,
    {
        let (page, dim) = (&self.pages[index], self.head_dim);
        match self.cache {
            CacheType::F16 => {
                // SAFETY: pages are written before the phase that chooses blocks, not during it.
                unsafe { page.read(self.at..self.at + key_len(dim)) }.as_chunks().0
            }
            CacheType::Q8 => {
                // SAFETY: as above.
                let (scales, bytes) = unsafe { read_q8(page, self.at, BLOCK * runs(dim), key_len(dim)) };
                room.resize(bytes.len(), [0; LANES]);
                (table.expand_keys)(&PackedKeys { scales, bytes, dim }, room);
                room
            }
        }
    }
}

/// The queries of a block that share a KV head, rounded to F16 as attention rounds them.
pub struct Queries {
    /// `[heads][tokens][head_dim]`.
    pub values: Vec<f32>,
    pub heads: usize,
    pub tokens: usize,
    pub head_dim: usize,
}

impl Queries {
    /// `rows` gives each query, head by head and within one token by token.
    pub fn new<'a>(
        table: &KernelTable,
        heads: usize,
        tokens: usize,
        head_dim: usize,
        rows: impl Iterator<Item = &'a [f32]>,
    ) -> Self {
        let mut values = Vec::with_capacity(heads * tokens * head_dim);
        rows.for_each(|row| values.extend_from_slice(row));
        (table.round_halves)(&mut values);
        assert_eq!(values.len(), heads * tokens * head_dim, "a row for each head and token");
        Self { values, heads, tokens, head_dim }
    }

    pub fn row(&self, head: usize, token: usize) -> &[f32] {
        let row = head * self.tokens + token;
        &self.values[row * self.head_dim..][..self.head_dim]
    }

    /// The longest of a head's queries for the first `tokens`, of several the first.
    pub fn longest(&self, head: usize, tokens: usize) -> usize {
        highest((0..tokens).map(|token| sum_of_squares(self.row(head, token)))).0
    }

    /// The query that is longest beside others of its head.
    pub fn longest_of_all(&self) -> &[f32] {
        let of_head = |head: usize| {
            let squares: Vec<f32> =
                (0..self.tokens).map(|token| sum_of_squares(self.row(head, token))).collect();
            let (token, square) = highest(squares.iter().copied());
            (token, square / squares.iter().sum::<f32>())
        };
        let longest: Vec<(usize, f32)> = (0..self.heads).map(of_head).collect();
        let (head, _) = highest(longest.iter().map(|&(_, ratio)| ratio));
        self.row(head, longest[head].0)
    }
}

/// The highest number and its place, of several the first; 0 where there is none.
fn highest(values: impl Iterator<Item = f32>) -> (usize, f32) {
    let keep = |best: (usize, f32), next: (usize, f32)| if next.1 > best.1 { next } else { best };
    values.enumerate().fold((0, f32::NEG_INFINITY), keep)
}

/// Over 16 lanes.
fn sum_of_squares(values: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    for part in values.chunks(LANES) {
        lanes.iter_mut().zip(part).for_each(|(sum, x)| *sum += x * x);
    }
    tree_sum(lanes)
}

/// How much may be kept of the blocks before the queries' own.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Blocks at most.
    pub blocks: usize,
    /// Stops earlier once the kept blocks' share of all scores reaches this; 1: never.
    pub mass: f32,
    /// So many of them, beside those that the scores choose, may go to keys that few queries look for; see
    /// [`add_highest`].
    pub lone: usize,
}

/// The blocks of the highest scores that the budget allows without those for lone keys, ascending. The first
/// block, whose keys many queries fall back to (Xiao et al., 2023, arXiv:2309.17453), and the last one are
/// always among them.
pub fn choose(scores: &[f32], budget: Budget) -> Vec<u32> {
    let count = scores.len();
    let mut order: Vec<u32> = (0..count as u32).collect();
    let always = |block: u32| block == 0 || block as usize + 1 == count;
    let before = |a: &u32, b: &u32| {
        let (x, y) = (scores[*a as usize], scores[*b as usize]);
        always(*b).cmp(&always(*a)).then(y.total_cmp(&x)).then(a.cmp(b))
    };
    take_first(&mut order, budget.blocks.saturating_sub(budget.lone).max(2), &before);
    if budget.mass < 1.0 {
        order.sort_unstable_by(before);
        order.truncate(enough(&order, scores, budget.mass));
    }
    order.sort_unstable();
    order
}

/// Leaves the first `most` of the blocks in some order. Compiled once for all orders, as WebAssembly has to be small.
fn take_first(blocks: &mut Vec<u32>, most: usize, before: &dyn Fn(&u32, &u32) -> Ordering) {
    if most < blocks.len() {
        blocks.select_nth_unstable_by(most, before);
        blocks.truncate(most);
    }
}

/// How many of the blocks have so large a share of all scores: the least number, the first two among them.
fn enough(order: &[u32], scores: &[f32], mass: f32) -> usize {
    let total: f32 = scores.iter().sum();
    let mut kept = 0.0;
    for (taken, &block) in order.iter().enumerate() {
        if taken >= 2 && kept >= mass * total {
            return taken;
        }
        kept += scores[block as usize];
    }
    order.len()
}

/// Adds up to `most` blocks of the highest scores to those that are kept. A block's share of the mass of all
/// queries says nothing of what one among 256 queries looks for: this makes room for it.
pub fn add_highest(kept: &mut Vec<u32>, scores: &[f32], most: usize) {
    let mut order: Vec<u32> =
        (0..scores.len() as u32).filter(|block| kept.binary_search(block).is_err()).collect();
    let before = |a: &u32, b: &u32| scores[*b as usize].total_cmp(&scores[*a as usize]).then(a.cmp(b));
    take_first(&mut order, most, &before);
    kept.extend(order);
    kept.sort_unstable();
}
