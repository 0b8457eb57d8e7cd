//! Experts that stay where their bytes come from, and are packed when a token is routed to them.
//!
//! The memory for experts is divided into slots, each for the three matrices of one expert of one
//! mixture. A mixture has as large a share of slots as of experts, and keeps to them: the layers of
//! a step follow one another in the same order again and again, so that in slots that all share the
//! least recently used expert would always be one that is wanted next.
//!
//! A step that comes to a mixture is given as many of the wanted experts as fit, those in memory
//! first; it computes them, and comes again for the others. Neither changes a result: each slot of
//! the step's activations is computed by itself.

use crate::compile::{Mixture, TensorId, Use};
use crate::error::{Error, Result};
use crate::plan::{Plan, Tensor};
use crate::threads::Pool;
use crate::weights::{Filling, TensorReader};
use kernels::packed::{Matrix, Shape};
use std::ops::Range;
use std::sync::Arc;

/// Bytes of a file that one thread reads and packs at a time: they stay in its cache in between.
const READ_BYTES: usize = 1 << 18;

/// A matrix of an expert that the caller has to supply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub tensor: TensorId,
    pub expert: usize,
}

/// Where a tensor's experts come from.
#[derive(Clone)]
enum Origin {
    Unknown,
    Reader(Arc<dyn TensorReader + Send>, u64),
    /// Of a reader that only the caller has: see [`Wanted`].
    Caller,
}

/// The matrices of all experts of a mixture that serve alike.
#[derive(Clone, Copy)]
struct Stack {
    tensor: TensorId,
    shape: Shape,
}

impl Stack {
    /// In a file.
    fn file_bytes(&self) -> usize {
        self.shape.rows * self.shape.format.row_bytes(self.shape.cols)
    }
}

struct Slot {
    matrices: [Matrix; 3],
    expert: Option<u32>,
    filled: [bool; 3],
    /// The step that last used it.
    used: u64,
}

impl Slot {
    fn is_full(&self) -> bool {
        self.filled == [true; 3]
    }
}

/// The slots of one mixture.
struct Cache {
    stacks: [Stack; 3],
    slots: Vec<Slot>,
    /// Slot of each expert that has one.
    slot_of: Vec<Option<u32>>,
    step: u64,
}

pub struct Demand {
    caches: Vec<Cache>,
    /// By tensor.
    origins: Vec<Origin>,
}

impl Demand {
    /// None when all experts fit into `limit` bytes, or there are none.
    pub fn new(plan: &Plan, uses: &[Use], mixtures: &[Mixture], limit: usize) -> Result<Option<Self>> {
        let stack = |tensor: TensorId| {
            let (Use::Experts(format) | Use::Matrix(format) | Use::Heads(format) | Use::Vector(format)) =
                uses[tensor];
            let Tensor { rows, cols, .. } = plan.tensors[tensor];
            Stack { tensor, shape: Shape { format, rows, cols } }
        };
        let stacks: Vec<[Stack; 3]> = mixtures.iter().map(|mixture| mixture.stacks.map(stack)).collect();
        let Some(shares) = share(&stacks, mixtures, limit)? else { return Ok(None) };
        let cache = |((stacks, mixture), count): ((&[Stack; 3], &Mixture), usize)| {
            let shapes = stacks.map(|stack| stack.shape).repeat(count);
            let too_much = || Error::memory("the memory for experts", Some(limit));
            let mut matrices = Matrix::zeroed_all(&shapes).ok_or_else(too_much)?.into_iter();
            let mut slots = Vec::with_capacity(count);
            while let (Some(gate), Some(up), Some(down)) = (matrices.next(), matrices.next(), matrices.next())
            {
                slots.push(Slot { matrices: [gate, up, down], expert: None, filled: [false; 3], used: 0 });
            }
            Ok(Cache { stacks: *stacks, slots, slot_of: vec![None; mixture.count], step: 0 })
        };
        let caches = stacks.iter().zip(mixtures).zip(shares).map(cache).collect::<Result<Vec<_>>>()?;
        Ok(Some(Self { caches, origins: vec![Origin::Unknown; plan.tensors.len()] }))
    }

    pub fn bytes(&self) -> usize {
        let slots = self.caches.iter().flat_map(|cache| &cache.slots);
        slots.flat_map(|slot| &slot.matrices).map(Matrix::bytes).sum()
    }

    /// Says where tensor `id` comes from: a reader and an offset, or the caller.
    pub fn attach(&mut self, id: TensorId, origin: Option<(Arc<dyn TensorReader + Send>, u64)>) {
        self.origins[id] = origin.map_or(Origin::Caller, |(reader, offset)| Origin::Reader(reader, offset));
    }

    pub fn is_resident(&self, mixture: usize, expert: u32) -> bool {
        self.caches[mixture].find(expert).is_some()
    }

    /// The expert's matrix of a tensor.
    ///
    /// # Panics
    /// If it is not in memory: a step admits experts before it uses them.
    pub fn matrix(&self, mixture: usize, tensor: TensorId, expert: usize) -> &Matrix {
        let cache = &self.caches[mixture];
        let which = cache.stacks.iter().position(|stack| stack.tensor == tensor);
        let slot = cache.find(expert as u32).expect("a step admits experts before it uses them");
        &slot.matrices[which.expect("a tensor of the mixture")]
    }

    /// Gives slots to experts of `wanted` from `from` on, as many as fit, and says up to where.
    /// Those in memory must come before the others.
    pub fn admit(&mut self, mixture: usize, wanted: &[u32], from: usize) -> Range<usize> {
        from..self.caches[mixture].admit(wanted, from)
    }

    /// Reads what admitted experts lack from their readers, on all threads. What is left, the caller
    /// must supply. All of it is announced first: a disk is fastest with many reads under way.
    pub fn fill(&mut self, mixture: usize, pool: &dyn Pool, threads: usize) -> Result<Vec<Wanted>> {
        let cache = &mut self.caches[mixture];
        let mut fillings = Vec::new();
        let mut wanted = Vec::new();
        for slot in &mut cache.slots {
            let Some(expert) = slot.expert else { continue };
            let parts = slot.matrices.iter_mut().zip(&slot.filled).zip(&cache.stacks);
            for ((matrix, _), stack) in parts.filter(|((_, filled), _)| !**filled) {
                match &self.origins[stack.tensor] {
                    Origin::Reader(reader, offset) => {
                        let bytes = stack.file_bytes();
                        let offset = offset + u64::from(expert) * bytes as u64;
                        reader.announce(offset, bytes);
                        fillings.push(Filling::new(matrix, reader.as_ref(), offset));
                    }
                    _ => wanted.push(Wanted { tensor: stack.tensor, expert: expert as usize }),
                }
            }
        }
        let result = Filling::run(&fillings, READ_BYTES, pool, threads);
        drop(fillings);
        if result.is_err() {
            cache.forget_unfilled();
        } else {
            let origins = &self.origins;
            cache.filled(|_, stack| matches!(origins[stack.tensor], Origin::Reader(..)));
        }
        result.map(|()| wanted)
    }

    /// Packs the bytes of an expert's matrix that was wanted.
    pub fn supply(&mut self, wanted: Wanted, bytes: &[u8], pool: &dyn Pool, threads: usize) -> Result<()> {
        let Wanted { tensor, expert } = wanted;
        for cache in &mut self.caches {
            let Some(which) = cache.stacks.iter().position(|stack| stack.tensor == tensor) else { continue };
            let lacks = |slot: &&mut Slot| slot.expert == Some(expert as u32) && !slot.filled[which];
            let Some(slot) = cache.slots.iter_mut().find(lacks) else { continue };
            if bytes.len() != cache.stacks[which].file_bytes() {
                return Err(Error::internal(format!("{} bytes supplied for {wanted:?}", bytes.len())));
            }
            let reader = Bytes(bytes);
            let filling = Filling::new(&mut slot.matrices[which], &reader, 0);
            Filling::run(&[filling], READ_BYTES, pool, threads)?;
            cache.filled(|of, stack| of == expert as u32 && stack.tensor == tensor);
            return Ok(());
        }
        Err(Error::internal(format!("{wanted:?} was not wanted")))
    }
}

/// Bytes that are there already.
struct Bytes<'a>(&'a [u8]);

impl TensorReader for Bytes<'_> {
    fn read(&self, offset: u64, to: &mut [u8]) -> std::result::Result<(), String> {
        to.copy_from_slice(&self.0[offset as usize..offset as usize + to.len()]);
        Ok(())
    }
}

/// How many slots each mixture gets: as even a share of its experts as `limit` allows.
fn share(stacks: &[[Stack; 3]], mixtures: &[Mixture], limit: usize) -> Result<Option<Vec<usize>>> {
    let too_large = || Error::memory("the experts", None);
    let unit = |stacks: &[Stack; 3]| {
        stacks
            .iter()
            .try_fold(0usize, |sum, stack| sum.checked_add(stack.shape.bytes()?))
            .ok_or_else(too_large)
    };
    let units = stacks.iter().map(unit).collect::<Result<Vec<_>>>()?;
    // More than can be addressed is more than any limit.
    let whole = units.iter().zip(mixtures).try_fold(0usize, |sum, (unit, mixture)| {
        unit.checked_mul(mixture.count).and_then(|bytes| bytes.checked_add(sum))
    });
    if whole.is_some_and(|bytes| bytes <= limit) {
        return Ok(None);
    }
    let least = units.iter().try_fold(0usize, |sum, unit| sum.checked_add(*unit)).ok_or_else(too_large)?;
    if limit < least {
        return Err(Error::argument(
            format!("expertMemory is {limit} bytes, but one expert of each layer takes {least}"),
            "Give at least that much, or leave it out to keep all experts in memory.",
        ));
    }
    let mut counts = vec![1; units.len()];
    let mut left = limit - least;
    loop {
        let share = |i: &usize| counts[*i] as f64 / mixtures[*i].count as f64;
        let room = (0..counts.len()).filter(|&i| counts[i] < mixtures[i].count && units[i] <= left);
        let Some(next) = room.min_by(|a, b| share(a).total_cmp(&share(b))) else { break };
        counts[next] += 1;
        left -= units[next];
    }
    Ok(Some(counts))
}

impl Cache {
    fn find(&self, expert: u32) -> Option<&Slot> {
        let slot = &self.slots[self.slot_of[expert as usize]? as usize];
        slot.is_full().then_some(slot)
    }

    fn admit(&mut self, wanted: &[u32], from: usize) -> usize {
        self.forget_unfilled();
        if from == 0 {
            self.step += 1;
        }
        let resident = wanted[from..].iter().take_while(|&&expert| self.find(expert).is_some()).count();
        let mut end = from + resident;
        let mut free: Vec<usize> = (0..self.slots.len()).collect();
        for &expert in &wanted[from..end] {
            let slot = self.slot_of[expert as usize].unwrap_or_default() as usize;
            self.slots[slot].used = self.step;
            free.retain(|&other| other != slot);
        }
        // The one not used for longest goes first; of equals the first.
        free.sort_by_key(|&slot| self.slots[slot].used);
        for (slot, &expert) in free.into_iter().zip(&wanted[end..]) {
            let of = &mut self.slots[slot];
            if let Some(before) = of.expert.replace(expert) {
                self.slot_of[before as usize] = None;
            }
            self.slot_of[expert as usize] = Some(slot as u32);
            of.filled = [false; 3];
            of.used = self.step;
            end += 1;
        }
        end
    }

    /// Marks matrices as filled.
    fn filled(&mut self, which: impl Fn(u32, &Stack) -> bool) {
        for slot in &mut self.slots {
            let Some(expert) = slot.expert else { continue };
            for (filled, stack) in slot.filled.iter_mut().zip(&self.stacks) {
                *filled |= which(expert, stack);
            }
        }
    }

    /// What a step that ended early has left half done.
    fn forget_unfilled(&mut self) {
        for slot in &mut self.slots {
            if let Some(expert) = slot.expert.filter(|_| slot.filled != [true; 3]) {
                self.slot_of[expert as usize] = None;
                (slot.expert, slot.used) = (None, 0);
            }
        }
    }
}
