//! How the values and the scales of a block of 32 lie in a tile, and how to read them back.
//!
//! A block's values are vectors of 64 bytes: 16 rows of 4 bytes, byte i of group g being value
//! 4g + i. Narrow values share bytes:
//!
//! | part          | vectors | value 4g + i of a row is in byte i of its four bytes of               |
//! |---------------|---------|-----------------------------------------------------------------------|
//! | whole bytes   | 8       | vector g                                                              |
//! | nibbles       | 4       | vector g % 4: the low nibble where g < 4, else the high one           |
//! | pairs of bits | 2       | vector g / 4, at bit 2 (g % 4)                                        |
//! | single bits   | 1       | the only vector, at bit g                                             |
//!
//! The vectors lie in the order in which a walk over the groups first needs them, so that a block is read
//! from one end to the other: high bits before low ones, of six bits the second vector of pairs last.

use super::{Format, group_of};
use crate::float16::f16_to_f32;
use crate::simd::{LANES, QK};

/// Bytes of a vector of values.
pub(crate) const VECTOR: usize = LANES * 4;

/// Which parts make up a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// Whole bytes.
    Bytes,
    /// Nibbles.
    Four,
    /// Nibbles, below single bits.
    Five,
    /// Nibbles, below pairs of bits.
    Six,
    /// Pairs of bits, below single bits.
    Three,
    /// Pairs of bits.
    Two,
}

impl Layout {
    /// Vectors of one block.
    pub const fn vectors(self) -> usize {
        match self {
            Self::Bytes => 8,
            Self::Four => 4,
            Self::Five => 5,
            Self::Six => 6,
            Self::Three => 3,
            Self::Two => 2,
        }
    }

    /// Bytes of one block of 16 rows.
    pub const fn bytes(self) -> usize {
        self.vectors() * VECTOR
    }

    /// Row `lane`'s value `i` of a packed block, as stored: without offset or table.
    fn stored(self, block: &[u8], lane: usize, i: usize) -> u8 {
        let group = i / 4;
        let byte = |vector: usize| block[vector * VECTOR + lane * 4 + i % 4];
        let nibble = |first: usize| byte(first + group % 4) >> (group / 4 * 4) & 15;
        let pair = |vectors: [usize; 2]| byte(vectors[group / 4]) >> (group % 4 * 2) & 3;
        let bit = || byte(0) >> group & 1;
        match self {
            Self::Bytes => byte(group),
            Self::Four => nibble(0),
            Self::Five => nibble(1) | bit() << 4,
            Self::Six => nibble(1) | pair(SIX_PAIRS) << 4,
            Self::Three => pair([1, 2]) | bit() << 2,
            Self::Two => pair([0, 1]),
        }
    }
}

/// Where the pairs of bits of six-bit values are, the nibbles between them.
pub(crate) const SIX_PAIRS: [usize; 2] = [0, 5];

/// The values of IQ4_NL and IQ4_XS.
pub(crate) const IQ4_VALUES: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// The values of MXFP4 (E2M1) times 2.
pub(crate) const E2M1_VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Row by row, one block of a tile: value i is scale * scales\[i / 16\] * values\[i\]
/// - minimum * minimums\[i / 16\].
pub(crate) struct Block {
    pub scale: f32,
    pub scales: [i32; 2],
    pub minimum: f32,
    pub minimums: [i32; 2],
    pub values: [i32; QK],
}

/// Row `lane` of block `block` of a tile of `cols` columns.
pub(crate) fn read_block(format: Format, cols: usize, tile: &[u8], lane: usize, block: usize) -> Block {
    let layout = format.layout().expect("a quantised format");
    let per_scales = format.block() / QK;
    let (of_file, within) = (block / per_scales, block % per_scales);
    let [value_bytes, scale_bytes] = format.parts();
    let group = group_of(scale_bytes);
    let first = of_file / group * group;
    let count = group.min(cols / format.block() - first);
    let start = first * (value_bytes + scale_bytes);
    let at = start + (of_file - first) * scale_bytes;
    let scales = Scales { bytes: &tile[at..at + scale_bytes], lane };
    let at = start + count * scale_bytes + (of_file - first) * value_bytes + within * layout.bytes();
    let values = std::array::from_fn(|i| value(format, layout.stored(&tile[at..], lane, i)));
    scales.read(format, within, values)
}

/// What a stored value stands for.
fn value(format: Format, stored: u8) -> i32 {
    match format {
        Format::Q8_0 => stored as i32 - 128,
        Format::Q6_K => stored as i32 - 32,
        Format::Q5_0 => stored as i32 - 16,
        Format::Q4_0 => stored as i32 - 8,
        Format::Q3_K => stored as i32 - 4,
        Format::IQ4_NL | Format::IQ4_XS => IQ4_VALUES[stored as usize] as i32,
        Format::MXFP4 => E2M1_VALUES[stored as usize] as i32,
        _ => stored as i32,
    }
}

/// The scales of the blocks of 16 rows that share a super-scale, as the table in [`super`] has them.
struct Scales<'a> {
    bytes: &'a [u8],
    lane: usize,
}

impl Scales<'_> {
    /// The lane's F16 of the 16 at byte `at`.
    fn half(&self, at: usize) -> f32 {
        f16_to_f32(self.short(at))
    }

    fn short(&self, at: usize) -> u16 {
        let at = at + self.lane * 2;
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    /// The lane's word of vector `index`.
    fn word(&self, index: usize) -> u32 {
        let at = index * VECTOR + self.lane * 4;
        u32::from_le_bytes(std::array::from_fn(|i| self.bytes[at + i]))
    }

    fn read(&self, format: Format, block: usize, values: [i32; QK]) -> Block {
        let mut read = Block { scale: 0.0, scales: [1; 2], minimum: 0.0, minimums: [1; 2], values };
        match format {
            Format::Q4_1 | Format::Q5_1 => {
                read.scale = self.half(0);
                read.minimum = -self.half(32);
            }
            Format::MXFP4 => read.scale = e8m0_half(self.bytes[self.lane]),
            Format::Q4_K | Format::Q5_K => {
                let [low, low_minimum, high] = [0, 1, 2].map(|index| self.word(index) >> (block * 4) & 15);
                (read.scale, read.minimum) = (self.half(192), self.half(224));
                read.scales = [(low | (high & 3) << 4) as i32; 2];
                read.minimums = [(low_minimum | (high & 12) << 2) as i32; 2];
            }
            Format::IQ4_XS => {
                let low = self.word(0) >> (block * 4) & 15;
                let high = self.short(64) >> (block * 2) & 3;
                read.scale = self.half(96);
                read.scales = [(low as i32 | (high as i32) << 4) - 32; 2];
            }
            Format::Q6_K => {
                read.scale = self.half(256);
                read.scales = [0, 1].map(|i| self.bytes[block * 32 + self.lane * 2 + i] as i8 as i32);
            }
            Format::Q3_K => {
                read.scale = self.half(192);
                let (low, high) = (self.word(block / 4) >> (block % 4 * 4), self.word(2) >> (block * 2));
                read.scales = [0, 16].map(|half| (low >> half & 15 | (high >> half & 3) << 4) as i32 - 32);
            }
            Format::Q2_K => {
                (read.scale, read.minimum) = (self.half(256), self.half(288));
                let both = [0, 1].map(|i| self.bytes[block * 32 + self.lane * 2 + i] as i32);
                (read.scales, read.minimums) = (both.map(|b| b & 15), both.map(|b| b >> 4));
            }
            _ => read.scale = self.half(0),
        }
        read
    }
}

/// 2^(e - 128): an E8M0 scale for values that are stored times 2.
fn e8m0_half(e: u8) -> f32 {
    match e {
        0 | 1 => f32::from_bits(0x0020_0000 << e),
        _ => f32::from_bits((e as u32 - 1) << 23),
    }
}
