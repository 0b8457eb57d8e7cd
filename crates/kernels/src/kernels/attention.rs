//! Causal attention over the paged F16 cache, by online softmax (Milakov and Gimelshein, 2018,
//! arXiv:1805.02867; Dao et al., 2022, arXiv:2205.14135), over all keys or over blocks of them.
//!
//! ```text
//! for each chunk of 1,024 positions, ascending:           fixed boundaries: neither threads nor
//!   m = -inf, l = 0, o = 0                                the prompt's chunking move them
//!   for each kept block of 64 keys in the chunk, ascending:
//!     s[key] = (q . k[key]) * scale                       lane = key, sequential over dimensions
//!     s[key] = cap * tanh(s[key] / cap) where capped
//!     s[key] = -inf where masked
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
//! block is the same as masking it. Chunks may be computed apart, by several threads: merged in
//! ascending order they give the same bits.
//!
//! A page holds 64 positions of one layer and KV head set: keys as [4 sub-blocks][head_dim][16 keys],
//! values as [64 positions][value_dim padded to 16].

use super::padded;
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
/// Queries of a job at most.
pub const MAX_QUERIES: usize = 64;

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
    /// Where not all of what it sees is kept.
    pub kept: Option<Kept<'a>>,
}

/// What a sparse pattern keeps of the keys that queries see.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a> {
    /// Ascending.
    pub blocks: &'a [KeyBlock],
    /// Of blocks that are not whole: the first positions of the sequence, and the last before each
    /// query, its own included.
    pub sinks: usize,
    pub recent: usize,
}

/// A block of 64 keys that is kept, whole or as far as [`Kept::sinks`] and [`Kept::recent`] reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyBlock {
    pub index: u32,
    pub whole: bool,
}

impl AttendJob<'_> {
    /// The positions a query sees, kept or not.
    pub fn visible(&self, query: &Query) -> Range<usize> {
        let end = query.position + 1;
        self.window.map_or(0, |w| end.saturating_sub(w))..end
    }

    /// The positions that any query sees.
    pub fn span(&self) -> Range<usize> {
        let seen = self.queries.iter().map(|query| self.visible(query));
        seen.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0)
    }

    /// The positions that every query sees.
    pub fn seen_by_all(&self) -> Range<usize> {
        let seen = self.queries.iter().map(|query| self.visible(query));
        seen.reduce(|a, b| a.start.max(b.start)..a.end.min(b.end)).unwrap_or(0..0)
    }

    /// The chunks that the job's positions lie in.
    pub fn chunks(&self) -> Range<usize> {
        let Range { start, end } = self.span();
        start / CHUNK..end.div_ceil(CHUNK)
    }

    /// Floats of the state of one query over one chunk: its maximum and sum, 16 floats long, and its o.
    pub fn state_len(&self) -> usize {
        state_len(self.value_dim)
    }
}

/// See [`AttendJob::state_len`].
pub const fn state_len(value_dim: usize) -> usize {
    LANES + value_dim.next_multiple_of(LANES)
}

/// One token's keys and values of all KV heads of a layer, to be stored.
pub struct StoreJob<'a> {
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub head_dim: usize,
    pub value_dim: usize,
    pub page: Shared<'a, u16>,
    /// Where the layer starts in the page: each head's keys, then its values.
    pub start: usize,
    /// Which of the page's positions; its elements belong to the job alone.
    pub slot: usize,
}

/// One KV head of a [`StoreJob`]: its key and value, and where their first elements belong.
struct HeadSlot<'a> {
    k: &'a [f32],
    v: &'a [f32],
    key_at: usize,
    value_at: usize,
}

impl StoreJob<'_> {
    /// How many KV heads there are.
    pub fn heads(&self) -> usize {
        self.k.len() / self.head_dim
    }

    /// Where a head's keys and values start in the page.
    pub fn head_at(&self, head: usize) -> [usize; 2] {
        let keys_at = self.start + head * (key_len(self.head_dim) + value_len(self.value_dim));
        [keys_at, keys_at + key_len(self.head_dim)]
    }

    #[inline(always)]
    fn slot_of(&self, head: usize) -> HeadSlot<'_> {
        let (dim, value_dim) = (self.head_dim, self.value_dim);
        let [keys_at, values_at] = self.head_at(head);
        HeadSlot {
            k: &self.k[head * dim..(head + 1) * dim],
            v: &self.v[head * value_dim..(head + 1) * value_dim],
            key_at: keys_at + self.slot / LANES * dim * LANES + self.slot % LANES,
            value_at: values_at + self.slot * value_dim.next_multiple_of(LANES),
        }
    }
}

/// Appends a token's keys and values to its page. A key is spread over as many cache lines as it has pairs of dimensions, which
/// no cache has kept since the last token: all heads' are asked for before any is written.
///
/// # Errors
/// [`NonFinite`] when a value does not fit F16.
#[inline(always)]
pub fn store_kv<S: Simd>(s: S, job: &StoreJob) -> Result<(), NonFinite> {
    for head in 0..job.heads() {
        let HeadSlot { k, v, key_at, value_at } = job.slot_of(head);
        let keys = (0..k.len()).step_by(2).map(|d| key_at + d * LANES);
        let values = (0..v.len()).step_by(2 * LANES).map(|d| value_at + d);
        for place in keys.chain(values) {
            s.prefetch_write(job.page.address(place));
        }
    }
    let mut finite = true;
    for head in 0..job.heads() {
        let HeadSlot { k, v, key_at, value_at } = job.slot_of(head);
        // SAFETY: the slot belongs to this job alone.
        finite &=
            unsafe { store_half(s, k, &job.page, key_at, LANES) & store_half(s, v, &job.page, value_at, 1) };
    }
    if finite { Ok(()) } else { Err(NonFinite) }
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
        let half = &half[..part.len()];
        finite &= half.iter().all(|bits| bits & 0x7c00 != 0x7c00);
        // SAFETY: the caller's promise.
        unsafe { page.scatter(first + i * LANES * stride, stride, half) };
    }
    finite
}
