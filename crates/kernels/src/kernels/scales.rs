//! The scales of packed blocks as vectors of 16 rows: see [`crate::packed`] for where they lie.

use crate::simd::{LANES, Simd};

/// Scales of blocks of 32: acc += (scale * d_x) * dot, and with a minimum then acc -= (minimum * d_x) * sum(x).
pub(crate) trait Scales {
    /// Of a block.
    const BYTES: usize;
    const MINIMUM: bool;
    /// Whether they are F16 numbers and nothing else.
    const HALF: bool = false;
    fn scale<S: Simd>(s: S, scales: &[u8]) -> S::F;
    fn minimum<S: Simd>(s: S, scales: &[u8]) -> S::F;
}

/// Scales of runs of eight blocks, which have whole numbers as scales of their own:
/// acc += (scale * d_x) * sum of n * dot, and with minimums then acc -= (minimum * d_x) * sum of m * sum(x).
pub(crate) trait RunScales {
    /// Of a run.
    const BYTES: usize;
    /// Whether a block's halves have two numbers n and m, or one.
    const HALVES: bool;
    const MINIMUM: bool;
    fn scale<S: Simd>(s: S, run: &[u8]) -> S::F;
    fn minimum<S: Simd>(s: S, run: &[u8]) -> S::F;
    /// The numbers n: pairs of 16 bits where halves have their own, else whole words.
    fn scales<S: Simd>(s: S, run: &[u8], block: usize) -> S::I;
    /// The numbers m as pairs of 16 bits: of halves of block `i` where they have their own, else of blocks 2i and 2i + 1.
    fn minimums<S: Simd>(s: S, run: &[u8], i: usize) -> S::I;
}

/// Q8_0, Q4_0, Q5_0, IQ4_NL.
pub(crate) struct Half;
/// Q4_1, Q5_1: what is added to values in a file is minus the minimum.
pub(crate) struct HalfMinimum;
/// MXFP4.
pub(crate) struct E8m0;
/// Q4_K, Q5_K.
pub(crate) struct SixBits;
/// IQ4_XS.
pub(crate) struct SixBitsSigned;
/// Q6_K.
pub(crate) struct Bytes;
/// Q3_K.
pub(crate) struct SixBitPairs;
/// Q2_K.
pub(crate) struct FourBitPairs;

impl Scales for Half {
    const BYTES: usize = 32;
    const MINIMUM: bool = false;
    const HALF: bool = true;

    #[inline(always)]
    fn scale<S: Simd>(s: S, scales: &[u8]) -> S::F {
        s.load_f16(halves(scales, 0))
    }
    #[inline(always)]
    fn minimum<S: Simd>(s: S, _: &[u8]) -> S::F {
        s.splat(0.0)
    }
}

impl Scales for HalfMinimum {
    const BYTES: usize = 64;
    const MINIMUM: bool = true;

    #[inline(always)]
    fn scale<S: Simd>(s: S, scales: &[u8]) -> S::F {
        s.load_f16(halves(scales, 0))
    }
    #[inline(always)]
    fn minimum<S: Simd>(s: S, scales: &[u8]) -> S::F {
        s.sub(s.splat(0.0), s.load_f16(halves(scales, 32)))
    }
}

impl Scales for E8m0 {
    const BYTES: usize = 16;
    const MINIMUM: bool = false;

    /// 2^(e - 128) as the exact product of two powers that a float's exponent has room for.
    #[inline(always)]
    fn scale<S: Simd>(s: S, scales: &[u8]) -> S::F {
        let e = s.load_u8(scales.first_chunk().expect("16 scales"));
        s.mul(Self::factor(s, e), Self::factor(s, s.add_to_pairs(e, 1)))
    }
    #[inline(always)]
    fn minimum<S: Simd>(s: S, _: &[u8]) -> S::F {
        s.splat(0.0)
    }
}

impl RunScales for SixBits {
    const BYTES: usize = 256;
    const HALVES: bool = false;
    const MINIMUM: bool = true;

    #[inline(always)]
    fn scale<S: Simd>(s: S, run: &[u8]) -> S::F {
        s.load_f16(halves(run, 192))
    }
    #[inline(always)]
    fn minimum<S: Simd>(s: S, run: &[u8]) -> S::F {
        s.load_f16(halves(run, 224))
    }
    #[inline(always)]
    fn scales<S: Simd>(s: S, run: &[u8], block: usize) -> S::I {
        let low = s.and_bits(s.shift_right(s.load_words(run, 0), block * 4), 15);
        let high = s.and_bits(s.shift_right(s.load_words(run, 2), block * 4), 3);
        s.or(low, s.shift_left(high, 4))
    }
    #[inline(always)]
    fn minimums<S: Simd>(s: S, run: &[u8], i: usize) -> S::I {
        let low = s.shift_right(s.load_words(run, 1), i * 8);
        let low = s.or(s.and_bits(low, 0xf), s.and_bits(s.shift_left(low, 12), 0xf << 16));
        let high = s.shift_right(s.load_words(run, 2), i * 8);
        let high =
            s.or(s.and_bits(s.shift_left(high, 2), 0x30), s.and_bits(s.shift_left(high, 14), 0x30 << 16));
        s.or(low, high)
    }
}

impl RunScales for SixBitsSigned {
    const BYTES: usize = 128;
    const HALVES: bool = false;
    const MINIMUM: bool = false;

    #[inline(always)]
    fn scale<S: Simd>(s: S, run: &[u8]) -> S::F {
        s.load_f16(halves(run, 96))
    }
    #[inline(always)]
    fn minimum<S: Simd>(s: S, _: &[u8]) -> S::F {
        s.splat(0.0)
    }
    #[inline(always)]
    fn scales<S: Simd>(s: S, run: &[u8], block: usize) -> S::I {
        let low = s.and_bits(s.shift_right(s.load_words(run, 0), block * 4), 15);
        let high = s.and_bits(s.shift_right(s.load_u16(halves(run, 64)), block * 2), 3);
        s.add_ints(s.or(low, s.shift_left(high, 4)), s.splat_int(-32))
    }
    #[inline(always)]
    fn minimums<S: Simd>(s: S, _: &[u8], _: usize) -> S::I {
        s.pairs(0)
    }
}

impl RunScales for Bytes {
    const BYTES: usize = 320;
    const HALVES: bool = true;
    const MINIMUM: bool = false;

    #[inline(always)]
    fn scale<S: Simd>(s: S, run: &[u8]) -> S::F {
        s.load_f16(halves(run, 256))
    }
    #[inline(always)]
    fn minimum<S: Simd>(s: S, _: &[u8]) -> S::F {
        s.splat(0.0)
    }
    #[inline(always)]
    fn scales<S: Simd>(s: S, run: &[u8], block: usize) -> S::I {
        s.load_pairs(pairs(run, block))
    }
    #[inline(always)]
    fn minimums<S: Simd>(s: S, _: &[u8], _: usize) -> S::I {
        s.pairs(0)
    }
}

impl RunScales for SixBitPairs {
    const BYTES: usize = 256;
    const HALVES: bool = true;
    const MINIMUM: bool = false;

    #[inline(always)]
    fn scale<S: Simd>(s: S, run: &[u8]) -> S::F {
        s.load_f16(halves(run, 192))
    }
    #[inline(always)]
    fn minimum<S: Simd>(s: S, _: &[u8]) -> S::F {
        s.splat(0.0)
    }
    #[inline(always)]
    fn scales<S: Simd>(s: S, run: &[u8], block: usize) -> S::I {
        let low = s.shift_right(s.load_words(run, block / 4), block % 4 * 4);
        let high = s.shift_right(s.load_words(run, 2), block * 2);
        let high = s.shift_left(s.and_bits(high, 0x0003_0003), 4);
        s.add_to_pairs(s.or(s.and_bits(low, 0x000f_000f), high), -32)
    }
    #[inline(always)]
    fn minimums<S: Simd>(s: S, _: &[u8], _: usize) -> S::I {
        s.pairs(0)
    }
}

impl RunScales for FourBitPairs {
    const BYTES: usize = 320;
    const HALVES: bool = true;
    const MINIMUM: bool = true;

    #[inline(always)]
    fn scale<S: Simd>(s: S, run: &[u8]) -> S::F {
        s.load_f16(halves(run, 256))
    }
    #[inline(always)]
    fn minimum<S: Simd>(s: S, run: &[u8]) -> S::F {
        s.load_f16(halves(run, 288))
    }
    #[inline(always)]
    fn scales<S: Simd>(s: S, run: &[u8], block: usize) -> S::I {
        s.and_bits(s.load_pairs(pairs(run, block)), 0x000f_000f)
    }
    #[inline(always)]
    fn minimums<S: Simd>(s: S, run: &[u8], block: usize) -> S::I {
        s.and_bits(s.shift_right(s.load_pairs(pairs(run, block)), 4), 0x000f_000f)
    }
}

impl E8m0 {
    /// 2^(e/2 - 64), rounded down.
    #[inline(always)]
    fn factor<S: Simd>(s: S, e: S::I) -> S::F {
        // What is added to the upper 16 bits is shifted out or masked.
        let half = s.and_bits(s.shift_right(e, 1), 0xff);
        s.float_bits(s.shift_left(s.add_to_pairs(half, 127 - 64), 23))
    }
}

/// The 16 two-byte numbers at byte `at`.
#[inline(always)]
fn halves(run: &[u8], at: usize) -> &[u16; LANES] {
    let numbers: *const [u16; LANES] = run[at..at + LANES * 2].as_ptr().cast();
    assert!(numbers.is_aligned());
    // SAFETY: 32 bytes, aligned; every byte pattern is a valid u16.
    unsafe { &*numbers }
}

/// The two bytes of each row that belong to a block.
#[inline(always)]
fn pairs(run: &[u8], block: usize) -> &[u8; LANES * 2] {
    run[block * LANES * 2..].first_chunk().expect("a block's scales")
}
