//! Weights as the kernels read them: tiles of 16 rows side by side, without loss.
//!
//! | format     | a tile, for K columns                                                     |
//! |------------|---------------------------------------------------------------------------|
//! | F32        | K times 16 f32                                                            |
//! | F16, BF16  | K times 16 two-byte floats (BF16: magnitudes under 2^-60 set to zero)     |
//! | Q8_0       | K/32 blocks of [8 groups][16 rows][4 values + 128], then K/32 times 16 F16 scales |
//! | Q4_0       | K/32 blocks of [4 groups][16 rows][4 bytes], then K/32 times 16 F16 scales |
//!
//! A Q4_0 byte holds value 4g + i in its low and value 16 + 4g + i in its high nibble, which is how
//! the file has them. Scales stand apart so that every load of values is aligned. Tiles start on
//! 64-byte boundaries; rows past the last are zero.

use crate::float16::{BF16_TINY, bf16_to_f32, f16_to_f32};
use crate::simd::{LANES, Q4_BYTES, Q8_BYTES, QK};
use crate::view::{Aligned, Shared};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
}

/// What activations must be turned into before they meet a weight format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ActKind {
    F32,
    F16,
    BF16,
    Q8,
    /// Twice: the values, then what rounding left of them, as two columns whose products are added.
    F16Pair,
    BF16Pair,
    Q8Pair,
}

impl ActKind {
    /// Whether the values are whole numbers with scales.
    pub fn quantised(self) -> bool {
        matches!(self, Self::Q8 | Self::Q8Pair)
    }

    /// Columns that one token takes.
    pub fn columns(self) -> usize {
        if matches!(self, Self::F16Pair | Self::BF16Pair | Self::Q8Pair) { 2 } else { 1 }
    }

    /// The kind that also keeps what rounding leaves; F32 leaves nothing.
    pub fn precise(self) -> Self {
        match self {
            Self::F16 => Self::F16Pair,
            Self::BF16 => Self::BF16Pair,
            Self::Q8 => Self::Q8Pair,
            kind => kind,
        }
    }
}

impl Format {
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::BF16, Self::Q8_0, Self::Q4_0];

    /// The GGML type name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
        }
    }

    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// Elements of a row that are stored together.
    pub fn block(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q8_0 | Self::Q4_0 => QK,
        }
    }

    /// Bytes of a block in a file.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
        }
    }

    /// Bytes of a row of `cols` values in a file.
    pub fn row_bytes(self, cols: usize) -> usize {
        cols / self.block() * self.block_bytes()
    }

    pub fn activations(self) -> ActKind {
        match self {
            Self::F32 => ActKind::F32,
            Self::F16 => ActKind::F16,
            Self::BF16 => ActKind::BF16,
            Self::Q8_0 | Self::Q4_0 => ActKind::Q8,
        }
    }

    /// Bytes of a packed tile of 16 rows.
    pub fn tile_bytes(self, cols: usize) -> usize {
        (cols / self.block() * self.block_bytes() * LANES).next_multiple_of(64)
    }

    /// Bytes of the values that come before a quantised tile's scales.
    pub(crate) fn values_bytes(self, cols: usize) -> usize {
        match self {
            Self::Q8_0 => cols / QK * Q8_BYTES,
            Self::Q4_0 => cols / QK * Q4_BYTES,
            Self::F32 | Self::F16 | Self::BF16 => self.tile_bytes(cols),
        }
    }
}

/// A packed weight matrix of `rows` outputs by `cols` inputs.
pub struct Matrix {
    format: Format,
    rows: usize,
    cols: usize,
    data: Aligned<u8>,
}

impl Matrix {
    /// An all-zero matrix to be filled with [`pack_tile`]; None where memory is short.
    ///
    /// # Panics
    /// If `cols` is not a multiple of the format's block.
    pub fn zeroed(format: Format, rows: usize, cols: usize) -> Option<Self> {
        assert!(cols.is_multiple_of(format.block()), "{cols} columns of {}", format.name());
        let bytes = rows.div_ceil(LANES).checked_mul(format.tile_bytes(cols))?;
        Some(Self { format, rows, cols, data: Aligned::streamed(bytes)? })
    }

    pub fn format(&self) -> Format {
        self.format
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn tiles(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    pub fn bytes(&self) -> usize {
        self.data.bytes()
    }

    pub fn tile(&self, tile: usize) -> &[u8] {
        let bytes = self.format.tile_bytes(self.cols);
        &self.data.as_slice()[tile * bytes..(tile + 1) * bytes]
    }

    /// Bytes of tile t at t * tile_bytes, for threads that pack different tiles at once.
    pub fn shared_tiles(&mut self) -> Shared<'_, u8> {
        self.data.shared()
    }

    /// Writes row `row`, dequantised, to `out` (length `cols`).
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols);
        let tile = self.tile(row / LANES);
        let lane = row % LANES;
        let half = |index: usize| u16::from_le_bytes([tile[index * 2], tile[index * 2 + 1]]);
        match self.format {
            Format::F32 => {
                for (k, x) in out.iter_mut().enumerate() {
                    let at = (k * LANES + lane) * 4;
                    *x = f32::from_le_bytes([tile[at], tile[at + 1], tile[at + 2], tile[at + 3]]);
                }
            }
            Format::F16 => {
                for (k, x) in out.iter_mut().enumerate() {
                    *x = f16_to_f32(half(k * LANES + lane));
                }
            }
            Format::BF16 => {
                for (k, x) in out.iter_mut().enumerate() {
                    *x = bf16_to_f32(half(k * LANES + lane));
                }
            }
            Format::Q8_0 | Format::Q4_0 => {
                let scales = self.format.values_bytes(self.cols) / 2;
                for (k, x) in out.iter_mut().enumerate() {
                    let scale = f16_to_f32(half(scales + k / QK * LANES + lane));
                    *x = scale * self.quantised(tile, lane, k) as f32;
                }
            }
        }
    }

    fn quantised(&self, tile: &[u8], lane: usize, k: usize) -> i32 {
        let (block, i) = (k / QK, k % QK);
        match self.format {
            Format::Q8_0 => tile[block * Q8_BYTES + i / 4 * 64 + lane * 4 + i % 4] as i32 - 128,
            _ => {
                let byte = tile[block * Q4_BYTES + i % 16 / 4 * 64 + lane * 4 + i % 4];
                (if i < 16 { byte & 15 } else { byte >> 4 }) as i32 - 8
            }
        }
    }
}

/// Packs up to 16 rows, as a file has them one after another, into one tile.
///
/// # Panics
/// If `source` is not 1 to 16 whole rows or `tile` is not one tile.
pub fn pack_tile(format: Format, cols: usize, source: &[u8], tile: &mut [u8]) {
    let row_bytes = format.row_bytes(cols);
    let rows = source.len() / row_bytes;
    assert!(rows * row_bytes == source.len() && (1..=LANES).contains(&rows));
    assert_eq!(tile.len(), format.tile_bytes(cols));
    let (values, scales) = tile.split_at_mut(format.values_bytes(cols));
    for (lane, row) in source.chunks_exact(row_bytes).enumerate() {
        match format {
            Format::F32 => scatter::<4>(row, lane, values),
            Format::F16 => scatter::<2>(row, lane, values),
            Format::BF16 => {
                for (k, bytes) in row.chunks_exact(2).enumerate() {
                    let bits = u16::from_le_bytes([bytes[0], bytes[1]]);
                    let tiny = bf16_to_f32(bits).abs() < BF16_TINY;
                    let kept = if tiny { bits & 0x8000 } else { bits };
                    values[(k * LANES + lane) * 2..][..2].copy_from_slice(&kept.to_le_bytes());
                }
            }
            Format::Q8_0 => pack_blocks::<34, Q8_BYTES>(row, lane, values, scales, 0x80),
            Format::Q4_0 => pack_blocks::<18, Q4_BYTES>(row, lane, values, scales, 0),
        }
    }
}

fn scatter<const N: usize>(row: &[u8], lane: usize, values: &mut [u8]) {
    for (k, value) in row.chunks_exact(N).enumerate() {
        values[(k * LANES + lane) * N..][..N].copy_from_slice(value);
    }
}

/// Blocks of an F16 scale and value bytes, four of which go side by side with the other rows'.
fn pack_blocks<const FILE: usize, const PACKED: usize>(
    row: &[u8],
    lane: usize,
    values: &mut [u8],
    scales: &mut [u8],
    flip: u8,
) {
    let blocks = row.as_chunks::<FILE>().0.iter();
    for ((block, packed), scales) in
        blocks.zip(values.as_chunks_mut::<PACKED>().0).zip(scales.as_chunks_mut::<{ LANES * 2 }>().0)
    {
        scales[lane * 2..lane * 2 + 2].copy_from_slice(&block[..2]);
        for (group, four) in block[2..].as_chunks::<4>().0.iter().enumerate() {
            packed[group * 64 + lane * 4..][..4].copy_from_slice(&four.map(|byte| byte ^ flip));
        }
    }
}
