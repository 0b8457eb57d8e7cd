//! How much of dense attention's mass a choice of blocks keeps, measured on a few queries.

use super::{Keys, Room, RowScores, SUB};
use crate::exp::{exp, softcap};
use crate::simd::LANES;
use crate::table::KernelTable;

/// The share of the softmax over all keys of the first `blocks` that lies in `kept`, the mean over
/// `queries` (`[rows][head_dim]`, rounded to F16), whose scores may have a [`softcap`]. 1 where there is nothing to leave out.
pub fn kept_mass(
    table: &KernelTable,
    keys: Keys,
    queries: &[f32],
    (scale, cap): (f32, Option<f32>),
    blocks: usize,
    kept: &[u32],
) -> f32 {
    let dim = keys.head_dim;
    let rows = queries.len() / dim;
    if rows == 0 || blocks == 0 {
        return 1.0;
    }
    // Of each block and row: the highest score, and the sum of exponentials relative to it.
    let mut parts = vec![[0.0f32; 2]; blocks * rows];
    let mut scores = vec![[0.0f32; LANES]; rows * SUB];
    let mut room = Room::new();
    for (block, parts) in parts.chunks_exact_mut(rows).enumerate() {
        let keys = keys.block(table, block, &mut room);
        (table.row_scores)(&RowScores { keys, dim, queries, scale }, &mut scores);
        if let Some(cap) = cap {
            scores.as_flattened_mut().iter_mut().for_each(|score| *score = softcap(*score, cap));
        }
        (table.row_sums)(&scores, parts);
    }
    let share = |row: usize| {
        let of = |block: usize| parts[block * rows + row];
        let most = (0..blocks).fold(f32::NEG_INFINITY, |a, b| if of(b)[0] > a { of(b)[0] } else { a });
        let weight = |block: usize| of(block)[1] * exp(of(block)[0] - most);
        let all: f32 = (0..blocks).map(weight).sum();
        kept.iter().map(|&block| weight(block as usize)).sum::<f32>() / all
    };
    (0..rows).map(share).sum::<f32>() / rows as f32
}
