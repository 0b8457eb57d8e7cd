//! Causal attention over the paged F16 cache, by online softmax (Milakov and Gimelshein, 2018,
//! arXiv:1805.02867; Dao et al., 2022, arXiv:2205.14135).
//!
//! ```text
//! for each chunk of 1,024 positions, ascending:           fixed boundaries: neither threads nor
//!   m = -inf, l = 0, o = 0                                the prompt's chunking move them
//!   for each block of 64 keys in the chunk, ascending:
//!     s[key] = (q . k[key]) * scale, -inf where masked    lane = key, sequential over dimensions
//!     s[key] = cap * tanh(s[key] / cap) where capped
//!     m' = max(m, max s); c = exp(m - m')
//!     p[key] = f16(exp(s[key] - m'))
//!     l = l * c + p                                       16 virtual lanes
//!     o = o * c + 0 + sum over keys of p[key] * v[key]    lane = dimension, sequential over keys
//!   merge the chunk's (m, l, o) into the row's
//! with a sink: merge (sink, 1, 0)                         an extra logit that has no value
//! out = o / l
//! ```
//!
//! Queries and probabilities are rounded to F16, so every product with an F16 key or value is exact.
//! The `+ 0` keeps negative zero out of o: a masked key (p = 0) then changes nothing, and skipping a
//! block is the same as masking it.
//!
//! A page holds 64 positions of one layer and KV head set: keys as [4 sub-blocks][head_dim][16 keys],
//! values as [64 positions][value_dim padded to 16].

use super::{exp, padded, softcap, tree_sum};
use crate::acts::NonFinite;
use crate::simd::{LANES, Simd};
use crate::view::Shared;
use std::ops::Range;

/// Positions of a page, and keys of a block.
pub const BLOCK: usize = 64;
/// Positions whose softmax state is merged at once.
pub const CHUNK: usize = 1024;
/// Of keys and of values.
pub const MAX_HEAD_DIM: usize = 576;
const SUB: usize = BLOCK / LANES;
const MAX_ROWS: usize = 8;

/// F16 elements of one KV head's keys in a page.
pub fn key_len(head_dim: usize) -> usize {
    BLOCK * head_dim
}

/// F16 elements of one KV head's values in a page.
pub fn value_len(value_dim: usize) -> usize {
    BLOCK * value_dim.next_multiple_of(LANES)
}

/// One query: a head of a token.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    /// Where its values start in [`AttendJob::q`], and its result in `out`.
    pub q: usize,
    pub out: usize,
    /// Its own position: it sees this and earlier ones.
    pub position: usize,
    /// Its head's sink: a logit that takes part in the softmax but has no value.
    pub sink: Option<f32>,
}

/// Queries that share a KV head.
pub struct AttendJob<'a> {
    pub queries: &'a [Query],
    pub q: &'a [f32],
    pub out: Shared<'a, f32>,
    /// Sizes of a head's keys and of its values.
    pub head_dim: usize,
    pub value_dim: usize,
    /// The sequence's pages, and where this layer's and head's keys and values start in each.
    pub pages: &'a [Shared<'a, u16>],
    pub keys_at: usize,
    pub values_at: usize,
    pub scale: f32,
    pub softcap: Option<f32>,
    /// How many positions a query sees, its own included.
    pub window: Option<usize>,
}

/// One token's key and value of one KV head, to be stored.
pub struct StoreJob<'a> {
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub page: Shared<'a, u16>,
    pub keys_at: usize,
    pub values_at: usize,
    /// Which of the page's positions; its elements belong to the job alone.
    pub slot: usize,
}

/// Working memory of one thread.
pub struct AttendScratch {
    /// [head_dim][rows]: queries rounded to F16.
    q: Vec<f32>,
    /// [rows][BLOCK]: scores, then probabilities.
    scores: Vec<[f32; BLOCK]>,
    /// [BLOCK][rows]: probabilities, transposed.
    p: Vec<f32>,
    /// [rows][padded value_dim]: of the chunk, and merged.
    chunk: Vec<f32>,
    total: Vec<f32>,
}

impl Default for AttendScratch {
    fn default() -> Self {
        Self {
            q: vec![0.0; MAX_HEAD_DIM * MAX_ROWS],
            scores: vec![[0.0; BLOCK]; MAX_ROWS],
            p: vec![0.0; BLOCK * MAX_ROWS],
            chunk: vec![0.0; MAX_HEAD_DIM * MAX_ROWS],
            total: vec![0.0; MAX_HEAD_DIM * MAX_ROWS],
        }
    }
}

/// The softmax state of one row beside its o.
#[derive(Clone, Copy)]
struct State {
    max: f32,
    sum: f32,
}

const EMPTY: State = State { max: f32::NEG_INFINITY, sum: 0.0 };

/// Appends a token's key and value of one KV head to its page.
///
/// # Errors
/// [`NonFinite`] when a value does not fit F16.
#[inline(always)]
pub fn store_kv<S: Simd>(s: S, job: &StoreJob) -> Result<(), NonFinite> {
    let first_key = job.keys_at + job.slot / LANES * job.k.len() * LANES + job.slot % LANES;
    let first_value = job.values_at + job.slot * job.v.len().next_multiple_of(LANES);
    // SAFETY: the slot belongs to this job alone.
    let (keys, values) = unsafe {
        (store_half(s, job.k, &job.page, first_key, LANES), store_half(s, job.v, &job.page, first_value, 1))
    };
    if keys && values { Ok(()) } else { Err(NonFinite) }
}

/// Writes x as F16, `stride` elements apart; false where a value does not fit.
///
/// # Safety
/// No other thread uses the elements written.
#[inline(always)]
unsafe fn store_half<S: Simd>(s: S, x: &[f32], page: &Shared<u16>, first: usize, stride: usize) -> bool {
    let mut half = [0u16; LANES];
    let mut finite = true;
    for (i, part) in x.chunks(LANES).enumerate() {
        s.store_f16(s.load(&padded(part)), &mut half);
        for (j, &bits) in half.iter().take(part.len()).enumerate() {
            finite &= bits & 0x7c00 != 0x7c00;
            // SAFETY: the caller's promise.
            unsafe { page.set(first + (i * LANES + j) * stride, bits) };
        }
    }
    finite
}

#[inline(always)]
pub fn attend<S: Simd>(s: S, job: &AttendJob, scratch: &mut AttendScratch) {
    let mut first = 0;
    while first < job.queries.len() {
        let left = job.queries.len() - first;
        first += match at_once::<S>(left) {
            8 => attend_rows::<S, 8>(s, job, &job.queries[first..first + 8], scratch),
            4 => attend_rows::<S, 4>(s, job, &job.queries[first..first + 4], scratch),
            2 => attend_rows::<S, 2>(s, job, &job.queries[first..first + 2], scratch),
            _ => attend_rows::<S, 1>(s, job, &job.queries[first..first + 1], scratch),
        };
    }
}

/// The most queries, up to the ISA's own, that `left` fills.
#[inline(always)]
fn at_once<S: Simd>(left: usize) -> usize {
    [8, 4, 2].into_iter().find(|&size| size <= left && size <= S::QUERIES).unwrap_or(1)
}

/// The positions a query sees.
#[inline(always)]
fn visible(query: &Query, window: Option<usize>) -> Range<usize> {
    let end = query.position + 1;
    window.map_or(0, |w| end.saturating_sub(w))..end
}

#[inline(always)]
fn attend_rows<S: Simd, const R: usize>(
    s: S,
    job: &AttendJob,
    queries: &[Query],
    scratch: &mut AttendScratch,
) -> usize {
    let seen: [Range<usize>; R] = std::array::from_fn(|r| visible(&queries[r], job.window));
    let start = seen.iter().map(|range| range.start).min().unwrap_or(0);
    let end = seen.iter().map(|range| range.end).max().unwrap_or(0);
    load_queries::<S, R>(s, job, queries, scratch);

    let mut total = [EMPTY; R];
    for chunk in start / CHUNK..end.div_ceil(CHUNK) {
        let from = start.max(chunk * CHUNK) / BLOCK;
        let to = end.min((chunk + 1) * CHUNK).div_ceil(BLOCK);
        let mut max = [f32::NEG_INFINITY; R];
        let mut sums = [s.splat(0.0); R];
        scratch.chunk.fill(0.0);
        for block in from..to {
            score::<S, R>(s, job, block, scratch);
            mask::<R>(&seen, block, scratch);
            let corrections = soften::<S, R>(s, &mut max, &mut sums, scratch);
            let keys = (end - block * BLOCK).min(BLOCK);
            gather::<S, R>(s, job, block, keys, corrections, scratch);
        }
        for r in 0..R {
            let mut lanes = [0.0; LANES];
            s.store(sums[r], &mut lanes);
            merge(&mut total[r], State { max: max[r], sum: tree_sum(lanes) }, job.value_dim, r, scratch);
        }
    }
    let stride = job.value_dim.next_multiple_of(LANES);
    scratch.chunk.fill(0.0);
    for (r, query) in queries.iter().enumerate() {
        if let Some(sink) = query.sink {
            merge(&mut total[r], State { max: sink, sum: 1.0 }, job.value_dim, r, scratch);
        }
        // SAFETY: a query's result belongs to its job alone.
        let out = unsafe { job.out.write(query.out..query.out + job.value_dim) };
        for (out, o) in out.iter_mut().zip(&scratch.total[r * stride..]) {
            *out = o / total[r].sum;
        }
    }
    R
}

#[inline(always)]
fn load_queries<S: Simd, const R: usize>(
    s: S,
    job: &AttendJob,
    queries: &[Query],
    scratch: &mut AttendScratch,
) {
    let mut half = [0u16; LANES];
    let mut rounded = [0.0; LANES];
    for (r, query) in queries.iter().enumerate() {
        for (i, part) in job.q[query.q..query.q + job.head_dim].chunks(LANES).enumerate() {
            s.store_f16(s.load(&padded(part)), &mut half);
            s.store(s.load_f16(&half), &mut rounded);
            for (j, &x) in rounded.iter().take(part.len()).enumerate() {
                scratch.q[(i * LANES + j) * R + r] = x;
            }
        }
    }
}

#[inline(always)]
fn score<S: Simd, const R: usize>(s: S, job: &AttendJob, block: usize, scratch: &mut AttendScratch) {
    let at = job.keys_at..job.keys_at + key_len(job.head_dim);
    // SAFETY: pages are written before the step's attention starts, not during it.
    let keys = unsafe { job.pages[block].read(at) }.as_chunks::<LANES>().0;
    let queries = scratch.q.as_chunks::<R>().0;
    for (sub, keys) in keys.chunks_exact(job.head_dim).enumerate() {
        let mut dots = [s.splat(0.0); R];
        for (key, q) in keys.iter().zip(queries) {
            let key = s.load_f16(key);
            for r in 0..R {
                dots[r] = s.mul_add_exact(key, s.splat(q[r]), dots[r]);
            }
        }
        for r in 0..R {
            let to = &mut scratch.scores[r].as_chunks_mut::<LANES>().0[sub];
            let score = s.mul(dots[r], s.splat(job.scale));
            s.store(job.softcap.map_or(score, |cap| softcap(s, score, cap)), to);
        }
    }
}

/// Sets scores of positions that a row does not see to -inf; most blocks have none.
#[inline(always)]
fn mask<const R: usize>(seen: &[Range<usize>; R], block: usize, scratch: &mut AttendScratch) {
    let base = block * BLOCK;
    for r in 0..R {
        let first = seen[r].start.saturating_sub(base).min(BLOCK);
        let last = seen[r].end.saturating_sub(base).min(BLOCK);
        scratch.scores[r][..first].fill(f32::NEG_INFINITY);
        scratch.scores[r][last.max(first)..].fill(f32::NEG_INFINITY);
    }
}

/// Scores to probabilities; returns what earlier sums are multiplied by.
#[inline(always)]
fn soften<S: Simd, const R: usize>(
    s: S,
    max: &mut [f32; R],
    sums: &mut [S::F; R],
    scratch: &mut AttendScratch,
) -> [f32; R] {
    let mut corrections = [1.0; R];
    for r in 0..R {
        let scores = scratch.scores[r].as_chunks::<LANES>().0;
        let mut highest = s.load(&scores[0]);
        for v in &scores[1..] {
            highest = s.max(highest, s.load(v));
        }
        let mut lanes = [0.0; LANES];
        s.store(highest, &mut lanes);
        let new = lanes.iter().fold(max[r], |a, &b| if b > a { b } else { a });
        // A row that has seen no key yet: keep every exponent's argument a number.
        let offset = if new == f32::NEG_INFINITY { 0.0 } else { new };
        corrections[r] = crate::exp::exp(max[r] - offset);
        max[r] = new;
        sums[r] = s.mul(sums[r], s.splat(corrections[r]));
        let mut half = [0u16; LANES];
        for sub in 0..SUB {
            let x = s.load(&scratch.scores[r].as_chunks::<LANES>().0[sub]);
            s.store_f16(exp(s, s.sub(x, s.splat(offset))), &mut half);
            let p = s.load_f16(&half);
            sums[r] = s.add(sums[r], p);
            s.store(p, &mut lanes);
            for (j, &p) in lanes.iter().enumerate() {
                scratch.p[(sub * LANES + j) * R + r] = p;
            }
        }
    }
    corrections
}

/// o = o * correction + 0 + p · V.
#[inline(always)]
fn gather<S: Simd, const R: usize>(
    s: S,
    job: &AttendJob,
    block: usize,
    keys: usize,
    corrections: [f32; R],
    scratch: &mut AttendScratch,
) {
    let stride = job.value_dim.next_multiple_of(LANES);
    let at = job.values_at..job.values_at + value_len(job.value_dim);
    // SAFETY: pages are written before the step's attention starts, not during it.
    let values = unsafe { job.pages[block].read(at) }.as_chunks::<LANES>().0;
    let p = &scratch.p.as_chunks::<R>().0[..keys];
    let vectors = stride / LANES;
    let o = scratch.chunk.as_chunks_mut::<LANES>().0;
    for i in 0..vectors {
        let mut sums = [s.splat(0.0); R];
        for r in 0..R {
            let scaled = s.mul(s.load(&o[r * vectors + i]), s.splat(corrections[r]));
            sums[r] = s.add(scaled, s.splat(0.0));
        }
        for (value, p) in values[i..].iter().step_by(vectors).zip(p) {
            let value = s.load_f16(value);
            for r in 0..R {
                sums[r] = s.mul_add_exact(value, s.splat(p[r]), sums[r]);
            }
        }
        for r in 0..R {
            s.store(sums[r], &mut o[r * vectors + i]);
        }
    }
}

/// Merges a chunk's state into the row's; both o are relative to their own maximum.
#[inline(always)]
fn merge(total: &mut State, chunk: State, value_dim: usize, row: usize, scratch: &mut AttendScratch) {
    if chunk.max == f32::NEG_INFINITY {
        return;
    }
    let stride = value_dim.next_multiple_of(LANES);
    let of_row = row * stride..(row + 1) * stride;
    let (into, from) = (&mut scratch.total[of_row.clone()], &scratch.chunk[of_row]);
    if total.max == f32::NEG_INFINITY {
        into.copy_from_slice(from);
        *total = chunk;
        return;
    }
    let max = if chunk.max > total.max { chunk.max } else { total.max };
    let (a, b) = (crate::exp::exp(total.max - max), crate::exp::exp(chunk.max - max));
    for (x, y) in into.iter_mut().zip(from) {
        *x = *x * a + *y * b;
    }
    *total = State { max, sum: total.sum * a + chunk.sum * b };
}
