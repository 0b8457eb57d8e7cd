//! The vector kernels of block selection: scores of a few queries with all keys of a block, of many
//! queries with one key in `stride`, and upper bounds of pages.

use super::{Keys, SUB};
use crate::kernels::tree_sum;
use crate::simd::{LANES, Simd};

/// Scores of rows of queries with each key of a block.
pub struct RowScores<'a> {
    pub keys: Keys<'a>,
    pub block: usize,
    /// [rows][head_dim], rounded to F16.
    pub queries: &'a [f32],
    pub scale: f32,
}

/// `out`: [rows][64]. Sequential over dimensions, a lane for each key, like attention's own scores.
#[inline(always)]
pub fn row_scores<S: Simd>(s: S, job: &RowScores, out: &mut [f32]) {
    let dim = job.keys.head_dim;
    let keys = job.keys.block(job.block);
    let rows = job.queries.chunks_exact(dim).zip(out.as_chunks_mut::<LANES>().0.chunks_exact_mut(SUB));
    for (query, out) in rows {
        for (sub, out) in keys.chunks_exact(dim).zip(out) {
            let mut dot = s.splat(0.0);
            for (key, &q) in sub.iter().zip(query) {
                dot = s.mul_add_exact(s.load_f16(key), s.splat(q), dot);
            }
            s.store(s.mul(dot, s.splat(job.scale)), out);
        }
    }
}

/// Scores of a block's keys, key j of each 16 with the query in lane j of a group.
pub struct SampledScores<'a> {
    pub keys: Keys<'a>,
    pub block: usize,
    /// [groups][head_dim][16 lanes], rounded to F16.
    pub lanes: &'a [[f32; LANES]],
    pub scale: f32,
}

/// Groups whose sums the registers hold at once.
const GROUPS: usize = 4;

/// `out`: [groups][sub-blocks][16 lanes].
#[inline(always)]
pub fn sampled_scores<S: Simd>(s: S, job: &SampledScores, out: &mut [[f32; LANES]]) {
    let dim = job.keys.head_dim;
    let keys = job.keys.block(job.block);
    for (lanes, out) in job.lanes.chunks(GROUPS * dim).zip(out.chunks_mut(GROUPS * SUB)) {
        match lanes.len() / dim {
            4 => sampled_groups::<S, 4>(s, keys, dim, lanes, job.scale, out),
            3 => sampled_groups::<S, 3>(s, keys, dim, lanes, job.scale, out),
            2 => sampled_groups::<S, 2>(s, keys, dim, lanes, job.scale, out),
            _ => sampled_groups::<S, 1>(s, keys, dim, lanes, job.scale, out),
        }
    }
}

#[inline(always)]
fn sampled_groups<S: Simd, const G: usize>(
    s: S,
    keys: &[[u16; LANES]],
    dim: usize,
    lanes: &[[f32; LANES]],
    scale: f32,
    out: &mut [[f32; LANES]],
) {
    let groups: [&[[f32; LANES]]; G] = std::array::from_fn(|g| &lanes[g * dim..][..dim]);
    for (sub, keys) in keys.chunks_exact(dim).enumerate() {
        let mut dots = [s.splat(0.0); G];
        for (d, key) in keys.iter().enumerate() {
            let key = s.load_f16(key);
            for g in 0..G {
                dots[g] = s.mul_add_exact(key, s.load(&groups[g][d]), dots[g]);
            }
        }
        for g in 0..G {
            s.store(s.mul(dots[g], s.splat(scale)), &mut out[g * SUB + sub]);
        }
    }
}

/// The most that q · k can be for any key within bounds: the sum over dimensions of the larger of
/// q * lowest and q * highest. `page` holds the lowest, then the highest values, each padded to 16.
#[inline(always)]
pub fn page_bounds<S: Simd>(s: S, query: &[[f32; LANES]], page: &[[u16; LANES]]) -> f32 {
    let (lowest, highest) = page.split_at(query.len());
    let mut sum = s.splat(0.0);
    for ((q, low), high) in query.iter().zip(lowest).zip(highest) {
        let q = s.load(q);
        let most = s.max(s.mul(q, s.load_f16(low)), s.mul(q, s.load_f16(high)));
        sum = s.add(sum, most);
    }
    let mut lanes = [0.0; LANES];
    s.store(sum, &mut lanes);
    tree_sum(lanes)
}
