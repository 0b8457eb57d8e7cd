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
    /// One for each expert, all of one shape.
    Experts(Vec<Matrix>),
    Vector {
        format: Format,
        values: Vec<f32>,
    },
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
                Use::Experts(format) | Use::Heads(format) => {
                    let count = tensor.experts.unwrap_or(1);
                    Matrix::zeroed_stack(format, tensor.rows, tensor.cols, count)
                        .map(Weight::Experts)
                        .ok_or_else(|| Error::memory(&what(), None))?
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
            _ => unreachable!("the compiler claimed tensor {id} as a matrix"),
        }
    }

    /// The matrices of all experts, or of all heads.
    pub fn experts(&self, id: usize) -> &[Matrix] {
        match &self.tensors[id] {
            Weight::Experts(experts) => experts,
            _ => unreachable!("the compiler claimed tensor {id} as experts"),
        }
    }

    pub fn vector(&self, id: usize) -> &[f32] {
        match &self.tensors[id] {
            Weight::Vector { values, .. } => values,
            _ => unreachable!("the compiler claimed tensor {id} as a vector"),
        }
    }

    pub fn bytes(&self) -> usize {
        let bytes = |weight: &Weight| match weight {
            Weight::Matrix(matrix) => matrix.bytes(),
            Weight::Experts(experts) => experts.iter().map(Matrix::bytes).sum(),
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
            Weight::Experts(experts) => experts.iter().map(Matrix::rows).sum(),
            Weight::Vector { .. } => 1,
        }
    }

    /// Bytes of one row of a tensor in a file.
    fn row_bytes(&self, id: usize) -> usize {
        match &self.tensors[id] {
            Weight::Matrix(matrix) => matrix.format().row_bytes(matrix.cols()),
            Weight::Experts(experts) => {
                experts.first().map_or(0, |matrix| matrix.format().row_bytes(matrix.cols()))
            }
            Weight::Vector { format, values } => format.row_bytes(values.len()),
        }
    }

    /// Packs a whole tensor, all threads reading and packing parts of it.
    pub fn load(&mut self, id: usize, reader: &dyn TensorReader, offset: u64, pool: &dyn Pool) -> Result<()> {
        let row_bytes = self.row_bytes(id);
        let rows = self.rows(id);
        let next = AtomicUsize::new(0);
        let fault = Mutex::new(None);
        let target = Target::new(&mut self.tensors[id]);
        let unit = target.unit();
        let per_item = unit * (READ_BYTES / (row_bytes * unit)).max(1);
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

    /// Packs rows that were read elsewhere: in order, a multiple of 16 rows (of whole
    /// experts, where their rows are not) at a time but for the last.
    pub fn push(&mut self, id: usize, bytes: &[u8]) -> Result<()> {
        let (row_bytes, done, rows) = (self.row_bytes(id), self.loaded[id], self.rows(id));
        let count = bytes.len() / row_bytes;
        let target = Target::new(&mut self.tensors[id]);
        let whole =
            count * row_bytes == bytes.len() && (count.is_multiple_of(target.unit()) || done + count == rows);
        if !whole || count == 0 || done + count > rows {
            return Err(Error::internal(format!("{} bytes pushed at row {done} of {rows}", bytes.len())));
        }
        target.pack(done, bytes);
        self.loaded[id] += count;
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A tensor that several threads fill, each its own rows.
enum Target<'a> {
    /// One matrix or more, each of so many rows.
    Matrices {
        format: Format,
        cols: usize,
        rows: usize,
        tiles: Vec<kernels::view::Shared<'a, u8>>,
    },
    Vector {
        format: Format,
        values: kernels::view::Shared<'a, f32>,
    },
}

impl<'a> Target<'a> {
    fn new(weight: &'a mut Weight) -> Self {
        match weight {
            Weight::Matrix(matrix) => Self::matrices(std::slice::from_mut(matrix)),
            Weight::Experts(experts) => Self::matrices(experts),
            Weight::Vector { format, values } => {
                Self::Vector { format: *format, values: kernels::view::Shared::new(values) }
            }
        }
    }

    fn matrices(matrices: &'a mut [Matrix]) -> Self {
        let (format, cols, rows) = matrices
            .first()
            .map_or((Format::F32, 1, 1), |matrix| (matrix.format(), matrix.cols(), matrix.rows()));
        Self::Matrices { format, cols, rows, tiles: matrices.iter_mut().map(Matrix::shared_tiles).collect() }
    }

    /// How many rows lie between two places where packing may start.
    fn unit(&self) -> usize {
        match self {
            Self::Matrices { rows, tiles, .. } if tiles.len() > 1 && !rows.is_multiple_of(LANES) => *rows,
            _ => LANES,
        }
    }

    /// `first` is a multiple of `unit`.
    fn pack(&self, first: usize, bytes: &[u8]) {
        match self {
            Self::Matrices { format, cols, rows, tiles } => {
                let (row_bytes, tile_bytes) = (format.row_bytes(*cols), format.tile_bytes(*cols));
                let mut row = first;
                let mut left = bytes;
                while !left.is_empty() {
                    let (matrix, within) = (row / rows, row % rows);
                    let count = LANES.min(rows - within).min(left.len() / row_bytes);
                    let (source, rest) = left.split_at(count * row_bytes);
                    let at = within / LANES * tile_bytes;
                    // SAFETY: each tile's rows are packed by one thread.
                    let tile = unsafe { tiles[matrix].write(at..at + tile_bytes) };
                    pack_tile(*format, *cols, source, tile);
                    row += count;
                    left = rest;
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
