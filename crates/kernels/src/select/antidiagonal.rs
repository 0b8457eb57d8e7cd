//! Blocks by the attention mass of pairs along antidiagonals.
//!
//! Of each tile of `stride` queries by `stride` keys the pairs on one antidiagonal are scored: one pair
//! in `stride`, such that every query and every key takes part, as do lines of keys that many queries
//! look at and lines of equal distance. Each pair's share is taken of the pairs that its query was
//! scored with, where XAttention (Xu et al., 2025, arXiv:2503.16428) adds scores before the softmax: a
//! single strong pair then stands out at any stride.

use super::{Budget, Keys, Queries, SUB, SampledScores, choose};
use crate::exp::exp;
use crate::simd::LANES;
use crate::table::KernelTable;

/// The blocks among the first `blocks` that queries of a block need. `stride` divides 16.
pub fn antidiagonal(
    table: &KernelTable,
    keys: Keys,
    queries: &Queries,
    scale: f32,
    blocks: usize,
    stride: usize,
    budget: Budget,
) -> Vec<u32> {
    assert!(LANES.is_multiple_of(stride), "a stride of {stride}");
    let mut mass = vec![0.0f32; blocks];
    let groups = queries.tokens.div_ceil(stride);
    for head in 0..queries.heads {
        let lanes = arrange(queries, head, stride, groups);
        let mut scores = vec![[0.0f32; LANES]; blocks * groups * SUB];
        for (block, out) in scores.chunks_exact_mut(groups * SUB).enumerate() {
            (table.sampled_scores)(&SampledScores { keys, block, lanes: &lanes, scale }, out);
        }
        for group in 0..groups {
            add_shares(
                &scores,
                groups,
                group,
                (queries.tokens - group * stride).min(stride),
                stride,
                &mut mass,
            );
        }
    }
    choose(&mass, budget)
}

/// [groups][head_dim][16]: lane j of a group holds its query `stride - 1 - j mod stride`.
fn arrange(queries: &Queries, head: usize, stride: usize, groups: usize) -> Vec<[f32; LANES]> {
    let mut lanes = vec![[0.0f32; LANES]; groups * queries.head_dim];
    for token in 0..queries.tokens {
        let (group, row) = (token / stride, token % stride);
        let of_group = &mut lanes[group * queries.head_dim..][..queries.head_dim];
        for (of_dim, &q) in of_group.iter_mut().zip(queries.row(head, token)) {
            for lane in of_dim[stride - 1 - row..].iter_mut().step_by(stride) {
                *lane = q;
            }
        }
    }
    lanes
}

/// Adds each block's share of each lane's exponentials.
fn add_shares(
    scores: &[[f32; LANES]],
    groups: usize,
    group: usize,
    rows: usize,
    stride: usize,
    mass: &mut [f32],
) {
    let blocks = || scores.chunks_exact(groups * SUB).map(|block| &block[group * SUB..][..SUB]);
    let mut most = [f32::NEG_INFINITY; LANES];
    for vector in blocks().flatten() {
        for (most, &x) in most.iter_mut().zip(vector) {
            *most = if x > *most { x } else { *most };
        }
    }
    let mut powers = vec![[0.0f32; LANES]; mass.len()];
    let mut sums = [0.0f32; LANES];
    for (block, of_block) in blocks().zip(&mut powers) {
        for vector in block {
            for lane in 0..LANES {
                of_block[lane] += exp(vector[lane] - most[lane]);
            }
        }
        for (sum, power) in sums.iter_mut().zip(of_block.iter()) {
            *sum += power;
        }
    }
    // Lanes of queries that a short group lacks.
    let real = |lane: usize| stride - 1 - lane % stride < rows;
    for (mass, of_block) in mass.iter_mut().zip(&powers) {
        for lane in (0..LANES).filter(|&lane| real(lane)) {
            *mass += of_block[lane] / sums[lane];
        }
    }
}
