//! The small SIMD trait that every kernel is written against, and one file per ISA.
//!
//! A value of an implementing type is a token: it exists only where the CPU has the ISA, so the
//! methods are safe to call. All of them work on 16 lanes, whatever the register width, and all
//! float methods are single IEEE operations, so that every ISA gives the same bits.

#[cfg(target_arch = "x86_64")]
mod ahead;
#[cfg(target_arch = "x86_64")]
pub mod amx;
#[cfg(target_arch = "x86_64")]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
pub mod avx512;
#[cfg(target_arch = "aarch64")]
pub mod neon;
pub(crate) mod turn;
pub mod values;
/// The intrinsics, which do not depend on the width of addresses.
#[cfg(target_family = "wasm")]
pub(crate) mod wasm_arch {
    #[cfg(target_arch = "wasm32")]
    pub use std::arch::wasm32::*;
    #[cfg(target_arch = "wasm64")]
    pub use std::arch::wasm64::*;
}
#[cfg(all(target_family = "wasm", target_feature = "simd128"))]
pub mod wasm;
#[cfg(all(target_family = "wasm", target_feature = "simd128"))]
mod wasm_columns;
#[cfg(all(target_family = "wasm", target_feature = "relaxed-simd"))]
pub mod wasm_relaxed;
#[cfg(all(target_family = "wasm", target_feature = "relaxed-simd"))]
mod wasm_slab;

use crate::packed::{Format, RUN};
use values::{Item, SIGNED_VECTORS, Values};

/// Lanes of a vector: outputs of a weight tile, keys of a cache sub-block.
pub const LANES: usize = 16;
/// Elements of one quantisation block along the reduction.
pub const QK: usize = 32;
/// Vectors of a block's unpacked values, a group of four values each.
pub const VECTORS: usize = QK / 4;
/// Where the scales of unpacked blocks, as many as a run's, have the minimums; then a run's own scale and minimum.
pub const MINIMUMS: usize = RUN;
pub const RUN_SCALE: usize = RUN * 2;
pub const RUN_MINIMUM: usize = RUN_SCALE + 1;
/// Every group of four values of a block, with `$group` a constant: loops are not sure to be unrolled.
#[allow(unused_macros)]
macro_rules! each_group {
    ($group:ident in [$($at:literal)*] $body:block) => {
        $({ let $group: usize = $at; $body })*
    };
}
#[allow(unused_imports)]
pub(crate) use each_group;

/// The largest offset of values whose blocks have one scale, and of those with one for each half: see [`Values::OFFSET`].
pub const OFFSET: i32 = 128;
pub const HALVES_OFFSET: i32 = 32;
/// Other offsets of values whose blocks have scales of their own.
const BLOCK_OFFSETS: [i32; 2] = [8, 16];

/// One column's quantised activations for one block, all that a dot product needs in one place.
#[derive(Clone, Copy, PartialEq, Debug)]
#[repr(C)]
pub struct ActBlock {
    pub scale: f32,
    /// Minus the sums of the values' two halves: they take out the offset that packed weights have, and
    /// are what minimums are multiplied by.
    pub minus_halves: [i16; 2],
    /// In every second block of a run that shares its scale: minus the sums of the block before and of this one.
    pub minus_both: [i16; 2],
    /// [`OFFSET`] times minus the sum of all values: where sums can start without being computed.
    pub start: i32,
    /// The same with [`BLOCK_OFFSETS`]; in a run that shares its scale [`HALVES_OFFSET`] times minus the sums of the two halves.
    pub starts: [i32; 2],
    /// Within -127..=127.
    pub values: [i8; QK],
}

const _: () = assert!(size_of::<ActBlock>() == 56);

impl ActBlock {
    /// Some values of the same scale.
    #[inline(always)]
    pub fn new(scale: f32, values: [i8; QK]) -> Self {
        let mut block =
            Self { scale, minus_halves: [0; 2], minus_both: [0; 2], start: 0, starts: [0; 2], values };
        let halves = values.as_chunks::<LANES>().0;
        block.put_sums([0, 1].map(|half| halves[half].iter().map(|&q| q as i32).sum()));
        block
    }

    /// Fills in what follows from the sums of the values' halves.
    #[inline(always)]
    pub fn put_sums(&mut self, [first, second]: [i32; 2]) {
        self.minus_halves = [-first as i16, -second as i16];
        self.minus_both = [0; 2];
        self.start = (-first - second) * OFFSET;
        self.starts = BLOCK_OFFSETS.map(|offset| (-first - second) * offset);
    }

    /// Minus the sum of all values times the offset of `V` or a larger number, and that number. Where `V` has one of
    /// [`BLOCK_OFFSETS`] the block must have a scale of its own.
    #[inline(always)]
    pub fn start_of<V: Values>(&self) -> (i32, i32) {
        match BLOCK_OFFSETS.iter().position(|&offset| offset == V::OFFSET) {
            Some(i) => (self.starts[i], V::OFFSET),
            None => (self.start, OFFSET),
        }
    }

    /// Minus the sum of all values.
    #[inline(always)]
    pub fn minus_sum(&self) -> i32 {
        self.start / OFFSET
    }

    /// Fills in what blocks of a run have instead.
    #[inline(always)]
    pub fn pair_up(run: &mut [Self]) {
        for pair in run.chunks_exact_mut(2) {
            pair[1].minus_both = [0, 1].map(|i| pair[i].minus_halves[0] + pair[i].minus_halves[1]);
            for block in pair {
                block.starts = block.minus_halves.map(|sum| sum as i32 * HALVES_OFFSET);
            }
        }
    }
}

/// Bits of rows' words: all 16 rows' with the token of an ISA, those of one register within a dot product.
pub trait Words: Copy {
    /// One 32-bit word of each row.
    type I: Copy;

    /// The rows' words of vector `index`, 64 bytes of 16 rows.
    fn load_words(self, from: &[u8], index: usize) -> Self::I;
    /// Every word with the bits of `bits` alone.
    fn and_bits(self, v: Self::I, bits: u32) -> Self::I;
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    /// Words shifted by less than 32.
    fn shift_left(self, v: Self::I, by: usize) -> Self::I;
    fn shift_right(self, v: Self::I, by: usize) -> Self::I;
    /// Every byte, 0..=15, replaced by that entry of the table.
    fn lookup(self, table: &[u8; 16], v: Self::I) -> Self::I;
}

/// Four values of a query, and which of them are multiplied by a page's lowest values, in three forms.
#[derive(Clone, Copy)]
pub struct Wish {
    pub values: [i8; 4],
    pub magnitudes: [u8; 4],
    /// All bits, or none.
    pub lowest: [u8; 4],
    /// The same four bits for each row.
    pub lowest_bits: u64,
}

impl Wish {
    pub const NOTHING: Self = Self { values: [0; 4], magnitudes: [0; 4], lowest: [0; 4], lowest_bits: 0 };
}

/// Work for the vectors of one ISA.
pub trait Work<S> {
    type Output;
    fn run(self, s: S) -> Self::Output;
}

pub trait Simd: Words {
    /// 16 f32 lanes. (`I` of [`Words`] is 16 i32 lanes.)
    type F: Copy;
    /// How many columns the registers hold accumulators for, with `TILES` tiles: 6, 4, 2 or 1.
    const COLUMNS: usize;
    /// How many weight tiles are multiplied at once: 2 or 1.
    const TILES: usize;
    /// How many queries attention handles at once: 8, 4, 2 or 1.
    const QUERIES: usize;
    /// Whether asking for memory by [`Simd::prefetch_few`], while three columns or more are multiplied with packed tiles, gains more than it costs.
    const ASKS_NEXT: bool = false;
    /// Whether attention widens a block's keys and values once for many queries: otherwise that takes no time beside the products, and a
    /// first-level cache holds twice as many as they are.
    const WIDENS: bool = true;
    /// How many vectors of sums attention keeps: `QUERIES` or a multiple.
    const SUMS: usize = Self::QUERIES;
    /// Whether page bounds are chosen by signs before they are multiplied, by [`Simd::add_wish`].
    const CHOOSES: bool = false;
    /// Whether that multiplies magnitudes with signed bytes: lowest values as x flipped to -1 - x, others as they are. Otherwise it
    /// multiplies values with bytes that have their offset.
    const MAGNITUDES: bool = false;
    /// Whether code is kept short, as a module of WebAssembly, which is downloaded: attention over Q8_0 caches makes floats of a block even
    /// for few queries, and goes over it one vector at a time; blocks of weights are multiplied one by one, not group by group.
    const SHORT: bool = false;

    /// Does the work in a function of its own, compiled for the ISA. Otherwise everything that is generic
    /// inlines into one function per kernel, which takes compilers minutes where formats multiply shapes.
    fn call<W: Work<Self>>(self, work: W) -> W::Output;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, from: &[f32; LANES]) -> Self::F;
    fn store(self, v: Self::F, to: &mut [f32; LANES]);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// The larger; used only where neither is NaN and the sign of a zero does not matter.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller, likewise.
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        self.select_less(a, b, a, b)
    }
    fn abs(self, a: Self::F) -> Self::F;
    /// a * b + c where a * b is exact, so that fusing it or not gives the same bits.
    fn mul_add_exact(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// a * x in every lane.
    #[inline(always)]
    fn mul_each(self, a: Self::F, x: &f32) -> Self::F {
        self.mul(a, self.splat(*x))
    }
    /// a * x + c in every lane where a * x is exact.
    #[inline(always)]
    fn mul_each_add_exact(self, a: Self::F, x: &f32, c: Self::F) -> Self::F {
        self.mul_add_exact(a, self.splat(*x), c)
    }
    /// To the nearest whole number, ties to even; |x| < 2^22.
    fn round(self, x: Self::F) -> Self::F;
    /// 2^n for whole n in -126..=127.
    fn pow2(self, n: Self::F) -> Self::F;
    /// y * 2^n for whole n in -126..=127, where the result is a normal number.
    #[inline(always)]
    fn scale(self, y: Self::F, n: Self::F) -> Self::F {
        self.mul(y, self.pow2(n))
    }
    /// The largest lane; used like [`Simd::max`].
    fn max_lane(self, v: Self::F) -> f32;
    /// Per lane: a < b ? yes : no (NaN compares false).
    fn select_less(self, a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F;

    fn load_f16(self, from: &[u16; LANES]) -> Self::F;
    /// F16 numbers of the key/value cache, which are finite, over [`Simd::CACHED`].
    #[inline(always)]
    fn load_cached(self, _bits: Self::I, from: &[u16; LANES]) -> Self::F {
        self.load_f16(from)
    }
    /// What [`Simd::load_cached`] needs, to be had once for a loop.
    #[inline(always)]
    fn cached_bits(self) -> Self::I {
        self.splat_int(0)
    }
    /// A power of two that is one factor of a float with any F16 number as the other: what meets the cache's numbers is multiplied by it.
    const CACHED: f32 = 1.0;
    fn load_bf16(self, from: &[u16; LANES]) -> Self::F;
    fn load_i8(self, from: &[i8; LANES]) -> Self::F;
    /// The nearest F16 values, ties to even.
    #[inline(always)]
    fn round_f16(self, v: Self::F) -> Self::F {
        let mut half = [0; LANES];
        self.store_f16(v, &mut half);
        self.load_f16(&half)
    }
    /// To nearest, ties to even.
    fn store_f16(self, v: Self::F, to: &mut [u16; LANES]);
    /// The nearest whole numbers (ties to even) of lanes within -128..=127.
    fn store_i8(self, v: Self::F, to: &mut [i8; LANES]);
    /// The sum of 16 bytes.
    fn sum_i8(self, from: &[i8; LANES]) -> i32;
    fn int_to_float(self, v: Self::I) -> Self::F;
    fn splat_int(self, n: i32) -> Self::I;
    fn add_ints(self, a: Self::I, b: Self::I) -> Self::I;

    /// Floats of these bits.
    fn float_bits(self, v: Self::I) -> Self::F;
    /// The bits of floats.
    fn int_bits(self, v: Self::F) -> Self::I;
    /// Adds the products of each row's four bytes, all of them 0..=127, with its four signed values.
    fn add_sevens(self, sum: Self::I, bytes: Self::I, values: Self::I) -> Self::I;
    fn load_u8(self, from: &[u8; LANES]) -> Self::I;
    fn load_u16(self, from: &[u16; LANES]) -> Self::I;
    /// Two signed bytes of each row to two 16-bit numbers in its word.
    fn load_pairs(self, from: &[u8; LANES * 2]) -> Self::I;
    /// `n` as both 16-bit numbers of each word.
    fn pairs(self, n: i16) -> Self::I;
    /// Adds `n` to both 16-bit numbers of each word.
    fn add_to_pairs(self, v: Self::I, n: i16) -> Self::I;
    /// Adds two numbers times each lane's pair of 16-bit numbers.
    fn add_pair_dot(self, sum: Self::I, numbers: &[i16; 2], pairs: Self::I) -> Self::I;

    /// Pages' lowest and highest values as [`Simd::add_wish`] takes them.
    #[inline(always)]
    fn pages(self, low: Self::I, high: Self::I) -> [Self::I; 2] {
        [low, high]
    }
    /// Adds the products of four values with each row's lowest or highest ones, as the wish says.
    fn add_wish(self, _sum: Self::I, _pages: [Self::I; 2], _: &Wish) -> Self::I {
        unreachable!("bounds are not chosen")
    }

    /// Whether tiles are multiplied two at a time with few columns, too.
    #[inline(always)]
    fn streams_pairs(self) -> bool {
        false
    }
    /// Asks for the cache lines of `item`, or for those as far behind it as suits this CPU, where such walks
    /// go on to the next item, for the cache that suits it; what is there is not read.
    fn prefetch<T: ?Sized>(self, item: &T);
    /// The same where a few columns are multiplied, or for the cache lines `next` bytes on, where their turn comes next.
    #[inline(always)]
    fn prefetch_few<T: ?Sized>(self, _: &T, _: usize) {}
    /// Asks for the cache lines `next` bytes after those of `item`, for the second-level cache.
    #[inline(always)]
    fn prefetch_next<T: ?Sized>(self, _: &T, _: usize) {}
    /// Asks for the cache line of an address, which will be written.
    #[inline(always)]
    fn prefetch_write<T>(self, _: *const T) {}

    /// A tile of blocks of 32 with an F16 scale each, times C columns, in a loop of the ISA's own where it has a better
    /// one for this tile than blocks one by one.
    #[inline(always)]
    fn tile<V: Values, const C: usize>(self, _: &[u8], _: [&[ActBlock]; C]) -> Option<[Self::F; C]> {
        None
    }
    /// How many tiles are multiplied with one or two columns by turns, by [`Simd::streams`] or as they would be alone.
    const STREAMS: usize = 1;
    /// Up to [`Simd::STREAMS`] tiles of as many blocks times C columns, in a loop of the ISA's own where it has one for the
    /// format and for these tiles; otherwise gives false.
    #[inline(always)]
    fn streams<const C: usize>(
        self,
        _: Format,
        _tiles: &[&[u8]],
        _: [&[ActBlock]; C],
        _sums: &mut [[Self::F; C]],
    ) -> bool {
        false
    }
    /// Whether products of many columns gain by weights that are unpacked into memory before.
    #[inline(always)]
    fn unpacks<V: Values>() -> bool {
        V::MAX <= Self::OWN_SLABS
    }
    /// So many columns of quantised activations are multiplied with a job's tiles before the next at least, whether a
    /// cache holds them or not: a multiple of 12. What is unpacked before should serve many.
    const LEAST_COLUMNS: usize = 12;
    /// Whether whole bytes are unpacked to magnitudes and signs, by [`Simd::split`].
    const SPLITS: bool = false;
    /// The magnitudes and signs of a packed block, as the ISA's dot products of [`Values::SIGNED`] take them.
    #[inline(always)]
    fn split<V: Values>(self, _packed: &[u8], _: &mut [[f32; LANES]; SIGNED_VECTORS]) {
        unreachable!("nothing is split")
    }
    /// From how many columns on it is worth it to unpack weights into memory.
    const UNPACKED_FROM: usize = 24;
    /// Up to which largest byte [`Simd::add_slab`] multiplies what is unpacked, instead of loops for each format.
    const OWN_SLABS: i32 = 0;
    /// Unpacks a block into a vector for each group of four of its values; `halves`: each half of it has a scale.
    #[inline(always)]
    fn unpack<V: Values>(self, packed: &[u8], _halves: bool, to: &mut [[f32; LANES]; VECTORS]) {
        each_group!(group in [0 1 2 3 4 5 6 7] {
            self.store(self.float_bits(V::group(self, packed, group)), &mut to[group]);
        });
    }
    /// Adds the products of unpacked blocks of 32, `[values, scales]`, with as many of each of C columns.
    fn add_slab<const C: usize>(
        self,
        _: Item,
        _slab: [&[[f32; LANES]]; 2],
        _: [&[ActBlock]; C],
        _sums: &mut [Self::F; C],
    ) {
        unreachable!("the ISA has no loops of its own")
    }
    /// Exact dot products of packed blocks of 16 rows, one of each of R tiles, with each of C columns.
    fn dot<V: Values, const R: usize, const C: usize>(
        self,
        w: [&[u8]; R],
        x: [&ActBlock; C],
    ) -> [[Self::I; C]; R];
    /// Adds such dot products times each row's word of `scales`, which 16 bits hold.
    fn add_dots<V: Values, const R: usize, const C: usize>(
        self,
        sums: &mut [[Self::I; C]; R],
        w: [&[u8]; R],
        scales: [Self::I; R],
        x: [&ActBlock; C],
    );
    /// Adds the dot products of the blocks' two halves times each row's pair of 16-bit `scales`.
    fn add_dot_halves<V: Values, const R: usize, const C: usize>(
        self,
        sums: &mut [[Self::I; C]; R],
        w: [&[u8]; R],
        scales: [Self::I; R],
        x: [&ActBlock; C],
    );
}
