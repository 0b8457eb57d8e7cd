//! The vector kernels of page bounds; see [`super::pages`].

#[cfg(target_arch = "x86_64")]
pub mod tiles;

use super::pages::{PageScores, PageVector, padded_dim, row_blocks};
use super::scores::magnitude;
use crate::kernels::{padded, tree_sum};
use crate::simd::values::{Bytes, Values};
use crate::simd::{ActBlock, LANES, QK, Simd, Wish};

/// Bytes of a block of 32 values of 16 pages.
const TILE_BLOCK: usize = Bytes::LAYOUT.bytes();

/// `out`: `[rows][vectors]`, without the queries' scales.
#[inline(always)]
pub fn page_scores<S: Simd>(s: S, job: &PageScores, out: &mut [[f32; LANES]]) {
    let rows = job.queries.len() / job.blocks();
    let mut row = 0;
    while row < rows {
        let left = rows - row;
        if S::CHOOSES && left >= 4 && choose_pages::<S, 4>(s, job, row, out) {
            row += 4;
            continue;
        }
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

/// Groups of four values that a query whose bounds are chosen has at most, which heads of 256 have.
const MOST_GROUPS: usize = 64;

/// Writes the wishes of a query, its negative part followed by its positive one, as column `c`. Gives the sum of the
/// negative part; none where a value has both.
#[inline(always)]
fn write_wishes<const C: usize>(query: &[ActBlock], c: usize, wishes: &mut [[Wish; C]]) -> Option<i32> {
    let mut values = [[0i8; QK]; 2 * MOST_GROUPS * 4 / QK];
    for (values, block) in values.iter_mut().zip(query) {
        *values = block.values;
    }
    let (groups, _) = values.as_flattened().as_chunks::<4>();
    let (negative, positive) = groups[..2 * wishes.len()].split_at(wishes.len());
    let (mut both, mut sum) = (false, 0);
    for ((low, high), wish) in negative.iter().zip(positive).zip(wishes) {
        let wish = &mut wish[c];
        let mut bits = 0;
        for i in 0..4 {
            both |= low[i] != 0 && high[i] != 0;
            wish.values[i] = low[i] | high[i];
            wish.magnitudes[i] = wish.values[i].unsigned_abs();
            wish.lowest[i] = if low[i] == 0 { 0 } else { u8::MAX };
            bits |= u64::from(low[i] != 0) << i;
            sum += i32::from(low[i]);
        }
        wish.lowest_bits = bits * 0x1111_1111_1111_1111;
    }
    (!both).then_some(sum)
}

/// C rows from `row` on, with half the products: the lowest or the highest of each value is chosen before. False,
/// and nothing is done, where a row's parts are not those of one query.
#[inline(always)]
fn choose_pages<S: Simd, const C: usize>(
    s: S,
    job: &PageScores,
    row: usize,
    out: &mut [[f32; LANES]],
) -> bool {
    let (blocks, vectors) = (job.blocks(), job.scales.len());
    let groups = blocks * QK / 4 / 2;
    if groups > MOST_GROUPS {
        return false;
    }
    let mut wishes = [[Wish::NOTHING; C]; MOST_GROUPS];
    let wishes = &mut wishes[..groups];
    let mut starts = [0; C];
    for c in 0..C {
        let query = &job.queries[(row + c) * blocks..][..blocks];
        let Some(negative) = write_wishes(query, c, wishes) else { return false };
        starts[c] = if S::MAGNITUDES {
            -negative
        } else {
            query.iter().map(ActBlock::minus_sum).sum::<i32>() * Bytes::OFFSET
        };
    }
    let out = &mut out[row * vectors..][..C * vectors];
    let mut vector = 0;
    while const { S::SUMS >= 16 } && vector + 4 <= vectors {
        choose_tiles::<S, 4, C>(s, job, wishes, starts, vector, out);
        vector += 4;
    }
    while vector < vectors {
        choose_tiles::<S, 1, C>(s, job, wishes, starts, vector, out);
        vector += 1;
    }
    true
}

/// `out`: `[C][vectors]`, of which R from `vector` on are written.
#[inline(always)]
fn choose_tiles<S: Simd, const R: usize, const C: usize>(
    s: S,
    job: &PageScores,
    wishes: &[[Wish; C]],
    starts: [i32; C],
    vector: usize,
    out: &mut [[f32; LANES]],
) {
    let groups = wishes.len();
    let mut tiles: [[&[PageVector]; 2]; R] = [[&[]; 2]; R];
    let mut sums = [[s.splat_int(0); C]; R];
    for r in 0..R {
        let tile = &job.tiles[(vector + r) * 2 * groups..][..2 * groups];
        tiles[r] = [&tile[..groups], &tile[groups..]];
        for c in 0..C {
            sums[r][c] = s.splat_int(starts[c]);
        }
    }
    for (group, wishes) in wishes.iter().enumerate() {
        let mut pages = [[s.splat_int(0); 2]; R];
        for r in 0..R {
            let [low, high] = [&tiles[r][0][group].0, &tiles[r][1][group].0];
            pages[r] = s.pages(s.load_words(low, 0), s.load_words(high, 0));
        }
        for c in 0..C {
            for r in 0..R {
                sums[r][c] = s.add_wish(sums[r][c], pages[r], &wishes[c]);
            }
        }
    }
    let scales = &job.scales[vector..][..R];
    for (c, out) in out.chunks_exact_mut(job.scales.len()).enumerate() {
        let out = &mut out[vector..][..R];
        for r in 0..R {
            s.store(s.mul(s.int_to_float(sums[r][c]), s.load(&scales[r])), &mut out[r]);
        }
    }
}

fn bytes(vectors: &[PageVector]) -> &[u8] {
    // SAFETY: a vector is 64 bytes and nothing else.
    unsafe { std::slice::from_raw_parts(vectors.as_ptr().cast(), size_of_val(vectors)) }
}

const _: () = assert!(TILE_BLOCK == QK / 4 * size_of::<PageVector>());

/// Raises `most` to how many deviations each of the first `count` scores of a row (`[rows][vectors]`) is above their mean;
/// the others are 0.
#[inline(always)]
pub fn stand_out<S: Simd>(s: S, rows: &[[f32; LANES]], count: usize, most: &mut [[f32; LANES]]) {
    let vectors = most.len();
    let mut rest = rows;
    while rest.len() >= 4 * vectors && S::SUMS >= 16 {
        raise::<S, 4>(s, &rest[..4 * vectors], count, most);
        rest = &rest[4 * vectors..];
    }
    for row in rest.chunks_exact(vectors) {
        raise::<S, 1>(s, row, count, most);
    }
}

/// The same for R rows.
#[inline(always)]
fn raise<S: Simd, const R: usize>(s: S, rows: &[[f32; LANES]], count: usize, most: &mut [[f32; LANES]]) {
    let mut each: [&[[f32; LANES]]; R] = [&[]; R];
    for r in 0..R {
        each[r] = &rows[r * most.len()..][..most.len()];
    }
    let (mut sums, mut squares) = ([s.splat(0.0); R], [s.splat(0.0); R]);
    for v in 0..most.len() {
        for r in 0..R {
            let x = s.load(&each[r][v]);
            sums[r] = s.add(sums[r], x);
            squares[r] = s.add(squares[r], s.mul(x, x));
        }
    }
    let (mut by, mut less) = (sums, sums);
    for r in 0..R {
        let mean = tree_sum(lanes(s, sums[r])) / count as f32;
        let variance = tree_sum(lanes(s, squares[r])) / count as f32 - mean * mean;
        let factor = if variance > 0.0 { 1.0 / variance.sqrt() } else { 0.0 };
        (by[r], less[r]) = (s.splat(factor), s.splat(mean * factor));
    }
    for (v, most) in most.iter_mut().enumerate() {
        let mut highest = s.load(most);
        for r in 0..R {
            highest = s.max(highest, s.sub(s.mul(s.load(&each[r][v]), by[r]), less[r]));
        }
        s.store(highest, most);
    }
}

#[inline(always)]
fn lanes<S: Simd>(s: S, v: S::F) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    s.store(v, &mut lanes);
    lanes
}

/// Queries (`[rows][dim]`) as columns of 8 bits: their negative parts, then their positive ones, each padded with
/// zeros to a multiple of 16; the same scale for all of a row, which is not kept.
#[inline(always)]
pub fn sign_halves<S: Simd>(s: S, queries: &[f32], dim: usize, out: &mut [ActBlock]) {
    let half = padded_dim(dim);
    for (query, out) in queries.chunks_exact(dim).zip(out.chunks_exact_mut(row_blocks(dim))) {
        let (whole, rest) = query.as_chunks::<LANES>();
        let rest = padded(rest);
        let largest = magnitude(s, whole, &rest);
        let by = s.splat(if largest > 0.0 { 127.0 / largest } else { 0.0 });
        for (i, part) in whole.iter().enumerate() {
            store_halves(s, s.mul(s.load(part), by), i * LANES, half, out);
        }
        if whole.len() * LANES < half {
            store_halves(s, s.mul(s.load(&rest), by), whole.len() * LANES, half, out);
        }
        for block in out {
            block.scale = 1.0;
            let [first, second] = block.values.as_chunks().0 else { unreachable!("two halves") };
            block.put_sums([s.sum_i8(first), s.sum_i8(second)]);
        }
    }
}

/// The nearest whole numbers of 16 values, of both parts.
#[inline(always)]
fn store_halves<S: Simd>(s: S, x: S::F, first: usize, half: usize, out: &mut [ActBlock]) {
    let zero = s.splat(0.0);
    for (at, x) in [(first, s.min(x, zero)), (half + first, s.max(x, zero))] {
        s.store_i8(x, &mut out[at / QK].values.as_chunks_mut().0[at % QK / LANES]);
    }
}
