//! The integer dot products of WebAssembly's relaxed SIMD.
//!
//! They multiply signed bytes by bytes of seven bits. What they make of an eighth bit is up to the engine,
//! though the same for as long as the program runs: some x86 CPUs take the byte as unsigned (vpdpbusd),
//! ARM's and newer x86 as signed (sdot, vpdpbssd), and either multiplies whole bytes in one instruction.
//! Other x86 CPUs add pairs of products in 16 bits (vpmaddubsw), which whole bytes overflow. A probe tells
//! which it is, and whether bytes of seven bits are multiplied right at all.

use super::values::{Item, Values};
use super::wasm::{Dots, F32s, F32x16, I32x16, QUADS, Wasm, add_words, broadcast};
use super::wasm_arch::*;
use super::wasm_columns::{Nibbles, Whole, WholeBytes, WholeNibbles, multiply_all, multiply_streams};
use super::wasm_slab::{add_by_pairs, add_whole};
use super::{ActBlock, HALVES_OFFSET, OFFSET, each_group};
use crate::packed::{Format, Layout};
use std::hint::black_box;
use std::sync::atomic::{AtomicU8, Ordering};

/// Products of bytes, four of them added in 32 bits.
#[derive(Clone, Copy)]
pub struct WholeDots {
    /// What turns unsigned bytes into those that the engine multiplies: 0 or 128.
    flip: u8,
}

/// Products of bytes, added in pairs in 16 bits; whole bytes as 16-bit numbers.
#[derive(Clone, Copy)]
pub struct PairDots(());

impl Wasm<WholeDots> {
    /// None where the engine does not multiply whole bytes exactly, neither as unsigned nor as signed.
    pub fn detect() -> Option<Self> {
        static FOUND: AtomicU8 = AtomicU8::new(0);
        const FLIPS: [u8; 2] = [0, 128];
        let found = known(&FOUND, || match FLIPS.map(|flip| multiplies(flip, &[0, 1, 127, 128, 129, 255])) {
            [true, _] => 1,
            [_, true] => 2,
            _ => 3,
        });
        FLIPS.get(found as usize - 1).map(|&flip| Self(WholeDots { flip }))
    }
}

impl Wasm<PairDots> {
    /// None where the engine multiplies wrong what every engine has to multiply right.
    pub fn detect() -> Option<Self> {
        static FOUND: AtomicU8 = AtomicU8::new(0);
        let found = known(&FOUND, || if multiplies(0, &[0, 1, 64, 126, 127]) { 1 } else { 2 });
        (found == 1).then_some(Self(PairDots(())))
    }
}

/// What was found before, else what is found now; 0 is nothing yet.
fn known(found: &AtomicU8, find: impl Fn() -> u8) -> u8 {
    let known = found.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    let new = find();
    found.store(new, Ordering::Relaxed);
    new
}

/// Whether every mixture of such bytes, flipped, is multiplied right by the extremes of activations.
fn multiplies(flip: u8, bytes: &[u8]) -> bool {
    const VALUES: [i8; 6] = [-127, -126, -1, 0, 1, 127];
    let pairs = |v: v128| i32x4_extadd_pairwise_i16x8(v);
    for &x in &VALUES {
        for &y in &VALUES {
            let values = black_box(i8x16(x, y, x, y, y, x, y, x, x, x, x, x, x, x, y, y));
            for &a in bytes {
                for &b in bytes {
                    let w = [a, b, a, b, a, b, a, b, a, a, a, b, a, a, b, b].map(|w| w ^ flip);
                    // SAFETY: the load covers the array.
                    let w = black_box(unsafe { v128_load(w.as_ptr().cast()) });
                    let [a, b] = [a, b].map(|w| w as i32 - flip as i32);
                    let [x, y] = [x, y].map(i32::from);
                    let want = i32x4(
                        2 * (a * x + b * y),
                        2 * (a * y + b * x),
                        3 * a * x + b * x,
                        2 * (a * x + b * y),
                    );
                    let sum = i32x4_splat(1 << 20);
                    let whole = i32x4_relaxed_dot_i8x16_i7x16_add(values, w, sum);
                    let mut same = i32x4_eq(whole, i32x4_add(want, sum));
                    if bytes.iter().all(|&w| w < 128) {
                        let halves = pairs(i16x8_relaxed_dot_i8x16_i7x16(values, w));
                        same = v128_and(same, i32x4_eq(halves, want));
                    }
                    if !i32x4_all_true(same) {
                        return false;
                    }
                }
            }
        }
    }
    true
}

impl Dots for WholeDots {
    const STREAMS: usize = 4;
    const OWN_SLABS: i32 = 255;
    const UNPACKED_FROM: usize = 6;
    #[inline(always)]
    fn streams<const C: usize>(
        self,
        format: Format,
        tiles: &[&[u8]],
        x: [&[ActBlock]; C],
        sums: &mut [[F32x16; C]],
    ) -> bool {
        match format {
            Format::Q4_0 => multiply_streams::<WholeNibbles, C>(self.flip, tiles, x, sums),
            Format::Q8_0 => multiply_streams::<WholeBytes, C>(self.flip, tiles, x, sums),
            _ => false,
        }
    }
    /// What makes signed bytes of them where the engine takes these, or larger than the values by what activations have a start
    /// for, whatever the format.
    #[inline(always)]
    fn added<V: Values>(self, halves: bool) -> Option<u8> {
        let unsigned = if halves { HALVES_OFFSET } else { OFFSET };
        let offset = if self.flip == 0 { unsigned } else { 0 };
        Some((offset - V::OFFSET) as u8)
    }
    #[inline(always)]
    fn add_slab<const C: usize>(
        self,
        item: Item,
        slab: [&[F32s]; 2],
        x: [&[ActBlock]; C],
        sums: &mut [F32x16; C],
    ) {
        add_whole(self.flip, item, slab, x, sums);
    }
    #[inline(always)]
    fn offset<V: Values>(self) -> i32 {
        if V::MAX > 127 { V::OFFSET - self.flip as i32 } else { V::OFFSET }
    }
    #[inline(always)]
    fn add_group<V: Values>(self, sum: v128, bytes: v128, values: v128) -> v128 {
        let bytes = if V::MAX > 127 { v128_xor(bytes, u8x16_splat(self.flip)) } else { bytes };
        i32x4_relaxed_dot_i8x16_i7x16_add(values, bytes, sum)
    }
}

impl Dots for PairDots {
    #[inline(always)]
    fn tile<V: Values, const C: usize>(self, tile: &[u8], x: [&[ActBlock]; C]) -> Option<[F32x16; C]> {
        match (V::LAYOUT, V::OFFSET) {
            (Layout::Four, 8) => multiply_all::<Nibbles, C>(tile, x),
            (Layout::Bytes, _) => multiply_all::<Whole, C>(tile, x),
            _ => None,
        }
    }
    const OWN_SLABS: i32 = 63;
    const UNPACKED_FROM: usize = 4;
    #[inline(always)]
    fn add_slab<const C: usize>(
        self,
        item: Item,
        slab: [&[F32s]; 2],
        x: [&[ActBlock]; C],
        sums: &mut [F32x16; C],
    ) {
        add_by_pairs(item, slab, x, sums);
    }
    #[inline(always)]
    fn offset<V: Values>(self) -> i32 {
        V::OFFSET
    }
    #[inline(always)]
    fn add_group<V: Values>(self, sum: v128, bytes: v128, values: v128) -> v128 {
        if V::MAX <= 127 {
            let pairs = i16x8_relaxed_dot_i8x16_i7x16(values, bytes);
            i32x4_add(sum, i32x4_extadd_pairwise_i16x8(pairs))
        } else {
            add_words(sum, bytes, values)
        }
    }
    #[inline(always)]
    fn add<V: Values, const FIRST: bool, const SECOND: bool, const C: usize>(
        self,
        sums: &mut [I32x16; C],
        w: &[u8],
        x: [&ActBlock; C],
    ) {
        let mut pairs = [[i16x8_splat(0); 4]; C];
        each_group!(group in [0 1 2 3 4 5 6 7] {
            if if group < 4 { FIRST } else { SECOND } {
                self.add_pairs::<V, C>(&mut pairs, sums, w, x, group);
            }
        });
    }
}

impl PairDots {
    /// As many groups as fit are added in 16 bits, then widened.
    #[inline(always)]
    fn add_pairs<V: Values, const C: usize>(
        self,
        pairs: &mut [I32x16; C],
        sums: &mut [I32x16; C],
        w: &[u8],
        x: [&ActBlock; C],
        group: usize,
    ) {
        let span = const { span(i16::MAX as i32 / (2 * 127 * V::MAX)) };
        for quad in 0..4 {
            let bytes = V::group(QUADS[quad], w, group);
            for c in 0..C {
                let values = broadcast(x[c], group);
                if V::MAX > 127 {
                    sums[c][quad] = add_words(sums[c][quad], bytes, values);
                    continue;
                }
                let products = i16x8_relaxed_dot_i8x16_i7x16(values, bytes);
                let sum =
                    if group.is_multiple_of(span) { products } else { i16x8_add(pairs[c][quad], products) };
                pairs[c][quad] = sum;
                if group % span == span - 1 {
                    sums[c][quad] = i32x4_add(sums[c][quad], i32x4_extadd_pairwise_i16x8(sum));
                }
            }
        }
    }
}

/// The largest power of two of groups, up to a half block's four, that fit.
const fn span(fit: i32) -> usize {
    match fit {
        0..=1 => 1,
        2..=3 => 2,
        _ => 4,
    }
}
