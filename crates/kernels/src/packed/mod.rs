//! Weights as the kernels read them: tiles of 16 rows side by side, without loss and in as many bytes.
//!
//! A tile of floats is K times 16 values (BF16: magnitudes under 2^-60 set to zero). A quantised tile
//! is a row of groups: the scales of some blocks, which 32 or 256 columns share, then their values, as
//! [`layout`] says. A group has as many blocks as make its scales whole cache lines; the last may have fewer.
//! Groups are kept short: memory is not asked ahead where a stream jumps far. So the scales of Q6_K and Q3_K,
//! which would be whole lines only two by two, have 32 bytes of padding (1 and 2% of the weights).
//!
//! | format         | values                     | scales: [16 rows] each                              |
//! |----------------|----------------------------|-----------------------------------------------------|
//! | Q8_0           | bytes, + 128               | F16                                                 |
//! | Q4_0, Q5_0     | nibbles + 8, five bits + 16 | F16                                                |
//! | Q4_1, Q5_1     | nibbles, five bits         | F16, F16 minimum                                    |
//! | IQ4_NL         | nibbles into a table       | F16                                                 |
//! | MXFP4          | nibbles into a table       | E8M0                                                |
//! | Q4_K, Q5_K     | nibbles, five bits         | three words (below), F16, F16 of the minimums       |
//! | IQ4_XS         | nibbles into a table       | word: nibble b of block b; 16 bits: pair b; F16     |
//! | Q6_K           | six bits, + 32             | 8 times [16 rows][2 halves] 8 bits; F16             |
//! | Q3_K           | three bits, + 4            | three words (below), F16                            |
//! | Q2_K           | two bits                   | 8 times [16 rows][2 halves] 4 + 4 bits; F16, F16    |
//!
//! The words of Q4_K and Q5_K hold in nibble b, for block b of eight, the low nibble of the scale, that
//! of the minimum, and the high pair of the scale with that of the minimum above it. The words of Q3_K
//! hold in their low 16 bits the scales (+ 32) of the blocks' first halves, in their high 16 bits those
//! of the second halves: the low nibbles of blocks 0..4, those of blocks 4..8, and the high pairs.
//!
//! So every load of values is aligned, and a matrix is read from one end to the other: a second stream
//! of scales costs up to half of the speed of memory. Tiles start on 64-byte boundaries; rows past the
//! last are zero.

mod layout;
mod pack;

pub(crate) use layout::{Block, E2M1_VALUES, IQ4_VALUES, Layout, SIX_PAIRS, VECTOR, read_block};
pub use pack::pack_tile;

use crate::float16::{bf16_to_f32, f16_to_f32};
use crate::simd::{LANES, QK};
use crate::view::{Aligned, Shared};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(non_camel_case_types)]
pub enum Format {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
}

/// Blocks of 32 that share a super-scale, and with it the scale of activations.
pub(crate) const RUN: usize = 8;

/// What activations must be turned into before they meet a weight format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ActKind {
    F32,
    F16,
    BF16,
    /// Whole numbers with a scale for every 32.
    Q8,
    /// Whole numbers with a scale for every 256.
    Q8K,
    /// Twice: the values, then what rounding left of them, as two columns whose products are added.
    F16Pair,
    BF16Pair,
    Q8Pair,
    Q8KPair,
}

impl ActKind {
    /// Whether the values are whole numbers with scales.
    pub fn quantised(self) -> bool {
        matches!(self, Self::Q8 | Self::Q8K | Self::Q8Pair | Self::Q8KPair)
    }

    /// Blocks of 32 whole numbers that share a scale.
    pub fn blocks(self) -> usize {
        if matches!(self, Self::Q8K | Self::Q8KPair) { RUN } else { 1 }
    }

    /// Columns that one token takes.
    pub fn columns(self) -> usize {
        if matches!(self, Self::F16Pair | Self::BF16Pair | Self::Q8Pair | Self::Q8KPair) { 2 } else { 1 }
    }

    /// Whether what quantising leaves is put where floats are, before it is quantised itself.
    pub fn keeps_rest_in_floats(self) -> bool {
        self.quantised() && self.columns() == 2
    }

    /// The kind that also keeps what rounding leaves; F32 leaves nothing.
    pub fn precise(self) -> Self {
        match self {
            Self::F16 => Self::F16Pair,
            Self::BF16 => Self::BF16Pair,
            Self::Q8 => Self::Q8Pair,
            Self::Q8K => Self::Q8KPair,
            kind => kind,
        }
    }

    /// The kind that does not.
    pub fn plain(self) -> Self {
        match self {
            Self::F16Pair => Self::F16,
            Self::BF16Pair => Self::BF16,
            Self::Q8Pair => Self::Q8,
            Self::Q8KPair => Self::Q8K,
            kind => kind,
        }
    }
}

impl Format {
    pub const ALL: [Self; 16] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::IQ4_NL,
        Self::IQ4_XS,
        Self::MXFP4,
    ];

    /// The GGML type name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q2_K => "Q2_K",
            Self::Q3_K => "Q3_K",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
            Self::IQ4_NL => "IQ4_NL",
            Self::IQ4_XS => "IQ4_XS",
            Self::MXFP4 => "MXFP4",
        }
    }

    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// Elements of a row that are stored together.
    pub fn block(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K | Self::IQ4_XS => RUN * QK,
            _ => QK,
        }
    }

    /// Bytes of a block in a file.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 | Self::IQ4_NL => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::MXFP4 => 17,
            Self::Q2_K => 84,
            Self::Q3_K => 110,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
            Self::IQ4_XS => 136,
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
            _ if self.block() == RUN * QK => ActKind::Q8K,
            _ => ActKind::Q8,
        }
    }

    /// Bytes of a packed tile of 16 rows.
    pub fn tile_bytes(self, cols: usize) -> usize {
        let [values, scales] = self.parts();
        (cols / self.block() * (values + scales)).next_multiple_of(64)
    }

    /// How the values of a quantised format are packed; None for floats.
    pub(crate) fn layout(self) -> Option<Layout> {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => None,
            Self::Q8_0 => Some(Layout::Bytes),
            Self::Q4_0 | Self::Q4_1 | Self::Q4_K | Self::IQ4_NL | Self::IQ4_XS | Self::MXFP4 => {
                Some(Layout::Four)
            }
            Self::Q5_0 | Self::Q5_1 | Self::Q5_K => Some(Layout::Five),
            Self::Q6_K => Some(Layout::Six),
            Self::Q3_K => Some(Layout::Three),
            Self::Q2_K => Some(Layout::Two),
        }
    }

    /// Whether a product of scales and values is taken off again: see the numerics contract.
    pub(crate) fn has_minimum(self) -> bool {
        matches!(self, Self::Q4_1 | Self::Q5_1 | Self::Q2_K | Self::Q4_K | Self::Q5_K)
    }

    /// Bytes of the values and of the scales that a block of a file becomes, of 16 rows.
    pub(crate) fn parts(self) -> [usize; 2] {
        let all = self.block_bytes() * LANES;
        let values = self.layout().map_or(all, |layout| self.block() / QK * layout.bytes());
        let scales = all - values;
        [values, if scales > 64 { scales.next_multiple_of(64) } else { scales }]
    }
}

/// How many blocks make scales of `bytes` each whole cache lines.
pub(crate) const fn group_of(bytes: usize) -> usize {
    let mut count = 1;
    while !(count * bytes).is_multiple_of(64) {
        count *= 2;
    }
    count
}

/// Of a packed weight matrix: `rows` outputs by `cols` inputs.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub format: Format,
    pub rows: usize,
    pub cols: usize,
}

impl Shape {
    /// Packed; None where that cannot be addressed.
    ///
    /// # Panics
    /// If the columns are not a multiple of the format's block.
    pub fn bytes(&self) -> Option<usize> {
        let Self { format, rows, cols } = *self;
        assert!(cols.is_multiple_of(format.block()), "{cols} columns of {}", format.name());
        rows.div_ceil(LANES).checked_mul(format.tile_bytes(cols))
    }

    /// In a file.
    pub fn file_bytes(&self) -> usize {
        self.rows * self.format.row_bytes(self.cols)
    }
}

/// A packed weight matrix.
pub struct Matrix {
    shape: Shape,
    data: Aligned<u8>,
}

impl Matrix {
    /// An all-zero matrix to be filled with [`pack_tile`]; None where memory is short.
    ///
    /// # Panics
    /// If its columns are not a multiple of the format's block.
    pub fn zeroed(shape: Shape) -> Option<Self> {
        Self::zeroed_all(&[shape])?.pop()
    }

    /// Such matrices in one piece of memory; None where that is short.
    ///
    /// # Panics
    /// As [`Self::zeroed`].
    pub fn zeroed_all(shapes: &[Shape]) -> Option<Vec<Self>> {
        let bytes: Option<Vec<usize>> = shapes.iter().map(|shape| shape.bytes()).collect();
        let parts = Aligned::streamed_parts(&bytes?)?;
        Some(shapes.iter().zip(parts).map(|(&shape, data)| Self { shape, data }).collect())
    }

    /// The same memory as another matrix, to be packed anew; None where that is larger.
    ///
    /// # Panics
    /// As [`Self::zeroed`].
    pub fn reshaped(self, shape: Shape) -> Option<Self> {
        shape.bytes().filter(|&bytes| bytes <= self.data.bytes()).map(|_| Self { shape, ..self })
    }

    /// Packs all rows, as a file has them.
    ///
    /// # Panics
    /// If `source` is not as many rows as the matrix has.
    pub fn pack(&mut self, source: &[u8]) {
        let Shape { format, rows, cols } = self.shape;
        let row_bytes = format.row_bytes(cols);
        assert_eq!(source.len(), rows * row_bytes);
        let tiles = self.data.as_mut_slice().chunks_exact_mut(format.tile_bytes(cols));
        for (rows, tile) in source.chunks(row_bytes * LANES).zip(tiles) {
            pack_tile(format, cols, rows, tile);
        }
    }

    pub fn format(&self) -> Format {
        self.shape.format
    }

    pub fn rows(&self) -> usize {
        self.shape.rows
    }

    pub fn cols(&self) -> usize {
        self.shape.cols
    }

    pub fn tiles(&self) -> usize {
        self.shape.rows.div_ceil(LANES)
    }

    pub fn bytes(&self) -> usize {
        self.data.bytes()
    }

    pub fn tile(&self, tile: usize) -> &[u8] {
        let bytes = self.shape.format.tile_bytes(self.shape.cols);
        &self.data.as_slice()[tile * bytes..(tile + 1) * bytes]
    }

    /// Bytes of tile t at t * tile_bytes, for threads that pack different tiles at once.
    pub fn shared_tiles(&mut self) -> Shared<'_, u8> {
        self.data.shared()
    }

    /// Writes row `row`, dequantised, to `out` (length `cols`).
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.shape.rows && out.len() == self.shape.cols);
        let tile = self.tile(row / LANES);
        let lane = row % LANES;
        let half = |index: usize| u16::from_le_bytes([tile[index * 2], tile[index * 2 + 1]]);
        match self.shape.format {
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
            _ => {
                for (block, out) in out.chunks_exact_mut(QK).enumerate() {
                    let Block { scale, scales, minimum, minimums, values } = self.block(row, block);
                    for (i, (x, value)) in out.iter_mut().zip(values).enumerate() {
                        let scaled = scale * scales[i / 16] as f32 * value as f32;
                        let less = minimum * minimums[i / 16] as f32;
                        *x = if self.shape.format.has_minimum() { scaled - less } else { scaled };
                    }
                }
            }
        }
    }

    /// Block `block` of 32 of row `row`.
    pub(crate) fn block(&self, row: usize, block: usize) -> Block {
        read_block(self.shape.format, self.shape.cols, self.tile(row / LANES), row % LANES, block)
    }
}
