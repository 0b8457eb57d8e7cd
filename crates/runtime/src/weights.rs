//! The plan's tensors, packed straight from where their bytes come from.

use crate::compile::Use;
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::threads::Pool;
use kernels::float16::{bf16_to_f32, f16_to_f32};
use kernels::packed::{Format, Matrix, pack_tile};
use kernels::simd::LANES;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Reads bytes from somewhere; called from several threads at once.
pub trait TensorReader: Sync {
    /// Fills `to` from `offset`; an error says what went wrong, and where.
    fn read(&self, offset: u64, to: &mut [u8]) -> std::result::Result<(), String>;
}

pub enum Weight {
    Matrix(Matrix),
    Vector { format: Format, values: Vec<f32> },
}

/// All tensors of a plan, and how many rows of each have been loaded.
pub struct Weights {
    tensors: Vec<Weight>,
    loaded: Vec<usize>,
}

/// Bytes of a file that one thread reads and packs at a time, where a tile is not larger.
const READ_BYTES: usize = 1 << 20;

impl Weights {
    /// Reserves the memory of every tensor.
    pub fn new(plan: &Plan, uses: &[Use]) -> Result<Self> {
        let mut tensors = Vec::with_capacity(uses.len());
        for (tensor, of) in plan.tensors.iter().zip(uses) {
            let what = || format!("tensor {}", tensor.name);
            tensors.push(match *of {
                Use::Matrix(format) => {
                    let bytes = tensor.rows.div_ceil(LANES).checked_mul(format.tile_bytes(tensor.cols));
                    Matrix::zeroed(format, tensor.rows, tensor.cols)
                        .map(Weight::Matrix)
                        .ok_or_else(|| Error::memory(&what(), bytes))?
                }
                Use::Vector(format) => {
                    let mut values = Vec::new();
                    values
                        .try_reserve_exact(tensor.cols)
                        .map_err(|_| Error::memory(&what(), tensor.cols.checked_mul(4)))?;
                    values.resize(tensor.cols, 0.0);
                    Weight::Vector { format, values }
                }
            });
        }
        Ok(Self { loaded: vec![0; tensors.len()], tensors })
    }

    pub fn matrix(&self, id: usize) -> &Matrix {
        match &self.tensors[id] {
            Weight::Matrix(matrix) => matrix,
            Weight::Vector { .. } => unreachable!("the compiler claimed tensor {id} as a matrix"),
        }
    }

    pub fn vector(&self, id: usize) -> &[f32] {
        match &self.tensors[id] {
            Weight::Vector { values, .. } => values,
            Weight::Matrix(_) => unreachable!("the compiler claimed tensor {id} as a vector"),
        }
    }

    pub fn bytes(&self) -> usize {
        let bytes = |weight: &Weight| match weight {
            Weight::Matrix(matrix) => matrix.bytes(),
            Weight::Vector { values, .. } => values.len() * 4,
        };
        self.tensors.iter().map(bytes).sum()
    }

    /// The first tensor that is not wholly loaded.
    pub fn missing(&self) -> Option<usize> {
        (0..self.tensors.len()).find(|&id| self.loaded[id] != self.rows(id))
    }

    fn rows(&self, id: usize) -> usize {
        match &self.tensors[id] {
            Weight::Matrix(matrix) => matrix.rows(),
            Weight::Vector { .. } => 1,
        }
    }

    /// Bytes of one row of a tensor in a file.
    fn row_bytes(&self, id: usize) -> usize {
        match &self.tensors[id] {
            Weight::Matrix(matrix) => matrix.format().row_bytes(matrix.cols()),
            Weight::Vector { format, values } => format.row_bytes(values.len()),
        }
    }

    /// Packs a whole tensor, all threads reading and packing parts of it.
    pub fn load(&mut self, id: usize, reader: &dyn TensorReader, offset: u64, pool: &dyn Pool) -> Result<()> {
        let row_bytes = self.row_bytes(id);
        let (rows, per_item) = (self.rows(id), LANES * (READ_BYTES / (row_bytes * LANES)).max(1));
        let next = AtomicUsize::new(0);
        let fault = Mutex::new(None);
        let target = Target::new(&mut self.tensors[id]);
        pool.run(&|_| {
            let mut bytes = Vec::new();
            loop {
                let first = next.fetch_add(per_item, Ordering::Relaxed);
                if first >= rows || lock(&fault).is_some() {
                    return;
                }
                bytes.resize((rows - first).min(per_item) * row_bytes, 0);
                match reader.read(offset + (first * row_bytes) as u64, &mut bytes) {
                    Ok(()) => target.pack(first, &bytes),
                    Err(message) => *lock(&fault) = Some(message),
                }
            }
        });
        if let Some(message) = lock(&fault).take() {
            return Err(Error {
                code: "SOURCE_READ",
                message,
                cure: "Check that the file is complete, unchanged since it was opened, and readable.",
            });
        }
        self.loaded[id] = rows;
        Ok(())
    }

    /// Packs rows that were read elsewhere: in order, a multiple of 16 rows at a time but for the last.
    pub fn push(&mut self, id: usize, bytes: &[u8]) -> Result<()> {
        let (row_bytes, done, rows) = (self.row_bytes(id), self.loaded[id], self.rows(id));
        let count = bytes.len() / row_bytes;
        let whole = count * row_bytes == bytes.len() && (count.is_multiple_of(LANES) || done + count == rows);
        if !whole || count == 0 || done + count > rows {
            return Err(Error::internal(format!("{} bytes pushed at row {done} of {rows}", bytes.len())));
        }
        Target::new(&mut self.tensors[id]).pack(done, bytes);
        self.loaded[id] += count;
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A tensor that several threads fill, each its own rows.
enum Target<'a> {
    Matrix { format: Format, cols: usize, tiles: kernels::view::Shared<'a, u8> },
    Vector { format: Format, values: kernels::view::Shared<'a, f32> },
}

impl<'a> Target<'a> {
    fn new(weight: &'a mut Weight) -> Self {
        match weight {
            Weight::Matrix(matrix) => {
                Self::Matrix { format: matrix.format(), cols: matrix.cols(), tiles: matrix.shared_tiles() }
            }
            Weight::Vector { format, values } => {
                Self::Vector { format: *format, values: kernels::view::Shared::new(values) }
            }
        }
    }

    /// `first` is a multiple of 16.
    fn pack(&self, first: usize, bytes: &[u8]) {
        match self {
            Self::Matrix { format, cols, tiles } => {
                let tile_bytes = format.tile_bytes(*cols);
                for (i, rows) in bytes.chunks(format.row_bytes(*cols) * LANES).enumerate() {
                    let at = (first / LANES + i) * tile_bytes;
                    // SAFETY: each tile's rows are packed by one thread.
                    pack_tile(*format, *cols, rows, unsafe { tiles.write(at..at + tile_bytes) });
                }
            }
            Self::Vector { format, values } => {
                // SAFETY: a vector is one row, packed by one thread.
                let values = unsafe { values.write(0..values.len()) };
                for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(format.block_bytes())) {
                    *value = match *bytes {
                        [a, b] if *format == Format::F16 => f16_to_f32(u16::from_le_bytes([a, b])),
                        [a, b] => bf16_to_f32(u16::from_le_bytes([a, b])),
                        [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
                        _ => unreachable!("vectors are F32, F16 or BF16"),
                    };
                }
            }
        }
    }
}
