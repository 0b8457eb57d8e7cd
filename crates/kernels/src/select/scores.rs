//! The vector kernels of block selection: scores of some queries with many keys, of many queries with one
//! key in `stride`, what their softmax comes to, and hashes.

use crate::float16::round_f16;
use crate::kernels::attention::{Bytes, Halves, runs};
use crate::kernels::{exp_negative, powers, tree_sum};
use crate::select::SUB;
use crate::select::pages::PageVector;
use crate::simd::{LANES, QK, Simd};

/// F16 values as f32.
#[inline(always)]
pub fn widen<S: Simd>(s: S, from: &[[u16; LANES]], to: &mut [[f32; LANES]]) {
    for (from, to) in from.iter().zip(to) {
        s.store(s.load_f16(from), to);
    }
}

/// A block's keys of a Q8_0 cache, see [`crate::kernels::attention`].
pub struct PackedKeys<'a> {
    /// [sub-blocks][runs of dimensions][16 keys]
    pub scales: &'a [Halves],
    /// `[sub-blocks][dim][16 keys]`
    pub bytes: &'a [Bytes],
    pub dim: usize,
}

/// Keys as an F16 cache would have them: the nearest F16 values.
#[inline(always)]
pub fn expand_keys<S: Simd>(s: S, job: &PackedKeys, out: &mut [[u16; LANES]]) {
    let scales = job.scales.chunks_exact(runs(job.dim));
    for ((scales, bytes), out) in
        scales.zip(job.bytes.chunks_exact(job.dim)).zip(out.chunks_exact_mut(job.dim))
    {
        for ((scales, bytes), out) in scales.iter().zip(bytes.chunks(QK)).zip(out.chunks_mut(QK)) {
            let scales = s.load_f16(scales);
            for (bytes, out) in bytes.iter().zip(out) {
                s.store_f16(s.mul(s.load_i8(bytes), scales), out);
            }
        }
    }
}

/// To the nearest F16 values, in place.
#[inline(always)]
pub fn round_halves<S: Simd>(s: S, x: &mut [f32]) {
    let (whole, rest) = x.as_chunks_mut::<LANES>();
    for x in whole {
        s.store(s.round_f16(s.load(x)), x);
    }
    rest.iter_mut().for_each(|x| *x = round_f16(*x));
}

/// The largest magnitude of a row: of its whole vectors, and of the rest, padded with zeros.
#[inline(always)]
pub(super) fn magnitude<S: Simd>(s: S, whole: &[[f32; LANES]], rest: &[f32; LANES]) -> f32 {
    let mut most = s.abs(s.load(rest));
    for part in whole {
        most = s.max(most, s.abs(s.load(part)));
    }
    s.max_lane(most)
}

/// Scores of rows of queries with keys.
pub struct RowScores<'a> {
    /// `[sub-blocks][dim][16 keys]`, as in a page of the cache.
    pub keys: &'a [[u16; LANES]],
    pub dim: usize,
    /// `[rows][dim]`, rounded to F16.
    pub queries: &'a [f32],
    pub scale: f32,
}

/// `out`: `[rows][sub-blocks]`. Sequential over dimensions, a lane for each key, like attention's own scores.
#[inline(always)]
pub fn row_scores<S: Simd>(s: S, job: &RowScores, out: &mut [[f32; LANES]]) {
    let (rows, subs) = (job.queries.len() / job.dim, job.keys.len() / job.dim);
    let mut row = 0;
    while row < rows {
        let left = rows - row;
        let queries = &job.queries[row * job.dim..];
        let out = &mut out[row * subs..];
        row += if left >= 8 && S::SUMS >= 16 {
            score_rows::<S, 8, 2>(s, job, queries, out)
        } else if left >= 4 && S::SUMS >= 16 {
            score_rows::<S, 4, 4>(s, job, queries, out)
        } else if left >= 4 {
            score_rows::<S, 4, 1>(s, job, queries, out)
        } else if left >= 2 {
            score_rows::<S, 2, 2>(s, job, queries, out)
        } else {
            score_rows::<S, 1, 4>(s, job, queries, out)
        };
    }
}

/// The first R rows, N sub-blocks at a time. Gives R.
#[inline(always)]
fn score_rows<S: Simd, const R: usize, const N: usize>(
    s: S,
    job: &RowScores,
    queries: &[f32],
    out: &mut [[f32; LANES]],
) -> usize {
    let subs = job.keys.len() / job.dim;
    let mut first = 0;
    while first + N <= subs {
        score_subs::<S, R, N>(s, job, queries, first, out);
        first += N;
    }
    while first < subs {
        score_subs::<S, R, 1>(s, job, queries, first, out);
        first += 1;
    }
    R
}

#[inline(always)]
fn score_subs<S: Simd, const R: usize, const N: usize>(
    s: S,
    job: &RowScores,
    queries: &[f32],
    first: usize,
    out: &mut [[f32; LANES]],
) {
    let (dim, subs) = (job.dim, job.keys.len() / job.dim);
    let queries: [&[f32]; R] = std::array::from_fn(|r| &queries[r * dim..][..dim]);
    let keys: [&[[u16; LANES]]; N] = std::array::from_fn(|n| &job.keys[(first + n) * dim..][..dim]);
    // With few rows, the next sub-blocks are not there in time unless asked for.
    let ahead = N * size_of_val(keys[0]);
    let mut dots = [[s.splat(0.0); N]; R];
    for d in 0..dim {
        let mut key = [s.splat(0.0); N];
        for n in 0..N {
            if d % 2 == 0 {
                s.prefetch_next(&keys[n][d], ahead);
            }
            key[n] = s.load_f16(&keys[n][d]);
        }
        for r in 0..R {
            let q = s.splat(queries[r][d]);
            for n in 0..N {
                dots[r][n] = s.mul_add_exact(key[n], q, dots[r][n]);
            }
        }
    }
    for r in 0..R {
        for n in 0..N {
            s.store(s.mul(dots[r][n], s.splat(job.scale)), &mut out[r * subs + first + n]);
        }
    }
}

/// Of each row of a block's scores ([rows][4 sub-blocks]): the highest, and the sum of exponentials
/// relative to it, over 16 lanes.
#[inline(always)]
pub fn row_sums<S: Simd>(s: S, scores: &[[f32; LANES]], out: &mut [[f32; 2]]) {
    for (scores, out) in scores.chunks_exact(SUB).zip(out) {
        let mut x = [s.splat(0.0); SUB];
        for n in 0..SUB {
            x[n] = s.load(&scores[n]);
        }
        let most = s.max_lane(s.max(s.max(x[0], x[1]), s.max(x[2], x[3])));
        for n in 0..SUB {
            x[n] = s.sub(x[n], s.splat(most));
        }
        let powers = exp_negative(s, x);
        let mut lanes = [0.0; LANES];
        s.store(s.add(s.add(s.add(powers[0], powers[1]), powers[2]), powers[3]), &mut lanes);
        *out = [most, tree_sum(lanes)];
    }
}

/// The softmax of a row of blocks' scores, in place; the sum is over 16 lanes.
#[inline(always)]
pub fn softmax<S: Simd>(s: S, row: &mut [[f32; LANES]]) {
    let mut most = s.splat(f32::NEG_INFINITY);
    for x in row.iter() {
        most = s.max(most, s.load(x));
    }
    let most = s.splat(s.max_lane(most));
    let mut sum = s.splat(0.0);
    for block in row.as_chunks_mut::<SUB>().0 {
        let mut x = [s.splat(0.0); SUB];
        for n in 0..SUB {
            x[n] = s.sub(s.load(&block[n]), most);
        }
        let powers = exp_negative(s, x);
        for n in 0..SUB {
            sum = s.add(sum, powers[n]);
            s.store(powers[n], &mut block[n]);
        }
    }
    let mut lanes = [0.0; LANES];
    s.store(sum, &mut lanes);
    let by = s.splat(1.0 / tree_sum(lanes));
    for x in row.iter_mut() {
        s.store(s.mul(s.load(x), by), x);
    }
}

/// Scores of a block's keys, key j of each 16 with the query in lane j of a group.
pub struct SampledScores<'a> {
    /// [4 sub-blocks][groups of four dimensions], as [`super::shrink_keys`] makes them.
    pub keys: &'a [PageVector],
    /// [4 sub-blocks]
    pub scales: &'a [[f32; LANES]],
    /// [groups][groups of four dimensions] of queries' values.
    pub lanes: &'a [PageVector],
    /// `[groups]`
    pub of: &'a [LaneScales],
}

/// What goes with the queries in a group's lanes.
#[derive(Clone, Copy)]
pub struct LaneScales {
    /// What sums of products with keys' values start with: 16 whole numbers of 32 bits.
    pub starts: PageVector,
    /// What these are multiplied by, beside the keys' own: scores are logarithms to base 2.
    pub scales: [f32; LANES],
}

/// What a lane's scores of one block come to: the highest, and the sum of powers of 2 relative to it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sums {
    pub most: [f32; LANES],
    pub sum: [f32; LANES],
}

impl Sums {
    pub const NONE: Self = Self { most: [0.0; LANES], sum: [0.0; LANES] };
}

/// `out`: one for each group.
#[inline(always)]
pub fn sampled_sums<S: Simd>(s: S, job: &SampledScores, out: &mut [Sums]) {
    let mut first = 0;
    while first < out.len() {
        first += if S::SUMS >= 16 && out.len() - first >= 4 {
            sum_groups::<S, 4, 4>(s, job, first, out)
        } else if out.len() - first >= 2 {
            sum_groups::<S, 2, 2>(s, job, first, out)
        } else {
            sum_groups::<S, 1, 4>(s, job, first, out)
        };
    }
}

/// G groups from `first` on, N sub-blocks at a time. Gives G.
#[inline(always)]
fn sum_groups<S: Simd, const G: usize, const N: usize>(
    s: S,
    job: &SampledScores,
    first: usize,
    out: &mut [Sums],
) -> usize {
    let vectors = job.keys.len() / SUB;
    let mut groups: [&[PageVector]; G] = [&[]; G];
    for g in 0..G {
        groups[g] = &job.lanes[(first + g) * vectors..][..vectors];
    }
    let mut scores = [[[0.0f32; LANES]; SUB]; G];
    for sub in (0..SUB).step_by(N) {
        let mut keys: [&[PageVector]; N] = [&[]; N];
        for n in 0..N {
            keys[n] = &job.keys[(sub + n) * vectors..][..vectors];
        }
        let mut dots = [[s.splat_int(0); N]; G];
        for g in 0..G {
            dots[g] = [s.load_words(&job.of[first + g].starts.0, 0); N];
        }
        for v in 0..vectors {
            let mut key = [s.splat_int(0); N];
            for n in 0..N {
                key[n] = s.load_words(&keys[n][v].0, 0);
            }
            for g in 0..G {
                let q = s.load_words(&groups[g][v].0, 0);
                for n in 0..N {
                    dots[g][n] = s.add_sevens(dots[g][n], key[n], q);
                }
            }
        }
        for g in 0..G {
            let of_lanes = s.load(&job.of[first + g].scales);
            for n in 0..N {
                let scale = s.mul(s.load(&job.scales[sub + n]), of_lanes);
                s.store(s.mul(s.int_to_float(dots[g][n]), scale), &mut scores[g][sub + n]);
            }
        }
    }
    for g in 0..G {
        let mut x = [s.splat(0.0); SUB];
        for n in 0..SUB {
            x[n] = s.load(&scores[g][n]);
        }
        let [(low, high), (other_low, other_high)] = [in_order(s, x[0], x[1]), in_order(s, x[2], x[3])];
        let (between, most) = in_order(s, high, other_high);
        // That of the highest is 1.
        let [a, b, c] = powers(s, [s.sub(low, most), s.sub(other_low, most), s.sub(between, most)]);
        let to = &mut out[first + g];
        s.store(most, &mut to.most);
        s.store(s.add(s.add(s.add(a, b), c), s.splat(1.0)), &mut to.sum);
    }
    G
}

/// The lower and the higher of each lane.
#[inline(always)]
fn in_order<S: Simd>(s: S, a: S::F, b: S::F) -> (S::F, S::F) {
    (s.min(a, b), s.max(a, b))
}

/// Adds to each block's `mass` what each lane of each group has of its powers there. `sums`:
/// `[blocks][groups]`, written over; `real`: for each group 1 in the lanes that count and 0 in the others.
#[inline(always)]
pub fn add_shares<S: Simd>(s: S, sums: &mut [Sums], real: &[[f32; LANES]], mass: &mut [[f32; LANES]]) {
    let mut first = 0;
    while first < real.len() {
        first += if S::SUMS >= 16 && real.len() - first >= 4 {
            share_groups::<S, 4>(s, sums, real, first, mass)
        } else if real.len() - first >= 2 {
            share_groups::<S, 2>(s, sums, real, first, mass)
        } else {
            share_groups::<S, 1>(s, sums, real, first, mass)
        };
    }
}

/// G groups from `first` on, which lie side by side in each block. Gives G.
#[inline(always)]
fn share_groups<S: Simd, const G: usize>(
    s: S,
    sums: &mut [Sums],
    real: &[[f32; LANES]],
    first: usize,
    mass: &mut [[f32; LANES]],
) -> usize {
    let mut most = [s.splat(f32::NEG_INFINITY); G];
    for of in sums.chunks_exact(real.len()) {
        for g in 0..G {
            most[g] = s.max(most[g], s.load(&of[first + g].most));
        }
    }
    let mut total = [s.splat(0.0); G];
    for of in sums.chunks_exact_mut(real.len()) {
        let of = &mut of[first..first + G];
        let mut below = most;
        for g in 0..G {
            below[g] = s.sub(s.load(&of[g].most), most[g]);
        }
        let powers = powers(s, below);
        for g in 0..G {
            let weight = s.mul(s.load(&of[g].sum), powers[g]);
            total[g] = s.add(total[g], weight);
            s.store(weight, &mut of[g].sum);
        }
    }
    let mut by = total;
    for g in 0..G {
        by[g] = s.div(s.load(&real[first + g]), total[g]);
    }
    for (of, mass) in sums.chunks_exact(real.len()).zip(mass) {
        let mut sum = s.load(mass);
        for g in 0..G {
            sum = s.add(sum, s.mul(s.load(&of[first + g].sum), by[g]));
        }
        s.store(sum, mass);
    }
    G
}

/// Rows and random directions to hash them with.
pub struct Hashing<'a> {
    /// `[rounds][dim][16]`: 8 directions for each of a bucket's two places, rounded to F16.
    pub rotations: &'a [[f32; LANES]],
    pub dim: usize,
    /// `[rows / 16][dim][16 rows]`, F16 values.
    pub rows: &'a [[f32; LANES]],
}

/// Directions of a place, beside their opposites.
const DIRECTIONS: usize = LANES / 2;

/// `out`: `[rows][rounds]`, each row's bucket: the place among 8 directions and their opposites that the row
/// points along most, 16 times that of the first 8 and that of the last. Ties go to the lowest.
#[inline(always)]
pub fn buckets<S: Simd>(s: S, job: &Hashing, out: &mut [u16]) {
    let rounds = job.rotations.len() / job.dim;
    for (rows, out) in job.rows.chunks_exact(job.dim).zip(out.chunks_exact_mut(LANES * rounds)) {
        for (round, rotations) in job.rotations.chunks_exact(job.dim).enumerate() {
            let mut places = [[0.0; LANES]; 2];
            for (place, to) in places.iter_mut().enumerate() {
                s.store(nearest(s, rotations, rows, place * DIRECTIONS), to);
            }
            for lane in 0..LANES {
                out[lane * rounds + round] = (places[0][lane] * LANES as f32 + places[1][lane]) as u16;
            }
        }
    }
}

/// Which of the 8 directions from `first` on or, after them, of their opposites each of 16 rows points along most.
#[inline(always)]
fn nearest<S: Simd>(s: S, rotations: &[[f32; LANES]], rows: &[[f32; LANES]], first: usize) -> S::F {
    let mut along = [s.splat(0.0); DIRECTIONS];
    match S::QUERIES {
        8 => add_along::<S, 8>(s, rotations, rows, first, &mut along),
        4 => add_along::<S, 4>(s, rotations, rows, first, &mut along),
        _ => add_along::<S, 2>(s, rotations, rows, first, &mut along),
    }
    let (mut place, mut most) = (s.splat(0.0), along[0]);
    for i in 1..2 * DIRECTIONS {
        let x = if i < DIRECTIONS { along[i] } else { s.sub(s.splat(0.0), along[i - DIRECTIONS]) };
        place = s.select_less(most, x, s.splat(i as f32), place);
        most = s.max(most, x);
    }
    place
}

/// Products of rows with directions, as many at a time as registers hold.
#[inline(always)]
fn add_along<S: Simd, const N: usize>(
    s: S,
    rotations: &[[f32; LANES]],
    rows: &[[f32; LANES]],
    first: usize,
    along: &mut [S::F; DIRECTIONS],
) {
    for (i, along) in along.as_chunks_mut::<N>().0.iter_mut().enumerate() {
        let mut sums = *along;
        for (of_dim, row) in rotations.iter().zip(rows) {
            let x = s.load(row);
            for n in 0..N {
                sums[n] = s.mul_each_add_exact(x, &of_dim[first + i * N + n], sums[n]);
            }
        }
        *along = sums;
    }
}
