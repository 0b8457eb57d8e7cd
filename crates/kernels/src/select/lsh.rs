//! Blocks by locality-sensitive hashing, after Reformer (Kitaev et al., 2020, arXiv:2001.04451): a
//! vector's bucket says which of several random directions it points along most; keys that share many
//! rounds' buckets with a query are likely to score highly with it.
//!
//! Reformer sorts positions by bucket and attends within pieces of the sorted list. Here the sorted lists
//! serve to count, for each query, the rounds in which each key shares its bucket, and blocks are scored
//! by the keys of high counts. A bucket of a round is a pair of places among 16 directions each, so 256
//! buckets cost 16 products per dimension.
//!
//! What all keys have in common would put them all into few buckets, and tells nothing, as it adds the same to all of a
//! query's scores: the mean of the first block's keys is taken from all of them, as far as it is more than chance.

use super::small::mean_key;
use super::{Hashing, Keys, Queries, Room, SUB, sum_of_squares};
use crate::float16::round_f16;
use crate::kernels::attention::BLOCK;
use crate::sampling::philox;
use crate::simd::LANES;
use crate::table::KernelTable;
use std::f64::consts::TAU;
use std::ops::Range;

/// A bucket has two places, each one of 8 random directions and their opposites.
const BUCKETS: usize = LANES * LANES;
/// What a key adds to its block's score when its count rises to the index: by chance one key in 256
/// shares a bucket, so that each further round makes chance much less likely.
const GAINS: [f32; 9] = [0.0, 0.0, 1.0, 15.0, 240.0, 3840.0, 61440.0, 983_040.0, 15_728_640.0];
pub const MAX_ROUNDS: usize = GAINS.len() - 1;

/// Random directions, standard normal in each dimension: the same for a seed everywhere. Rounded to F16, so that
/// products with queries and keys are exact.
#[derive(Debug, PartialEq)]
pub struct Rotations {
    seed: u64,
    /// `[rounds][head_dim][16]`: 8 directions for each of the two places.
    values: Vec<[f32; LANES]>,
    rounds: usize,
    head_dim: usize,
}

impl Rotations {
    /// # Panics
    /// When `rounds` is 0 or over [`MAX_ROUNDS`].
    pub fn new(seed: u64, rounds: usize, head_dim: usize) -> Self {
        assert!((1..=MAX_ROUNDS).contains(&rounds), "{rounds} rounds");
        let values = (0..rounds * head_dim).map(|at| normals(seed, at as u32)).collect();
        Self { seed, values, rounds, head_dim }
    }

    /// The buckets of rows `[rows / 16][head_dim][16 rows]`: `[rows][rounds]`.
    fn buckets(&self, table: &KernelTable, rows: &[[f32; LANES]], out: &mut [u16]) {
        (table.buckets)(&Hashing { rotations: &self.values, dim: self.head_dim, rows }, out);
    }
}

/// 16 standard normal numbers by Box and Muller (1958), in f64 with `libm`.
fn normals(seed: u64, at: u32) -> [f32; LANES] {
    let key = [seed as u32, (seed >> 32) as u32];
    let mut out = [0.0; LANES];
    for (i, pair) in out.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let bits = philox([at, i as u32, 0x4c53_4821, 0], key);
        let unit = |bits: u32| (f64::from(bits) + 0.5) / (1u64 << 32) as f64;
        let radius = libm::sqrt(-2.0 * libm::log(unit(bits[0])));
        let angle = TAU * unit(bits[1]);
        *pair = [libm::cos(angle), libm::sin(angle)].map(|x| round_f16((radius * x) as f32));
    }
    out
}

/// The positions of one KV head's whole blocks, so far, by round and bucket.
#[derive(Default)]
pub struct Hashes {
    /// `[rounds][buckets]`: ascending positions.
    lists: Vec<Vec<u32>>,
    blocks: usize,
    /// What is taken from all keys.
    less: Vec<f32>,
    /// The seed that they are of.
    seed: u64,
}

impl Hashes {
    /// Takes in the blocks up to `blocks`, all of them whole; or forgets those beyond, which may change. Those of other
    /// rotations, as prompts and single tokens may have, are forgotten.
    pub fn update(&mut self, table: &KernelTable, rotations: &Rotations, keys: Keys, blocks: usize) {
        let lists = rotations.rounds * BUCKETS;
        let others = self.seed != rotations.seed || self.lists.len() != lists;
        self.forget(if others { 0 } else { blocks });
        self.lists.resize_with(lists, Vec::new);
        self.seed = rotations.seed;
        let dim = keys.head_dim;
        let mut rows = vec![[0.0; LANES]; SUB * dim];
        let mut buckets = vec![0; BLOCK * rotations.rounds];
        let mut room = Room::new();
        if self.blocks == 0 && blocks > 0 {
            self.less = in_common(table, keys.block(table, 0, &mut room), dim);
        }
        for block in self.blocks..blocks {
            (table.widen)(keys.block(table, block, &mut room), &mut rows);
            subtract(&mut rows, &self.less);
            (table.round_halves)(rows.as_flattened_mut());
            rotations.buckets(table, &rows, &mut buckets);
            for (slot, of_key) in buckets.chunks_exact(rotations.rounds).enumerate() {
                for (round, &bucket) in of_key.iter().enumerate() {
                    self.lists[round * BUCKETS + usize::from(bucket)].push((block * BLOCK + slot) as u32);
                }
            }
        }
        self.blocks = blocks;
    }

    /// Leaves all but the first `blocks`.
    pub fn forget(&mut self, blocks: usize) {
        if blocks < self.blocks {
            let end = (blocks * BLOCK) as u32;
            self.lists.iter_mut().for_each(|list| list.truncate(list.partition_point(|&at| at < end)));
            self.blocks = blocks;
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let lists: usize = self.lists.iter().map(|list| list.capacity() * size_of::<u32>()).sum();
        lists + self.lists.capacity() * size_of::<Vec<u32>>() + self.less.capacity() * size_of::<f32>()
    }
}

/// What 64 keys (`[sub-blocks][dim][16 keys]`) have in common: their mean, smaller by as much of its square as it has of
/// independent keys (James and Stein, 1961). Directions of keys that have nothing in common stay as they are.
fn in_common(table: &KernelTable, keys: &[[u16; LANES]], dim: usize) -> Vec<f32> {
    let mut wide = vec![[0.0; LANES]; keys.len()];
    (table.widen)(keys, &mut wide);
    let mean = mean_key(table, keys, dim);
    let (of_mean, of_keys) = (sum_of_squares(&mean), sum_of_squares(wide.as_flattened()) / BLOCK as f32);
    let by_chance = (of_keys - of_mean) / BLOCK as f32;
    let part = if by_chance < of_mean { 1.0 - by_chance / of_mean } else { 0.0 };
    mean.into_iter().map(|x| x * part).collect()
}

/// Takes a row from each of `[rows / 16][dim][16 rows]`.
fn subtract(rows: &mut [[f32; LANES]], less: &[f32]) {
    for (lanes, less) in rows.iter_mut().zip(less.iter().cycle()) {
        lanes.iter_mut().for_each(|x| *x -= less);
    }
}

/// Rows `[rows][dim]` as `[rows / 16][dim][16 rows]`; what is missing of the last 16 is zeros.
fn side_by_side(rows: &[f32], dim: usize) -> Vec<[f32; LANES]> {
    let mut to = vec![[0.0; LANES]; (rows.len() / dim).div_ceil(LANES) * dim];
    for (i, row) in rows.chunks_exact(dim).enumerate() {
        let to = &mut to[i / LANES * dim..][..dim];
        to.iter_mut().zip(row).for_each(|(to, &x)| to[i % LANES] = x);
    }
    to
}

/// Scores of the `blocks`, the last that the hashes know: how many buckets their keys share with the queries.
pub fn lsh(
    table: &KernelTable,
    rotations: &Rotations,
    hashes: &Hashes,
    queries: &Queries,
    blocks: Range<usize>,
) -> Vec<f32> {
    assert_eq!(blocks.end, hashes.blocks, "of {} blocks", hashes.blocks);
    let (start, blocks) = (blocks.start * BLOCK, blocks.len());
    let mut scores = vec![0.0f32; blocks];
    let mut counts = vec![0u8; blocks * BLOCK];
    let rows = side_by_side(&queries.values, queries.head_dim);
    let mut buckets = vec![0; rows.len() / queries.head_dim * LANES * rotations.rounds];
    rotations.buckets(table, &rows, &mut buckets);
    for of_query in buckets.chunks_exact(rotations.rounds).take(queries.heads * queries.tokens) {
        counts.fill(0);
        for (round, &bucket) in of_query.iter().enumerate() {
            let list = &hashes.lists[round * BUCKETS + usize::from(bucket)];
            let earlier = if start == 0 { 0 } else { list.partition_point(|&at| (at as usize) < start) };
            for &position in &list[earlier..] {
                let at = position as usize - start;
                let count = &mut counts[at];
                *count += 1;
                // Most are alone, and a sum in memory is waited for.
                if *count > 1 {
                    scores[at / BLOCK] += GAINS[usize::from(*count)];
                }
            }
        }
    }
    scores
}
