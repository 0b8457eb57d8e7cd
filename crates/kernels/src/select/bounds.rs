//! The vector kernels of page bounds; see [`super::pages`].

use super::pages::PageScores;
use crate::kernels::tree_sum;
use crate::simd::values::{Bytes, Values};
use crate::simd::{LANES, QK, Simd};

/// Bytes of a block of 32 values of 16 pages.
const TILE_BLOCK: usize = Bytes::LAYOUT.bytes();

/// `out`: [rows][vectors], without the queries' scales.
#[inline(always)]
pub fn page_scores<S: Simd>(s: S, job: &PageScores, out: &mut [[f32; LANES]]) {
    let rows = job.queries.len() / job.blocks();
    let mut row = 0;
    while row < rows {
        let left = rows - row;
        row += if S::TILES == 2 && left >= 4 {
            score_pages::<S, 4>(s, job, row, out)
        } else if left >= 2 {
            score_pages::<S, 2>(s, job, row, out)
        } else {
            score_pages::<S, 1>(s, job, row, out)
        };
    }
}

/// C rows from `row` on. Gives C.
#[inline(always)]
fn score_pages<S: Simd, const C: usize>(
    s: S,
    job: &PageScores,
    row: usize,
    out: &mut [[f32; LANES]],
) -> usize {
    let vectors = job.scales.len();
    let mut vector = 0;
    while const { S::TILES == 2 } && vector + 2 <= vectors {
        score_tiles::<S, 2, C>(s, job, row, vector, out);
        vector += 2;
    }
    while vector < vectors {
        score_tiles::<S, 1, C>(s, job, row, vector, out);
        vector += 1;
    }
    C
}

#[inline(always)]
fn score_tiles<S: Simd, const R: usize, const C: usize>(
    s: S,
    job: &PageScores,
    row: usize,
    vector: usize,
    out: &mut [[f32; LANES]],
) {
    let (blocks, vectors) = (job.blocks(), job.scales.len());
    let mut sums = [[s.splat_int(0); C]; R];
    for block in 0..blocks {
        let mut w: [&[u8]; R] = [&[]; R];
        for r in 0..R {
            let first = ((vector + r) * blocks + block) * (QK / 4);
            w[r] = bytes(&job.tiles[first..][..QK / 4]);
        }
        let mut x = [&job.queries[0]; C];
        for c in 0..C {
            x[c] = &job.queries[(row + c) * blocks + block];
        }
        let dots = s.dot::<Bytes, R, C>(w, x);
        for r in 0..R {
            for c in 0..C {
                sums[r][c] = s.add_ints(sums[r][c], dots[r][c]);
            }
        }
    }
    for r in 0..R {
        let scale = s.load(&job.scales[vector + r]);
        for c in 0..C {
            s.store(s.mul(s.int_to_float(sums[r][c]), scale), &mut out[(row + c) * vectors + vector + r]);
        }
    }
}

fn bytes(vectors: &[super::pages::PageVector]) -> &[u8] {
    // SAFETY: a vector is 64 bytes and nothing else.
    unsafe { std::slice::from_raw_parts(vectors.as_ptr().cast(), size_of_val(vectors)) }
}

const _: () = assert!(TILE_BLOCK == QK / 4 * size_of::<super::pages::PageVector>());

/// Raises `most` to how many deviations each of a row's first `count` scores is above their mean; the others are 0.
#[inline(always)]
pub fn stand_out<S: Simd>(s: S, row: &[[f32; LANES]], count: usize, most: &mut [[f32; LANES]]) {
    let (mut sum, mut squares) = (s.splat(0.0), s.splat(0.0));
    for x in row {
        let x = s.load(x);
        sum = s.add(sum, x);
        squares = s.add(squares, s.mul(x, x));
    }
    let mean = tree_sum(lanes(s, sum)) / count as f32;
    let variance = tree_sum(lanes(s, squares)) / count as f32 - mean * mean;
    let by = if variance > 0.0 { 1.0 / variance.sqrt() } else { 0.0 };
    let (by, less) = (s.splat(by), s.splat(mean * by));
    for (x, most) in row.iter().zip(most) {
        s.store(s.max(s.load(most), s.sub(s.mul(s.load(x), by), less)), most);
    }
}

#[inline(always)]
fn lanes<S: Simd>(s: S, v: S::F) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    s.store(v, &mut lanes);
    lanes
}
