//! Experts that are multiplied while they are read, and not kept.
//!
//! A thread reads the rows of a few tiles, packs them and multiplies them, all within its own cache: of memory only
//! the file's pages are read, once. Filling a slot with them instead moves three times as many bytes, which is worth
//! it for experts that come again soon.

use crate::error::{Error, Result};
use crate::weights::TensorReader;
use kernels::packed::{Matrix, Shape};
use kernels::simd::LANES;
use std::ops::Range;

/// Bytes of a file that are read at a time: they stay in a thread's cache until they are multiplied.
const READ_BYTES: usize = 1 << 16;

/// N matrices of an expert.
pub enum Place<'a, const N: usize> {
    Memory([&'a Matrix; N]),
    Elsewhere([Source<'a>; N]),
}

/// Where a matrix that is not in memory is read from.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    pub shape: Shape,
    pub reader: &'a dyn TensorReader,
    pub offset: u64,
}

/// What a thread reads into and packs into: an expert's gate and up, or its down.
pub type Streams = [Stream; 2];

impl<const N: usize> Place<'_, N> {
    /// Calls `run` with matrices that hold the wanted tiles: which of theirs these are, and how many tiles of the
    /// whole matrix come before their first. Each time some, where they have to be read.
    pub fn each_part(
        &self,
        tiles: Range<usize>,
        streams: &mut Streams,
        run: impl Fn([&Matrix; N], Range<usize>, usize),
    ) -> Result<()> {
        const { assert!(N <= 2) };
        let sources = match self {
            Self::Memory(matrices) => {
                run(*matrices, tiles, 0);
                return Ok(());
            }
            Self::Elsewhere(sources) => sources,
        };
        let step = sources[0].tiles_at_a_time();
        for first in tiles.clone().step_by(step) {
            let part = first..tiles.end.min(first + step);
            for (source, stream) in sources.iter().zip(&mut *streams) {
                stream.fill(source, part.clone())?;
            }
            run(std::array::from_fn(|i| streams[i].packed()), 0..part.len(), first);
        }
        Ok(())
    }
}

impl Source<'_> {
    /// Says that it will be read soon.
    pub fn announce(&self) {
        self.reader.announce(self.offset, self.shape.file_bytes());
    }

    fn tiles_at_a_time(&self) -> usize {
        let Shape { format, cols, .. } = self.shape;
        (READ_BYTES / (LANES * format.row_bytes(cols))).max(1)
    }
}

#[derive(Default)]
pub struct Stream {
    bytes: Vec<u8>,
    packed: Option<Matrix>,
}

impl Stream {
    /// Reads and packs some tiles.
    fn fill(&mut self, from: &Source, tiles: Range<usize>) -> Result<()> {
        let Shape { format, rows, cols } = from.shape;
        let row_bytes = format.row_bytes(cols);
        let rows = tiles.start * LANES..rows.min(tiles.end * LANES);
        self.bytes.resize(rows.len() * row_bytes, 0);
        let read = from.reader.read(from.offset + (rows.start * row_bytes) as u64, &mut self.bytes);
        read.map_err(Error::source_read)?;
        let shape = Shape { format, rows: rows.len(), cols };
        let taken = self.packed.take().and_then(|matrix| matrix.reshaped(shape));
        let matrix = taken.or_else(|| Matrix::zeroed(shape));
        let matrix = matrix.ok_or_else(|| Error::memory("reading an expert", shape.bytes()))?;
        self.packed.insert(matrix).pack(&self.bytes);
        Ok(())
    }

    fn packed(&self) -> &Matrix {
        self.packed.as_ref().expect("filled before")
    }
}
