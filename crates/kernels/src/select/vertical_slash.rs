//! Blocks by what a few queries of a block attend to: keys (vertical lines of the attention matrix)
//! and distances (slashes), after MInference (Jiang et al., 2024, arXiv:2407.02490), which looks at the
//! last queries of the whole prompt. Of each block the last one serves here, so that the choice does not depend
//! on how a prompt is cut into steps, and the longest: the longer a query is, the fewer keys it looks at, and the
//! more it tells of them.

use super::{Keys, Queries, Room, RowScores, SUB};
use crate::kernels::attention::BLOCK;
use crate::kernels::tree_sum;
use crate::simd::LANES;
use crate::table::KernelTable;

/// Heads whose queries are multiplied with a block of keys at once: as many rows as share what becomes of a key.
const HEADS: usize = 4;

/// Scores of the first `blocks`, all of which lie before the queries.
pub fn vertical_slash(
    table: &KernelTable,
    keys: Keys,
    queries: &Queries,
    scale: f32,
    blocks: usize,
) -> Vec<f32> {
    let last = queries.tokens - 1;
    let looked = 2.min(queries.tokens);
    let mut score = vec![0.0f32; blocks];
    let mut shares = vec![[0.0f32; LANES]; HEADS * looked * blocks * SUB];
    let mut slashes = vec![0.0f32; blocks * BLOCK];
    for heads in (0..queries.heads).step_by(HEADS) {
        let heads = heads..(heads + HEADS).min(queries.heads);
        let longest: Vec<usize> = heads.clone().map(|head| queries.longest(head, last)).collect();
        let pairs = heads.clone().zip(&longest).map(|(head, &longest)| (head, [longest, last]));
        let rows: Vec<f32> = pairs
            .flat_map(|(head, tokens)| tokens.into_iter().take(looked).map(move |token| (head, token)))
            .flat_map(|(head, token)| queries.row(head, token))
            .copied()
            .collect();
        fill_shares(table, keys, &rows, scale, blocks, &mut shares);
        let rows: Vec<&[[f32; LANES]]> = shares.chunks_exact((blocks * SUB).max(1)).collect();
        for (rows, &first) in rows.chunks_exact(looked).zip(&longest) {
            fill_slashes(rows, last - first, &mut slashes);
            for (block, score) in score.iter_mut().enumerate() {
                let (vertical, slash) = (column(rows, block), line(&slashes, block, first));
                *score += if slash > vertical { slash } else { vertical };
            }
        }
    }
    score
}

/// Softmax over the keys of the blocks: [rows][sub-blocks of all].
fn fill_shares(
    table: &KernelTable,
    keys: Keys,
    rows: &[f32],
    scale: f32,
    blocks: usize,
    shares: &mut [[f32; LANES]],
) {
    let count = rows.len() / keys.head_dim;
    let mut out = vec![[0.0f32; LANES]; count * SUB];
    let mut room = Room::new();
    for block in 0..blocks {
        let (keys, dim) = (keys.block(table, block, &mut room), keys.head_dim);
        (table.row_scores)(&RowScores { keys, dim, queries: rows, scale }, &mut out);
        for (row, scores) in out.chunks_exact(SUB).enumerate() {
            shares[(row * blocks + block) * SUB..][..SUB].copy_from_slice(scores);
        }
    }
    shares.chunks_exact_mut((blocks * SUB).max(1)).take(count).for_each(|row| (table.softmax)(row));
}

/// The mass of a block's keys, over 16 lanes.
fn column(rows: &[&[[f32; LANES]]], block: usize) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for shares in rows.iter().flat_map(|row| &row[block * SUB..][..SUB]) {
        lanes.iter_mut().zip(shares).for_each(|(sum, share)| *sum += share);
    }
    tree_sum(lanes)
}

/// The mass along each line of equal distance, by its position in the first row: so far to the right in the next one.
fn fill_slashes(rows: &[&[[f32; LANES]]], further: usize, slashes: &mut [f32]) {
    slashes.fill(0.0);
    for (i, row) in rows.iter().enumerate() {
        let shares = row.as_flattened();
        let shares = &shares[(i * further).min(shares.len())..];
        slashes.iter_mut().zip(shares).for_each(|(sum, share)| *sum += share);
    }
}

/// The most that a slash through a block has. Over the queries' own block, of which the first row is the
/// query `first`, it runs through two blocks of keys: where it meets the block's first query, and the last.
fn line(slashes: &[f32], block: usize, first: usize) -> f32 {
    let start = (block * BLOCK + first + 1).saturating_sub(BLOCK);
    let end = (block * BLOCK + BLOCK + first).min(slashes.len());
    let (whole, rest) = slashes[start.min(end)..end].as_chunks::<LANES>();
    let mut most = [0.0f32; LANES];
    for x in whole {
        most.iter_mut().zip(x).for_each(|(most, &x)| *most = if x > *most { x } else { *most });
    }
    most.iter().chain(rest).fold(0.0, |most, &x| if x > most { x } else { most })
}
