//! Q4_0 and Q8_0 tiles times one or two columns, in loops that are written for what engines make of them.
//!
//! V8 makes a constant anew, in three instructions, wherever it is used, and adds the offset of a broadcast to its
//! address in one of its own. LLVM moves a sum's terms together, quad by quad, so that broadcasts are spilled. So
//! constants are hidden from both, and a round of a loop, whose length LLVM does not know, is 64 bytes of weights: they
//! are read in order, and the sums of 16 rows and two columns stay in registers.

use super::wasm::{F32x16, Widening};
use super::wasm_arch::*;
use super::{ActBlock, LANES};
use crate::packed::{Layout, group_of};
use std::hint::black_box;
use std::mem::offset_of;

/// How a line of weights, 64 bytes, is multiplied.
pub trait Line: Copy {
    const LAYOUT: Layout;
    /// Once per tile. `flip` turns unsigned bytes into those that the engine multiplies whole: 0 or 128.
    fn new(flip: u8) -> Self;
    /// What takes the offset of the weights out of a column's sums, from its [`ActBlock::minus_halves`].
    fn start(self, minus_halves: v128) -> v128;
    /// Adds the products of a line.
    ///
    /// # Safety
    /// 64 bytes follow `w`, and all values of a block that the line is multiplied with `x`.
    unsafe fn add<const C: usize>(self, sums: &mut [[v128; C]; 4], w: *const u8, x: [*const u8; C]);
    /// A block's sums in 32 bits.
    fn finish(self, sums: v128) -> v128;
}

/// What no compiler knows.
#[inline(always)]
fn kept(constant: v128) -> v128 {
    black_box(constant)
}

/// # Safety
/// 16 bytes follow `at`.
#[inline(always)]
unsafe fn load(at: *const u8) -> v128 {
    // SAFETY: the caller's promise; it needs no alignment.
    unsafe { v128_load(at.cast()) }
}

/// # Safety
/// Four bytes follow `at`.
#[inline(always)]
unsafe fn broadcast(at: *const u8) -> v128 {
    // SAFETY: the caller's promise; it needs no alignment.
    unsafe { v128_load32_splat(at.cast()) }
}

/// The values that four rows' low and high nibbles are multiplied with, of each column.
///
/// # Safety
/// Four bytes follow each column's address, and that half a block later.
#[cfg(target_feature = "relaxed-simd")]
#[inline(always)]
unsafe fn values_of_nibbles<const C: usize>(any: v128, x: [*const u8; C]) -> [[v128; 2]; C] {
    let mut values = [[any; 2]; C];
    for c in 0..C {
        // SAFETY: the caller's promise.
        values[c] = unsafe { [broadcast(x[c]), broadcast(x[c].add(super::QK / 2))] };
    }
    values
}

/// The low and the high nibbles of 16 bytes.
///
/// # Safety
/// 16 bytes follow `at`.
#[cfg(target_feature = "relaxed-simd")]
#[inline(always)]
unsafe fn nibbles(low: v128, at: *const u8) -> [v128; 2] {
    // SAFETY: the caller's promise.
    let bytes = unsafe { load(at) };
    [v128_and(bytes, low), v128_and(u16x8_shr(bytes, 4), low)]
}

/// Q4_0: products of bytes, those of a whole block added in 16 bits. A lane has 16 of a row's 32 products and takes out the
/// offset of half of these and as many others: 127 * (8 * 15 + 8 * 8 + 8 * 8) is 31,496 at most.
#[cfg(target_feature = "relaxed-simd")]
#[derive(Clone, Copy)]
pub struct Nibbles {
    low: v128,
    ones: v128,
}

#[cfg(target_feature = "relaxed-simd")]
impl Line for Nibbles {
    const LAYOUT: Layout = Layout::Four;

    #[inline(always)]
    fn new(_: u8) -> Self {
        Self { low: kept(u8x16_splat(15)), ones: kept(i16x8_splat(1)) }
    }
    /// Of 8 in each value.
    #[inline(always)]
    fn start(self, minus_halves: v128) -> v128 {
        i16x8_shl(minus_halves, 3)
    }
    #[inline(always)]
    unsafe fn add<const C: usize>(self, sums: &mut [[v128; C]; 4], w: *const u8, x: [*const u8; C]) {
        // SAFETY: the caller's promise.
        let values = unsafe { values_of_nibbles(self.low, x) };
        for (quad, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            let [low, high] = unsafe { nibbles(self.low, w.add(quad * 16)) };
            for c in 0..C {
                let sum = i16x8_add(sums[c], i16x8_relaxed_dot_i8x16_i7x16(values[c][0], low));
                sums[c] = i16x8_add(sum, i16x8_relaxed_dot_i8x16_i7x16(values[c][1], high));
            }
        }
    }
    #[inline(always)]
    fn finish(self, sums: v128) -> v128 {
        i32x4_dot_i16x8(sums, self.ones)
    }
}

/// Q8_0: products of even and odd bytes as 16-bit numbers.
#[derive(Clone, Copy)]
pub struct Whole {
    low: v128,
    offset: v128,
}

impl Line for Whole {
    const LAYOUT: Layout = Layout::Bytes;

    #[inline(always)]
    fn new(_: u8) -> Self {
        Self { low: kept(u16x8_splat(255)), offset: kept(i16x8_splat(128)) }
    }
    #[inline(always)]
    fn start(self, minus_halves: v128) -> v128 {
        i32x4_dot_i16x8(minus_halves, self.offset)
    }
    #[inline(always)]
    unsafe fn add<const C: usize>(self, sums: &mut [[v128; C]; 4], w: *const u8, x: [*const u8; C]) {
        let mut values = [[self.low; 2]; C];
        for c in 0..C {
            // SAFETY: the caller's promise.
            let four = unsafe { broadcast(x[c]) };
            values[c] = [i16x8_shr(i16x8_shl(four, 8), 8), i16x8_shr(four, 8)];
        }
        for (quad, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            let bytes = unsafe { load(w.add(quad * 16)) };
            let (even, odd) = (v128_and(bytes, self.low), u16x8_shr(bytes, 8));
            for c in 0..C {
                let sum = i32x4_add(sums[c], i32x4_dot_i16x8(even, values[c][0]));
                sums[c] = i32x4_add(sum, i32x4_dot_i16x8(odd, values[c][1]));
            }
        }
    }
    #[inline(always)]
    fn finish(self, sums: v128) -> v128 {
        sums
    }
}

/// Four products at once, added in 32 bits: Q4_0.
#[cfg(target_feature = "relaxed-simd")]
#[derive(Clone, Copy)]
pub struct WholeNibbles {
    low: v128,
    offset: v128,
}

#[cfg(target_feature = "relaxed-simd")]
impl Line for WholeNibbles {
    const LAYOUT: Layout = Layout::Four;

    #[inline(always)]
    fn new(_: u8) -> Self {
        Self { low: kept(u8x16_splat(15)), offset: kept(i16x8_splat(8)) }
    }
    #[inline(always)]
    fn start(self, minus_halves: v128) -> v128 {
        i32x4_dot_i16x8(minus_halves, self.offset)
    }
    #[inline(always)]
    unsafe fn add<const C: usize>(self, sums: &mut [[v128; C]; 4], w: *const u8, x: [*const u8; C]) {
        // SAFETY: the caller's promise.
        let values = unsafe { values_of_nibbles(self.low, x) };
        for (quad, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            let [low, high] = unsafe { nibbles(self.low, w.add(quad * 16)) };
            for c in 0..C {
                let sum = i32x4_relaxed_dot_i8x16_i7x16_add(values[c][0], low, sums[c]);
                sums[c] = i32x4_relaxed_dot_i8x16_i7x16_add(values[c][1], high, sum);
            }
        }
    }
    #[inline(always)]
    fn finish(self, sums: v128) -> v128 {
        sums
    }
}

/// The same: Q8_0.
#[cfg(target_feature = "relaxed-simd")]
#[derive(Clone, Copy)]
pub struct WholeBytes {
    flip: v128,
    offset: v128,
}

#[cfg(target_feature = "relaxed-simd")]
impl Line for WholeBytes {
    const LAYOUT: Layout = Layout::Bytes;

    #[inline(always)]
    fn new(flip: u8) -> Self {
        Self { flip: kept(u8x16_splat(flip)), offset: kept(i16x8_splat(128 - flip as i16)) }
    }
    #[inline(always)]
    fn start(self, minus_halves: v128) -> v128 {
        i32x4_dot_i16x8(minus_halves, self.offset)
    }
    #[inline(always)]
    unsafe fn add<const C: usize>(self, sums: &mut [[v128; C]; 4], w: *const u8, x: [*const u8; C]) {
        let mut values = [self.flip; C];
        for c in 0..C {
            // SAFETY: the caller's promise.
            values[c] = unsafe { broadcast(x[c]) };
        }
        for (quad, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            let bytes = v128_xor(unsafe { load(w.add(quad * 16)) }, self.flip);
            for c in 0..C {
                sums[c] = i32x4_relaxed_dot_i8x16_i7x16_add(values[c], bytes, sums[c]);
            }
        }
    }
    #[inline(always)]
    fn finish(self, sums: v128) -> v128 {
        sums
    }
}

/// Bytes of a block's scales.
const SCALES: usize = LANES * 2;
/// Blocks of a group.
const GROUP: usize = group_of(SCALES);

/// A tile times C columns, two at a time. None where a scale is not finite.
#[inline(always)]
pub fn multiply_all<L: Line, const C: usize>(tile: &[u8], x: [&[ActBlock]; C]) -> Option<[F32x16; C]> {
    if C == 1 {
        let [sums] = multiply::<L, 1>(tile, [x[0]])?;
        return Some([sums; C]);
    }
    let mut sums = [[f32x4_splat(0.0); 4]; C];
    for (sums, x) in sums.as_chunks_mut::<2>().0.iter_mut().zip(x.as_chunks::<2>().0) {
        *sums = multiply::<L, 2>(tile, *x)?;
    }
    Some(sums)
}

/// A tile times C columns. (A function of its own: within a larger one V8 keeps less in registers.) None where a scale
/// is not finite: a call that widens it, however rare, would have the sums stored and loaded around it.
#[inline(never)]
pub fn multiply<L: Line, const C: usize>(tile: &[u8], x: [&[ActBlock]; C]) -> Option<[F32x16; C]> {
    let blocks = x[0].len();
    let block_bytes = const { L::LAYOUT.bytes() };
    // Tiles end on cache lines.
    assert!(tile.len() >= blocks * (SCALES + block_bytes) && x.iter().all(|x| x.len() == blocks));
    let (line, widening, bytes) = (L::new(0), Widening::new(kept), black_box(block_bytes));
    let mut sums = [[f32x4_splat(0.0); 4]; C];
    let (mut at, mut x) = (tile.as_ptr(), x.map(<[ActBlock]>::as_ptr));
    let mut left = blocks;
    while left > 0 {
        let count = left.min(GROUP);
        let mut scales = at;
        at = at.wrapping_add(count * SCALES);
        let end = at.wrapping_add(count * bytes);
        while at != end {
            // SAFETY: the length was checked for so many blocks, of the tile and of the columns.
            if !unsafe { add_block(line, &mut sums, at, bytes, (widening, scales), x) } {
                return None;
            }
            at = at.wrapping_add(bytes);
            scales = scales.wrapping_add(SCALES);
            x = x.map(|x| x.wrapping_add(1));
        }
        left -= count;
    }
    Some(sums)
}

/// Some tiles times C columns, a block of each by turns: memory is read as so many streams, which a CPU reads ahead of at the
/// same time, and more of it waits at once. False where a scale is not finite.
#[cfg(target_feature = "relaxed-simd")]
#[inline(never)]
pub fn multiply_streams<L: Line, const C: usize>(
    flip: u8,
    tiles: &[&[u8]],
    x: [&[ActBlock]; C],
    sums: &mut [[F32x16; C]],
) -> bool {
    let blocks = x[0].len();
    let block_bytes = const { L::LAYOUT.bytes() };
    assert!(tiles.iter().all(|tile| tile.len() >= blocks * (SCALES + block_bytes)));
    assert!(x.iter().all(|x| x.len() == blocks) && tiles.len() == sums.len());
    let (line, widening, bytes) = (L::new(flip), Widening::new(kept), black_box(block_bytes));
    sums.fill([[f32x4_splat(0.0); 4]; C]);
    let (mut at, mut x) = (0, x.map(<[ActBlock]>::as_ptr));
    let mut left = blocks;
    while left > 0 {
        let count = left.min(GROUP);
        let mut scales = at;
        at += count * SCALES;
        let end = at + count * bytes;
        while at != end {
            for (tile, sums) in tiles.iter().zip(&mut *sums) {
                let (w, scales) = (tile.as_ptr().wrapping_add(at), tile.as_ptr().wrapping_add(scales));
                let mut own = *sums;
                // SAFETY: the length was checked for so many blocks, of the tile and of the columns.
                if !unsafe { add_block(line, &mut own, w, bytes, (widening, scales), x) } {
                    return false;
                }
                *sums = own;
            }
            at += bytes;
            scales += SCALES;
            x = x.map(|x| x.wrapping_add(1));
        }
        left -= count;
    }
    true
}

/// Adds the products of a block of `bytes` bytes. Its scales are widened here, not for a group of blocks before: stored and
/// loaded again they would take eight accesses more, of which Deno checks each. False, and nothing is added, where one is not finite.
///
/// # Safety
/// `w` and `x` point to a block of the weights and of each column, `scales` to the block's, on an even address.
#[inline(always)]
unsafe fn add_block<L: Line, const C: usize>(
    line: L,
    sums: &mut [F32x16; C],
    w: *const u8,
    bytes: usize,
    (widening, scales): (Widening, *const u8),
    x: [*const ActBlock; C],
) -> bool {
    let mut dots = [[f32x4_splat(0.0); C]; 4];
    let mut values = [w; C];
    for c in 0..C {
        let column: *const u8 = x[c].cast();
        // SAFETY: the caller's promise.
        let start = line.start(unsafe { broadcast(column.add(offset_of!(ActBlock, minus_halves))) });
        for dots in &mut dots {
            dots[c] = start;
        }
        values[c] = column.wrapping_add(offset_of!(ActBlock, values));
    }
    let (mut at, end) = (w, w.wrapping_add(bytes));
    loop {
        // SAFETY: rounds of 64 bytes up to the end of the block, which has as many groups of four values.
        unsafe { line.add(&mut dots, at, values) };
        at = at.wrapping_add(64);
        if at == end {
            break;
        }
        for value in &mut values {
            *value = value.wrapping_add(4);
        }
    }
    // SAFETY: the caller's promise.
    let Some(scales) = widening.widen_finite(unsafe { &*scales.cast() }) else { return false };
    for c in 0..C {
        // SAFETY: the caller's promise.
        let d_x = unsafe { broadcast(x[c].cast()) };
        for quad in 0..4 {
            let t = f32x4_mul(scales[quad], d_x);
            let dots = f32x4_convert_i32x4(line.finish(dots[quad][c]));
            sums[c][quad] = f32x4_add(sums[c][quad], f32x4_mul(t, dots));
        }
    }
    true
}
