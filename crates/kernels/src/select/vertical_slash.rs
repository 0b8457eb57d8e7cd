//! Blocks by what the last queries of a block attend to: keys (vertical lines of the attention matrix)
//! and distances (slashes), after MInference (Jiang et al., 2024, arXiv:2407.02490), which looks at the
//! last queries of the whole prompt. Those of each block serve here, so that the choice does not depend
//! on how a prompt is cut into steps.

use super::{Budget, Keys, Queries, RowScores, choose};
use crate::exp::exp;
use crate::kernels::attention::BLOCK;
use crate::table::KernelTable;

/// How many queries of each head are looked at.
pub const LAST_QUERIES: usize = 4;

/// The blocks among the first `blocks`, all of which lie before the queries.
pub fn vertical_slash(
    table: &KernelTable,
    keys: Keys,
    queries: &Queries,
    scale: f32,
    blocks: usize,
    budget: Budget,
) -> Vec<u32> {
    let last = queries.tokens.min(LAST_QUERIES);
    let mut score = vec![0.0f32; blocks];
    for head in 0..queries.heads {
        let first = queries.tokens - last;
        let rows: Vec<f32> =
            (first..queries.tokens).flat_map(|token| queries.row(head, token)).copied().collect();
        let shares = shares(table, keys, &rows, scale, blocks, last);
        let lines = lines(&shares, blocks * BLOCK, first);
        for (score, (vertical, slash)) in score.iter_mut().zip(lines) {
            *score += if slash > vertical { slash } else { vertical };
        }
    }
    choose(&score, budget)
}

/// Softmax over the keys of the blocks: [rows][positions].
fn shares(
    table: &KernelTable,
    keys: Keys,
    rows: &[f32],
    scale: f32,
    blocks: usize,
    count: usize,
) -> Vec<f32> {
    let positions = blocks * BLOCK;
    let mut shares = vec![0.0f32; count * positions];
    let mut out = vec![0.0f32; count * BLOCK];
    for block in 0..blocks {
        (table.row_scores)(&RowScores { keys, block, queries: rows, scale }, &mut out);
        for (row, scores) in out.chunks_exact(BLOCK).enumerate() {
            shares[row * positions + block * BLOCK..][..BLOCK].copy_from_slice(scores);
        }
    }
    for row in shares.chunks_exact_mut(positions.max(1)) {
        let most = row.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
        row.iter_mut().for_each(|x| *x = exp(*x - most));
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|x| *x /= sum);
    }
    shares
}

/// For each block the mass of its keys' columns, and the most that a slash through it has. A slash of one
/// distance runs, over the queries' own block, through two blocks of keys.
fn lines(shares: &[f32], positions: usize, first: usize) -> Vec<(f32, f32)> {
    let mut lines = vec![(0.0f32, 0.0f32); positions / BLOCK];
    let rows = || shares.chunks_exact(positions.max(1));
    for position in 0..positions {
        let of_block = &mut lines[position / BLOCK].0;
        rows().for_each(|row| *of_block += row[position]);
    }
    // The line of equal distance through `position` in the first row: one to the right in each next row.
    for position in 0..positions {
        let along: f32 =
            rows().enumerate().map(|(i, row)| row.get(position + i).copied().unwrap_or(0.0)).sum();
        // Where the line meets the first and the last query of the block.
        let ends =
            [position as isize - first as isize, position as isize + BLOCK as isize - 1 - first as isize];
        for end in ends.into_iter().filter(|&end| end >= 0 && (end as usize) < positions) {
            let of_block = &mut lines[end as usize / BLOCK].1;
            *of_block = if along > *of_block { along } else { *of_block };
        }
    }
    lines
}
