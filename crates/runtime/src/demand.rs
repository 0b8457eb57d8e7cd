//! Experts that stay where their bytes come from, and are packed when a token is routed to them.
//!
//! The memory for experts is divided into slots, each for the three matrices of one expert of one
//! mixture. A mixture has as large a share of slots as of experts, and keeps to them: the layers of
//! a step follow one another in the same order again and again, so that in slots that all share the
//! least recently used expert would always be one that is wanted next.
//!
//! Experts that have readers are multiplied while they are read, see [`crate::stream`], and get slots
//! when they are used so often that it is worth it. Others must have slots: a step that comes to a
//! mixture is given as many of the wanted experts as fit, those in memory first; it computes them, and
//! comes again for the others. None of this changes a result: each slot of the step's activations is
//! computed by itself.

use crate::compile::{Mixture, Parts, TensorId, Use};
use crate::error::{Error, Result};
use crate::plan::{Plan, Tensor};
use crate::stream::{Place, Source};
use crate::threads::Pool;
use crate::weights::{Filling, TensorReader};
use kernels::packed::{Matrix, Shape};
use std::ops::Range;
use std::sync::Arc;

/// Bytes of a file that one thread reads and packs at a time: they stay in its cache in between.
const READ_BYTES: usize = 1 << 18;

/// What is left of an expert's uses after a step: half after 34. On traces of trained models (8 experts, 4 slots) and
/// of made-up ones (64 experts, 32 slots: with favourites, with topics of 64 to 600 tokens) 0.98 found the most in
/// memory, or missed that by 2 points; the least recently used first out found up to 8 points less.
const KEPT: f32 = 0.98;
/// How many times as often as the expert that it replaces one must have been used, to be worth a slot where it can do
/// without: 1 replaced 5 to 10 times as many, for a point.
const MORE: f32 = 1.5;

/// A matrix of an expert that the caller has to supply: which of the tensor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub tensor: TensorId,
    pub matrix: usize,
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
    of: Parts,
    shape: Shape,
}

struct Slot {
    matrices: [Matrix; 3],
    expert: Option<u32>,
    filled: [bool; 3],
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
    /// How often each expert was wanted, steps counting less the longer they are past.
    uses: Vec<f32>,
}

pub struct Demand {
    caches: Vec<Cache>,
    /// By tensor.
    origins: Vec<Origin>,
}

impl Demand {
    /// None when all experts fit into `limit` bytes, or there are none.
    pub fn new(plan: &Plan, uses: &[Use], mixtures: &[Mixture], limit: usize) -> Result<Option<Self>> {
        let stack = |of: Parts| {
            let (Use::Experts(format) | Use::Matrix(format) | Use::Heads(format) | Use::Vector(format)) =
                uses[of.tensor];
            let Tensor { rows, cols, .. } = plan.tensors[of.tensor];
            Stack { of, shape: Shape { format, rows, cols } }
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
                slots.push(Slot { matrices: [gate, up, down], expert: None, filled: [false; 3] });
            }
            Ok(Cache {
                stacks: *stacks,
                slots,
                slot_of: vec![None; mixture.count],
                uses: vec![0.0; mixture.count],
            })
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

    /// Matrices of an expert of a mixture, or where they are read from.
    ///
    /// # Panics
    /// If they are neither in memory nor have readers: a step admits such experts before it uses them.
    pub fn place<const N: usize>(&self, mixture: usize, of: [Parts; N], expert: usize) -> Place<'_, N> {
        let cache = &self.caches[mixture];
        let which = of.map(|of| cache.stacks.iter().position(|stack| stack.of == of));
        let which = which.map(|which| which.expect("a tensor of the mixture"));
        match cache.find(expert as u32) {
            Some(slot) => Place::Memory(which.map(|which| &slot.matrices[which])),
            None => Place::Elsewhere(which.map(|which| {
                let source = source(&self.origins, cache.stacks[which], expert as u32);
                source.expect("a step admits experts that only the caller can read")
            })),
        }
    }

    /// Gives slots to experts of `wanted` from `from` on, and says up to where they can be computed: all of them,
    /// where they can be read meanwhile, and only those for which it is worth it get slots; else as many as fit.
    /// Those in memory must come before the others.
    pub fn admit(&mut self, mixture: usize, wanted: &[u32], from: usize) -> Range<usize> {
        let cache = &mut self.caches[mixture];
        let origins = &self.origins;
        let streams = cache.stacks.iter().all(|stack| matches!(origins[stack.of.tensor], Origin::Reader(..)));
        let admitted = cache.admit(wanted, from, streams);
        from..if streams { wanted.len() } else { from + admitted }
    }

    /// Reads what admitted experts lack from their readers, on all threads. What is left, the caller
    /// must supply. All that is read, now or while it is multiplied, is announced first: a disk is fastest with many
    /// reads under way.
    pub fn fill(
        &mut self,
        mixture: usize,
        wanted: &[u32],
        pool: &dyn Pool,
        threads: usize,
    ) -> Result<Vec<Wanted>> {
        let cache = &mut self.caches[mixture];
        let origins = &self.origins;
        for &expert in wanted {
            if cache.find(expert).is_none() {
                let sources = cache.stacks.iter().filter_map(|&stack| source(origins, stack, expert));
                sources.for_each(|source| source.announce());
            }
        }
        let mut fillings = Vec::new();
        let mut left = Vec::new();
        for slot in &mut cache.slots {
            let Some(expert) = slot.expert else { continue };
            let parts = slot.matrices.iter_mut().zip(&slot.filled).zip(&cache.stacks);
            for ((matrix, _), &stack) in parts.filter(|((_, filled), _)| !**filled) {
                match source(origins, stack, expert) {
                    Some(source) => fillings.push(Filling::new(matrix, source.reader, source.offset)),
                    None => {
                        left.push(Wanted { tensor: stack.of.tensor, matrix: stack.of.of(expert as usize) })
                    }
                }
            }
        }
        let result = Filling::run(&fillings, READ_BYTES, pool, threads);
        drop(fillings);
        if result.is_err() {
            cache.forget_unfilled();
        } else {
            let origins = &self.origins;
            cache.filled(|_, stack| matches!(origins[stack.of.tensor], Origin::Reader(..)));
        }
        result.map(|()| left)
    }

    /// Packs the bytes of an expert's matrix that was wanted.
    pub fn supply(&mut self, wanted: Wanted, bytes: &[u8], pool: &dyn Pool, threads: usize) -> Result<()> {
        let is_wanted = |stack: &Stack, expert: u32| {
            stack.of.tensor == wanted.tensor && stack.of.of(expert as usize) == wanted.matrix
        };
        for cache in &mut self.caches {
            let stacks = &cache.stacks;
            let lacking = |slot: &Slot| {
                let expert = slot.expert?;
                let which = stacks.iter().position(|stack| is_wanted(stack, expert))?;
                (!slot.filled[which]).then_some(which)
            };
            let found = cache.slots.iter_mut().find_map(|slot| lacking(slot).map(|which| (slot, which)));
            let Some((slot, which)) = found else { continue };
            if bytes.len() != cache.stacks[which].shape.file_bytes() {
                return Err(Error::internal(format!("{} bytes supplied for {wanted:?}", bytes.len())));
            }
            let reader = Bytes(bytes);
            let filling = Filling::new(&mut slot.matrices[which], &reader, 0);
            Filling::run(&[filling], READ_BYTES, pool, threads)?;
            cache.filled(|expert, stack| is_wanted(stack, expert));
            return Ok(());
        }
        Err(Error::internal(format!("{wanted:?} was not wanted")))
    }
}

/// Where an expert's matrix is read from; None where only the caller can read it.
fn source(origins: &[Origin], stack: Stack, expert: u32) -> Option<Source<'_>> {
    let Stack { of, shape } = stack;
    match &origins[of.tensor] {
        Origin::Reader(reader, first) => {
            let offset = first + of.of(expert as usize) as u64 * shape.file_bytes() as u64;
            Some(Source { shape, reader: reader.as_ref(), offset })
        }
        _ => None,
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

    /// Gives slots to experts of `wanted` from `from` on, of which those in memory come first: to as many of the
    /// others as fit or, with `choosing`, to those that are worth it. How many then have slots.
    fn admit(&mut self, wanted: &[u32], from: usize, choosing: bool) -> usize {
        self.forget_unfilled();
        if from == 0 {
            self.count(wanted);
        }
        let wanted = &wanted[from..];
        let resident = wanted.iter().take_while(|&&expert| self.find(expert).is_some()).count();
        let (resident, missing) = wanted.split_at(resident);
        let uses =
            |of: &Self, slot: usize| of.slots[slot].expert.map_or(-1.0, |expert| of.uses[expert as usize]);
        let mut free: Vec<usize> = (0..self.slots.len()).collect();
        free.retain(|&slot| !self.slots[slot].expert.is_some_and(|expert| resident.contains(&expert)));
        // The least used goes first; of equals the first.
        free.sort_by(|&a, &b| uses(self, a).total_cmp(&uses(self, b)));
        let mut missing = missing.to_vec();
        if choosing {
            missing.sort_by(|&a, &b| self.uses[b as usize].total_cmp(&self.uses[a as usize]));
        }
        let mut admitted = resident.len();
        for (slot, expert) in free.into_iter().zip(missing) {
            if choosing && self.uses[expert as usize] < uses(self, slot) * MORE {
                break;
            }
            let of = &mut self.slots[slot];
            if let Some(before) = of.expert.replace(expert) {
                self.slot_of[before as usize] = None;
            }
            self.slot_of[expert as usize] = Some(slot as u32);
            of.filled = [false; 3];
            admitted += 1;
        }
        admitted
    }

    /// Counts one more step's use of experts.
    fn count(&mut self, wanted: &[u32]) {
        for uses in &mut self.uses {
            // Subnormal numbers would be slow.
            *uses = if *uses < 1e-6 { 0.0 } else { *uses * KEPT };
        }
        for &expert in wanted {
            self.uses[expert as usize] += 1.0;
        }
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
                slot.expert = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::packed::Format;

    fn cache(slots: usize, experts: usize) -> Cache {
        let shape = Shape { format: Format::F32, rows: 1, cols: 1 };
        let slot = || {
            let matrices = [shape; 3].map(|shape| Matrix::zeroed(shape).unwrap());
            Slot { matrices, expert: None, filled: [false; 3] }
        };
        Cache {
            stacks: [0, 1, 2].map(|tensor| Stack { of: Parts::one_each(tensor), shape }),
            slots: (0..slots).map(|_| slot()).collect(),
            slot_of: vec![None; experts],
            uses: vec![0.0; experts],
        }
    }

    /// A step that wants these experts; those in memory after it, in order.
    fn step(cache: &mut Cache, wanted: &[u32], choosing: bool) -> Vec<u32> {
        let (mut order, missing): (Vec<u32>, Vec<u32>) =
            wanted.iter().partition(|&&expert| cache.find(expert).is_some());
        order.extend(missing);
        cache.admit(&order, 0, choosing);
        cache.filled(|_, _| true);
        let mut held: Vec<u32> = cache.slots.iter().filter_map(|slot| slot.expert).collect();
        held.sort();
        held
    }

    #[test]
    fn empty_slots_are_filled_and_only_experts_used_more_take_the_place_of_others() {
        let mut cache = cache(2, 4);
        assert_eq!(step(&mut cache, &[1], true), [1]);
        assert_eq!(step(&mut cache, &[0, 1], true), [0, 1]);
        // Used once, as 0 was, and as often as 1 was.
        assert_eq!(step(&mut cache, &[2], true), [0, 1]);
        // Twice against once.
        assert_eq!(step(&mut cache, &[2], true), [1, 2]);
        // Nothing wanted in the same step goes.
        for _ in 0..5 {
            assert_eq!(step(&mut cache, &[1, 2, 3], true), [1, 2]);
        }
        assert_eq!(step(&mut cache, &[3], true), [1, 2]);
        // What is long past no longer counts.
        for _ in 0..200 {
            step(&mut cache, &[1], true);
        }
        assert_eq!(step(&mut cache, &[0], true), [0, 1]);
    }

    #[test]
    fn where_all_must_be_in_memory_the_least_used_go() {
        let mut cache = cache(3, 8);
        for wanted in [&[0, 1][..], &[0], &[0, 2]] {
            step(&mut cache, wanted, false);
        }
        assert_eq!(step(&mut cache, &[3, 4], false), [0, 3, 4]);
        // More than fit: as many as do.
        assert_eq!(cache.admit(&[0, 3, 5, 6, 7], 0, false), 3);
        assert!(cache.find(0).is_some() && cache.find(3).is_some() && cache.find(5).is_none());
        cache.filled(|_, _| true);
        assert_eq!(cache.admit(&[0, 3, 5, 6, 7], 3, false), 2);
    }
}
