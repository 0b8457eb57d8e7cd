//! The plan's tensors, packed straight from where their bytes come from.

use crate::compile::{Compiled, Parts, Use};
use crate::demand::Demand;
use crate::error::{Error, Result};
use crate::plan::{Plan, Tensor};
use crate::stream::Place;
use crate::threads::Pool;
use kernels::float16::{bf16_to_f32, f16_to_f32};
use kernels::packed::{Format, Matrix, Shape, pack_tile};
use kernels::simd::LANES;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Reads bytes from somewhere; called from several threads at once.
pub trait TensorReader: Sync {
    /// Fills `to` from `offset`; an error says what went wrong, and where.
    fn read(&self, offset: u64, to: &mut [u8]) -> std::result::Result<(), String>;
    /// Says, before many reads, which bytes they will be of; returns without waiting for them.
    fn announce(&self, offset: u64, bytes: usize) {
        let _ = (offset, bytes);
    }
}

pub enum Weight {
    Matrix(Matrix),
    /// One for each expert, all of one shape.
    Experts(Vec<Matrix>),
    /// As many experts, of which only some are in memory.
    OnDemand {
        format: Format,
        rows: usize,
        cols: usize,
        count: usize,
    },
    Vector {
        format: Format,
        values: Vec<f32>,
    },
}

/// All tensors of a plan, and how many rows of each have been loaded.
pub struct Weights {
    tensors: Vec<Weight>,
    loaded: Vec<usize>,
    /// What holds experts that are read when they are needed.
    pub demand: Option<Demand>,
}

/// Bytes of a file that one thread reads and packs at a time, where a tile is not larger.
const READ_BYTES: usize = 1 << 20;

impl Weights {
    /// Reserves the memory of every tensor; for experts at most so many bytes, where a limit is given.
    pub fn new(plan: &Plan, compiled: &Compiled, expert_memory: Option<usize>) -> Result<Self> {
        let Compiled { uses, mixtures, .. } = compiled;
        let demand = match expert_memory {
            Some(limit) => Demand::new(plan, uses, mixtures, limit)?,
            None => None,
        };
        let tensors_and_uses = || plan.tensors.iter().zip(uses);
        let shapes: Vec<Shape> = tensors_and_uses()
            .flat_map(|(tensor, of)| {
                let Tensor { rows, cols, experts, .. } = *tensor;
                let shape = |format| Shape { format, rows, cols };
                let (shape, count) = match *of {
                    Use::Matrix(format) => (Some(shape(format)), 1),
                    Use::Experts(_) if demand.is_some() => (None, 0),
                    Use::Experts(format) | Use::Heads(format) => (Some(shape(format)), experts.unwrap_or(1)),
                    Use::Vector(_) => (None, 0),
                };
                shape.into_iter().cycle().take(count)
            })
            .collect();
        let bytes = shapes.iter().try_fold(0usize, |sum, shape| sum.checked_add(shape.bytes()?));
        let matrices = Matrix::zeroed_all(&shapes).ok_or_else(|| Error::memory("the weights", bytes))?;
        let mut matrices = matrices.into_iter();
        let mut tensors = Vec::with_capacity(uses.len());
        for (tensor, of) in tensors_and_uses() {
            let Tensor { rows, cols, experts, .. } = *tensor;
            let count = experts.unwrap_or(1);
            tensors.push(match *of {
                Use::Experts(format) if demand.is_some() => Weight::OnDemand { format, rows, cols, count },
                Use::Experts(_) | Use::Heads(_) => Weight::Experts(matrices.by_ref().take(count).collect()),
                Use::Matrix(_) => Weight::Matrix(matrices.next().expect("a matrix for each shape")),
                Use::Vector(format) => {
                    let mut values = Vec::new();
                    let what = || format!("tensor {}", tensor.name);
                    values
                        .try_reserve_exact(cols)
                        .map_err(|_| Error::memory(&what(), cols.checked_mul(4)))?;
                    values.resize(cols, 0.0);
                    Weight::Vector { format, values }
                }
            });
        }
        Ok(Self { loaded: vec![0; tensors.len()], tensors, demand })
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

    /// Matrices of an expert of a mixture, or where they are read from.
    pub fn expert<const N: usize>(&self, mixture: usize, of: [Parts; N], expert: usize) -> Place<'_, N> {
        match &self.demand {
            Some(demand) => demand.place(mixture, of, expert),
            None => Place::Memory(of.map(|of| &self.experts(of.tensor)[of.of(expert)])),
        }
    }

    /// Tiles of each of a tensor's experts, and bytes of a tile.
    pub fn expert_tiles(&self, id: usize) -> (usize, usize) {
        match self.tensors[id] {
            Weight::OnDemand { format, rows, cols, .. } => (rows.div_ceil(LANES), format.tile_bytes(cols)),
            _ => {
                let matrix = &self.experts(id)[0];
                (matrix.tiles(), matrix.format().tile_bytes(matrix.cols()))
            }
        }
    }

    /// Whether the experts of a mixture are read when they are needed, and this one is not in memory.
    pub fn is_missing(&self, mixture: usize, expert: u32) -> bool {
        self.demand.as_ref().is_some_and(|demand| !demand.is_resident(mixture, expert))
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
            Weight::OnDemand { .. } => 0,
            Weight::Vector { values, .. } => values.len() * 4,
        };
        let demand = self.demand.as_ref().map_or(0, Demand::bytes);
        self.tensors.iter().map(bytes).sum::<usize>() + demand
    }

    /// The first tensor that is not wholly loaded.
    pub fn missing(&self) -> Option<usize> {
        (0..self.tensors.len()).find(|&id| self.loaded[id] != self.rows(id))
    }

    fn rows(&self, id: usize) -> usize {
        match &self.tensors[id] {
            Weight::Matrix(matrix) => matrix.rows(),
            Weight::Experts(experts) => experts.iter().map(Matrix::rows).sum(),
            Weight::OnDemand { rows, count, .. } => rows * count,
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
            Weight::OnDemand { format, cols, .. } => format.row_bytes(*cols),
            Weight::Vector { format, values } => format.row_bytes(values.len()),
        }
    }

    /// Packs a whole tensor, all threads reading and packing parts of it.
    pub fn load(&mut self, id: usize, reader: &dyn TensorReader, offset: u64, pool: &dyn Pool) -> Result<()> {
        let (rows, row_bytes) = (self.rows(id), self.row_bytes(id));
        let target = Target::new(&mut self.tensors[id]);
        let filling = Filling { target, rows, row_bytes, reader, offset };
        Filling::run(&[filling], READ_BYTES, pool, pool.threads())?;
        self.loaded[id] = rows;
        Ok(())
    }

    /// Whether the tensor's experts are read when they are needed.
    pub fn is_on_demand(&self, id: usize) -> bool {
        matches!(self.tensors[id], Weight::OnDemand { .. })
    }

    /// Says where an on-demand tensor comes from: a reader and an offset, or the caller.
    pub fn attach(&mut self, id: usize, origin: Option<(Arc<dyn TensorReader + Send>, u64)>) -> Result<()> {
        let Some(demand) =
            self.demand.as_mut().filter(|_| matches!(self.tensors[id], Weight::OnDemand { .. }))
        else {
            return Err(Error::internal(format!("tensor {id} is not read on demand")));
        };
        demand.attach(id, origin);
        self.loaded[id] = self.rows(id);
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

/// Rows that are read and packed.
pub(crate) struct Filling<'a> {
    target: Target<'a>,
    rows: usize,
    row_bytes: usize,
    reader: &'a dyn TensorReader,
    offset: u64,
}

impl<'a> Filling<'a> {
    pub fn new(matrix: &'a mut Matrix, reader: &'a dyn TensorReader, offset: u64) -> Self {
        let (rows, row_bytes) = (matrix.rows(), matrix.format().row_bytes(matrix.cols()));
        Self { target: Target::matrices(std::slice::from_mut(matrix)), rows, row_bytes, reader, offset }
    }

    /// Reads and packs everything, threads taking about `chunk` bytes at a time.
    pub fn run(fillings: &[Self], chunk: usize, pool: &dyn Pool, threads: usize) -> Result<()> {
        let mut items = Vec::new();
        for filling in fillings {
            let unit = filling.target.unit();
            let rows = unit * (chunk / (filling.row_bytes * unit)).max(1);
            let parts = (0..filling.rows).step_by(rows);
            items.extend(parts.map(|first| (filling, first..filling.rows.min(first + rows))));
        }
        let next = AtomicUsize::new(0);
        let fault = Mutex::new(None);
        pool.run_on(threads, &|_| {
            let mut bytes = Vec::new();
            while let Some((filling, rows)) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                if lock(&fault).is_some() {
                    return;
                }
                bytes.resize(rows.len() * filling.row_bytes, 0);
                let offset = filling.offset + (rows.start * filling.row_bytes) as u64;
                match filling.reader.read(offset, &mut bytes) {
                    Ok(()) => filling.target.pack(rows.start, &bytes),
                    Err(message) => *lock(&fault) = Some(message),
                }
            }
        });
        let fault = lock(&fault).take();
        fault.map_or(Ok(()), |message| Err(Error::source_read(message)))
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
            Weight::OnDemand { .. } => Self::matrices(&mut []),
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
