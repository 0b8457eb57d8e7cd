//! WebAssembly with 128-bit SIMD: four v128 are the 16 lanes. Integer dot products have a form that every
//! engine with simd128 has, of 16-bit numbers, and two that relaxed SIMD adds ([`super::wasm_relaxed`]).

use super::values::{Item, Sevens, Values};
use super::wasm_arch::*;
use super::wasm_columns::{Whole, multiply_all};
use super::{ActBlock, LANES, Simd, VECTORS, Words, Work, each_group};
use crate::packed::{Format, Layout};
use relaxable::{mul_add, select, swizzle};
use std::hint::black_box;

/// The 16 lanes with a form of integer dot products, which is proof that the engine has it.
#[derive(Clone, Copy)]
pub struct Wasm<D>(pub(super) D);

/// A form of integer dot products.
pub trait Dots: Copy {
    /// See [`Simd::tile`].
    #[inline(always)]
    fn tile<V: Values, const C: usize>(self, _: &[u8], _: [&[ActBlock]; C]) -> Option<[F32x16; C]> {
        None
    }
    /// See [`Simd::STREAMS`].
    const STREAMS: usize = 1;
    /// See [`Simd::streams`].
    #[inline(always)]
    fn streams<const C: usize>(
        self,
        _: Format,
        _: &[&[u8]],
        _: [&[ActBlock]; C],
        _: &mut [[F32x16; C]],
    ) -> bool {
        false
    }
    /// See [`Simd::OWN_SLABS`].
    const OWN_SLABS: i32 = 0;
    /// See [`Simd::UNPACKED_FROM`]. Of forms that unpack alone.
    const UNPACKED_FROM: usize = usize::MAX;
    /// What is added to the bytes of a block as it is unpacked; `halves`: each half of it has a scale.
    #[inline(always)]
    fn added<V: Values>(self, _halves: bool) -> Option<u8> {
        None
    }
    /// See [`Simd::add_slab`]. Of forms that unpack alone.
    #[inline(always)]
    fn add_slab<const C: usize>(
        self,
        _: Item,
        _slab: [&[F32s]; 2],
        _: [&[ActBlock]; C],
        _sums: &mut [F32x16; C],
    ) {
        unreachable!("nothing is unpacked")
    }
    /// What the bytes that are multiplied are larger by than the values that they stand for.
    fn offset<V: Values>(self) -> i32;
    /// Adds to each of four rows' sums the products of its four bytes with its four values.
    fn add_group<V: Values>(self, sum: v128, bytes: v128, values: v128) -> v128;
    /// Adds each column's products with a block's first half, its second, or both.
    #[inline(always)]
    fn add<V: Values, const FIRST: bool, const SECOND: bool, const C: usize>(
        self,
        sums: &mut [I32x16; C],
        w: &[u8],
        x: [&ActBlock; C],
    ) {
        each_group!(group in [0 1 2 3 4 5 6 7] {
            if if group < 4 { FIRST } else { SECOND } {
                for quad in 0..4 {
                    let bytes = V::group(QUADS[quad], w, group);
                    for c in 0..C {
                        sums[c][quad] = self.add_group::<V>(sums[c][quad], bytes, broadcast(x[c], group));
                    }
                }
            }
        });
    }
}

/// Products of 16-bit numbers.
#[derive(Clone, Copy)]
pub struct WordDots(());

impl Wasm<WordDots> {
    pub fn detect() -> Option<Self> {
        Some(Self(WordDots(())))
    }
}

/// Floats of 16 lanes in memory.
pub(super) type F32s = [f32; LANES];
pub(super) type F32x16 = [v128; 4];
pub(super) type I32x16 = [v128; 4];

/// An operation on each of the four registers.
macro_rules! quads {
    ($op:ident($($arg:ident),+)) => {
        [$op($($arg[0]),+), $op($($arg[1]),+), $op($($arg[2]),+), $op($($arg[3]),+)]
    };
}

/// One of the four registers: four rows.
#[derive(Clone, Copy)]
pub(super) struct Quad(usize);

pub(super) const QUADS: [Quad; 4] = [Quad(0), Quad(1), Quad(2), Quad(3)];

impl Words for Quad {
    type I = v128;

    #[inline(always)]
    fn load_words(self, from: &[u8], index: usize) -> v128 {
        let words: &[u8; 16] = from[index * 64 + self.0 * 16..].first_chunk().expect("a quad's words");
        load(words)
    }
    #[inline(always)]
    fn and_bits(self, v: v128, bits: u32) -> v128 {
        v128_and(v, u32x4_splat(bits))
    }
    #[inline(always)]
    fn or(self, a: v128, b: v128) -> v128 {
        v128_or(a, b)
    }
    #[inline(always)]
    fn shift_left(self, v: v128, by: usize) -> v128 {
        u32x4_shl(v, by as u32)
    }
    #[inline(always)]
    fn shift_right(self, v: v128, by: usize) -> v128 {
        u32x4_shr(v, by as u32)
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], v: v128) -> v128 {
        swizzle(load(table), v)
    }
}

/// The same for all rows, a quad at a time.
macro_rules! each_quad {
    ($quad:ident, $at:ident => $value:expr) => {{
        let of = |$at: usize| {
            let $quad = QUADS[$at];
            $value
        };
        [of(0), of(1), of(2), of(3)]
    }};
}

/// Four rows with the bits that a layout's bytes are masked with, from memory once: engines make constants anew for each use.
#[derive(Clone, Copy)]
struct Masked {
    quad: Quad,
    bits: [u32; 2],
    masks: [v128; 2],
}

impl Masked {
    #[inline(always)]
    fn new(layout: Layout) -> Self {
        let bits = match layout {
            Layout::Bytes | Layout::Four => [0x0f0f_0f0f; 2],
            Layout::Five => [0x0f0f_0f0f, 0x1010_1010],
            Layout::Six => [0x0f0f_0f0f, 0x3030_3030],
            Layout::Three => [0x0303_0303, 0x0404_0404],
            Layout::Two => [0x0303_0303; 2],
        };
        Self { quad: QUADS[0], bits, masks: bits.map(|bits| black_box(u32x4_splat(bits))) }
    }
}

impl Words for Masked {
    type I = v128;

    #[inline(always)]
    fn load_words(self, from: &[u8], index: usize) -> v128 {
        self.quad.load_words(from, index)
    }
    #[inline(always)]
    fn and_bits(self, v: v128, bits: u32) -> v128 {
        let at = self.bits.iter().position(|&of| of == bits).expect("bits of the layout");
        v128_and(v, self.masks[at])
    }
    #[inline(always)]
    fn or(self, a: v128, b: v128) -> v128 {
        self.quad.or(a, b)
    }
    #[inline(always)]
    fn shift_left(self, v: v128, by: usize) -> v128 {
        self.quad.shift_left(v, by)
    }
    #[inline(always)]
    fn shift_right(self, v: v128, by: usize) -> v128 {
        self.quad.shift_right(v, by)
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], v: v128) -> v128 {
        self.quad.lookup(table, v)
    }
}

/// See [`Simd::unpack`].
#[inline(always)]
fn unpack<V: Values>(packed: &[u8], add: Option<u8>, to: &mut [F32s; VECTORS]) {
    let mut words = Masked::new(V::LAYOUT);
    let add = add.map(|add| black_box(u8x16_splat(add)));
    for quad in QUADS {
        words.quad = quad;
        each_group!(group in [0 1 2 3 4 5 6 7] {
            let bytes = V::group(words, packed, group);
            let bytes = add.map_or(bytes, |add| i8x16_add(bytes, add));
            store(bytes, &mut to[group].as_chunks_mut::<4>().0[quad.0]);
        });
    }
}

impl<D: Dots> Words for Wasm<D> {
    type I = I32x16;

    #[inline(always)]
    fn load_words(self, from: &[u8], index: usize) -> I32x16 {
        each_quad!(quad, _at => quad.load_words(from, index))
    }
    #[inline(always)]
    fn and_bits(self, v: I32x16, bits: u32) -> I32x16 {
        each_quad!(quad, at => quad.and_bits(v[at], bits))
    }
    #[inline(always)]
    fn or(self, a: I32x16, b: I32x16) -> I32x16 {
        quads!(v128_or(a, b))
    }
    #[inline(always)]
    fn shift_left(self, v: I32x16, by: usize) -> I32x16 {
        each_quad!(quad, at => quad.shift_left(v[at], by))
    }
    #[inline(always)]
    fn shift_right(self, v: I32x16, by: usize) -> I32x16 {
        each_quad!(quad, at => quad.shift_right(v[at], by))
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], v: I32x16) -> I32x16 {
        each_quad!(quad, at => quad.lookup(table, v[at]))
    }
}

impl<D: Dots> Simd for Wasm<D> {
    type F = F32x16;
    const COLUMNS: usize = 4;
    const TILES: usize = 1;
    const SHORT: bool = true;
    const QUERIES: usize = 2;

    #[inline(always)]
    fn call<W: Work<Self>>(self, work: W) -> W::Output {
        #[inline(never)]
        fn entry<S, W: Work<S>>(s: S, work: W) -> W::Output {
            work.run(s)
        }
        entry(self, work)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> F32x16 {
        [f32x4_splat(x); 4]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> F32x16 {
        load_quads(from)
    }
    #[inline(always)]
    fn store(self, v: F32x16, to: &mut [f32; LANES]) {
        store_quads(v, to);
    }
    #[inline(always)]
    fn add(self, a: F32x16, b: F32x16) -> F32x16 {
        quads!(f32x4_add(a, b))
    }
    #[inline(always)]
    fn sub(self, a: F32x16, b: F32x16) -> F32x16 {
        quads!(f32x4_sub(a, b))
    }
    #[inline(always)]
    fn mul(self, a: F32x16, b: F32x16) -> F32x16 {
        quads!(f32x4_mul(a, b))
    }
    #[inline(always)]
    fn div(self, a: F32x16, b: F32x16) -> F32x16 {
        quads!(f32x4_div(a, b))
    }
    #[inline(always)]
    fn max(self, a: F32x16, b: F32x16) -> F32x16 {
        quads!(f32x4_pmax(a, b))
    }
    #[inline(always)]
    fn min(self, a: F32x16, b: F32x16) -> F32x16 {
        quads!(f32x4_pmin(a, b))
    }
    #[inline(always)]
    fn max_lane(self, v: F32x16) -> f32 {
        let four = f32x4_pmax(f32x4_pmax(v[0], v[1]), f32x4_pmax(v[2], v[3]));
        let two = f32x4_pmax(four, i32x4_shuffle::<2, 3, 0, 1>(four, four));
        f32x4_extract_lane::<0>(f32x4_pmax(two, i32x4_shuffle::<1, 0, 3, 2>(two, two)))
    }
    #[inline(always)]
    fn abs(self, a: F32x16) -> F32x16 {
        quads!(f32x4_abs(a))
    }
    #[inline(always)]
    fn mul_add_exact(self, a: F32x16, b: F32x16, c: F32x16) -> F32x16 {
        quads!(mul_add(a, b, c))
    }
    #[inline(always)]
    fn round(self, x: F32x16) -> F32x16 {
        quads!(f32x4_nearest(x))
    }
    #[inline(always)]
    fn pow2(self, n: F32x16) -> F32x16 {
        quads!(pow2(n))
    }
    #[inline(always)]
    fn select_less(self, a: F32x16, b: F32x16, yes: F32x16, no: F32x16) -> F32x16 {
        let less = quads!(f32x4_lt(a, b));
        quads!(select(yes, no, less))
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> F32x16 {
        Widening::new(|constant| constant).widen(from)
    }
    /// Without the last of [`Widening`]'s steps.
    const CACHED: f32 = f32::from_bits(0x7780_0000);
    #[inline(always)]
    fn cached_bits(self) -> I32x16 {
        [black_box(UPPER); 4]
    }
    #[inline(always)]
    fn load_cached(self, [upper, ..]: I32x16, from: &[u16; LANES]) -> F32x16 {
        let [[a, b], [c, d]] = load_halves(from).map(|halves| moved(halves, upper));
        [a, b, c, d]
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> F32x16 {
        let [low, high] = load_halves(from);
        let zero = i16x8_splat(0);
        [low_words(zero, low), high_words(zero, low), low_words(zero, high), high_words(zero, high)]
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> F32x16 {
        let v = load(from);
        let (low, high) = (i16x8_extend_low_i8x16(v), i16x8_extend_high_i8x16(v));
        let words = [
            i32x4_extend_low_i16x8(low),
            i32x4_extend_high_i16x8(low),
            i32x4_extend_low_i16x8(high),
            i32x4_extend_high_i16x8(high),
        ];
        quads!(f32x4_convert_i32x4(words))
    }
    #[inline(always)]
    fn store_f16(self, v: F32x16, to: &mut [u16; LANES]) {
        let halves = quads!(narrow_f16(v));
        let [low, high] = to.as_chunks_mut::<8>().0 else { unreachable!("16 lanes") };
        store(u16x8_narrow_i32x4(halves[0], halves[1]), low);
        store(u16x8_narrow_i32x4(halves[2], halves[3]), high);
    }
    #[inline(always)]
    fn store_i8(self, v: F32x16, to: &mut [i8; LANES]) {
        let words = quads!(nearest_int(v));
        let low = i16x8_narrow_i32x4(words[0], words[1]);
        let high = i16x8_narrow_i32x4(words[2], words[3]);
        store(i8x16_narrow_i16x8(low, high), to);
    }
    #[inline(always)]
    fn sum_i8(self, from: &[i8; LANES]) -> i32 {
        let quads = i32x4_extadd_pairwise_i16x8(i16x8_extadd_pairwise_i8x16(load(from)));
        let pairs = i32x4_add(quads, i32x4_shuffle::<2, 3, 0, 1>(quads, quads));
        i32x4_extract_lane::<0>(pairs) + i32x4_extract_lane::<1>(pairs)
    }
    /// WebAssembly has no way to ask.
    #[inline(always)]
    fn prefetch<T: ?Sized>(self, _: &T) {}
    #[inline(always)]
    fn int_to_float(self, v: I32x16) -> F32x16 {
        quads!(f32x4_convert_i32x4(v))
    }
    #[inline(always)]
    fn splat_int(self, n: i32) -> I32x16 {
        [i32x4_splat(n); 4]
    }
    #[inline(always)]
    fn add_ints(self, a: I32x16, b: I32x16) -> I32x16 {
        quads!(i32x4_add(a, b))
    }

    #[inline(always)]
    fn float_bits(self, v: I32x16) -> F32x16 {
        v
    }
    #[inline(always)]
    fn int_bits(self, v: F32x16) -> I32x16 {
        v
    }
    #[inline(always)]
    fn add_sevens(self, sum: I32x16, bytes: I32x16, values: I32x16) -> I32x16 {
        each_quad!(_quad, at => self.0.add_group::<Sevens>(sum[at], bytes[at], values[at]))
    }
    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> I32x16 {
        let v = load(from);
        let (low, high) = (u16x8_extend_low_u8x16(v), u16x8_extend_high_u8x16(v));
        widen_u16(low, high)
    }
    #[inline(always)]
    fn load_u16(self, from: &[u16; LANES]) -> I32x16 {
        let [low, high] = load_halves(from);
        widen_u16(low, high)
    }
    #[inline(always)]
    fn load_pairs(self, from: &[u8; LANES * 2]) -> I32x16 {
        let [low, high] = from.as_chunks::<16>().0 else { unreachable!("32 bytes") };
        let (low, high) = (load(low), load(high));
        [
            i16x8_extend_low_i8x16(low),
            i16x8_extend_high_i8x16(low),
            i16x8_extend_low_i8x16(high),
            i16x8_extend_high_i8x16(high),
        ]
    }
    #[inline(always)]
    fn pairs(self, n: i16) -> I32x16 {
        [i16x8_splat(n); 4]
    }
    #[inline(always)]
    fn add_to_pairs(self, v: I32x16, n: i16) -> I32x16 {
        let n = [i16x8_splat(n); 4];
        quads!(i16x8_add(v, n))
    }
    #[inline(always)]
    fn add_pair_dot(self, sum: I32x16, numbers: &[i16; 2], pairs: I32x16) -> I32x16 {
        let numbers = [splat_pair(numbers); 4];
        self.add_ints(sum, quads!(i32x4_dot_i16x8(numbers, pairs)))
    }

    const STREAMS: usize = D::STREAMS;
    #[inline(always)]
    fn streams<const C: usize>(
        self,
        format: Format,
        tiles: &[&[u8]],
        x: [&[ActBlock]; C],
        sums: &mut [[F32x16; C]],
    ) -> bool {
        self.0.streams(format, tiles, x, sums)
    }
    #[inline(always)]
    fn unpack<V: Values>(self, packed: &[u8], halves: bool, to: &mut [F32s; VECTORS]) {
        unpack::<V>(packed, self.0.added::<V>(halves), to);
    }
    const LEAST_COLUMNS: usize = 72;
    const UNPACKED_FROM: usize = D::UNPACKED_FROM;
    const OWN_SLABS: i32 = D::OWN_SLABS;
    #[inline(always)]
    fn add_slab<const C: usize>(
        self,
        item: Item,
        slab: [&[F32s]; 2],
        x: [&[ActBlock]; C],
        sums: &mut [F32x16; C],
    ) {
        self.0.add_slab(item, slab, x, sums);
    }
    #[inline(always)]
    fn tile<V: Values, const C: usize>(self, tile: &[u8], x: [&[ActBlock]; C]) -> Option<[F32x16; C]> {
        self.0.tile::<V, C>(tile, x)
    }
    #[inline(always)]
    fn dot<V: Values, const R: usize, const C: usize>(
        self,
        w: [&[u8]; R],
        x: [&ActBlock; C],
    ) -> [[I32x16; C]; R] {
        let mut sums = [self.start::<V, true, true, C>(x); R];
        for r in 0..R {
            if C <= 2 && matches!(V::LAYOUT, Layout::Four | Layout::Bytes) {
                self.add_lines::<V, C>(&mut sums[r], w[r], x);
            } else {
                self.0.add::<V, true, true, C>(&mut sums[r], w[r], x);
            }
        }
        sums
    }
    #[inline(always)]
    fn add_dots<V: Values, const R: usize, const C: usize>(
        self,
        sums: &mut [[I32x16; C]; R],
        w: [&[u8]; R],
        scales: [I32x16; R],
        x: [&ActBlock; C],
    ) {
        let dots = self.dot::<V, R, C>(w, x);
        for r in 0..R {
            add_products(&mut sums[r], dots[r], scales[r]);
        }
    }
    #[inline(always)]
    fn add_dot_halves<V: Values, const R: usize, const C: usize>(
        self,
        sums: &mut [[I32x16; C]; R],
        w: [&[u8]; R],
        scales: [I32x16; R],
        x: [&ActBlock; C],
    ) {
        for r in 0..R {
            let scales = scales[r];
            let mut first = self.start::<V, true, false, C>(x);
            self.0.add::<V, true, false, C>(&mut first, w[r], x);
            let numbers = each_quad!(_quad, at => i32x4_shr(i32x4_shl(scales[at], 16), 16));
            add_products(&mut sums[r], first, numbers);
            let mut second = self.start::<V, false, true, C>(x);
            self.0.add::<V, false, true, C>(&mut second, w[r], x);
            let numbers = each_quad!(_quad, at => i32x4_shr(scales[at], 16));
            add_products(&mut sums[r], second, numbers);
        }
    }
}

/// sums += dots * scales.
#[inline(always)]
fn add_products<const C: usize>(sums: &mut [I32x16; C], dots: [I32x16; C], scales: I32x16) {
    for c in 0..C {
        for quad in 0..4 {
            sums[c][quad] = i32x4_add(sums[c][quad], i32x4_mul(dots[c][quad], scales[quad]));
        }
    }
}

impl<D: Dots> Wasm<D> {
    /// As [`Dots::add`], in a loop that compilers leave one, so that memory is read in order.
    #[inline(always)]
    fn add_lines<V: Values, const C: usize>(self, sums: &mut [I32x16; C], w: &[u8], x: [&ActBlock; C]) {
        for (i, line) in black_box(w).chunks_exact(64).enumerate() {
            for group in if matches!(V::LAYOUT, Layout::Four) { 0..2 } else { 0..1 } {
                for quad in 0..4 {
                    let bytes = V::group(QUADS[quad], line, group * 4);
                    for c in 0..C {
                        let values = broadcast(x[c], i + group * 4);
                        sums[c][quad] = self.0.add_group::<V>(sums[c][quad], bytes, values);
                    }
                }
            }
        }
    }

    /// What takes the bytes' offset out of the sums of a block's first half, its second, or both.
    #[inline(always)]
    fn start<V: Values, const FIRST: bool, const SECOND: bool, const C: usize>(
        self,
        x: [&ActBlock; C],
    ) -> [I32x16; C] {
        let offset = self.0.offset::<V>();
        let offsets = i32x4_splat(if FIRST { offset } else { 0 } | if SECOND { offset << 16 } else { 0 });
        let mut sums = [[i32x4_splat(0); 4]; C];
        if V::OFFSET != 0 {
            for c in 0..C {
                sums[c] = [i32x4_dot_i16x8(splat_pair(&x[c].minus_halves), offsets); 4];
            }
        }
        sums
    }
}

impl Dots for WordDots {
    #[inline(always)]
    fn tile<V: Values, const C: usize>(self, tile: &[u8], x: [&[ActBlock]; C]) -> Option<[F32x16; C]> {
        if matches!(V::LAYOUT, Layout::Bytes) { multiply_all::<Whole, C>(tile, x) } else { None }
    }
    #[inline(always)]
    fn offset<V: Values>(self) -> i32 {
        V::OFFSET
    }
    #[inline(always)]
    fn add_group<V: Values>(self, sum: v128, bytes: v128, values: v128) -> v128 {
        add_words(sum, bytes, values)
    }
}

/// Even and odd bytes apart, so that a row's products stay in its lane.
#[inline(always)]
pub(super) fn add_words(sum: v128, bytes: v128, values: v128) -> v128 {
    let even = i32x4_dot_i16x8(v128_and(bytes, u16x8_splat(0xff)), i16x8_shr(i16x8_shl(values, 8), 8));
    let odd = i32x4_dot_i16x8(u16x8_shr(bytes, 8), i16x8_shr(values, 8));
    i32x4_add(sum, i32x4_add(even, odd))
}

/// 16 bytes of anything that any bytes are valid for.
#[inline(always)]
fn load<T: Copy, const N: usize>(from: &[T; N]) -> v128 {
    const { assert!(size_of::<[T; N]>() == 16) }
    // SAFETY: the load covers the array, and needs no alignment.
    unsafe { v128_load(from.as_ptr().cast()) }
}

#[inline(always)]
fn store<T: Copy, const N: usize>(v: v128, to: &mut [T; N]) {
    const { assert!(size_of::<[T; N]>() == 16) }
    // SAFETY: the store covers the array, and needs no alignment.
    unsafe { v128_store(to.as_mut_ptr().cast(), v) }
}

#[inline(always)]
pub(super) fn load_quads(from: &[f32; LANES]) -> [v128; 4] {
    let [a, b, c, d] = from.as_chunks::<4>().0 else { unreachable!("16 lanes") };
    [load(a), load(b), load(c), load(d)]
}

#[inline(always)]
pub(super) fn store_quads(v: [v128; 4], to: &mut [f32; LANES]) {
    for (v, to) in v.into_iter().zip(to.as_chunks_mut::<4>().0) {
        store(v, to);
    }
}

#[inline(always)]
fn load_halves(from: &[u16; LANES]) -> [v128; 2] {
    let [low, high] = from.as_chunks::<8>().0 else { unreachable!("16 lanes") };
    [load(low), load(high)]
}

/// The first four 16-bit numbers of each, taking turns.
#[inline(always)]
fn low_words(a: v128, b: v128) -> v128 {
    i16x8_shuffle::<0, 8, 1, 9, 2, 10, 3, 11>(a, b)
}

#[inline(always)]
fn high_words(a: v128, b: v128) -> v128 {
    i16x8_shuffle::<4, 12, 5, 13, 6, 14, 7, 15>(a, b)
}

#[inline(always)]
fn widen_u16(low: v128, high: v128) -> I32x16 {
    [
        u32x4_extend_low_u16x8(low),
        u32x4_extend_high_u16x8(low),
        u32x4_extend_low_u16x8(high),
        u32x4_extend_high_u16x8(high),
    ]
}

/// The bits of a float's upper half that an F16 number has.
const UPPER: v128 = u16x8(0x8fff, 0x8fff, 0x8fff, 0x8fff, 0x8fff, 0x8fff, 0x8fff, 0x8fff);

/// F16 numbers to floats. Moved to where a float has its sign, exponent and mantissa, a finite number is 2^-112 times its
/// value, subnormal or not.
#[derive(Clone, Copy)]
pub(super) struct Widening {
    /// [`UPPER`].
    upper: v128,
    factor: v128,
    /// Twice the largest number.
    finite: v128,
}

impl Widening {
    /// With its constants as `kept` gives them.
    #[inline(always)]
    pub(super) fn new(kept: fn(v128) -> v128) -> Self {
        Self { upper: kept(UPPER), factor: kept(u32x4_splat(0x7780_0000)), finite: kept(u16x8_splat(0xf7ff)) }
    }

    #[inline(always)]
    pub(super) fn widen(self, from: &[u16; LANES]) -> F32x16 {
        self.widen_finite(from).unwrap_or_else(|| load_quads(&widen_each(from)))
    }

    /// None where a number is infinite or NaN.
    #[inline(always)]
    pub(super) fn widen_finite(self, from: &[u16; LANES]) -> Option<F32x16> {
        let [low, high] = load_halves(from);
        if v128_any_true(v128_or(self.not_finite(low), self.not_finite(high))) {
            return None;
        }
        let ([a, b], [c, d]) = (moved(low, self.upper), moved(high, self.upper));
        Some([a, b, c, d].map(|moved| f32x4_mul(moved, self.factor)))
    }

    /// Not zero where a number is infinite or NaN.
    #[inline(always)]
    fn not_finite(self, halves: v128) -> v128 {
        u16x8_sub_sat(i16x8_add(halves, halves), self.finite)
    }
}

/// Eight F16 numbers where a float has its bits; `upper`: [`UPPER`].
#[inline(always)]
fn moved(halves: v128, upper: v128) -> [v128; 2] {
    let upper = v128_and(i16x8_shr(halves, 3), upper);
    let lower = i16x8_shl(halves, 13);
    [low_words(lower, upper), high_words(lower, upper)]
}

#[cold]
#[inline(never)]
fn widen_each(from: &[u16; LANES]) -> [f32; LANES] {
    from.map(crate::float16::f16_to_f32)
}

/// As [`crate::float16::f32_to_f16`], but NaN becomes infinity: neither is ever kept.
#[inline(always)]
fn narrow_f16(v: v128) -> v128 {
    let sign = v128_and(u32x4_shr(v, 16), u32x4_splat(0x8000));
    let magnitude = u32x4_min(v128_and(v, u32x4_splat(0x7fff_ffff)), u32x4_splat(0x4780_0000));
    let odd = v128_and(u32x4_shr(magnitude, 13), u32x4_splat(1));
    let rounded = i32x4_add(i32x4_add(magnitude, odd), u32x4_splat(0xfff_u32.wrapping_sub(0x3800_0000)));
    let tiny = i32x4_sub(f32x4_add(magnitude, f32x4_splat(0.5)), u32x4_splat(0x3f00_0000));
    let is_tiny = i32x4_lt(magnitude, u32x4_splat(0x3880_0000));
    v128_or(sign, select(tiny, u32x4_shr(rounded, 13), is_tiny))
}

/// 1.5 * 2^23: a float of this size has no fraction, and its lowest bits are a whole number that was added.
const MAGIC: f32 = 12_582_912.0;

/// To the nearest whole number, ties to even; |x| < 2^22.
#[inline(always)]
fn nearest_int(x: v128) -> v128 {
    i32x4_sub(f32x4_add(x, f32x4_splat(MAGIC)), u32x4_splat(MAGIC.to_bits()))
}

/// The shift leaves of MAGIC + n the exponent's worth of bits.
#[inline(always)]
fn pow2(n: v128) -> v128 {
    i32x4_shl(f32x4_add(n, f32x4_splat(MAGIC + 127.0)), 23)
}

/// Two numbers in every lane.
#[inline(always)]
pub(super) fn splat_pair(numbers: &[i16; 2]) -> v128 {
    // SAFETY: the load covers the array, and needs no alignment.
    unsafe { v128_load32_splat(numbers.as_ptr().cast()) }
}

/// Values 4 * group .. 4 * group + 4 in every lane.
#[inline(always)]
pub(super) fn broadcast(x: &ActBlock, group: usize) -> v128 {
    let four: *const [i8; 4] = &x.values.as_chunks::<4>().0[group];
    // SAFETY: the load covers the array, and needs no alignment.
    unsafe { v128_load32_splat(four.cast()) }
}

/// What relaxed SIMD does in one instruction, used only where all engines agree.
mod relaxable {
    use crate::simd::wasm_arch::*;

    /// a * b + c where a * b is exact.
    #[inline(always)]
    pub fn mul_add(a: v128, b: v128, c: v128) -> v128 {
        #[cfg(target_feature = "relaxed-simd")]
        return f32x4_relaxed_madd(a, b, c);
        #[cfg(not(target_feature = "relaxed-simd"))]
        f32x4_add(f32x4_mul(a, b), c)
    }
    /// Every word of `mask` has all bits set or none.
    #[inline(always)]
    pub fn select(yes: v128, no: v128, mask: v128) -> v128 {
        #[cfg(target_feature = "relaxed-simd")]
        return i32x4_relaxed_laneselect(yes, no, mask);
        #[cfg(not(target_feature = "relaxed-simd"))]
        v128_bitselect(yes, no, mask)
    }
    /// Indices are within 0..=15.
    #[inline(always)]
    pub fn swizzle(table: v128, indices: v128) -> v128 {
        #[cfg(target_feature = "relaxed-simd")]
        return i8x16_relaxed_swizzle(table, indices);
        #[cfg(not(target_feature = "relaxed-simd"))]
        u8x16_swizzle(table, indices)
    }
}
