//! The small SIMD trait that every kernel is written against, and one file per ISA.
//!
//! A value of an implementing type is a token: it exists only where the CPU has the ISA, so the
//! methods are safe to call. All of them work on 16 lanes, whatever the register width, and all
//! float methods are single IEEE operations, so that every ISA gives the same bits.

#[cfg(target_arch = "x86_64")]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
pub mod avx512;
#[cfg(target_arch = "aarch64")]
pub mod neon;

/// Lanes of a vector: outputs of a weight tile, keys of a cache sub-block.
pub const LANES: usize = 16;
/// Elements of one quantisation block along the reduction.
pub const QK: usize = 32;
/// Bytes of one packed 8-bit block of 16 rows: K groups of 4, each 16 rows by 4 values.
pub const Q8_BYTES: usize = LANES * QK;
/// Bytes of one packed 4-bit block of 16 rows.
pub const Q4_BYTES: usize = LANES * QK / 2;

/// One column's quantised activations for one block, all that a dot product needs in one place.
#[derive(Clone, Copy, PartialEq, Debug)]
#[repr(C)]
pub struct ActBlock {
    pub scale: f32,
    /// Minus the sum of the values: takes out the offset that packed weights have.
    pub minus_sum: i32,
    /// Within -127..=127.
    pub values: [i8; QK],
}

const _: () = assert!(size_of::<ActBlock>() == 40);

pub trait Simd: Copy {
    /// 16 f32 lanes.
    type F: Copy;
    /// 16 i32 lanes.
    type I: Copy;
    /// How many columns the registers hold accumulators for, with `TILES` tiles: 6, 4, 2 or 1.
    const COLUMNS: usize;
    /// How many weight tiles are multiplied at once: 2 or 1.
    const TILES: usize;
    /// How many queries attention handles at once: 8, 4, 2 or 1.
    const QUERIES: usize;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, from: &[f32; LANES]) -> Self::F;
    fn store(self, v: Self::F, to: &mut [f32; LANES]);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// The larger; used only where neither is NaN and the sign of a zero does not matter.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    fn abs(self, a: Self::F) -> Self::F;
    /// a * b + c where a * b is exact, so that fusing it or not gives the same bits.
    fn mul_add_exact(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// To the nearest whole number, ties to even; |x| < 2^22.
    fn round(self, x: Self::F) -> Self::F;
    /// 2^n for whole n in -126..=127.
    fn pow2(self, n: Self::F) -> Self::F;
    /// Per lane: a < b ? yes : no (NaN compares false).
    fn select_less(self, a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F;

    fn load_f16(self, from: &[u16; LANES]) -> Self::F;
    fn load_bf16(self, from: &[u16; LANES]) -> Self::F;
    /// To nearest, ties to even.
    fn store_f16(self, v: Self::F, to: &mut [u16; LANES]);
    /// The nearest whole numbers (ties to even) of lanes within -128..=127.
    fn store_i8(self, v: Self::F, to: &mut [i8; LANES]);
    fn int_to_float(self, v: Self::I) -> Self::F;

    /// Asks for the cache lines `ahead` bytes after those of `item`; what is there is not read.
    fn prefetch<T>(self, item: &T, ahead: usize);

    /// Exact dot products of packed 8-bit blocks (16 rows each, values stored as w + 128), one of each
    /// of R tiles, with each of C columns.
    fn dot_q8<const R: usize, const C: usize>(
        self,
        w: [&[u8; Q8_BYTES]; R],
        x: [&ActBlock; C],
    ) -> [[Self::I; C]; R];
    /// The same for packed 4-bit blocks, values stored as w + 8.
    fn dot_q4<const R: usize, const C: usize>(
        self,
        w: [&[u8; Q4_BYTES]; R],
        x: [&ActBlock; C],
    ) -> [[Self::I; C]; R];
}
