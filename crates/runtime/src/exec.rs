//! Runs a compiled plan for one step on all threads.
//!
//! Each thread walks the phases in order. In a phase it takes items from its own share, from one end to the
//! other as memory is best read, then from what others have left of theirs, and waits until all items are done: a
//! thread that comes late, or not at all because the system runs something else, holds nobody up unless it has
//! taken an item.

use crate::attention::{Attending, Chosen, Division, Scratch};
use crate::choose::HeadState;
use crate::compile::{Attention, Compiled, Experts, LinearPart, Out, Phase, RowOp};
use crate::error::{Error, Result};
use crate::experts::{ExpertStore, SharedExperts};
use crate::kv::KvLayout;
use crate::plan::{Buffer, Plan, RowKind};
use crate::reuse::emptied;
use crate::rope::Frequencies;
use crate::routing::Routing;
use crate::sparse::Sources;
use crate::stream::Streams;
use crate::threads::Pool;
use crate::trial;
use crate::weights::Weights;
use kernels::acts::{ActStore, NonFinite, SharedActs};
use kernels::exp::exp;
use kernels::kernels::attention::{BLOCK, StoreJob};
use kernels::kernels::matmul::{GluJob, LinearJob};
use kernels::packed::{ActKind, Matrix};
use kernels::simd::LANES;
use kernels::table::KernelTable;
use kernels::view::{Aligned, Shared};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// An item is this part of what is left of a thread's share: large ones first, then ever smaller ones, so that
/// threads of different speed end at about the same time.
const PART: usize = 4;
/// But steps of more than so many tokens go over an item's weights more than once, which then should stay in a
/// cache: at least so many items per thread.
const STREAMED_TOKENS: usize = 8;
const ITEMS_PER_THREAD: usize = 8;
/// Weight bytes times tokens that an item must at least have, to be worth handing out.
const ITEM_WORK: usize = 1 << 15;
/// Weight bytes times tokens below which a step runs on the caller alone.
const SHARED_WORK: usize = 1 << 20;
/// Memory for logits: how many rows a step may return.
const LOGITS_BYTES: usize = 64 << 20;
/// How much of it there is before a step returns more rows. (Elsewhere what is not used costs nothing, but the memory of
/// WebAssembly counts as a whole.)
const FIRST_LOGITS_BYTES: usize = 4 << 20;
/// Looks at a phase's end before a waiting thread sleeps. It does not yield between: where other processes want the core,
/// each yield gives them a whole slice, at every phase. (WebAssembly cannot pause between looks, and a sleeper is woken
/// late.)
const SPINS: usize = if cfg!(target_family = "wasm") { 60_000 } else { 4_000 };

/// One token of a step.
#[derive(Clone, Copy, Debug)]
pub struct Token {
    pub id: u32,
    /// Which entry of the step it belongs to.
    pub entry: usize,
    pub position: usize,
}

/// What an entry's sequence holds.
pub struct EntryState<'a> {
    /// Which of [`Work::pages`].
    pub pages: Range<usize>,
    /// How its layers choose keys, and what is known of each KV head's keys for that.
    pub sources: &'a Sources,
    pub heads: &'a [Mutex<HeadState>],
}

/// What one step computes.
pub struct Work<'a> {
    pub tokens: &'a [Token],
    /// Tokens whose results are wanted: those that need logits first.
    pub outputs: &'a [usize],
    pub logit_rows: usize,
    /// The most threads that take part.
    pub threads: usize,
    /// Of all entries.
    pub pages: &'a [Shared<'a, u16>],
    pub entries: &'a [EntryState<'a>],
    /// Where each entry's routes are counted, if they are.
    pub routings: &'a [Option<Mutex<Routing>>],
    /// Asked between phases: whether to give up.
    pub cancelled: &'a (dyn Fn() -> bool + Sync),
}

impl<'a> Work<'a> {
    /// The pages of the entry's sequence.
    pub fn pages_of(&self, entry: usize) -> &'a [Shared<'a, u16>] {
        &self.pages[self.entries[entry].pages.clone()]
    }
}

/// A plan and what it is bound to.
#[derive(Clone, Copy)]
pub struct Bound<'a> {
    pub plan: &'a Plan,
    pub compiled: &'a Compiled,
    pub table: &'static KernelTable,
    pub weights: &'a Weights,
    pub layout: &'a KvLayout,
    pub ropes: &'a [Frequencies],
}

/// The memory and threads that steps run in.
pub struct Executor {
    buffers: Vec<Aligned<f32>>,
    acts: ActStore,
    experts: ExpertStore,
    logits: Aligned<f32>,
    scratch: Vec<Mutex<Scratch>>,
    /// Of each of the plan's shapes of attention.
    divisions: Vec<Division>,
    chosen: Chosen,
    streams: Vec<Mutex<Streams>>,
    states: Vec<f32>,
    /// Empty: memory for a list that every run needs.
    views: Vec<Shared<'static, f32>>,
    angles: Vec<Vec<[f32; 2]>>,
    counters: Vec<Counter>,
    /// The phase that comes next.
    at: usize,
    pub pool: Box<dyn Pool>,
    pub max_tokens: usize,
    pub max_logit_rows: usize,
}

/// What is taken and done of a phase's units.
struct Counter {
    /// Of each thread's share.
    taken: Vec<Taken>,
    done: AtomicUsize,
}

impl Counter {
    fn new(threads: usize) -> Self {
        Self { taken: (0..threads).map(|_| Taken::default()).collect(), done: AtomicUsize::new(0) }
    }

    fn reset(&self) {
        self.taken.iter().for_each(|taken| taken.0.store(0, Ordering::Relaxed));
        self.done.store(0, Ordering::Relaxed);
    }
}

/// How many units of a share are taken, from its start (the low half) by its thread and from its end by others.
#[derive(Default)]
#[repr(align(64))]
struct Taken(AtomicU64);

impl Taken {
    /// Some more units of a share of `all`, or None where nothing is left; `size` says how many of how many left.
    fn take(&self, all: usize, from_start: bool, size: impl Fn(usize) -> usize) -> Option<Range<usize>> {
        let mut seen = self.0.load(Ordering::Relaxed);
        loop {
            let (start, end) = (seen as u32 as usize, all - (seen >> 32) as usize);
            if start == end {
                return None;
            }
            let count = size(end - start).clamp(1, end - start);
            let taken = seen + if from_start { count as u64 } else { (count as u64) << 32 };
            match self.0.compare_exchange_weak(seen, taken, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(if from_start { start..start + count } else { end - count..end }),
                Err(now) => seen = now,
            }
        }
    }
}

impl Executor {
    pub fn new(plan: &Plan, compiled: &Compiled, pool: Box<dyn Pool>, max_tokens: usize) -> Result<Self> {
        let floats = |what: &str, rows: usize, width: usize| {
            let size = rows.checked_mul(width);
            size.and_then(Aligned::zeroed)
                .ok_or_else(|| Error::memory(what, size.and_then(|size| size.checked_mul(4))))
        };
        let mut buffers = Vec::with_capacity(compiled.buffers.len());
        for buffer in &compiled.buffers {
            buffers.push(floats("the activations", max_tokens, buffer.width)?);
        }
        // Prompts with sparse attention are cut where blocks of positions end.
        let max_logit_rows = (LOGITS_BYTES / 4 / plan.vocab_size).clamp(BLOCK.min(max_tokens), max_tokens);
        let width = compiled.prepared_width;
        let first_rows = (FIRST_LOGITS_BYTES / 4 / plan.vocab_size).clamp(1, max_logit_rows);
        Ok(Self {
            buffers,
            acts: ActStore::new(max_tokens, width)
                .ok_or_else(|| Error::memory("the activations", max_tokens.checked_mul(width)))?,
            experts: ExpertStore::new(compiled, max_tokens)?,
            logits: floats("the logits", first_rows, plan.vocab_size)?,
            scratch: (0..pool.threads()).map(|_| Mutex::new(Scratch::new(&plan.kv_layers))).collect(),
            divisions: compiled.shapes.iter().map(|&shape| Division::new(shape)).collect(),
            chosen: Chosen::default(),
            streams: (0..pool.threads()).map(|_| Mutex::default()).collect(),
            states: Vec::new(),
            views: Vec::new(),
            angles: vec![Vec::new(); plan.ropes.len()],
            counters: compiled.phases.iter().map(|_| Counter::new(pool.threads())).collect(),
            at: 0,
            pool,
            max_tokens,
            max_logit_rows,
        })
    }

    /// The first `rows` rows of logits of the last step.
    pub fn logits(&mut self, rows: Range<usize>, vocab: usize) -> &mut [f32] {
        &mut self.logits.as_mut_slice()[rows.start * vocab..rows.end * vocab]
    }

    /// Rows of a buffer after the last step.
    pub fn rows(&self, buffer: usize, width: usize, rows: Range<usize>) -> &[f32] {
        &self.buffers[buffer].as_slice()[rows.start * width..rows.end * width]
    }

    /// Starts a step, of which nothing is computed yet.
    pub fn begin(&mut self, bound: &Bound, work: &Work) -> Result<()> {
        self.at = 0;
        self.make_room_for_logits(work.logit_rows, bound.plan.vocab_size)?;
        self.divisions.iter_mut().for_each(|division| division.divide(work.tokens, self.pool.threads()));
        let states = self.divisions.iter().map(|division| division.states).max().unwrap_or(0);
        if self.states.len() < states {
            let more = states - self.states.len();
            let reserved = self.states.try_reserve(more);
            reserved.map_err(|_| Error::memory("the states of attention", states.checked_mul(4)))?;
            self.states.resize(states, 0.0);
        }
        self.chosen.begin(work, bound.layout);
        for (angles, rope) in self.angles.iter_mut().zip(bound.ropes) {
            angles.resize(work.tokens.len() * rope.pairs(), [0.0; 2]);
            for (token, out) in work.tokens.iter().zip(angles.chunks_mut(rope.pairs().max(1))) {
                rope.angles(token.position, out);
            }
        }
        Ok(())
    }

    fn make_room_for_logits(&mut self, rows: usize, vocab: usize) -> Result<()> {
        if self.logits.as_slice().len() < rows * vocab {
            let most = self.max_logit_rows * vocab;
            self.logits = Aligned::zeroed(most).ok_or_else(|| Error::memory("the logits", Some(most * 4)))?;
        }
        Ok(())
    }

    /// The experts in use of the mixture that `run` has come to, and from which on they are still to
    /// be computed.
    pub fn wanted(&self) -> (&[u32], usize) {
        let (active, window) = (self.experts.active(), self.experts.window());
        (active, if window.end == active.len() { 0 } else { window.end })
    }

    /// Which of the experts in use `run` computes next: they must be in memory.
    pub fn admit(&mut self, window: Range<usize>) {
        self.experts.set_window(window);
    }

    /// Those of the experts in use that `run` computes next.
    pub fn admitted(&self) -> &[u32] {
        &self.experts.active()[self.experts.window()]
    }

    /// Goes on with a step, to its end (None) or to a mixture of experts that are read on demand,
    /// whose number it gives. An error leaves nothing behind but the activations.
    pub fn run(&mut self, bound: &Bound, work: &Work) -> Result<Option<usize>> {
        let Bound { plan, compiled, table, weights, layout, ropes } = *bound;
        let all = if work.logit_rows > 0 { compiled.phases.len() } else { compiled.head_start };
        let (start, phases) = (self.at, &compiled.phases[..all]);
        let some = start > 0 && self.experts.window().end < self.experts.active().len();
        let end = match some {
            // The other experts in use come when these have made room.
            true => {
                phases[start..].iter().position(|phase| matches!(phase, Phase::ExpertDown(_))).map(|i| i + 1)
            }
            false if weights.demand.is_none() => None,
            false => phases[start + 1..]
                .iter()
                .position(|phase| matches!(phase, Phase::ExpertGlu(_)))
                .map(|i| i + 1),
        };
        let end = end.map_or(all, |count| start + count);
        let mut buffers = emptied(std::mem::take(&mut self.views));
        buffers.extend(self.buffers.iter_mut().map(Aligned::shared));
        self.counters[start..end].iter().for_each(Counter::reset);
        let threads = work.threads.clamp(1, self.pool.threads());
        let run = Run {
            plan,
            sizes: &compiled.buffers,
            phases: &phases[start..end],
            logits_cap: compiled.logits_cap,
            table,
            weights,
            layout,
            ropes,
            work,
            divisions: &self.divisions,
            chosen: &self.chosen,
            states: Shared::new(&mut self.states),
            buffers,
            acts: self.acts.shared(),
            experts: self.experts.shared(),
            logits: self.logits.shared(),
            scratch: &self.scratch,
            streams: &self.streams,
            angles: &self.angles,
            counters: &self.counters[start..end],
            threads,
            gate: Gate { bad_token: AtomicUsize::new(usize::MAX), ..Gate::default() },
        };
        if weights.bytes().saturating_mul(work.tokens.len()) < SHARED_WORK {
            run.walk(0);
        } else if let [_] = work.tokens
            && weights.demand.is_none()
        {
            trial::streamed(weights.bytes(), threads, || {
                self.pool.run_on(threads, &|thread| run.walk(thread))
            });
        } else {
            self.pool.run_on(threads, &|thread| run.walk(thread));
        }
        let result = run.result();
        self.views = emptied(run.buffers);
        result?;
        self.at = if some { start } else { end };
        Ok(match phases.get(self.at) {
            Some(Phase::ExpertGlu(of)) => Some(of.mixture),
            _ => None,
        })
    }
}

/// Where threads wait for each other, and how a step ends early.
#[derive(Default)]
struct Gate {
    stop: AtomicBool,
    fault: Mutex<Option<Error>>,
    /// The first of the step's tokens with activations that are not finite. It ends the step with its phase, not
    /// before: so it is the same one for any number of threads.
    bad_token: AtomicUsize,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Gate {
    /// Ends the step; the first fault is the one reported.
    fn fail(&self, error: Error) {
        lock(&self.fault).get_or_insert(error);
        self.stop.store(true, Ordering::SeqCst);
        self.notify();
    }

    fn notify(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.lock));
            self.wake.notify_all();
        }
    }

    fn wait(&self, ready: impl Fn() -> bool) {
        let ready = || ready() || self.stop.load(Ordering::SeqCst);
        for _ in 0..SPINS {
            if ready() {
                return;
            }
            std::hint::spin_loop();
        }
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let mut guard = lock(&self.lock);
        while !ready() {
            // The time limit only guards against a lost wake-up; it is not how a wait usually ends.
            let waited = self.wake.wait_timeout(guard, Duration::from_millis(5));
            guard = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Run<'a> {
    plan: &'a Plan,
    /// Of each of `buffers`.
    sizes: &'a [Buffer],
    phases: &'a [Phase],
    logits_cap: Option<f32>,
    table: &'static KernelTable,
    weights: &'a Weights,
    layout: &'a KvLayout,
    ropes: &'a [Frequencies],
    work: &'a Work<'a>,
    divisions: &'a [Division],
    chosen: &'a Chosen,
    states: Shared<'a, f32>,
    buffers: Vec<Shared<'a, f32>>,
    acts: SharedActs<'a>,
    experts: SharedExperts<'a>,
    logits: Shared<'a, f32>,
    scratch: &'a [Mutex<Scratch>],
    streams: &'a [Mutex<Streams>],
    angles: &'a [Vec<[f32; 2]>],
    counters: &'a [Counter],
    threads: usize,
    gate: Gate,
}

impl Run<'_> {
    fn walk(&self, thread: usize) {
        for (phase, counter) in self.phases.iter().zip(self.counters) {
            if thread == 0 && (self.work.cancelled)() {
                self.gate.fail(Error::cancelled());
            }
            let (units, least) = self.split(phase);
            loop {
                if self.gate.stop.load(Ordering::Relaxed) {
                    return;
                }
                let Some(part) = self.part(counter, thread, units, least) else { break };
                let done = part.len();
                let result = catch_unwind(AssertUnwindSafe(|| self.item(phase, part, thread)));
                match result {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => self.gate.fail(error),
                    Err(_) => self.gate.fail(Error::internal(format!("a kernel panicked in {phase:?}"))),
                }
                if counter.done.fetch_add(done, Ordering::SeqCst) + done == units {
                    self.gate.notify();
                }
            }
            self.gate.wait(|| counter.done.load(Ordering::SeqCst) >= units);
            if self.bad_token().is_some() {
                return;
            }
        }
    }

    fn bad_token(&self) -> Option<&Token> {
        self.work.tokens.get(self.gate.bad_token.load(Ordering::SeqCst))
    }

    fn result(&self) -> Result<()> {
        if let Some(fault) = lock(&self.gate.fault).take() {
            return Err(fault);
        }
        self.bad_token().map_or(Ok(()), |token| {
            Err(Error {
                code: "NON_FINITE",
                message: format!(
                    "the activations of token {} at position {} became infinite or not a number",
                    token.id, token.position
                ),
                cure: "The weights are damaged, or the model needs a wider type: try another file of it, F32 or BF16.",
            })
        })
    }

    fn row_count(&self, on: RowKind, logits: bool) -> usize {
        match on {
            RowKind::Tokens => self.work.tokens.len(),
            RowKind::Outputs if logits => self.work.logit_rows,
            RowKind::Outputs => self.work.outputs.len(),
        }
    }

    /// The units of the thread's next item; None where none are left.
    fn part(&self, counter: &Counter, thread: usize, units: usize, least: usize) -> Option<Range<usize>> {
        let streamed = self.work.tokens.len() <= STREAMED_TOKENS;
        let most = if streamed { units } else { units / (self.threads * ITEMS_PER_THREAD) };
        (0..self.threads).map(|i| (thread + i) % self.threads).find_map(|of| {
            let first = units * of / self.threads;
            let share = units * (of + 1) / self.threads - first;
            let parts = if of == thread { PART } else { 2 };
            let part = counter.taken[of].take(share, of == thread, |left| {
                let size = (left / parts).min(most).max(least);
                // Tiles may be multiplied two at a time.
                if size < 2 { size } else { size.next_multiple_of(2) }
            })?;
            Some(first + part.start..first + part.end)
        })
    }

    /// How many units (rows, tiles, heads of spans) a phase has, and how many an item covers at least.
    fn split(&self, phase: &Phase) -> (usize, usize) {
        match phase {
            Phase::Rows { on, .. } => (self.row_count(*on, false), 1),
            Phase::ChooseKeys(of) => (self.chosen.items(self.layout.layer(of.layer)), 1),
            Phase::Attention(of) => (self.divisions[of.shape].items, 1),
            Phase::MergeAttention(of) => (self.divisions[of.shape].merges, 1),
            Phase::Linear { on, parts, .. } => {
                let rows = self.row_count(*on, parts[0].out == Out::Logits);
                let tiles = parts.iter().map(|part| self.weights.matrix(part.weight).tiles()).sum();
                (
                    if rows == 0 { 0 } else { tiles },
                    self.least_tiles(self.weights.matrix(parts[0].weight), rows),
                )
            }
            Phase::Glu { on, gate, .. } => {
                let rows = self.row_count(*on, false);
                let gate = self.weights.matrix(*gate);
                (if rows == 0 { 0 } else { gate.tiles() }, self.least_tiles(gate, rows * 2))
            }
            Phase::LinearHeads { weight, .. } => {
                let matrices = self.weights.experts(*weight);
                let tiles = matrices.iter().map(Matrix::tiles).sum();
                (tiles, self.least_tiles(&matrices[0], self.work.tokens.len()))
            }
            // A single token's slots were sorted where it was routed.
            Phase::Group(_) | Phase::Spread(_) if self.work.tokens.len() == 1 => (0, 1),
            Phase::Group(_) => (1, 1),
            Phase::Spread(of) | Phase::PrepareSlots(of) => (self.slots(of), 1),
            Phase::ExpertGlu(of) => self.expert_units(of, of.gate.tensor, 2),
            Phase::ExpertDown(of) => self.expert_units(of, of.down.tensor, 1),
        }
    }

    fn slots(&self, of: &Experts) -> usize {
        self.work.tokens.len() * of.router.top_k
    }

    /// The tiles of as many experts as this step may use, and how many are worth handing out. Not of
    /// those it does use: a thread that comes late counts a phase's items when later phases have
    /// grouped anew.
    fn expert_units(&self, of: &Experts, weight: usize, matrices: usize) -> (usize, usize) {
        let (tiles, tile_bytes) = self.weights.expert_tiles(weight);
        let per_expert = self.slots(of).div_ceil(of.count) * matrices;
        let least = ITEM_WORK / (tile_bytes * per_expert);
        (of.count.min(self.slots(of)) * tiles, least)
    }

    fn least_tiles(&self, matrix: &Matrix, rows: usize) -> usize {
        ITEM_WORK / (matrix.format().tile_bytes(matrix.cols()) * rows.max(1))
    }

    fn item(&self, phase: &Phase, part: Range<usize>, thread: usize) -> Result<()> {
        match phase {
            Phase::Rows { on, ops } => {
                for row in part.start..part.end.min(self.row_count(*on, false)) {
                    if ops.iter().any(|op| self.row(op, row).is_err()) {
                        let token = if *on == RowKind::Tokens { row } else { self.work.outputs[row] };
                        self.gate.bad_token.fetch_min(token, Ordering::SeqCst);
                    }
                }
            }
            Phase::Linear { on, kind, k, parts } => self.linear(*on, *kind, *k, parts, part),
            Phase::Glu { on, kind, k, gate, up, biases, activation, out } => {
                let gate = self.weights.matrix(*gate);
                (self.table.glu)(&GluJob {
                    gate,
                    up: self.weights.matrix(*up),
                    biases: biases.map(|bias| bias.map(|bias| self.weights.vector(bias))),
                    tiles: part.start..part.end.min(gate.tiles()),
                    // SAFETY: prepared in an earlier phase, and by none that runs now.
                    acts: unsafe { self.acts.all(*kind, self.row_count(*on, false), *k) },
                    activation: *activation,
                    out: self.buffers[*out],
                    width: gate.rows(),
                });
            }
            Phase::LinearHeads { kind, weight, out } => self.linear_heads(*kind, *weight, *out, part),
            Phase::ChooseKeys(of) => {
                let attending = self.attention(of);
                let items = self.chosen.items(self.layout.layer(of.layer));
                for unit in part.start..part.end.min(items) {
                    attending.choose(unit, &mut lock(&self.scratch[thread]));
                }
            }
            Phase::Attention(of) => {
                let attending = self.attention(of);
                for unit in part.start..part.end.min(attending.division.items) {
                    attending.item(unit, &mut lock(&self.scratch[thread]));
                }
            }
            Phase::MergeAttention(of) => {
                let attending = self.attention(of);
                for unit in part.start..part.end.min(attending.division.merges) {
                    attending.merge(unit, &mut lock(&self.scratch[thread]));
                }
            }
            Phase::Group(of) => self.group(of),
            Phase::Spread(of) => {
                if let Some(token) = self.spread(of, part.start..part.end.min(self.slots(of))) {
                    self.gate.bad_token.fetch_min(token, Ordering::SeqCst);
                }
            }
            Phase::ExpertGlu(of) => {
                let streams = &mut lock(&self.streams[thread]);
                self.experts.glu(of, self.weights, self.table, part, streams)?;
            }
            Phase::PrepareSlots(of) => {
                let slots = part.start..part.end.min(self.slots(of));
                if let Some(token) = self.experts.prepare(of, self.table, slots) {
                    self.gate.bad_token.fetch_min(token, Ordering::SeqCst);
                }
            }
            Phase::ExpertDown(of) => {
                let streams = &mut lock(&self.streams[thread]);
                self.experts.down(of, self.weights, self.table, part, streams)?;
            }
        }
        Ok(())
    }

    fn spread(&self, of: &Experts, slots: Range<usize>) -> Option<usize> {
        self.experts.spread(of, self.table, &self.acts, self.buffers[of.x], slots)
    }

    /// The only item of its phase, or part of the one that routes the step's only token.
    fn group(&self, of: &Experts) {
        self.experts.group(of, self.weights, self.work.tokens.len());
        let top_k = of.router.top_k;
        for (entry, routing) in self.work.routings.iter().enumerate() {
            let Some(routing) = routing else { continue };
            let tokens = (0..self.work.tokens.len()).filter(|&token| self.work.tokens[token].entry == entry);
            // SAFETY: routes were written before, and are not meanwhile.
            let experts = tokens.flat_map(|token| unsafe { self.experts.routes(token, top_k) }.iter());
            lock(routing).0[of.mixture].count(experts.map(|route| route.expert), |expert| {
                self.weights.is_missing(of.mixture, expert)
            });
        }
    }

    fn linear(&self, on: RowKind, kind: ActKind, k: usize, parts: &[LinearPart], units: Range<usize>) {
        let mut first = 0;
        for part in parts {
            let weight = self.weights.matrix(part.weight);
            let tiles = units.start.max(first)..units.end.min(first + weight.tiles());
            let (out, width, logits) = match part.out {
                Out::Buffer(out) => (self.buffers[out], self.sizes[out].width, false),
                Out::Logits => (self.logits, self.plan.vocab_size, true),
            };
            if !tiles.is_empty() {
                let tiles = tiles.start - first..tiles.end - first;
                // SAFETY: prepared in an earlier phase, and by none that runs now.
                let acts = unsafe { self.acts.all(kind, self.row_count(on, logits), k) };
                (self.table.linear)(&LinearJob {
                    weight,
                    tiles: tiles.clone(),
                    acts: if part.plain { acts.plain() } else { acts },
                    bias: part.bias.map(|bias| self.weights.vector(bias)),
                    add: part.add,
                    out,
                    width,
                });
                if let (true, Some(cap)) = (logits, self.logits_cap) {
                    self.cap_logits(tiles, cap);
                }
            }
            first += weight.tiles();
        }
    }

    fn linear_heads(&self, kind: ActKind, weight: usize, out: usize, units: Range<usize>) {
        let matrices = self.weights.experts(weight);
        let tokens = self.work.tokens.len();
        let (heads, tiles) = (matrices.len(), matrices[0].tiles());
        let touched = units.start / tiles..units.end.div_ceil(tiles).min(heads);
        for (head, weight) in touched.clone().zip(&matrices[touched]) {
            let first = head * tiles;
            // SAFETY: prepared in an earlier phase, and by none that runs now.
            let acts = unsafe { self.acts.all(kind, heads * tokens, weight.cols()) };
            (self.table.linear)(&LinearJob {
                weight,
                tiles: units.start.max(first) - first..units.end.min(first + tiles) - first,
                acts: acts.part(head * tokens, tokens),
                bias: None,
                add: false,
                out: self.buffers[out].from(head * weight.rows()),
                width: heads * weight.rows(),
            });
        }
    }

    fn cap_logits(&self, tiles: Range<usize>, cap: f32) {
        let vocab = self.plan.vocab_size;
        for row in 0..self.work.logit_rows {
            let part = row * vocab + tiles.start * LANES..row * vocab + (tiles.end * LANES).min(vocab);
            // SAFETY: rows of the item's tiles belong to it alone.
            (self.table.softcap)(unsafe { self.logits.write(part) }, cap);
        }
    }

    fn attention<'a>(&'a self, of: &'a Attention) -> Attending<'a> {
        Attending {
            of,
            division: &self.divisions[of.shape],
            chosen: self.chosen,
            work: self.work,
            layout: self.layout,
            sinks: of.sinks.map(|sinks| self.weights.vector(sinks)),
            table: self.table,
            q: self.buffers[of.q],
            out: self.buffers[of.out],
            states: self.states,
        }
    }

    fn row(&self, op: &RowOp, row: usize) -> std::result::Result<(), NonFinite> {
        let width = |buffer: usize| self.sizes[buffer].width;
        let range = |buffer: usize, row: usize| row * width(buffer)..(row + 1) * width(buffer);
        // SAFETY: no thread writes the row in this phase but this one, which has no other view of it.
        let read = |buffer: usize, row: usize| unsafe { self.buffers[buffer].read(range(buffer, row)) };
        // SAFETY: a row belongs to one thread in this phase.
        let write = |buffer: usize| unsafe { self.buffers[buffer].write(range(buffer, row)) };
        match *op {
            RowOp::Embed { table, out, scale } => {
                let out = write(out);
                self.weights.matrix(table).read_row(self.work.tokens[row].id as usize, out);
                if let Some(scale) = scale {
                    out.iter_mut().for_each(|x| *x *= scale);
                }
            }
            RowOp::RmsNorm { x, weight, out, eps } => {
                if x != out {
                    write(out).copy_from_slice(read(x, row));
                }
                (self.table.rms_norm)(write(out), self.weights.vector(weight), eps);
            }
            RowOp::Rope { x, rope, head_dim, at, pairing } => {
                let pairs = self.ropes[rope].pairs();
                let angles = &self.angles[rope][row * pairs..(row + 1) * pairs];
                for head in write(x).chunks_exact_mut(head_dim) {
                    kernels::kernels::rows::rope(&mut head[at..], head_dim - at, pairing, angles);
                }
            }
            RowOp::Copy(of) => {
                let (from, to) = (read(of.x, row), write(of.out));
                let heads = from.chunks_exact(from.len() / of.x_heads).cycle();
                for (from, to) in heads.zip(to.chunks_exact_mut(to.len() / of.heads)) {
                    to[of.to..][..of.count].copy_from_slice(&from[of.from..][..of.count]);
                }
            }
            RowOp::Glu { x, up, activation } => (self.table.gate_rows)(activation, write(x), read(up, row)),
            RowOp::Gate { x, gate } => {
                let by = 1.0 / (1.0 + exp(-read(gate, row)[0]));
                write(x).iter_mut().for_each(|x| *x *= by);
            }
            RowOp::Route(ref of) => {
                // SAFETY: this token's routes belong to this thread in this phase.
                unsafe { self.experts.route(of, self.weights, write(of.gates), row)? };
                if self.work.tokens.len() == 1 {
                    self.group(of);
                    return self.spread(of, 0..of.router.top_k).map_or(Ok(()), |_| Err(NonFinite));
                }
            }
            RowOp::Combine(ref of) => self.experts.combine(of, row, write(of.out)),
            RowOp::StoreKv { k, v, layer } => return self.store_kv(read(k, row), read(v, row), row, layer),
            RowOp::Add { x, out } => {
                for (sum, x) in write(out).iter_mut().zip(read(x, row)) {
                    *sum += x;
                }
            }
            RowOp::Select { x, out } => {
                let from = read(x, self.work.outputs[row]);
                write(out).copy_from_slice(from);
            }
            RowOp::Prepare { x, kind } => {
                let x = read(x, row);
                // SAFETY: this row's part of the store belongs to this thread in this phase.
                return (self.table.prepare)(kind, x, unsafe { self.acts.row(kind, row, x.len()) });
            }
            RowOp::PrepareHeads { x, kind, k } => {
                for (head, x) in read(x, row).chunks_exact(k).enumerate() {
                    let place = head * self.work.tokens.len() + row;
                    // SAFETY: as above, and each head's part is another.
                    (self.table.prepare)(kind, x, unsafe { self.acts.row(kind, place, k) })?;
                }
            }
        }
        Ok(())
    }

    fn store_kv(&self, k: &[f32], v: &[f32], row: usize, layer: usize) -> std::result::Result<(), NonFinite> {
        let layer = self.layout.layer(layer);
        let token = self.work.tokens[row];
        let page = &self.work.pages_of(token.entry)[token.position / BLOCK];
        (self.table.store_kv)(&StoreJob {
            k,
            v,
            head_dim: layer.head_dim,
            value_dim: layer.value_dim,
            cache: self.layout.cache,
            page: *page,
            start: layer.keys_at(0),
            slot: token.position % BLOCK,
        })
    }
}
