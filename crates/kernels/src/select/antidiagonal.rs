//! Blocks by the attention mass of pairs along antidiagonals.
//!
//! Of each tile of `stride` queries by `stride` keys the pairs on one antidiagonal are scored: one pair
//! in `stride`, such that every query and every key takes part, as do lines of keys that many queries
//! look at and lines of equal distance. Each pair's share is taken of the pairs that its query was
//! scored with, where XAttention (Xu et al., 2025, arXiv:2503.16428) adds scores before the softmax: a
//! single strong pair then stands out at any stride.
//!
//! One pass over the keys leaves for each lane and block the highest score and the sum of powers of 2
//! relative to it; from these follow the shares.

use super::pages::PageVector;
use super::small::{SmallQueries, vectors};
use super::{LaneScales, Queries, SampledScores, SmallKeys, Sums};
use crate::exp::LOG2_E;
use crate::kernels::tree_sum;
use crate::simd::LANES;
use crate::table::KernelTable;
use std::ops::Range;

/// Groups that go over some blocks of keys together: with heads of 64 their queries and these keys are in the
/// first-level cache.
const GROUPS: usize = 4;
const AT_ONCE: usize = 4;
/// Heads share a pass over the keys as long as they leave no more sums than these, which the second-level cache holds.
const SUMS_AT_ONCE: usize = 4096;

/// The mass that each of the `blocks` has of the queries' attention, estimated; 1 for each query in all.
/// `stride` divides 16.
pub fn antidiagonal(
    table: &KernelTable,
    keys: &SmallKeys,
    queries: &Queries,
    scale: f32,
    blocks: Range<usize>,
    stride: usize,
) -> Vec<f32> {
    assert!(LANES.is_multiple_of(stride), "a stride of {stride}");
    let (start, blocks) = (blocks.start, blocks.len());
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
    let lanes = Lanes::new(&SmallQueries::new(table, queries), queries, scale * LOG2_E, stride);
    let mut mass = vec![[0.0f32; LANES]; blocks];
    let mut sums = vec![Sums::NONE; blocks * heads * groups];
    for first in (0..queries.heads).step_by(heads) {
        let some = first * groups..(first + heads).min(queries.heads) * groups;
        let (sums, real) = (&mut sums[..blocks * some.len()], &real[..some.len()]);
        fill_sums(table, keys, start, lanes.some(some), sums);
        (table.add_shares)(sums, real, &mut mass);
    }
    mass.into_iter().map(tree_sum).collect()
}

/// `sums`: `[blocks][groups]`, of the blocks from `start` on.
fn fill_sums(table: &KernelTable, keys: &SmallKeys, start: usize, lanes: SomeLanes, sums: &mut [Sums]) {
    let groups = lanes.of.len();
    for (i, sums) in sums.chunks_mut(AT_ONCE * groups).enumerate() {
        for first in (0..groups).step_by(GROUPS) {
            let lanes = lanes.some(first..(first + GROUPS).min(groups));
            for (j, of_block) in sums.chunks_exact_mut(groups).enumerate() {
                let (keys, scales) = keys.block(start + i * AT_ONCE + j);
                let sampled = SampledScores { keys, scales, lanes: lanes.values, of: lanes.of };
                (table.sampled_sums)(&sampled, &mut of_block[first..first + lanes.of.len()]);
            }
        }
    }
}

/// Which query of its group a lane holds.
fn row(lane: usize, stride: usize) -> usize {
    stride - 1 - lane % stride
}

/// All heads' queries in groups of `stride`: lane j of a group has its query `stride - 1 - j mod stride`, the last one
/// where a short group lacks it.
struct Lanes {
    /// `[heads][groups][groups of four dimensions]`
    values: Vec<PageVector>,
    /// `[heads][groups]`
    of: Vec<LaneScales>,
}

/// Some groups of [`Lanes`].
#[derive(Clone, Copy)]
struct SomeLanes<'a> {
    values: &'a [PageVector],
    of: &'a [LaneScales],
}

impl Lanes {
    fn new(small: &SmallQueries, queries: &Queries, scale: f32, stride: usize) -> Self {
        match stride {
            16 => Self::spread::<16>(small, queries, scale),
            8 => Self::spread::<8>(small, queries, scale),
            4 => Self::spread::<4>(small, queries, scale),
            2 => Self::spread::<2>(small, queries, scale),
            _ => Self::spread::<1>(small, queries, scale),
        }
    }

    fn spread<const STRIDE: usize>(small: &SmallQueries, queries: &Queries, scale: f32) -> Self {
        let (groups, vectors) = (queries.tokens.div_ceil(STRIDE), vectors(queries.head_dim));
        let mut values = vec![PageVector([0; LANES * 4]); queries.heads * groups * vectors];
        let to = values.chunks_exact_mut(vectors).enumerate();
        let of = to.map(|(group, to)| {
            let token = |row: usize| (group % groups * STRIDE + row).min(queries.tokens - 1);
            let rows: [_; STRIDE] = std::array::from_fn(|row| small.row(group / groups, token(row)));
            for (v, to) in to.iter_mut().enumerate() {
                let four: [[u8; 4]; STRIDE] = std::array::from_fn(|row| rows[row].0[v].map(|q| q as u8));
                *to = words(|lane| four[row(lane, STRIDE)]);
            }
            LaneScales {
                starts: words(|lane| rows[row(lane, STRIDE)].1.start.to_le_bytes()),
                scales: std::array::from_fn(|lane| rows[row(lane, STRIDE)].1.scale * scale),
            }
        });
        let of = of.collect();
        Self { values, of }
    }

    fn some(&self, groups: Range<usize>) -> SomeLanes<'_> {
        SomeLanes { values: &self.values, of: &self.of }.some(groups)
    }
}

impl SomeLanes<'_> {
    fn some(self, groups: Range<usize>) -> Self {
        let vectors = self.values.len() / self.of.len();
        Self { values: &self.values[groups.start * vectors..groups.end * vectors], of: &self.of[groups] }
    }
}

fn words(of_lane: impl Fn(usize) -> [u8; 4]) -> PageVector {
    let mut vector = PageVector([0; LANES * 4]);
    let (to, _) = vector.0.as_chunks_mut();
    to.iter_mut().enumerate().for_each(|(lane, to)| *to = of_lane(lane));
    vector
}
