//! How much of dense attention's mass a choice of blocks keeps, measured on a few queries.

use super::{Keys, RowScores};
use crate::exp::exp;
use crate::kernels::attention::BLOCK;
use crate::table::KernelTable;

/// The share of the softmax over all keys of the first `blocks` that lies in `kept`, the mean over
/// `queries` ([rows][head_dim], rounded to F16). 1 where there is nothing to leave out.
pub fn kept_mass(
    table: &KernelTable,
    keys: Keys,
    queries: &[f32],
    scale: f32,
    blocks: usize,
    kept: &[u32],
) -> f32 {
    let rows = queries.len() / keys.head_dim;
    if rows == 0 || blocks == 0 {
        return 1.0;
    }
    // Of each row and block: the highest score, and the sum of exponentials relative to it.
    let mut parts = vec![(0.0f32, 0.0f32); rows * blocks];
    let mut out = vec![0.0f32; rows * BLOCK];
    for block in 0..blocks {
        (table.row_scores)(&RowScores { keys, block, queries, scale }, &mut out);
        for (row, scores) in out.chunks_exact(BLOCK).enumerate() {
            let most = scores.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
            parts[row * blocks + block] = (most, scores.iter().map(|&x| exp(x - most)).sum());
        }
    }
    let share = |row: &[(f32, f32)]| {
        let most = row.iter().fold(f32::NEG_INFINITY, |a, b| if b.0 > a { b.0 } else { a });
        let weight = |&(m, sum): &(f32, f32)| sum * exp(m - most);
        let all: f32 = row.iter().map(weight).sum();
        kept.iter().map(|&block| weight(&row[block as usize])).sum::<f32>() / all
    };
    parts.chunks_exact(blocks).map(share).sum::<f32>() / rows as f32
}
