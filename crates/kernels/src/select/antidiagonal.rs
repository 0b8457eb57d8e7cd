//! Blocks by the attention mass of pairs along antidiagonals.
//!
//! Of each tile of `stride` queries by `stride` keys the pairs on one antidiagonal are scored: one pair
//! in `stride`, such that every query and every key takes part, as do lines of keys that many queries
//! look at and lines of equal distance. Each pair's share is taken of the pairs that its query was
//! scored with, where XAttention (Xu et al., 2025, arXiv:2503.16428) adds scores before the softmax: a
//! single strong pair then stands out at any stride.
//!
//! One pass over the keys leaves for each lane and block the highest score and the sum of exponentials
//! relative to it; from these follow the shares.

use super::{Keys, Queries, Room, SampledScores, Sums};
use crate::kernels::tree_sum;
use crate::simd::LANES;
use crate::table::KernelTable;

/// Groups that go over some blocks of keys together: with heads of 64 their queries and one block's keys
/// are in the first-level cache, and the keys of so many blocks in the second.
const GROUPS: usize = 4;
const AT_ONCE: usize = 8;

/// The mass that each of the first `blocks` has of the queries' attention, estimated; 1 for each query in all.
/// `stride` divides 16.
pub fn antidiagonal(
    table: &KernelTable,
    keys: Keys,
    queries: &Queries,
    scale: f32,
    blocks: usize,
    stride: usize,
) -> Vec<f32> {
    assert!(LANES.is_multiple_of(stride), "a stride of {stride}");
    if blocks == 0 {
        return Vec::new();
    }
    let groups = queries.tokens.div_ceil(stride);
    // Lanes of queries that a short group lacks do not count.
    let real: Vec<[f32; LANES]> = (0..groups)
        .map(|group| {
            let counts = |lane: usize| group * stride + row(lane, stride) < queries.tokens;
            std::array::from_fn(|lane| if counts(lane) { 1.0 } else { 0.0 })
        })
        .collect();
    let mut mass = vec![[0.0f32; LANES]; blocks];
    let mut sums = vec![Sums::NONE; blocks * groups];
    let mut rooms: [Room; AT_ONCE] = Default::default();
    let mut lanes = vec![[0.0f32; LANES]; groups * queries.head_dim];
    for head in 0..queries.heads {
        arrange(queries, head, stride, &mut lanes);
        for first in (0..blocks).step_by(AT_ONCE) {
            let rooms = rooms.iter_mut().zip(first..blocks);
            let keys_of: Vec<_> = rooms.map(|(room, block)| keys.block(table, block, room)).collect();
            for (part, lanes) in lanes.chunks(GROUPS * keys.head_dim).enumerate() {
                for (block, &block_keys) in (first..).zip(&keys_of) {
                    let of_block = &mut sums[block * groups..][..groups];
                    let out = of_block.chunks_mut(GROUPS).nth(part).unwrap_or_default();
                    let sampled = SampledScores { keys: block_keys, dim: keys.head_dim, lanes, scale };
                    (table.sampled_sums)(&sampled, out);
                }
            }
        }
        (table.add_shares)(&mut sums, &real, &mut mass);
    }
    mass.into_iter().map(tree_sum).collect()
}

/// Which query of its group a lane holds.
fn row(lane: usize, stride: usize) -> usize {
    stride - 1 - lane % stride
}

/// `lanes`: [groups][head_dim][16], lane j of a group its query `stride - 1 - j mod stride`. Those of queries that a
/// short group lacks are left alone.
fn arrange(queries: &Queries, head: usize, stride: usize, lanes: &mut [[f32; LANES]]) {
    for token in 0..queries.tokens {
        let (group, row) = (token / stride, token % stride);
        let of_group = &mut lanes[group * queries.head_dim..][..queries.head_dim];
        for (of_dim, &q) in of_group.iter_mut().zip(queries.row(head, token)) {
            for lane in of_dim[stride - 1 - row..].iter_mut().step_by(stride) {
                *lane = q;
            }
        }
    }
}
