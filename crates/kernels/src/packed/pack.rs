//! From rows of a file to tiles.

use super::layout::{Layout, SIX_PAIRS, VECTOR};
use super::{Format, LANES, group_of};
use crate::float16::{BF16_TINY, bf16_to_f32};

/// Packs up to 16 rows, as a file has them one after another, into one tile.
///
/// # Panics
/// If `source` is not 1 to 16 whole rows or `tile` is not one tile.
pub fn pack_tile(format: Format, cols: usize, source: &[u8], tile: &mut [u8]) {
    let row_bytes = format.row_bytes(cols);
    let rows = source.len() / row_bytes;
    assert!(rows * row_bytes == source.len() && (1..=LANES).contains(&rows));
    assert_eq!(tile.len(), format.tile_bytes(cols));
    let parts = format.parts();
    for (lane, row) in source.chunks_exact(row_bytes).enumerate() {
        let mut to = Tile { lane, parts, bytes: tile };
        match format {
            Format::F32 => scatter::<4>(row, lane, to.bytes),
            Format::F16 => scatter::<2>(row, lane, to.bytes),
            Format::BF16 => pack_bf16(row, lane, to.bytes),
            Format::Q8_0 => to.blocks(row, |b: &[u8; 34], to| {
                to.scale_bytes(0, &b[..2]);
                to.words(0, words::<8>(&b[2..]).map(|w| w ^ 0x8080_8080));
            }),
            Format::Q4_0 | Format::IQ4_NL => to.blocks(row, |b: &[u8; 18], to| {
                to.scale_bytes(0, &b[..2]);
                to.words(0, words::<4>(&b[2..]));
            }),
            Format::Q4_1 => to.blocks(row, |b: &[u8; 20], to| {
                to.scale_bytes(0, &b[..2]);
                to.scale_bytes(32, &b[2..4]);
                to.words(0, words::<4>(&b[4..]));
            }),
            Format::Q5_0 => to.blocks(row, |b: &[u8; 22], to| {
                to.scale_bytes(0, &b[..2]);
                to.five(&b[2..]);
            }),
            Format::Q5_1 => to.blocks(row, |b: &[u8; 24], to| {
                to.scale_bytes(0, &b[..2]);
                to.scale_bytes(32, &b[2..4]);
                to.five(&b[4..]);
            }),
            Format::MXFP4 => to.blocks(row, |b: &[u8; 17], to| {
                to.scales[to.lane] = b[0];
                to.words(0, words::<4>(&b[1..]));
            }),
            Format::Q2_K => to.blocks(row, pack_q2_k),
            Format::Q3_K => to.blocks(row, pack_q3_k),
            Format::Q4_K => to.blocks(row, pack_q4_k),
            Format::Q5_K => to.blocks(row, pack_q5_k),
            Format::Q6_K => to.blocks(row, pack_q6_k),
            Format::IQ4_XS => to.blocks(row, pack_iq4_xs),
        }
    }
}

fn scatter<const N: usize>(row: &[u8], lane: usize, values: &mut [u8]) {
    for (k, value) in row.chunks_exact(N).enumerate() {
        values[(k * LANES + lane) * N..][..N].copy_from_slice(value);
    }
}

fn pack_bf16(row: &[u8], lane: usize, values: &mut [u8]) {
    for (k, bytes) in row.chunks_exact(2).enumerate() {
        let bits = u16::from_le_bytes([bytes[0], bytes[1]]);
        let tiny = bf16_to_f32(bits).abs() < BF16_TINY;
        let kept = if tiny { bits & 0x8000 } else { bits };
        values[(k * LANES + lane) * 2..][..2].copy_from_slice(&kept.to_le_bytes());
    }
}

fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
    std::array::from_fn(|i| {
        u32::from_le_bytes([bytes[i * 4], bytes[i * 4 + 1], bytes[i * 4 + 2], bytes[i * 4 + 3]])
    })
}

/// A tile that takes one of its rows.
struct Tile<'a> {
    lane: usize,
    /// Bytes of the values and of the scales of a block of the file, of 16 rows.
    parts: [usize; 2],
    bytes: &'a mut [u8],
}

impl Tile<'_> {
    /// Packs every block of a file, `FILE` bytes each, into its part of its group.
    fn blocks<const FILE: usize>(&mut self, row: &[u8], pack: impl Fn(&[u8; FILE], &mut Row)) {
        let [value_bytes, scale_bytes] = self.parts;
        let group = group_of(scale_bytes);
        let groups = self.bytes.chunks_mut(group * (value_bytes + scale_bytes));
        for (blocks, bytes) in row.as_chunks::<FILE>().0.chunks(group).zip(groups) {
            let (scales, values) = bytes.split_at_mut(blocks.len() * scale_bytes);
            let parts = values.chunks_exact_mut(value_bytes).zip(scales.chunks_exact_mut(scale_bytes));
            for (block, (values, scales)) in blocks.iter().zip(parts) {
                pack(block, &mut Row { lane: self.lane, values, scales });
            }
        }
    }
}

/// One row's part of a block of a tile.
struct Row<'a> {
    lane: usize,
    values: &'a mut [u8],
    scales: &'a mut [u8],
}

impl Row<'_> {
    /// The lane's bytes of the 16 rows' at `at`.
    fn scale_bytes(&mut self, at: usize, bytes: &[u8]) {
        self.scales[at + self.lane * bytes.len()..][..bytes.len()].copy_from_slice(bytes);
    }

    /// The lane's word of vector `index` of scales.
    fn scale_word(&mut self, index: usize, word: u32) {
        self.scale_bytes(index * VECTOR, &word.to_le_bytes());
    }

    /// The lane's words of the vectors from `first`.
    fn words<const N: usize>(&mut self, first: usize, words: [u32; N]) {
        for (i, word) in words.into_iter().enumerate() {
            self.values[(first + i) * VECTOR + self.lane * 4..][..4].copy_from_slice(&word.to_le_bytes());
        }
    }

    /// A block's nibbles from two times 16 values, four in each word.
    fn nibbles(&mut self, first: usize, [low, high]: [[u32; 4]; 2]) {
        let word = |i: usize| low[i] & 0x0f0f_0f0f | (high[i] & 0x0f0f_0f0f) << 4;
        self.words(first, [0, 1, 2, 3].map(word));
    }

    /// Pairs of bits at the bottom of 32 values, four in each word.
    fn pairs(&mut self, vectors: [usize; 2], values: [u32; 8]) {
        let v = values.map(|value| value & 0x0303_0303);
        for (vector, i) in vectors.into_iter().zip([0, 4]) {
            self.words(vector, [v[i] | v[i + 1] << 2 | v[i + 2] << 4 | v[i + 3] << 6]);
        }
    }

    /// Single bits at the bottom of 32 values, four in each word.
    fn bits(&mut self, values: [u32; 8]) {
        let word = values.iter().enumerate().fold(0, |word, (g, value)| word | (value & 0x0101_0101) << g);
        self.words(0, [word]);
    }

    /// Q5_0 and Q5_1: bit i of the first four bytes belongs to value i, the nibbles are in order.
    fn five(&mut self, bytes: &[u8]) {
        let high = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        self.words(1, words::<4>(&bytes[4..]));
        // Bits 4g .. 4g + 4 to the bottoms of four bytes.
        self.bits(std::array::from_fn(|g| (high >> (g * 4) & 15).wrapping_mul(0x0020_4081) & 0x0101_0101));
    }

    /// Part `block` of the eight that share a super-scale.
    fn part(&mut self, layout: Layout, block: usize) -> Row<'_> {
        let values = &mut self.values[block * layout.bytes()..(block + 1) * layout.bytes()];
        Row { lane: self.lane, values, scales: &mut *self.scales }
    }
}

/// Values 0..16 and 16..32 of a word array of 32 values.
fn split(values: [u32; 8]) -> [[u32; 4]; 2] {
    [[values[0], values[1], values[2], values[3]], [values[4], values[5], values[6], values[7]]]
}

/// The file's pairs of bits: 32 bytes hold four blocks, each two bits further up.
fn file_pairs(bytes: &[u8], block: usize) -> [u32; 8] {
    words::<8>(&bytes[block / 4 * 32..]).map(|word| word >> (block % 4 * 2))
}

fn pack_q2_k(b: &[u8; 84], to: &mut Row) {
    for block in 0..8 {
        to.part(Layout::Two, block).pairs([0, 1], file_pairs(&b[16..80], block));
        to.scale_bytes(block * 32, &b[block * 2..block * 2 + 2]);
    }
    to.scale_bytes(256, &b[80..82]);
    to.scale_bytes(288, &b[82..84]);
}

fn pack_q3_k(b: &[u8; 110], to: &mut Row) {
    let high = words::<8>(&b[..32]);
    for block in 0..8 {
        let mut part = to.part(Layout::Three, block);
        part.pairs([1, 2], file_pairs(&b[32..96], block));
        part.bits(high.map(|word| word >> block));
    }
    // Scale j: its low nibble in byte j % 8, its high pair in byte 8 + j % 4.
    let file = &b[96..108];
    let mut packed = [0u32; 3];
    for j in 0..16 {
        let low = (file[j % 8] >> (j / 8 * 4) & 15) as u32;
        let high = (file[8 + j % 4] >> (j / 4 * 2) & 3) as u32;
        let (block, half) = (j / 2, j % 2 * 16);
        packed[block / 4] |= low << (block % 4 * 4 + half);
        packed[2] |= high << (block * 2 + half);
    }
    packed.into_iter().enumerate().for_each(|(i, word)| to.scale_word(i, word));
    to.scale_bytes(192, &b[108..110]);
}

/// The nibbles of Q4_K and Q5_K: 32 bytes hold two blocks, the second in the high nibbles.
fn file_nibbles(bytes: &[u8], block: usize) -> [u32; 8] {
    words::<8>(&bytes[block / 2 * 32..]).map(|word| word >> (block % 2 * 4))
}

/// Eight 6-bit scales and minimums of Q4_K and Q5_K: the first four are the low six bits of bytes 0..4
/// and 4..8; of the others bytes 8..12 have the low nibbles, and the high pairs top the first eight.
fn six_bit_scales(file: &[u8], to: &mut Row) {
    let mut packed = [0u32; 3];
    for block in 0..8 {
        let (scale, minimum) = if block < 4 {
            (file[block] & 63, file[block + 4] & 63)
        } else {
            let low = file[block + 4];
            (low & 15 | file[block - 4] >> 6 << 4, low >> 4 | file[block] >> 6 << 4)
        };
        let (scale, minimum, at) = (scale as u32, minimum as u32, block * 4);
        packed[0] |= (scale & 15) << at;
        packed[1] |= (minimum & 15) << at;
        packed[2] |= (scale >> 4 | minimum >> 4 << 2) << at;
    }
    packed.into_iter().enumerate().for_each(|(i, word)| to.scale_word(i, word));
}

fn pack_q4_k(b: &[u8; 144], to: &mut Row) {
    for block in 0..8 {
        to.part(Layout::Four, block).nibbles(0, split(file_nibbles(&b[16..], block)));
    }
    six_bit_scales(&b[4..16], to);
    to.scale_bytes(192, &b[..2]);
    to.scale_bytes(224, &b[2..4]);
}

fn pack_q5_k(b: &[u8; 176], to: &mut Row) {
    let high = words::<8>(&b[16..48]);
    for block in 0..8 {
        let mut part = to.part(Layout::Five, block);
        part.nibbles(1, split(file_nibbles(&b[48..], block)));
        part.bits(high.map(|word| word >> block));
    }
    six_bit_scales(&b[4..16], to);
    to.scale_bytes(192, &b[..2]);
    to.scale_bytes(224, &b[2..4]);
}

/// Of each half of four blocks, 64 bytes have the low nibbles, blocks 2 and 3 in the high ones of blocks
/// 0 and 1; 32 bytes have the high pairs.
fn pack_q6_k(b: &[u8; 210], to: &mut Row) {
    for block in 0..8 {
        let (half, i) = (block / 4, block % 4);
        let low = words::<8>(&b[half * 64 + i % 2 * 32..]).map(|word| word >> (i / 2 * 4));
        let mut part = to.part(Layout::Six, block);
        part.nibbles(1, split(low));
        part.pairs(SIX_PAIRS, file_pairs(&b[128..192], block));
        to.scale_bytes(block * 32, &b[192 + block * 2..][..2]);
    }
    to.scale_bytes(256, &b[208..210]);
}

fn pack_iq4_xs(b: &[u8; 136], to: &mut Row) {
    for block in 0..8 {
        to.part(Layout::Four, block).words(0, words::<4>(&b[8 + block * 16..]));
    }
    to.scale_bytes(0, &b[4..8]);
    to.scale_bytes(64, &b[2..4]);
    to.scale_bytes(96, &b[..2]);
}
