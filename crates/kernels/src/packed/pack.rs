//! From rows of a file to tiles.

use super::layout::{Layout, SIX_PAIRS, VECTOR};
use super::{Format, LANES, group_of};
use crate::float16::{BF16_TINY, bf16_to_f32};
use crate::simd::each_group;
use crate::simd::turn::turn_words;

/// Packs up to 16 rows, as a file has them one after another, into one tile; a tile of fewer is zero elsewhere.
///
/// The words of a block are put together row by row, then turned, so that writes are few and in order.
///
/// # Panics
/// If `source` is not 1 to 16 whole rows or `tile` is not one tile.
pub fn pack_tile(format: Format, cols: usize, source: &[u8], tile: &mut [u8]) {
    let row_bytes = format.row_bytes(cols);
    let rows = source.len() / row_bytes;
    assert!(rows * row_bytes == source.len() && (1..=LANES).contains(&rows));
    assert_eq!(tile.len(), format.tile_bytes(cols));
    if rows < LANES {
        tile.fill(0);
    }
    let to = Tile { format, cols, source, bytes: tile };
    match format {
        Format::F32 => to.floats(),
        Format::F16 => to.halves(|bits| bits),
        Format::BF16 => to.halves(flush_tiny),
        Format::Q8_0 => to.blocks(Q80),
        Format::Q4_0 | Format::IQ4_NL => to.blocks(Q40),
        Format::Q4_1 => to.blocks(Q41),
        Format::Q5_0 => to.blocks(Q50),
        Format::Q5_1 => to.blocks(Q51),
        Format::MXFP4 => to.blocks(Mxfp4),
        Format::Q2_K => to.super_blocks(Q2K),
        Format::Q3_K => to.super_blocks(Q3K),
        Format::Q4_K => to.super_blocks(Q4K),
        Format::Q5_K => to.super_blocks(Q5K),
        Format::Q6_K => to.super_blocks(Q6K),
        Format::IQ4_XS => to.blocks(Iq4Xs),
    }
}

/// Magnitudes of a BF16 number under 2^-60 to zero.
fn flush_tiny(bits: u16) -> u16 {
    let tiny = bf16_to_f32(bits).abs() < BF16_TINY;
    if tiny { bits & 0x8000 } else { bits }
}

fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
    std::array::from_fn(|i| {
        u32::from_le_bytes([bytes[i * 4], bytes[i * 4 + 1], bytes[i * 4 + 2], bytes[i * 4 + 3]])
    })
}

/// Writes word v of every row into vector v; rows are `BYTES` long.
#[inline(always)]
fn turn<const BYTES: usize>(rows: &[[u8; BYTES]; LANES], vectors: &mut [u8]) {
    let vectors = &mut vectors.as_chunks_mut::<VECTOR>().0[..BYTES / 4];
    let (fours, rest) = vectors.as_chunks_mut::<4>();
    for (i, four) in fours.iter_mut().enumerate() {
        for (first, rows) in rows.as_chunks::<4>().0.iter().enumerate() {
            let rows = rows.each_ref().map(|row| &row.as_chunks::<16>().0[i]);
            for (vector, turned) in four.iter_mut().zip(turn_words(rows)) {
                vector.as_chunks_mut::<16>().0[first] = turned;
            }
        }
    }
    for (v, vector) in (BYTES / 16 * 4..).zip(rest) {
        for lane in 0..LANES {
            vector[lane * 4..lane * 4 + 4].copy_from_slice(&rows[lane][v * 4..v * 4 + 4]);
        }
    }
}

/// A row's block of `FILE` bytes in a file, of which a tile has `BYTES` bytes of values. (Functions that are passed on
/// are not sure to be inlined.)
trait FileBlock<const FILE: usize, const BYTES: usize> {
    fn pack(b: &[u8; FILE], to: &mut Row);
}

/// Words of the largest block of 256.
const MOST_WORDS: usize = 52;

/// A tile and the rows of a file that it takes.
struct Tile<'a> {
    format: Format,
    cols: usize,
    source: &'a [u8],
    bytes: &'a mut [u8],
}

impl<'a> Tile<'a> {
    /// The file's rows as chunks of `FILE` bytes and what is left; empty past the last row.
    fn rows<const FILE: usize>(&self) -> [(&'a [[u8; FILE]], &'a [u8]); LANES] {
        let bytes = self.format.row_bytes(self.cols);
        let row = |lane| self.source.get(lane * bytes..(lane + 1) * bytes).unwrap_or_default();
        std::array::from_fn(|lane| row(lane).as_chunks())
    }

    /// Packs every block of a file into its part of its group.
    #[inline(always)]
    fn blocks<B: FileBlock<FILE, BYTES>, const FILE: usize, const BYTES: usize>(self, _: B) {
        let [value_bytes, scale_bytes] = self.format.parts();
        assert_eq!(value_bytes, BYTES * LANES);
        let rows = self.rows::<FILE>();
        let (blocks, group) = (self.cols / self.format.block(), group_of(scale_bytes));
        let full = !rows[LANES - 1].0.is_empty();
        let mut staged = [[0; BYTES]; LANES];
        for (i, bytes) in self.bytes.chunks_mut(group * (value_bytes + scale_bytes)).enumerate() {
            let first = i * group;
            let (scales, values) = bytes.split_at_mut(group.min(blocks - first) * scale_bytes);
            let parts = values.chunks_exact_mut(value_bytes).zip(scales.chunks_exact_mut(scale_bytes));
            for (block, (values, scales)) in (first..).zip(parts) {
                if const { FILE < 64 } && full {
                    // So little work that a loop would cost as much.
                    each_group!(lane in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15] {
                        let block = &rows[lane].0[block];
                        B::pack(block, &mut Row { lane, words: &mut staged[lane], scales });
                    });
                } else {
                    for (lane, ((blocks, _), words)) in rows.iter().zip(&mut staged).enumerate() {
                        let Some(block) = blocks.get(block) else { break };
                        B::pack(block, &mut Row { lane, words, scales });
                    }
                }
                turn(&staged, values);
            }
        }
    }

    /// Packs every block of 256 into its part of its group.
    fn super_blocks<B: SuperBlock<FILE, BYTES>, const FILE: usize, const BYTES: usize>(self, _: B) {
        let [value_bytes, scale_bytes] = self.format.parts();
        let rows = self.rows::<FILE>();
        let mut staged = [[0; BYTES]; LANES];
        let mut words = [[0; VECTOR]; MOST_WORDS];
        let words = &mut words[..BYTES / 4];
        for (block, bytes) in self.bytes.chunks_exact_mut(value_bytes + scale_bytes).enumerate() {
            let (scales, values) = bytes.split_at_mut(scale_bytes);
            for (lane, ((blocks, _), staged)) in rows.iter().zip(&mut staged).enumerate() {
                let Some(block) = blocks.get(block) else { break };
                let (whole, last) = block.split_at(BYTES);
                staged.copy_from_slice(whole);
                scales[B::LAST + lane * last.len()..][..last.len()].copy_from_slice(last);
            }
            turn(&staged, words.as_flattened_mut());
            B::pack(words, &mut Rows { values: values.as_chunks_mut().0, scales });
        }
    }

    /// Floats of 32 bits.
    fn floats(self) {
        let rows = self.rows::<16>();
        let (chunks, rest) = self.bytes.as_chunks_mut::<{ 16 * LANES }>();
        for (i, out) in chunks.iter_mut().enumerate() {
            turn(&rows.map(|(chunks, _)| chunks.get(i).copied().unwrap_or_default()), out);
        }
        scatter::<4>(rows.map(|(_, left)| left), rest, |value| value);
    }

    /// Floats of 16 bits, each changed by `change`.
    #[inline(always)]
    fn halves(self, change: impl Fn(u16) -> u16) {
        const BYTES: usize = 64;
        let rows = self.rows::<BYTES>();
        // Tiles may be longer than their columns.
        let (chunks, rest) = self.bytes.split_at_mut(self.cols / (BYTES / 2) * BYTES * LANES);
        let mut staged = [[0; BYTES]; LANES];
        for (i, out) in chunks.chunks_exact_mut(BYTES * LANES).enumerate() {
            for ((chunks, _), staged) in rows.iter().zip(&mut staged) {
                let Some(chunk) = chunks.get(i) else { break };
                *staged = *chunk;
            }
            turn(&staged, out);
            // Two columns side by side become one after the other.
            for vector in out.as_chunks_mut::<VECTOR>().0 {
                let both: [u32; LANES] = words(vector);
                let (first, second) = vector.split_at_mut(VECTOR / 2);
                for (lane, word) in both.into_iter().enumerate() {
                    first[lane * 2..][..2].copy_from_slice(&change(word as u16).to_le_bytes());
                    second[lane * 2..][..2].copy_from_slice(&change((word >> 16) as u16).to_le_bytes());
                }
            }
        }
        let change = |bytes| change(u16::from_le_bytes(bytes)).to_le_bytes();
        scatter::<2>(rows.map(|(_, left)| left), rest, change);
    }
}

/// Values of `N` bytes of 16 rows, each changed by `change`, side by side.
fn scatter<const N: usize>(rows: [&[u8]; LANES], to: &mut [u8], change: impl Fn([u8; N]) -> [u8; N]) {
    for (lane, row) in rows.into_iter().enumerate() {
        for (column, value) in row.as_chunks().0.iter().enumerate() {
            to[(column * LANES + lane) * N..][..N].copy_from_slice(&change(*value));
        }
    }
}

/// One row's part of a block of a tile.
struct Row<'a> {
    lane: usize,
    /// A word for each vector.
    words: &'a mut [u8],
    scales: &'a mut [u8],
}

impl Row<'_> {
    /// The lane's bytes of the 16 rows' at `at`.
    fn scale_bytes(&mut self, at: usize, bytes: &[u8]) {
        self.scales[at + self.lane * bytes.len()..][..bytes.len()].copy_from_slice(bytes);
    }

    /// The lane's words of the vectors from `first`.
    fn words<const N: usize>(&mut self, first: usize, words: [u32; N]) {
        for (to, word) in self.words[first * 4..(first + N) * 4].as_chunks_mut().0.iter_mut().zip(words) {
            *to = word.to_le_bytes();
        }
    }

    /// Q5_0 and Q5_1: bit i of the first four bytes belongs to value i, the nibbles are in order.
    fn five(&mut self, bytes: &[u8]) {
        let high = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        self.words(1, words::<4>(&bytes[4..]));
        // Bits 4g .. 4g + 4 to bits g of four bytes.
        let bits = |g: u32| ((high >> (g * 4) & 15).wrapping_mul(0x0020_4081) & 0x0101_0101) << g;
        self.words(0, [(0..8).fold(0, |word, g| word | bits(g))]);
    }

    /// Part `block` of the eight that share a super-scale.
    fn part(&mut self, layout: Layout, block: usize) -> Row<'_> {
        let words = &mut self.words[block * layout.vectors() * 4..(block + 1) * layout.vectors() * 4];
        Row { lane: self.lane, words, scales: &mut *self.scales }
    }
}

struct Q80;

impl FileBlock<34, 32> for Q80 {
    #[inline(always)]
    fn pack(b: &[u8; 34], to: &mut Row) {
        to.scale_bytes(0, &b[..2]);
        to.words(0, words::<8>(&b[2..]).map(|w| w ^ 0x8080_8080));
    }
}

struct Q40;

impl FileBlock<18, 16> for Q40 {
    #[inline(always)]
    fn pack(b: &[u8; 18], to: &mut Row) {
        to.scale_bytes(0, &b[..2]);
        to.words(0, words::<4>(&b[2..]));
    }
}

struct Q41;

impl FileBlock<20, 16> for Q41 {
    #[inline(always)]
    fn pack(b: &[u8; 20], to: &mut Row) {
        to.scale_bytes(0, &b[..2]);
        to.scale_bytes(32, &b[2..4]);
        to.words(0, words::<4>(&b[4..]));
    }
}

struct Q50;

impl FileBlock<22, 20> for Q50 {
    #[inline(always)]
    fn pack(b: &[u8; 22], to: &mut Row) {
        to.scale_bytes(0, &b[..2]);
        to.five(&b[2..]);
    }
}

struct Q51;

impl FileBlock<24, 20> for Q51 {
    #[inline(always)]
    fn pack(b: &[u8; 24], to: &mut Row) {
        to.scale_bytes(0, &b[..2]);
        to.scale_bytes(32, &b[2..4]);
        to.five(&b[4..]);
    }
}

struct Mxfp4;

impl FileBlock<17, 16> for Mxfp4 {
    #[inline(always)]
    fn pack(b: &[u8; 17], to: &mut Row) {
        to.scale_bytes(0, &b[..1]);
        to.words(0, words::<4>(&b[1..]));
    }
}

struct Iq4Xs;

impl FileBlock<136, 128> for Iq4Xs {
    fn pack(b: &[u8; 136], to: &mut Row) {
        for block in 0..8 {
            to.part(Layout::Four, block).words(0, words::<4>(&b[8 + block * 16..]));
        }
        to.scale_bytes(0, &b[4..8]);
        to.scale_bytes(64, &b[2..4]);
        to.scale_bytes(96, &b[..2]);
    }
}

/// A row's block of `FILE` bytes, 256 values that share super-scales, of which the first `BYTES` are whole words: packed
/// for 16 rows at once, after their words have been turned.
trait SuperBlock<const FILE: usize, const BYTES: usize> {
    /// Where the scales have the two bytes that follow the words, if any do.
    const LAST: usize = 0;
    fn pack(words: &[Vector], to: &mut Rows);
}

/// A word of each of 16 rows.
type Vector = [u8; VECTOR];

/// Sixteen rows' part of a block of a tile.
struct Rows<'a> {
    values: &'a mut [Vector],
    scales: &'a mut [u8],
}

/// `to` becomes what `of` makes of each row's words.
#[inline(always)]
fn each_row<const N: usize>(from: [&Vector; N], to: &mut Vector, of: impl Fn([u32; N]) -> u32) {
    for lane in 0..LANES {
        let words = from.map(|words| u32::from_le_bytes(words.as_chunks().0[lane]));
        to.as_chunks_mut().0[lane] = of(words).to_le_bytes();
    }
}

impl Rows<'_> {
    /// Vector `index` of scales.
    fn scale_words(&mut self, index: usize) -> &mut Vector {
        &mut self.scales.as_chunks_mut().0[index]
    }

    /// Sixteen bits of each row's word as scales at `at`.
    #[inline(always)]
    fn half_words(&mut self, at: usize, words: &Vector, shift: usize) {
        for (to, word) in
            self.scales[at..at + 2 * LANES].as_chunks_mut().0.iter_mut().zip(words.as_chunks().0)
        {
            *to = ((u32::from_le_bytes(*word) >> shift) as u16).to_le_bytes();
        }
    }

    /// A block's nibbles from 32 values of four bits at bit `shift` of a byte.
    #[inline(always)]
    fn nibbles(&mut self, first: usize, values: &[Vector], shift: usize) {
        const BITS: u32 = 0x0f0f_0f0f;
        for i in 0..4 {
            each_row([&values[i], &values[i + 4]], &mut self.values[first + i], |[low, high]| {
                low >> shift & BITS | (high >> shift & BITS) << 4
            });
        }
    }

    /// A block's pairs of bits from 32 values of two bits at bit `shift` of a byte.
    #[inline(always)]
    fn pairs(&mut self, vectors: [usize; 2], values: &[Vector], shift: usize) {
        for (vector, i) in vectors.into_iter().zip([0, 4]) {
            let four = [&values[i], &values[i + 1], &values[i + 2], &values[i + 3]];
            each_row(four, &mut self.values[vector], |words| {
                let [a, b, c, d] = words.map(|word| word >> shift & 0x0303_0303);
                a | b << 2 | c << 4 | d << 6
            });
        }
    }

    /// A block's single bits from 32 values of one bit at bit `shift` of a byte.
    #[inline(always)]
    fn bits(&mut self, vector: usize, values: &[Vector], shift: usize) {
        let eight: [&Vector; 8] = std::array::from_fn(|i| &values[i]);
        each_row(eight, &mut self.values[vector], |words| {
            (0..8).fold(0, |bits, g| bits | (words[g] >> shift & 0x0101_0101) << g)
        });
    }

    /// Eight 6-bit scales and minimums of Q4_K and Q5_K: the first four are the low six bits of bytes 0..4
    /// and 4..8; of the others bytes 8..12 have the low nibbles, and the high pairs top the first eight.
    #[inline(always)]
    fn six_bit_scales(&mut self, [first, second, third]: [&Vector; 3]) {
        // Of blocks j and j + 4.
        let place = |word: u32, j: usize, [low, high]: [u32; 2]| word | low << (j * 4) | high << (j * 4 + 16);
        each_row([first, third], self.scale_words(0), |[first, third]| {
            (0..4).fold(0, |word, j| place(word, j, [first, third].map(|from| from >> (j * 8) & 15)))
        });
        each_row([second, third], self.scale_words(1), |[second, third]| {
            (0..4).fold(0, |word, j| place(word, j, [second, third >> 4].map(|from| from >> (j * 8) & 15)))
        });
        each_row([first, second], self.scale_words(2), |[first, second]| {
            let pairs = |at: usize| first >> at & 3 | (second >> at & 3) << 2;
            (0..4).fold(0, |word, j| place(word, j, [4, 6].map(|at| pairs(j * 8 + at))))
        });
    }
}

/// The values of Q2_K and of others' parts: 32 bytes hold four blocks, each two bits further up.
fn file_pairs(words: &[Vector], block: usize) -> (&[Vector], usize) {
    (&words[block / 4 * 8..][..8], block % 4 * 2)
}

struct Q2K;

impl SuperBlock<84, 84> for Q2K {
    fn pack(words: &[Vector], to: &mut Rows) {
        for block in 0..8 {
            let (values, shift) = file_pairs(&words[4..20], block);
            to.pairs([block * 2, block * 2 + 1], values, shift);
            to.half_words(block * 32, &words[block / 2], block % 2 * 16);
        }
        to.half_words(256, &words[20], 0);
        to.half_words(288, &words[20], 16);
    }
}

struct Q3K;

impl SuperBlock<110, 108> for Q3K {
    const LAST: usize = 192;

    fn pack(words: &[Vector], to: &mut Rows) {
        for block in 0..8 {
            let (values, shift) = file_pairs(&words[8..24], block);
            to.pairs([block * 3 + 1, block * 3 + 2], values, shift);
            to.bits(block * 3, &words[..8], block);
        }
        // Scale j: its low nibble in byte j % 8, its high pair in byte 8 + j % 4. It is of block j / 2, half j % 2.
        for index in 0..2 {
            each_row([&words[24], &words[25]], to.scale_words(index), |words| {
                (0..8).fold(0, |packed, j| {
                    let low = words[j / 4] >> (j % 4 * 8 + index * 4) & 15;
                    packed | low << (j / 2 * 4 + j % 2 * 16)
                })
            });
        }
        each_row([&words[26]], to.scale_words(2), |[word]| {
            (0..16).fold(0, |packed, j| {
                packed | (word >> (j % 4 * 8 + j / 4 * 2) & 3) << (j / 2 * 2 + j % 2 * 16)
            })
        });
    }
}

struct Q4K;

impl SuperBlock<144, 144> for Q4K {
    fn pack(words: &[Vector], to: &mut Rows) {
        // 32 bytes hold two blocks, the second in the high nibbles.
        for block in 0..8 {
            to.nibbles(block * 4, &words[4 + block / 2 * 8..], block % 2 * 4);
        }
        to.six_bit_scales([&words[1], &words[2], &words[3]]);
        to.half_words(192, &words[0], 0);
        to.half_words(224, &words[0], 16);
    }
}

struct Q5K;

impl SuperBlock<176, 176> for Q5K {
    fn pack(words: &[Vector], to: &mut Rows) {
        for block in 0..8 {
            to.nibbles(block * 5 + 1, &words[12 + block / 2 * 8..], block % 2 * 4);
            to.bits(block * 5, &words[4..12], block);
        }
        to.six_bit_scales([&words[1], &words[2], &words[3]]);
        to.half_words(192, &words[0], 0);
        to.half_words(224, &words[0], 16);
    }
}

struct Q6K;

impl SuperBlock<210, 208> for Q6K {
    const LAST: usize = 256;

    /// Of each half of four blocks, 64 bytes have the low nibbles, blocks 2 and 3 in the high ones of blocks
    /// 0 and 1; 32 bytes have the high pairs.
    fn pack(words: &[Vector], to: &mut Rows) {
        for block in 0..8 {
            let (half, i) = (block / 4, block % 4);
            to.nibbles(block * 6 + 1, &words[half * 16 + i % 2 * 8..], i / 2 * 4);
            let (values, shift) = file_pairs(&words[32..48], block);
            to.pairs(SIX_PAIRS.map(|vector| block * 6 + vector), values, shift);
            to.half_words(block * 32, &words[48 + block / 2], block % 2 * 16);
        }
    }
}
