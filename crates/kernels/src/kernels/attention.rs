//! Causal attention over the paged cache, by online softmax (Milakov and Gimelshein, 2018,
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
//! A page holds 64 positions of one layer and KV head set: keys as `[4 sub-blocks][head_dim][16 keys]`,
//! values as [64 positions][value_dim padded to 16].
//!
//! A Q8_0 cache ([`CacheType::Q8`]) holds them as signed bytes with an F16 scale d for every 32 dimensions of a
//! head, of which the last run may be shorter, quantised as activations are but for the rounding of d. Each has its
//! scales first, of keys as [4 sub-blocks][runs][16 keys], of values as [runs][64 positions], then its bytes in the
//! order of above. Scales meet what has been summed, or probabilities, so that products stay exact:
//!
//! ```text
//! q . k = 0 + sum over runs of (sum over the run's dimensions of q * byte) * d
//! o     = ... + sum over keys of w * byte, where w = p * d rounded to 17 bits: c - (c - p * d), c = (p * d) * 129
//! ```

use super::padded;
use crate::acts::NonFinite;
use crate::float16::f32_to_f16;
use crate::simd::{LANES, QK, Simd};
use crate::view::{Plain, Shared};
use std::ops::Range;

/// Positions of a page, and keys of a block.
pub const BLOCK: usize = 64;
/// Positions whose softmax state is merged at once.
pub const CHUNK: usize = 1024;
/// Of keys and of values.
pub const MAX_HEAD_DIM: usize = 576;
/// Queries of a job at most.
pub const MAX_QUERIES: usize = 64;

/// Numbers of one KV head's keys in a page.
pub fn key_len(head_dim: usize) -> usize {
    BLOCK * head_dim
}

/// Numbers of one KV head's values in a page.
pub fn value_len(value_dim: usize) -> usize {
    BLOCK * value_dim.next_multiple_of(LANES)
}

/// Scales of a Q8_0 key or value of so many dimensions.
pub fn runs(dim: usize) -> usize {
    dim.div_ceil(QK)
}

/// What a cache holds keys and values as.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CacheType {
    #[default]
    F16,
    /// Q8_0.
    Q8,
}

impl CacheType {
    pub const ALL: [Self; 2] = [Self::F16, Self::Q8];

    /// Words of 16 bits that one KV head's keys take in a page.
    pub fn key_words(self, head_dim: usize) -> usize {
        self.words(head_dim, key_len(head_dim))
    }

    /// Words of 16 bits that one KV head's values take in a page.
    pub fn value_words(self, value_dim: usize) -> usize {
        self.words(value_dim, value_len(value_dim))
    }

    fn words(self, dim: usize, numbers: usize) -> usize {
        match self {
            Self::F16 => numbers,
            Self::Q8 => BLOCK * runs(dim) + numbers / 2,
        }
    }
}

/// 16 numbers of a Q8_0 cache.
pub type Bytes = [i8; LANES];
/// 16 F16 numbers: of an F16 cache, or scales.
pub type Halves = [u16; LANES];

/// The scales and the bytes of one KV head's Q8_0 keys or values, which start at word `at` of a page.
///
/// # Safety
/// No thread writes them while the result lives.
pub unsafe fn read_q8<'a>(
    page: &Shared<'a, u16>,
    at: usize,
    scales: usize,
    bytes: usize,
) -> (&'a [Halves], &'a [Bytes]) {
    let first = (at + scales) * 2;
    // SAFETY: the caller's promise.
    let (scales, bytes) = unsafe { (page.read(at..at + scales), page.bytes().read(first..first + bytes)) };
    (scales.as_chunks().0, bytes.as_chunks().0)
}

/// The largest scale of a Q8_0 cache, 512: so that 127 times it is an F16 number too.
pub(crate) const MAX_SCALE: u16 = 0x6000;

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
    /// The sequence's pages, and at which of their words this layer's and head's keys and values start.
    pub cache: CacheType,
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
    pub cache: CacheType,
    pub page: Shared<'a, u16>,
    /// The page's word at which the layer starts: each head's keys, then its values.
    pub start: usize,
    /// Which of the page's positions; its elements belong to the job alone.
    pub slot: usize,
}

/// A key or value to be stored, and where its elements belong: the first one, and how far apart they are.
struct Slot<'a> {
    x: &'a [f32],
    at: usize,
    stride: usize,
    /// The same of its scales, where it has any.
    scale_at: usize,
    scale_stride: usize,
}

impl StoreJob<'_> {
    /// How many KV heads there are.
    pub fn heads(&self) -> usize {
        self.k.len() / self.head_dim
    }

    /// The words at which a head's keys and values start in the page.
    pub fn head_at(&self, head: usize) -> [usize; 2] {
        let (keys, values) = (self.cache.key_words(self.head_dim), self.cache.value_words(self.value_dim));
        let keys_at = self.start + head * (keys + values);
        [keys_at, keys_at + keys]
    }

    /// Where a head's key and value belong. Elements are counted from the page's start, so in bytes those of a Q8_0 cache.
    #[inline(always)]
    fn slots(&self, head: usize) -> [Slot<'_>; 2] {
        let (dim, value_dim) = (self.head_dim, self.value_dim);
        let [keys_at, values_at] = self.head_at(head);
        let (sub, lane) = (self.slot / LANES, self.slot % LANES);
        let first = |at: usize, dim: usize| match self.cache {
            CacheType::F16 => at,
            CacheType::Q8 => (at + BLOCK * runs(dim)) * 2,
        };
        let key = Slot {
            x: &self.k[head * dim..(head + 1) * dim],
            at: first(keys_at, dim) + sub * dim * LANES + lane,
            stride: LANES,
            scale_at: keys_at + sub * runs(dim) * LANES + lane,
            scale_stride: LANES,
        };
        let value = Slot {
            x: &self.v[head * value_dim..(head + 1) * value_dim],
            at: first(values_at, value_dim) + self.slot * value_dim.next_multiple_of(LANES),
            stride: 1,
            scale_at: values_at + self.slot,
            scale_stride: BLOCK,
        };
        [key, value]
    }
}

/// Appends a token's keys and values to its page. A key is spread over as many cache lines as it has pairs of dimensions, which
/// no cache has kept since the last token: all heads' are asked for before any is written.
///
/// # Errors
/// [`NonFinite`] when a value does not fit F16 or, of a Q8_0 cache, needs a scale over 512.
#[inline(always)]
pub fn store_kv<S: Simd>(s: S, job: &StoreJob) -> Result<(), NonFinite> {
    let mut finite = true;
    match job.cache {
        CacheType::F16 => {
            for head in 0..job.heads() {
                for slot in job.slots(head) {
                    ask(s, &slot, &job.page);
                }
            }
            for head in 0..job.heads() {
                for slot in job.slots(head) {
                    // SAFETY: the slot belongs to this job alone.
                    finite &= unsafe { store_half(s, &slot, &job.page) };
                }
            }
        }
        CacheType::Q8 => {
            let bytes = job.page.bytes();
            for head in 0..job.heads() {
                for slot in job.slots(head) {
                    ask(s, &slot, &bytes);
                }
            }
            for head in 0..job.heads() {
                for slot in job.slots(head) {
                    // SAFETY: as above.
                    finite &= unsafe { store_bytes(s, &slot, &job.page, &bytes) };
                }
            }
        }
    }
    if finite { Ok(()) } else { Err(NonFinite) }
}

/// Asks for the cache lines that elements will be written to.
#[inline(always)]
fn ask<S: Simd, T: Plain>(s: S, slot: &Slot, page: &Shared<T>) {
    let line = 64 / size_of::<T>();
    for i in (0..slot.x.len()).step_by((line / slot.stride).max(1)) {
        s.prefetch_write(page.address(slot.at + i * slot.stride));
    }
}

/// Writes values as F16; false where one does not fit.
///
/// # Safety
/// No other thread uses the elements written.
#[inline(always)]
unsafe fn store_half<S: Simd>(s: S, slot: &Slot, page: &Shared<u16>) -> bool {
    let mut half = [0u16; LANES];
    let mut finite = true;
    for (i, part) in slot.x.chunks(LANES).enumerate() {
        s.store_f16(s.load(&padded(part)), &mut half);
        let half = &half[..part.len()];
        finite &= half.iter().all(|bits| bits & 0x7c00 != 0x7c00);
        // SAFETY: the caller's promise.
        unsafe { page.scatter(slot.at + i * LANES * slot.stride, slot.stride, half) };
    }
    finite
}

/// Writes values as bytes and scales, a run of 32 after the other; false where a scale is too large.
///
/// # Safety
/// No other thread uses the elements written.
#[inline(always)]
unsafe fn store_bytes<S: Simd>(s: S, slot: &Slot, page: &Shared<u16>, bytes: &Shared<i8>) -> bool {
    let mut finite = true;
    for (i, run) in slot.x.chunks(QK).enumerate() {
        let (first, second) = run.split_at(run.len().min(LANES));
        let x = [s.load(&padded(first)), s.load(&padded(second))];
        let mut lanes = [0.0; LANES];
        s.store(s.add(s.sub(x[0], x[0]), s.sub(x[1], x[1])), &mut lanes);
        let amax = s.max_lane(s.max(s.abs(x[0]), s.abs(x[1])));
        let inverse = 127.0 / amax;
        let (scale, inverse) =
            if inverse.is_infinite() { (0, 0.0) } else { (f32_to_f16(amax / 127.0), inverse) };
        // x - x is 0 for a finite x and NaN for any other.
        let fits = lanes.iter().all(|&lane| lane == 0.0) && scale <= MAX_SCALE;
        finite &= fits;
        let by = s.splat(if fits { inverse } else { 0.0 });
        let mut values = [0; QK];
        for (x, out) in x.into_iter().zip(values.as_chunks_mut::<LANES>().0) {
            s.store_i8(s.mul(x, by), out);
        }
        // SAFETY: the caller's promise.
        unsafe {
            bytes.scatter(slot.at + i * QK * slot.stride, slot.stride, &values[..run.len()]);
            page.set(slot.scale_at + i * slot.scale_stride, scale);
        }
    }
    finite
}
