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
/// Heads share a pass over the keys as long as they leave no more sums than these, which the second-level cache holds.
const SUMS_AT_ONCE: usize = 4096;

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
    let heads = (SUMS_AT_ONCE / (blocks * groups)).clamp(1, queries.heads);
    // Lanes of queries that a short group lacks do not count.
    let real: Vec<[f32; LANES]> = (0..heads * groups)
        .map(|group| {
            let counts = |lane: usize| group % groups * stride + row(lane, stride) < queries.tokens;
            std::array::from_fn(|lane| if counts(lane) { 1.0 } else { 0.0 })
        })
        .collect();
    let mut mass = vec![[0.0f32; LANES]; blocks];
    let mut sums = vec![Sums::NONE; blocks * heads * groups];
    let mut lanes = vec![[0.0f32; LANES]; heads * groups * queries.head_dim];
    let mut rooms: [Room; AT_ONCE] = Default::default();
    for first in (0..queries.heads).step_by(heads) {
        let heads = heads.min(queries.heads - first);
        for (head, lanes) in (first..first + heads).zip(lanes.chunks_exact_mut(groups * queries.head_dim)) {
            arrange(queries, head, stride, lanes);
        }
        let lanes = &lanes[..heads * groups * queries.head_dim];
        let sums = &mut sums[..blocks * heads * groups];
        fill_sums(table, keys, lanes, scale, &mut rooms, sums);
        (table.add_shares)(sums, &real[..heads * groups], &mut mass);
    }
    mass.into_iter().map(tree_sum).collect()
}

/// `sums`: [blocks][groups]; `lanes`: [groups][head_dim][16].
fn fill_sums(
    table: &KernelTable,
    keys: Keys,
    lanes: &[[f32; LANES]],
    scale: f32,
    rooms: &mut [Room; AT_ONCE],
    sums: &mut [Sums],
) {
    let groups = lanes.len() / keys.head_dim;
    for (i, sums) in sums.chunks_mut(AT_ONCE * groups).enumerate() {
        let blocks = i * AT_ONCE..i * AT_ONCE + sums.len() / groups;
        let keys_of: Vec<_> =
            rooms.iter_mut().zip(blocks).map(|(room, block)| keys.block(table, block, room)).collect();
        for (part, lanes) in lanes.chunks(GROUPS * keys.head_dim).enumerate() {
            for (of_block, keys_of) in sums.chunks_exact_mut(groups).zip(&keys_of) {
                let out = of_block.chunks_mut(GROUPS).nth(part).unwrap_or_default();
                let sampled = SampledScores { keys: keys_of, dim: keys.head_dim, lanes, scale };
                (table.sampled_sums)(&sampled, out);
            }
        }
    }
}

/// Which query of its group a lane holds.
fn row(lane: usize, stride: usize) -> usize {
    stride - 1 - lane % stride
}

/// `lanes`: [groups][head_dim][16], lane j of a group its query `stride - 1 - j mod stride`, the last one for those
/// that a short group lacks.
fn arrange(queries: &Queries, head: usize, stride: usize, lanes: &mut [[f32; LANES]]) {
    match stride {
        16 => spread::<16>(queries, head, lanes),
        8 => spread::<8>(queries, head, lanes),
        4 => spread::<4>(queries, head, lanes),
        2 => spread::<2>(queries, head, lanes),
        _ => spread::<1>(queries, head, lanes),
    }
}

fn spread<const STRIDE: usize>(queries: &Queries, head: usize, lanes: &mut [[f32; LANES]]) {
    for (group, of_group) in lanes.chunks_exact_mut(queries.head_dim).enumerate() {
        let token = |row: usize| (group * STRIDE + row).min(queries.tokens - 1);
        let rows: [&[f32]; STRIDE] =
            std::array::from_fn(|row| &queries.row(head, token(row))[..of_group.len()]);
        for d in 0..of_group.len() {
            let of_dim: [f32; STRIDE] = std::array::from_fn(|row| rows[row][d]);
            of_group[d] = std::array::from_fn(|lane| of_dim[row(lane, STRIDE)]);
        }
    }
}
