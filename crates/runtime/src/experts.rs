//! The phases of a mixture of experts.
//!
//! Each of a step's (token, rank) pairs gets a slot; slots are in order of expert, then token, those of
//! experts in memory first. An expert's packed weights are read once per step, for all its slots; work is handed out by tiles
//! of the experts in use, so that it is even whatever the routing. A token's slots are summed in
//! order of rank, whatever order they were computed in.

use crate::compile::{Compiled, Experts, Parts, Phase};
use crate::error::{Error, Result};
use crate::stream::Streams;
use crate::weights::Weights;
use kernels::acts::{ActStore, Acts, NonFinite, SharedActs};
use kernels::kernels::matmul::{GluJob, LinearJob};
use kernels::route::Route;
use kernels::simd::LANES;
use kernels::table::KernelTable;
use kernels::view::{Aligned, Shared};
use std::ops::Range;

/// Values that are summed over the ranks at a time.
const CHUNK: usize = 64;

/// The memory of the largest mixture of a plan; empty where there is none.
pub struct ExpertStore {
    /// `[tokens][top_k]`.
    routes: Aligned<Route>,
    /// [tokens][experts and groups]: what routing works in.
    scores: Aligned<f32>,
    /// Token of each slot.
    token_of: Aligned<u32>,
    /// Slot of each `[token][rank]`.
    slot_of: Aligned<u32>,
    /// First slot of each expert in use, and the end of the last.
    starts: Aligned<u32>,
    /// Which of the experts in use are computed: from and up to.
    window: Aligned<u32>,
    /// The next slot of each expert.
    next: Aligned<u32>,
    /// How many experts are in use, then which.
    active: Aligned<u32>,
    /// What the experts are given, and what they have inside: not all experts compute at once.
    acts: ActStore,
    inner_acts: ActStore,
    /// `[slots][inner]`.
    inner: Aligned<f32>,
    /// Where gates and ups take different activations: what ups are given, and their products, `[slots][inner]`.
    up_acts: ActStore,
    ups: Aligned<f32>,
    /// `[slots][width]`.
    out: Aligned<f32>,
}

impl ExpertStore {
    pub fn new(compiled: &Compiled, max_tokens: usize) -> Result<Self> {
        let (mut top_k, mut scores, mut count, mut inner, mut width) = (0, 0, 0, 0, 0);
        let mut apart = (0, 0);
        for phase in &compiled.phases {
            if let Phase::Group(of) = phase {
                top_k = top_k.max(of.router.top_k);
                scores = scores.max(of.router.scratch(of.count));
                count = count.max(of.count);
                inner = inner.max(of.inner);
                width = width.max(of.width);
                if of.up_kind != of.x_kind {
                    apart = (apart.0.max(of.width), apart.1.max(of.inner));
                }
            }
        }
        let slots = max_tokens * top_k;
        let build = || {
            Some(Self {
                routes: Aligned::zeroed(slots)?,
                scores: Aligned::zeroed(max_tokens.checked_mul(scores)?)?,
                token_of: Aligned::zeroed(slots)?,
                slot_of: Aligned::zeroed(slots)?,
                starts: Aligned::zeroed(count + 1)?,
                window: Aligned::zeroed(2)?,
                next: Aligned::zeroed(count)?,
                active: Aligned::zeroed(count + 1)?,
                acts: ActStore::new(slots, width)?,
                inner_acts: ActStore::new(slots, inner)?,
                inner: Aligned::zeroed(slots.checked_mul(inner)?)?,
                up_acts: ActStore::new(slots, apart.0)?,
                ups: Aligned::zeroed(slots.checked_mul(apart.1)?)?,
                out: Aligned::zeroed(slots.checked_mul(width)?)?,
            })
        };
        build().ok_or_else(|| Error::memory("the experts' activations", slots.checked_mul(inner + width)))
    }

    /// The experts in use, once grouped.
    pub fn active(&self) -> &[u32] {
        let active = self.active.as_slice();
        &active[1..1 + active[0] as usize]
    }

    /// Which of the experts in use are computed.
    pub fn window(&self) -> Range<usize> {
        let window = self.window.as_slice();
        window[0] as usize..window[1] as usize
    }

    /// Of the experts in use only these are computed.
    pub fn set_window(&mut self, window: Range<usize>) {
        self.window.as_mut_slice().copy_from_slice(&[window.start as u32, window.end as u32]);
    }

    pub fn shared(&mut self) -> SharedExperts<'_> {
        SharedExperts {
            routes: self.routes.shared(),
            scores: self.scores.shared(),
            token_of: self.token_of.shared(),
            slot_of: self.slot_of.shared(),
            starts: self.starts.shared(),
            window: self.window.shared(),
            next: self.next.shared(),
            active: self.active.shared(),
            acts: self.acts.shared(),
            inner_acts: self.inner_acts.shared(),
            inner: self.inner.shared(),
            up_acts: self.up_acts.shared(),
            ups: self.ups.shared(),
            out: self.out.shared(),
        }
    }
}

/// The store while a step runs. Phases write what later phases read; within a phase each item
/// writes its own slots, tiles or tokens.
#[derive(Clone, Copy)]
pub struct SharedExperts<'a> {
    routes: Shared<'a, Route>,
    scores: Shared<'a, f32>,
    token_of: Shared<'a, u32>,
    slot_of: Shared<'a, u32>,
    starts: Shared<'a, u32>,
    window: Shared<'a, u32>,
    next: Shared<'a, u32>,
    active: Shared<'a, u32>,
    acts: SharedActs<'a>,
    inner_acts: SharedActs<'a>,
    inner: Shared<'a, f32>,
    up_acts: SharedActs<'a>,
    ups: Shared<'a, f32>,
    out: Shared<'a, f32>,
}

impl<'a> SharedExperts<'a> {
    /// Chooses a token's experts; `gates` is overwritten.
    ///
    /// # Safety
    /// No other thread routes the token meanwhile, or reads its routes.
    pub unsafe fn route(
        &self,
        of: &Experts,
        weights: &Weights,
        gates: &mut [f32],
        token: usize,
    ) -> std::result::Result<(), NonFinite> {
        let (top_k, scratch) = (of.router.top_k, of.router.scratch(of.count));
        let bias = of.selection_bias.map(|bias| weights.vector(bias));
        // SAFETY: the caller's promise.
        unsafe {
            let scores = self.scores.write(token * scratch..(token + 1) * scratch);
            of.router.route(gates, bias, scores, self.routes.write(token * top_k..(token + 1) * top_k))
        }
    }

    /// # Safety
    /// No thread routes the token while the result lives.
    pub unsafe fn routes(&self, token: usize, top_k: usize) -> &'a [Route] {
        // SAFETY: the caller's promise.
        unsafe { self.routes.read(token * top_k..(token + 1) * top_k) }
    }

    /// The experts in use.
    ///
    /// # Safety
    /// No thread groups while the result lives.
    unsafe fn active(&self) -> &'a [u32] {
        // SAFETY: the caller's promise.
        unsafe { self.active.read(1..1 + self.active.read(0..1)[0] as usize) }
    }

    /// Sorts the slots by expert, by counting; the experts that are in memory come first.
    pub fn group(&self, of: &Experts, weights: &Weights, tokens: usize) {
        let top_k = of.router.top_k;
        let slots = tokens * top_k;
        // SAFETY: the only item of its phase, or the step's only token; routes were written in an earlier one.
        let (routes, token_of, slot_of, starts, active, next, window) = unsafe {
            (
                self.routes.read(0..slots),
                self.token_of.write(0..slots),
                self.slot_of.write(0..slots),
                self.starts.write(0..of.count + 1),
                self.active.write(0..of.count + 1),
                self.next.write(0..of.count),
                self.window.write(0..2),
            )
        };
        next.fill(0);
        for route in routes {
            next[route.expert as usize] += 1;
        }
        (active[0], starts[0]) = (0, 0);
        for missing in [false, true] {
            for (expert, next) in next.iter_mut().enumerate() {
                if *next == 0 || weights.is_missing(of.mixture, expert as u32) != missing {
                    continue;
                }
                let at = active[0] as usize;
                active[0] += 1;
                active[at + 1] = expert as u32;
                starts[at + 1] = starts[at] + *next;
                *next = starts[at];
            }
        }
        for (pair, route) in routes.iter().enumerate() {
            let next = &mut next[route.expert as usize];
            slot_of[pair] = *next;
            token_of[*next as usize] = (pair / top_k) as u32;
            *next += 1;
        }
        window.copy_from_slice(&[0, active[0]]);
    }

    /// Copies what was prepared of x to the slots, and prepares what ups take where that is something else; the first
    /// token of those that are not finite.
    pub fn spread(
        &self,
        of: &Experts,
        table: &KernelTable,
        acts: &SharedActs,
        x: Shared<f32>,
        slots: Range<usize>,
    ) -> Option<usize> {
        let bad = slots.filter_map(|slot| {
            // SAFETY: the slot belongs to this item; x and the grouping were written in earlier phases.
            unsafe {
                let token = self.token_of.read(slot..slot + 1)[0] as usize;
                self.acts.copy_row(of.x_kind, of.width, slot, acts, token);
                if of.up_kind == of.x_kind {
                    return None;
                }
                let x = x.read(token * of.width..(token + 1) * of.width);
                let up_acts = self.up_acts.row(of.up_kind, slot, of.width);
                (table.prepare)(of.up_kind, x, up_acts).err().map(|NonFinite| token)
            }
        });
        bad.min()
    }

    /// Which of the experts in use are computed.
    fn window(&self) -> Range<usize> {
        // SAFETY: grouped in an earlier phase.
        let window = unsafe { self.window.read(0..2) };
        window[0] as usize..window[1] as usize
    }

    /// Calls `run` with each expert, its tiles and its slots that `units` covers.
    fn each_expert(
        &self,
        units: Range<usize>,
        tiles: usize,
        mut run: impl FnMut(usize, Range<usize>, Range<usize>) -> Result<()>,
    ) -> Result<()> {
        let window = self.window();
        // SAFETY: grouped in an earlier phase.
        let (active, starts) = unsafe { (self.active(), self.starts.read(0..window.end + 1)) };
        let mut unit = units.start;
        while unit < units.end.min(window.len() * tiles) {
            let at = window.start + unit / tiles;
            let first = unit % tiles;
            let last = (first + units.end - unit).min(tiles);
            run(active[at] as usize, first..last, starts[at] as usize..starts[at + 1] as usize)?;
            unit += last - first;
        }
        Ok(())
    }

    pub fn glu(
        &self,
        of: &Experts,
        weights: &Weights,
        table: &KernelTable,
        units: Range<usize>,
        streams: &mut Streams,
    ) -> Result<()> {
        self.each_expert(units, weights.expert_tiles(of.gate.tensor).0, |expert, tiles, slots| {
            let biases = [of.gate_bias, of.up_bias].map(|bias| bias_of(weights, bias, expert, of.inner));
            // SAFETY: spread in an earlier phase.
            let acts = unsafe { self.acts.all(of.x_kind, slots.end, of.width) };
            let place = weights.expert(of.mixture, [of.gate, of.up], expert);
            place.each_part(tiles, streams, |[gate, up], tiles, before| {
                let first = slots.start * of.inner + before * LANES;
                let job = GluJob {
                    gate,
                    up,
                    biases: biases.map(|bias| bias.map(|bias| &bias[before * LANES..])),
                    tiles,
                    acts: acts.part(slots.start, slots.len()),
                    activation: of.activation,
                    out: self.inner.from(first),
                    width: of.inner,
                };
                if of.up_kind == of.x_kind {
                    (table.glu)(&job);
                } else {
                    // SAFETY: spread in an earlier phase.
                    let up_acts = unsafe { self.up_acts.all(of.up_kind, slots.end, of.width) };
                    glu_apart(table, &job, up_acts.part(slots.start, slots.len()), self.ups.from(first));
                }
            })
        })
    }

    /// Prepares what the slots of computed experts hold, counted from the first; the first token of those that are not finite.
    pub fn prepare(&self, of: &Experts, table: &KernelTable, slots: Range<usize>) -> Option<usize> {
        let window = self.window();
        // SAFETY: grouped in an earlier phase.
        let starts = unsafe { self.starts.read(0..window.end + 1) };
        let (first, end) = (starts[window.start] as usize, starts[window.end] as usize);
        let bad = (first + slots.start..(first + slots.end).min(end)).filter(|&slot| {
            // SAFETY: the slot belongs to this item; what it holds was written in an earlier phase.
            unsafe {
                let x = self.inner.read(slot * of.inner..(slot + 1) * of.inner);
                (table.prepare)(of.inner_kind, x, self.inner_acts.row(of.inner_kind, slot, of.inner)).is_err()
            }
        });
        // SAFETY: grouped in an earlier phase.
        bad.map(|slot| unsafe { self.token_of.read(slot..slot + 1) }[0] as usize).min()
    }

    pub fn down(
        &self,
        of: &Experts,
        weights: &Weights,
        table: &KernelTable,
        units: Range<usize>,
        streams: &mut Streams,
    ) -> Result<()> {
        self.each_expert(units, weights.expert_tiles(of.down.tensor).0, |expert, tiles, slots| {
            let bias = bias_of(weights, of.down_bias, expert, of.width);
            // SAFETY: prepared in an earlier phase.
            let acts = unsafe { self.inner_acts.all(of.inner_kind, slots.end, of.inner) };
            let place = weights.expert(of.mixture, [of.down], expert);
            place.each_part(tiles, streams, |[weight], tiles, before| {
                (table.linear)(&LinearJob {
                    weight,
                    tiles,
                    acts: acts.part(slots.start, slots.len()),
                    bias: bias.map(|bias| &bias[before * LANES..]),
                    add: false,
                    out: self.out.from(slots.start * of.width + before * LANES),
                    width: of.width,
                });
            })
        })
    }

    /// x += the sum of the token's slots, in order of rank, by their weights.
    pub fn combine(&self, of: &Experts, token: usize, x: &mut [f32]) {
        let pairs = token * of.router.top_k..(token + 1) * of.router.top_k;
        // SAFETY: written in earlier phases.
        let (routes, slots) = unsafe { (self.routes.read(pairs.clone()), self.slot_of.read(pairs)) };
        for (i, x) in x.chunks_mut(CHUNK).enumerate() {
            let mut sums = [0.0; CHUNK];
            for (route, &slot) in routes.iter().zip(slots) {
                let at = slot as usize * of.width + i * CHUNK;
                // SAFETY: as above.
                let out = unsafe { self.out.read(at..at + x.len()) };
                sums.iter_mut().zip(out).for_each(|(sum, out)| *sum += route.weight * out);
            }
            x.iter_mut().zip(sums).for_each(|(x, sum)| *x += sum);
        }
    }
}

/// A job whose matrices take different activations: each is multiplied by itself, the products of `up` beside.
fn glu_apart(table: &KernelTable, job: &GluJob, up_acts: Acts, ups: Shared<f32>) {
    let GluJob { gate, up, biases, ref tiles, acts, activation, out, width } = *job;
    let multiply = |weight, acts, bias, out| {
        (table.linear)(&LinearJob { weight, tiles: tiles.clone(), acts, bias, add: false, out, width });
    };
    multiply(gate, acts, biases[0], out);
    multiply(up, up_acts, biases[1], ups);
    for row in 0..acts.count / acts.kind.columns() {
        let part = row * width + tiles.start * LANES..row * width + (tiles.end * LANES).min(gate.rows());
        // SAFETY: rows of the job's tiles belong to it alone.
        let (gates, ups) = unsafe { (out.write(part.clone()), ups.read(part)) };
        (table.gate_rows)(activation, gates, ups);
    }
}

/// An expert's part of the biases of all.
fn bias_of(weights: &Weights, bias: Option<Parts>, expert: usize, len: usize) -> Option<&[f32]> {
    bias.map(|bias| &weights.vector(bias.tensor)[bias.of(expert) * len..][..len])
}
