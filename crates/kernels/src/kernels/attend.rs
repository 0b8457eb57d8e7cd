//! Attention as [`super::attention`] defines it, for many queries that share a KV head.
//!
//! The queries go over a block's keys and values in groups of as many as the registers hold sums for. Where widening to F32
//! costs time, it is done once for all groups.

use super::attention::{
    AttendJob, BLOCK, Bytes, CHUNK, CacheType, Halves, KeyBlock, MAX_HEAD_DIM, MAX_QUERIES, Query, key_len,
    read_q8, runs, value_len,
};
use super::{exp_negative, padded, softcap, tree_sum};
use crate::simd::{LANES, QK, Simd, Work};
use crate::view::Shared;
use std::ops::Range;

const SUBS: usize = BLOCK / LANES;
/// Vectors of a run of 32 dimensions.
const RUN: usize = QK / LANES;
/// 2^7 + 1: leaves 24 - 7 bits of a float (Dekker, 1971, "A floating-point technique for extending the available
/// precision"), and a byte has 7 without its sign.
const SPLIT: f32 = 129.0;

/// The most queries that share a pass over a block's registers: [`Simd::QUERIES`] at most.
const MAX_GROUP: usize = 8;

/// Runs of 32 dimensions that share a pass over a block's values.
const MAX_RUNS: usize = 2;

/// Working memory of one thread; grows to what jobs need.
pub struct AttendScratch {
    /// Of each group of R queries: `[head_dim][R]`, rounded to F16, times the factor that the keys lack.
    q: Vec<f32>,
    /// A block as in its page, widened.
    keys: Vec<[f32; LANES]>,
    values: Vec<[f32; LANES]>,
    /// [R][BLOCK]: scores, then probabilities.
    scores: [[f32; BLOCK]; MAX_GROUP],
    /// The same of probabilities times the scales of a run of dimensions.
    weights: [[[f32; BLOCK]; MAX_GROUP]; MAX_RUNS],
    /// One for each query: over a chunk, and merged.
    chunk: Rows,
    total: Rows,
}

/// Softmax states: o is relative to exp(max), and sums are in 16 lanes as long as a chunk lasts.
#[derive(Default)]
struct Rows {
    max: Vec<f32>,
    sums: Vec<[f32; LANES]>,
    /// [rows][vectors of a value]
    o: Vec<[f32; LANES]>,
}

impl Rows {
    fn reserve(&mut self, rows: usize, vectors: usize) {
        self.max.reserve(rows);
        self.sums.reserve(rows);
        self.o.reserve(rows * vectors);
    }

    #[inline(always)]
    fn clear(&mut self, rows: usize, vectors: usize) {
        fill(&mut self.max, rows, f32::NEG_INFINITY);
        fill(&mut self.sums, rows, [0.0; LANES]);
        fill(&mut self.o, rows * vectors, [0.0; LANES]);
    }
}

#[inline(always)]
fn fill<T: Copy>(to: &mut Vec<T>, len: usize, value: T) {
    to.clear();
    to.resize(len, value);
}

impl Default for AttendScratch {
    fn default() -> Self {
        Self {
            q: Vec::new(),
            keys: Vec::new(),
            values: Vec::new(),
            scores: [[0.0; BLOCK]; MAX_GROUP],
            weights: [[[0.0; BLOCK]; MAX_GROUP]; MAX_RUNS],
            chunk: Rows::default(),
            total: Rows::default(),
        }
    }
}

impl AttendScratch {
    /// With room for any job whose heads are of at most such sizes.
    pub fn with_room(head_dim: usize, value_dim: usize) -> Self {
        let mut scratch = Self::default();
        scratch.q.reserve(MAX_QUERIES * head_dim);
        scratch.keys.reserve(key_len(head_dim) / LANES);
        scratch.values.reserve(value_len(value_dim) / LANES);
        for rows in [&mut scratch.chunk, &mut scratch.total] {
            rows.reserve(MAX_QUERIES, value_dim.div_ceil(LANES));
        }
        scratch
    }

    fn prepare(&mut self, job: &AttendJob) {
        assert!(job.queries.len() <= MAX_QUERIES, "{} queries", job.queries.len());
        self.q.resize(job.queries.len() * job.head_dim, 0.0);
        self.keys.resize(key_len(job.head_dim) / LANES, [0.0; LANES]);
        self.values.resize(value_len(job.value_dim) / LANES, [0.0; LANES]);
    }
}

/// All chunks, merged: the job's results.
#[inline(always)]
pub fn attend<S: Simd>(s: S, job: &AttendJob, scratch: &mut AttendScratch) {
    let vectors = job.value_dim.div_ceil(LANES);
    load_queries(s, job, scratch);
    scratch.total.clear(job.queries.len(), vectors);
    for chunk in job.chunks() {
        attend_chunk(s, job, chunk, job.chunks().end, scratch);
        merge_rows(s, &mut scratch.total, &scratch.chunk, vectors);
    }
    let Rows { max, sums, o } = &mut scratch.total;
    for (row, query) in job.queries.iter().enumerate() {
        finish(s, job, query, (&mut max[row], &mut sums[row][0], &mut o[row * vectors..(row + 1) * vectors]));
    }
}

/// The states of the job's queries over some chunks: `[chunks][queries]`, each as long as [`AttendJob::state_len`] says.
#[inline(always)]
pub fn attend_part<S: Simd>(
    s: S,
    job: &AttendJob,
    chunks: Range<usize>,
    states: Shared<f32>,
    scratch: &mut AttendScratch,
) {
    let (len, vectors) = (job.state_len(), job.value_dim.div_ceil(LANES));
    load_queries(s, job, scratch);
    for (i, chunk) in chunks.clone().enumerate() {
        attend_chunk(s, job, chunk, chunks.end, scratch);
        for row in 0..job.queries.len() {
            let at = (i * job.queries.len() + row) * len;
            // SAFETY: the part's states belong to its job alone.
            let state = unsafe { states.write(at..at + len) };
            state[0] = scratch.chunk.max[row];
            state[1] = tree_sum(scratch.chunk.sums[row]);
            let o = scratch.chunk.o[row * vectors..(row + 1) * vectors].as_flattened();
            state[LANES..].copy_from_slice(o);
        }
    }
}

/// Merges the states of all chunks, as [`attend_part`] leaves them, into the job's results.
#[inline(always)]
pub fn merge_parts<S: Simd>(s: S, job: &AttendJob, states: &[f32], scratch: &mut AttendScratch) {
    let vectors = job.value_dim.div_ceil(LANES);
    for (row, query) in job.queries.iter().enumerate() {
        scratch.total.clear(1, vectors);
        let Rows { max, sums, o } = &mut scratch.total;
        for state in states.chunks_exact(job.state_len()).skip(row).step_by(job.queries.len()) {
            let from = (state[0], state[1], state[LANES..].as_chunks::<LANES>().0);
            merge(s, (&mut max[0], &mut sums[0][0], o), from);
        }
        finish(s, job, query, (&mut max[0], &mut sums[0][0], o));
    }
}

/// The sink, where there is one, and the division.
#[inline(always)]
fn finish<S: Simd>(
    s: S,
    job: &AttendJob,
    query: &Query,
    (max, sum, o): (&mut f32, &mut f32, &mut [[f32; LANES]]),
) {
    if let Some(sink) = query.sink {
        let nothing = [[0.0; LANES]; MAX_HEAD_DIM / LANES];
        let nothing = &nothing[..o.len()];
        merge(s, (max, sum, o), (sink, 1.0, nothing));
    }
    // SAFETY: a query's result belongs to its job alone.
    let out = unsafe { job.out.write(query.out..query.out + job.value_dim) };
    for (out, o) in out.iter_mut().zip(o.as_flattened()) {
        *out = o / *sum;
    }
}

/// Merges a chunk's states of rows of so many vectors into those of all chunks, 16 rows' exponentials at a time.
#[inline(always)]
fn merge_rows<S: Simd>(s: S, total: &mut Rows, chunk: &Rows, vectors: usize) {
    let rows = total.max.chunks_mut(LANES).zip(chunk.max.chunks(LANES));
    for (i, (max, chunk_max)) in rows.enumerate() {
        let (old, new) = (s.load(&padded(max)), s.load(&padded(chunk_max)));
        let larger = s.max(new, old);
        let [mut a, mut b] = [[0.0; LANES]; 2];
        let powers = exp_negative(s, [s.sub(old, larger), s.sub(new, larger)]);
        s.store(powers[0], &mut a);
        s.store(powers[1], &mut b);
        for r in 0..max.len() {
            let row = i * LANES + r;
            let o = row * vectors..(row + 1) * vectors;
            let sum = tree_sum(chunk.sums[row]);
            let to = (&mut max[r], &mut total.sums[row][0], &mut total.o[o.clone()]);
            merge_by(s, to, (chunk_max[r], sum, &chunk.o[o]), [a[r], b[r]]);
        }
    }
}

/// Merges a chunk's state into the row's; both o are relative to their own maximum.
#[inline(always)]
fn merge<S: Simd>(
    s: S,
    (max, sum, o): (&mut f32, &mut f32, &mut [[f32; LANES]]),
    (chunk_max, chunk_sum, chunk_o): (f32, f32, &[[f32; LANES]]),
) {
    let larger = if chunk_max > *max { chunk_max } else { *max };
    let by = [*max - larger, chunk_max - larger].map(crate::exp::exp);
    merge_by(s, (max, sum, o), (chunk_max, chunk_sum, chunk_o), by);
}

/// The same with the exponentials of both maxima less the larger one, which count where neither is infinite.
#[inline(always)]
fn merge_by<S: Simd>(
    s: S,
    (max, sum, o): (&mut f32, &mut f32, &mut [[f32; LANES]]),
    (chunk_max, chunk_sum, chunk_o): (f32, f32, &[[f32; LANES]]),
    [a, b]: [f32; 2],
) {
    if chunk_max == f32::NEG_INFINITY {
        return;
    }
    if *max == f32::NEG_INFINITY {
        o.copy_from_slice(chunk_o);
        (*max, *sum) = (chunk_max, chunk_sum);
        return;
    }
    for (x, y) in o.iter_mut().zip(chunk_o) {
        s.store(s.add(s.mul(s.load(x), s.splat(a)), s.mul(s.load(y), s.splat(b))), x);
    }
    *max = if chunk_max > *max { chunk_max } else { *max };
    *sum = *sum * a + chunk_sum * b;
}

/// Whether each group of queries widens the cache's elements for itself.
fn narrow<S: Simd>(job: &AttendJob) -> bool {
    !S::WIDENS || job.queries.len() <= S::QUERIES
}

/// How many queries of `left` a group takes.
#[inline(always)]
fn group_size<S: Simd>(left: usize) -> usize {
    [8, 4, 2].into_iter().find(|&size| size <= left && size <= S::QUERIES).unwrap_or(1)
}

#[inline(always)]
fn load_queries<S: Simd>(s: S, job: &AttendJob, scratch: &mut AttendScratch) {
    scratch.prepare(job);
    let mut half = [0u16; LANES];
    let mut rounded = [0.0; LANES];
    let factor = s.splat(match job.cache {
        CacheType::F16 if narrow::<S>(job) => Halves::factor::<S>(),
        _ => 1.0,
    });
    let mut first = 0;
    while first < job.queries.len() {
        let size = group_size::<S>(job.queries.len() - first);
        let to = &mut scratch.q[first * job.head_dim..][..size * job.head_dim];
        for (r, query) in job.queries[first..first + size].iter().enumerate() {
            for (i, part) in job.q[query.q..query.q + job.head_dim].chunks(LANES).enumerate() {
                s.store_f16(s.load(&padded(part)), &mut half);
                s.store(s.mul(s.load_f16(&half), factor), &mut rounded);
                for (j, &x) in rounded.iter().take(part.len()).enumerate() {
                    to[(i * LANES + j) * size + r] = x;
                }
            }
        }
        first += size;
    }
}

/// The queries' states over one chunk, into `scratch.chunk`. Chunks up to `chunks_end` come next.
#[inline(always)]
fn attend_chunk<S: Simd>(
    s: S,
    job: &AttendJob,
    chunk: usize,
    chunks_end: usize,
    scratch: &mut AttendScratch,
) {
    scratch.chunk.clear(job.queries.len(), job.value_dim.div_ceil(LANES));
    let Range { start, end } = job.span();
    let first = start.max(chunk * CHUNK) / BLOCK;
    let last = end.min((chunk + 1) * CHUNK).div_ceil(BLOCK);
    match job.kept {
        None => {
            let all = end.min(chunks_end * CHUNK).div_ceil(BLOCK);
            for index in first..last {
                let next = if index + 1 < all { Some(index + 1) } else { None };
                attend_block(s, job, KeyBlock { index: index as u32, whole: true }, end, next, scratch);
            }
        }
        Some(kept) => {
            let from = kept.blocks.partition_point(|block| (block.index as usize) < first);
            for &block in kept.blocks[from..].iter().take_while(|block| (block.index as usize) < last) {
                attend_block(s, job, block, end, None, scratch);
            }
        }
    }
}

/// What one query sees of a block: slots of the sequence's start, and of what is recent.
type Seen = [Range<usize>; 2];

/// `next`: the block that comes next, which is asked for meanwhile.
#[inline(always)]
fn attend_block<S: Simd>(
    s: S,
    job: &AttendJob,
    block: KeyBlock,
    end: usize,
    next: Option<usize>,
    scratch: &mut AttendScratch,
) {
    let base = block.index as usize * BLOCK;
    let page = &job.pages[block.index as usize];
    let inner = job.seen_by_all();
    let plain = block.whole && inner.start <= base && base + BLOCK <= inner.end;
    // What comes after the last query need not be read.
    let written = (end - base).min(BLOCK);
    let next = next.map_or(0, |next| page.distance(&job.pages[next]));
    let [subs, vectors] = [written.div_ceil(LANES) * job.head_dim, written * job.value_dim.div_ceil(LANES)];
    match job.cache {
        CacheType::F16 => {
            // SAFETY: pages are written before the step's attention starts, not during it.
            let keys = unsafe { page.read(job.keys_at..job.keys_at + key_len(job.head_dim)) };
            // SAFETY: as above.
            let values = unsafe { page.read(job.values_at..job.values_at + value_len(job.value_dim)) };
            let (keys, values) = (&keys.as_chunks().0[..subs], &values.as_chunks().0[..vectors]);
            let cached = Cached { keys, values, key_scales: &[], value_scales: &[] };
            attend_cached::<S, Halves, false>(s, job, block, plain, next, cached, scratch);
        }
        CacheType::Q8 => {
            let [k, v] = [runs(job.head_dim) * BLOCK, runs(job.value_dim) * BLOCK];
            // SAFETY: as above.
            let (key_scales, keys) = unsafe { read_q8(page, job.keys_at, k, key_len(job.head_dim)) };
            // SAFETY: as above.
            let (value_scales, values) = unsafe { read_q8(page, job.values_at, v, value_len(job.value_dim)) };
            let cached = Cached { keys: &keys[..subs], values: &values[..vectors], key_scales, value_scales };
            attend_cached::<S, Bytes, true>(s, job, block, plain, next, cached, scratch);
        }
    }
}

/// A block of keys and values: of the sub-blocks, and of the positions, that are written.
#[derive(Clone, Copy)]
struct Cached<'a, T> {
    keys: &'a [T],
    values: &'a [T],
    /// `[sub-blocks][runs of dimensions]` and `[runs][sub-blocks]`, where the cache has scales.
    key_scales: &'a [Halves],
    value_scales: &'a [Halves],
}

#[inline(always)]
fn attend_cached<S: Simd, T: Elements, const SCALED: bool>(
    s: S,
    job: &AttendJob,
    block: KeyBlock,
    plain: bool,
    next: usize,
    cached: Cached<T>,
    scratch: &mut AttendScratch,
) {
    let AttendScratch { q, keys: wide_keys, values: wide_values, scores, weights, chunk, .. } = scratch;
    if narrow::<S>(job) && !(SCALED && S::SHORT) {
        let of = GroupsOf { job, block, plain, next, q, cached, scores, weights, states: chunk };
        return attend_groups::<S, T, SCALED>(s, of);
    }
    widen(s, cached.keys, wide_keys);
    widen(s, cached.values, wide_values);
    let Cached { key_scales, value_scales, .. } = cached;
    let (keys, values) = (&wide_keys[..cached.keys.len()], &wide_values[..cached.values.len()]);
    let cached = Cached { keys, values, key_scales, value_scales };
    let of = GroupsOf { job, block, plain, next: 0, q, cached, scores, weights, states: chunk };
    attend_groups::<S, [f32; LANES], SCALED>(s, of);
}

#[inline(always)]
fn widen<S: Simd, T: Elements>(s: S, from: &[T], to: &mut [[f32; LANES]]) {
    for (from, to) in from.iter().zip(to) {
        s.store(from.widened(s), to);
    }
}

/// 16 elements of the cache, as a page has them or widened.
trait Elements {
    fn widened<S: Simd>(&self, s: S) -> S::F;
    /// The same without a factor that depends on the ISA.
    #[inline(always)]
    fn load<S: Simd>(&self, s: S, _: S::I) -> S::F {
        self.widened(s)
    }
    /// That factor: what meets the elements is multiplied by it, exactly.
    #[inline(always)]
    fn factor<S: Simd>() -> f32 {
        1.0
    }
}

impl Elements for Halves {
    #[inline(always)]
    fn widened<S: Simd>(&self, s: S) -> S::F {
        s.load_f16(self)
    }
    #[inline(always)]
    fn load<S: Simd>(&self, s: S, bits: S::I) -> S::F {
        s.load_cached(bits, self)
    }
    #[inline(always)]
    fn factor<S: Simd>() -> f32 {
        S::CACHED
    }
}

impl Elements for Bytes {
    #[inline(always)]
    fn widened<S: Simd>(&self, s: S) -> S::F {
        s.load_i8(self)
    }
}

impl Elements for [f32; LANES] {
    #[inline(always)]
    fn widened<S: Simd>(&self, s: S) -> S::F {
        s.load(self)
    }
}

/// A job's queries and one block of keys and values.
struct GroupsOf<'a, 'b, T> {
    job: &'a AttendJob<'b>,
    block: KeyBlock,
    /// Every query sees all of the block.
    plain: bool,
    /// How far after each item lies that of the next block, which is asked for; 0: none is.
    next: usize,
    q: &'a [f32],
    cached: Cached<'a, T>,
    scores: &'a mut [[f32; BLOCK]; MAX_GROUP],
    weights: &'a mut [[[f32; BLOCK]; MAX_GROUP]; MAX_RUNS],
    states: &'a mut Rows,
}

#[inline(always)]
fn attend_groups<S: Simd, T: Elements, const SCALED: bool>(s: S, mut of: GroupsOf<T>) {
    let mut first = 0;
    while first < of.job.queries.len() {
        let size = group_size::<S>(of.job.queries.len() - first);
        let of = &mut of;
        match size {
            8 => s.call(Group::<8, T, SCALED> { of, first }),
            4 => s.call(Group::<4, T, SCALED> { of, first }),
            2 => s.call(Group::<2, T, SCALED> { of, first }),
            _ => s.call(Group::<1, T, SCALED> { of, first }),
        }
        first += size;
    }
}

/// R of the queries; `SCALED` where the cache has scales.
struct Group<'a, 'b, 'c, const R: usize, T, const SCALED: bool> {
    of: &'a mut GroupsOf<'b, 'c, T>,
    first: usize,
}

impl<S: Simd, const R: usize, T: Elements, const SCALED: bool> Work<S> for Group<'_, '_, '_, R, T, SCALED> {
    type Output = ();

    #[inline(always)]
    fn run(mut self, s: S) {
        let edge = !self.of.plain;
        let seen: [Seen; R] = std::array::from_fn(|r| {
            if edge { self.seen(&self.of.job.queries[self.first + r]) } else { [0..0, 0..0] }
        });
        if edge && seen.iter().all(|seen| seen.iter().all(Range::is_empty)) {
            return;
        }
        let vectors = if SCALED && S::SHORT { 1 } else { S::SUMS / R };
        match vectors {
            0 | 1 => self.score::<S, 1>(s),
            2 | 3 => self.score::<S, 2>(s),
            _ => self.score::<S, 4>(s),
        }
        for (seen, scores) in seen.iter().zip(self.of.scores.iter_mut()) {
            if edge && seen[0].len() < BLOCK {
                mask(seen, scores);
            }
        }
        let corrections = self.soften(s);
        match vectors {
            0 | 1 => self.gather::<S, 1>(s, corrections),
            2 | 3 => self.gather::<S, 2>(s, corrections),
            _ => self.gather::<S, 4>(s, corrections),
        }
    }
}

/// Scores to exp(score - offset) as F16 has it, N vectors at a time; adds them to the rows' sums. Those that are left are
/// multiplied by a power of two.
#[inline(always)]
fn weigh<S: Simd, const N: usize>(
    s: S,
    scores: &mut [[f32; LANES]],
    offsets: &[f32],
    sums: &mut [[f32; LANES]],
    factor: f32,
) {
    for (i, scores) in scores.as_chunks_mut::<N>().0.iter_mut().enumerate() {
        let first = i * N / SUBS;
        let mut x = [s.splat(0.0); N];
        for n in 0..N {
            x[n] = s.sub(s.load(&scores[n]), s.splat(offsets[first + n / SUBS]));
        }
        let mut p = exp_negative(s, x);
        for n in 0..N {
            p[n] = s.round_f16(p[n]);
            s.store(s.mul(p[n], s.splat(factor)), &mut scores[n]);
        }
        for row in 0..N / SUBS {
            let sums = &mut sums[first + row];
            let mut sum = s.load(sums);
            for n in 0..SUBS {
                sum = s.add(sum, p[row * SUBS + n]);
            }
            s.store(sum, sums);
        }
    }
}

/// Sets scores of positions that a query does not see to -inf.
#[inline(always)]
fn mask([early, recent]: &Seen, scores: &mut [f32; BLOCK]) {
    for (slot, score) in scores.iter_mut().enumerate() {
        if !early.contains(&slot) && !recent.contains(&slot) {
            *score = f32::NEG_INFINITY;
        }
    }
}

/// Items of a cache line.
const fn per_line<T>() -> usize {
    64 / size_of::<T>()
}

impl<const R: usize, T: Elements, const SCALED: bool> Group<'_, '_, '_, R, T, SCALED> {
    /// The first group of a block asks for the next.
    #[inline(always)]
    fn next(&self) -> usize {
        if self.first == 0 { self.of.next } else { 0 }
    }

    #[inline(always)]
    fn seen(&self, query: &Query) -> Seen {
        let (job, block) = (self.of.job, self.of.block);
        let base = block.index as usize * BLOCK;
        let slots = |positions: Range<usize>| {
            positions.start.saturating_sub(base).min(BLOCK)..positions.end.saturating_sub(base).min(BLOCK)
        };
        let visible = job.visible(query);
        match job.kept {
            Some(kept) if !block.whole => [
                slots(visible.start..kept.sinks.min(visible.end)),
                slots(visible.start.max(visible.end.saturating_sub(kept.recent))..visible.end),
            ],
            _ => [slots(visible), 0..0],
        }
    }

    /// Scores, N sub-blocks of 16 keys at a time. Those of sub-blocks that are not written stay as they are: no query sees them.
    #[inline(always)]
    fn score<S: Simd, const N: usize>(&mut self, s: S) {
        let subs = self.of.cached.keys.len() / self.of.job.head_dim;
        let mut at = 0;
        while at + N <= subs {
            self.score_subs::<S, N>(s, at);
            at += N;
        }
        while N > 1 && at < subs {
            self.score_subs::<S, 1>(s, at);
            at += 1;
        }
    }

    /// Sub-blocks `first..first + N`.
    #[inline(always)]
    fn score_subs<S: Simd, const N: usize>(&mut self, s: S, first: usize) {
        let dim = self.of.job.head_dim;
        let mut dots = [[s.splat(0.0); N]; R];
        if SCALED {
            for run in 0..runs(dim) {
                let of_run = self.dots::<S, N>(s, first, run * QK..dim.min((run + 1) * QK));
                for n in 0..N {
                    let at = (first + n) * runs(dim) + run;
                    let scales = &self.of.cached.key_scales[at];
                    if self.next() != 0 && at.is_multiple_of(per_line::<Halves>()) {
                        s.prefetch_next(scales, self.next());
                    }
                    let scales = s.load_f16(scales);
                    for r in 0..R {
                        dots[r][n] = s.add(dots[r][n], s.mul(of_run[r][n], scales));
                    }
                }
            }
        } else {
            dots = self.dots::<S, N>(s, first, 0..dim);
        }
        let GroupsOf { job, scores, .. } = &mut *self.of;
        for r in 0..R {
            let to = scores[r].as_chunks_mut::<LANES>().0;
            for n in 0..N {
                let score = s.mul(dots[r][n], s.splat(job.scale));
                let score = match job.softcap {
                    Some(cap) => softcap(s, score, cap),
                    None => score,
                };
                s.store(score, &mut to[first + n]);
            }
        }
    }

    /// Products over some dimensions with the keys of sub-blocks `first..first + N`.
    #[inline(always)]
    fn dots<S: Simd, const N: usize>(&self, s: S, first: usize, dims: Range<usize>) -> [[S::F; N]; R] {
        let next = self.next();
        let GroupsOf { job, q, cached, .. } = &*self.of;
        let dim = job.head_dim;
        let queries = &q[self.first * dim..][..R * dim].as_chunks::<R>().0[..dim];
        let keys: [&[T]; N] = std::array::from_fn(|n| &cached.keys[(first + n) * dim..][..dim]);
        let mut dots = [[s.splat(0.0); N]; R];
        let bits = s.cached_bits();
        for d in dims {
            let mut key = [s.splat(0.0); N];
            for n in 0..N {
                key[n] = keys[n][d].load(s, bits);
                if next != 0 && d.is_multiple_of(per_line::<T>()) {
                    s.prefetch_next(&keys[n][d], next);
                }
            }
            for r in 0..R {
                for n in 0..N {
                    dots[r][n] = s.mul_each_add_exact(key[n], &queries[d][r], dots[r][n]);
                }
            }
        }
        dots
    }

    /// Scores to probabilities; returns what earlier sums are multiplied by.
    #[inline(always)]
    fn soften<S: Simd>(&mut self, s: S) -> [f32; R] {
        let GroupsOf { scores, states, .. } = &mut *self.of;
        let rows = self.first..self.first + R;
        let (max, sums) = (&mut states.max[rows.clone()], &mut states.sums[rows]);
        let mut offsets = [0.0; R];
        let mut changes = [0.0; LANES];
        for r in 0..R {
            let scores = scores[r].as_chunks::<LANES>().0;
            let mut highest = s.load(&scores[0]);
            for v in &scores[1..] {
                highest = s.max(highest, s.load(v));
            }
            let highest = s.max_lane(highest);
            let new = if highest > max[r] { highest } else { max[r] };
            // A row that has seen no key yet: keep every exponent's argument a number.
            offsets[r] = if new == f32::NEG_INFINITY { 0.0 } else { new };
            changes[r] = max[r] - offsets[r];
            max[r] = new;
        }
        let mut corrections = [0.0; LANES];
        let [change] = exp_negative(s, [s.load(&changes)]);
        s.store(change, &mut corrections);
        for r in 0..R {
            s.store(s.mul(s.load(&sums[r]), s.splat(corrections[r])), &mut sums[r]);
        }
        let scores = scores[..R].as_flattened_mut().as_chunks_mut::<LANES>().0;
        match S::SUMS * 4 / S::QUERIES {
            8.. if R > 1 => weigh::<S, 8>(s, scores, &offsets, sums, T::factor::<S>()),
            _ => weigh::<S, 4>(s, scores, &offsets, sums, T::factor::<S>()),
        }
        std::array::from_fn(|r| corrections[r])
    }

    /// p * d of some runs of dimensions, rounded to 17 bits: exact products with bytes then fit a float.
    #[inline(always)]
    fn scale_runs<S: Simd>(&mut self, s: S, first: usize, count: usize) {
        let next = self.next();
        let GroupsOf { cached, scores, weights, .. } = &mut *self.of;
        for run in 0..count {
            for (i, scales) in cached.value_scales[(first + run) * SUBS..][..SUBS].iter().enumerate() {
                if next != 0 && i.is_multiple_of(per_line::<Halves>()) {
                    s.prefetch_next(scales, next);
                }
                let scales = s.load_f16(scales);
                for r in 0..R {
                    let product = s.mul(s.load(&scores[r].as_chunks().0[i]), scales);
                    let large = s.mul(product, s.splat(SPLIT));
                    let rounded = s.sub(large, s.sub(large, product));
                    s.store(rounded, &mut weights[run][r].as_chunks_mut().0[i]);
                }
            }
        }
    }

    /// o = o * correction + 0 + p · V.
    #[inline(always)]
    fn gather<S: Simd, const N: usize>(&mut self, s: S, corrections: [f32; R]) {
        let vectors = self.of.job.value_dim.div_ceil(LANES);
        let mut at = 0;
        while at + N <= vectors {
            if SCALED && at.is_multiple_of(RUN) {
                self.scale_runs(s, at / RUN, N.div_ceil(RUN));
            }
            self.gather_vectors::<S, N>(s, &corrections, at, vectors);
            at += N;
        }
        while N > 1 && at < vectors {
            if SCALED && at.is_multiple_of(RUN) {
                self.scale_runs(s, at / RUN, 1);
            }
            self.gather_vectors::<S, 1>(s, &corrections, at, vectors);
            at += 1;
        }
    }

    /// Vectors `at..at + N` of the values.
    #[inline(always)]
    fn gather_vectors<S: Simd, const N: usize>(
        &mut self,
        s: S,
        corrections: &[f32; R],
        at: usize,
        vectors: usize,
    ) {
        let next = self.next();
        let GroupsOf { cached, scores, weights, states, .. } = &mut *self.of;
        let o = &mut states.o[self.first * vectors..][..R * vectors];
        let mut sums = [[s.splat(0.0); N]; R];
        for r in 0..R {
            for n in 0..N {
                let o = s.load(&o[r * vectors + at + n]);
                sums[r][n] = s.add(s.mul(o, s.splat(corrections[r])), s.splat(0.0));
            }
        }
        let bits = s.cached_bits();
        for (slot, values) in cached.values.chunks_exact(vectors).take(BLOCK).enumerate() {
            let values = &values[at..at + N];
            let mut value = [s.splat(0.0); N];
            for n in 0..N {
                value[n] = values[n].load(s, bits);
                if next != 0 && (at + n).is_multiple_of(per_line::<T>()) {
                    s.prefetch_next(&values[n], next);
                }
            }
            for r in 0..R {
                for n in 0..N {
                    let p = if SCALED { &weights[n / RUN][r][slot] } else { &scores[r][slot] };
                    sums[r][n] = s.mul_each_add_exact(value[n], p, sums[r][n]);
                }
            }
        }
        for r in 0..R {
            for n in 0..N {
                s.store(sums[r][n], &mut o[r * vectors + at + n]);
            }
        }
    }
}
