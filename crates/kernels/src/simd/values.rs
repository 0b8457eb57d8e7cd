//! How the bytes of a packed block become unsigned bytes that can be multiplied, written once for every
//! ISA: see [`Layout`] for where each bit of a value lies.

use super::{QK, Words};
use crate::packed::{E2M1_VALUES, IQ4_VALUES, Layout, SIX_PAIRS};

/// The packed values of a family of formats.
pub trait Values {
    const LAYOUT: Layout;
    /// Bytes of a block.
    const BYTES: usize = Self::LAYOUT.bytes();
    /// Whether a block is [`SIGNED_VECTORS`] of the ISA's own, magnitudes and signs of whole bytes: see [`super::Simd::SPLITS`].
    const SIGNED: bool = false;
    /// What the bytes are larger by than the values that they stand for.
    const OFFSET: i32;
    /// The largest byte.
    const MAX: i32;

    /// Group `group` of a block: four bytes of each row.
    fn group<W: Words>(w: W, block: &[u8], group: usize) -> W::I;
}

/// Floating-point numbers; or blocks of 32 bytes up to `max`, larger by `offset` than the values, that have a scale each or
/// whole numbers as scales within a run, each or each half.
#[derive(Clone, Copy)]
pub enum Item {
    Float,
    Block { offset: i32, max: i32, minimum: bool },
    Run { offset: i32, max: i32, halves: bool, minimum: bool },
}

impl Item {
    /// The largest byte; none of floating-point numbers.
    pub const fn max(self) -> Option<i32> {
        match self {
            Self::Float => None,
            Self::Block { max, .. } | Self::Run { max, .. } => Some(max),
        }
    }
}

/// Vectors of a block of magnitudes and signs: two for each group, and one more.
pub const SIGNED_VECTORS: usize = QK / 4 * 2 + 1;

/// Whole bytes.
pub struct Bytes;
/// Whole bytes of seven bits.
pub struct Sevens;
/// Four bits.
pub struct Four<const OFFSET: i32>;
/// Five bits.
pub struct Five<const OFFSET: i32>;
/// Six bits with an offset of 32.
pub struct Six;
/// Three bits with an offset of 4.
pub struct Three;
/// Two bits.
pub struct Two;
/// Four bits that choose one of IQ4's 16 values.
pub struct Iq4;
/// Four bits that are an E2M1 number, times 2.
pub struct E2m1;

impl Values for Bytes {
    const LAYOUT: Layout = Layout::Bytes;
    const OFFSET: i32 = 128;
    const MAX: i32 = 255;

    #[inline(always)]
    fn group<W: Words>(w: W, block: &[u8], group: usize) -> W::I {
        w.load_words(block, group)
    }
}

impl Values for Sevens {
    const LAYOUT: Layout = Layout::Bytes;
    const OFFSET: i32 = 64;
    const MAX: i32 = 127;

    #[inline(always)]
    fn group<W: Words>(w: W, block: &[u8], group: usize) -> W::I {
        w.load_words(block, group)
    }
}

impl<const OFFSET: i32> Values for Four<OFFSET> {
    const LAYOUT: Layout = Layout::Four;
    const OFFSET: i32 = OFFSET;
    const MAX: i32 = 15;

    #[inline(always)]
    fn group<W: Words>(w: W, block: &[u8], group: usize) -> W::I {
        nibbles(w, block, 0, group)
    }
}

impl<const OFFSET: i32> Values for Five<OFFSET> {
    const LAYOUT: Layout = Layout::Five;
    const OFFSET: i32 = OFFSET;
    const MAX: i32 = 31;

    #[inline(always)]
    fn group<W: Words>(w: W, block: &[u8], group: usize) -> W::I {
        let high = move_bits(w, w.load_words(block, 0), group, 4, 0x1010_1010);
        w.or(nibbles(w, block, 1, group), high)
    }
}

impl Values for Six {
    const LAYOUT: Layout = Layout::Six;
    const OFFSET: i32 = 32;
    const MAX: i32 = 63;

    #[inline(always)]
    fn group<W: Words>(w: W, block: &[u8], group: usize) -> W::I {
        let high = move_bits(w, w.load_words(block, SIX_PAIRS[group / 4]), group % 4 * 2, 4, 0x3030_3030);
        w.or(nibbles(w, block, 1, group), high)
    }
}

impl Values for Three {
    const LAYOUT: Layout = Layout::Three;
    const OFFSET: i32 = 4;
    const MAX: i32 = 7;

    #[inline(always)]
    fn group<W: Words>(w: W, block: &[u8], group: usize) -> W::I {
        let high = move_bits(w, w.load_words(block, 0), group, 2, 0x0404_0404);
        w.or(pairs(w, block, 1, group), high)
    }
}

impl Values for Two {
    const LAYOUT: Layout = Layout::Two;
    const OFFSET: i32 = 0;
    const MAX: i32 = 3;

    #[inline(always)]
    fn group<W: Words>(w: W, block: &[u8], group: usize) -> W::I {
        pairs(w, block, 0, group)
    }
}

impl Values for Iq4 {
    const LAYOUT: Layout = Layout::Four;
    const OFFSET: i32 = 128;
    const MAX: i32 = 255;

    #[inline(always)]
    fn group<W: Words>(w: W, block: &[u8], group: usize) -> W::I {
        const TABLE: [u8; 16] = raised(IQ4_VALUES, 128);
        w.lookup(&TABLE, nibbles(w, block, 0, group))
    }
}

impl Values for E2m1 {
    const LAYOUT: Layout = Layout::Four;
    const OFFSET: i32 = 12;
    const MAX: i32 = 24;

    #[inline(always)]
    fn group<W: Words>(w: W, block: &[u8], group: usize) -> W::I {
        const TABLE: [u8; 16] = raised(E2M1_VALUES, 12);
        w.lookup(&TABLE, nibbles(w, block, 0, group))
    }
}

const fn raised(values: [i8; 16], by: i32) -> [u8; 16] {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = (values[i] as i32 + by) as u8;
        i += 1;
    }
    table
}

/// A group of nibbles whose vectors start with vector `first`.
#[inline(always)]
fn nibbles<W: Words>(w: W, block: &[u8], first: usize, group: usize) -> W::I {
    move_bits(w, w.load_words(block, first + group % 4), group / 4 * 4, 0, 0x0f0f_0f0f)
}

/// The same of pairs of bits.
#[inline(always)]
fn pairs<W: Words>(w: W, block: &[u8], first: usize, group: usize) -> W::I {
    move_bits(w, w.load_words(block, first + group / 4), group % 4 * 2, 0, 0x0303_0303)
}

/// The bits of every byte that start at `from`, to where `mask` is, at `to`.
#[inline(always)]
fn move_bits<W: Words>(w: W, v: W::I, from: usize, to: usize, mask: u32) -> W::I {
    let moved = if from < to {
        w.shift_left(v, to - from)
    } else if from > to {
        w.shift_right(v, from - to)
    } else {
        v
    };
    w.and_bits(moved, mask)
}
