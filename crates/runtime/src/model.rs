//! A compiled plan with its weights and sequences: what the bindings expose.

use crate::choose::{HeadState, Tally};
use crate::compile::{Compiled, compile};
use crate::demand::Wanted;
use crate::error::{Error, Result};
use crate::exec::{Bound, EntryState, Executor, Token, Work};
use crate::kv::{KvCache, KvLayout};
use crate::plan::Plan;
use crate::reuse::emptied;
use crate::rope::Frequencies;
use crate::routing::Routing;
use crate::sparse::{BlockSource, Sources};
use crate::threads::Pool;
use crate::weights::{TensorReader, Weights};
use kernels::sampling::{Sampler, SamplerSettings, SamplingError};
use kernels::table::KernelTable;
use kernels::view::Shared;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// What an entry of a step wants back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Want {
    Nothing,
    /// One sampled token, after the entry's last.
    Sample,
    LastLogits,
    AllLogits,
    /// The final hidden state of every token.
    AllHidden,
}

/// Tokens appended to one sequence in a step.
pub struct Entry<'a> {
    pub sequence: u32,
    pub tokens: &'a [u32],
    pub want: Want,
}

#[derive(Debug, PartialEq)]
pub enum Output {
    Nothing,
    Token(u32),
    /// Rows of logits or of hidden states, one after another.
    Values(Vec<f32>),
}

/// How far a step came.
#[derive(Debug, PartialEq)]
pub enum Progress {
    Done(Vec<Output>),
    /// What the caller has to supply before the step can go on.
    Needs(Vec<Wanted>),
}

/// A step's tokens; its outputs, those with logits first; and how many have logits.
#[derive(Default)]
struct LaidOut {
    tokens: Vec<Token>,
    outputs: Vec<usize>,
    logit_rows: usize,
    /// Outputs without logits, until they come after the others.
    hidden: Vec<usize>,
}

/// Lists that every step fills; between steps only their memory is of use.
#[derive(Default)]
struct Lists {
    held: Vec<Arc<Held>>,
    /// For the locks of sequences, which have the size of two addresses.
    sequences: Vec<[usize; 2]>,
    laid_out: LaidOut,
    routings: Vec<Option<Mutex<Routing>>>,
    spare_run: RunLists,
}

/// Those that borrow from sequences while they run: empty between.
#[derive(Default)]
struct RunLists {
    pages: Vec<Shared<'static, u16>>,
    entries: Vec<EntryState<'static>>,
}

/// A step that waits for experts; the executor holds what was computed.
struct Paused {
    /// Sequence, tokens and wish of each entry.
    entries: Vec<(u32, Vec<u32>, Want)>,
    mixture: usize,
    routings: Vec<Option<Mutex<Routing>>>,
}

impl Paused {
    fn new(batch: &[Entry], mixture: usize, routings: Vec<Option<Mutex<Routing>>>) -> Self {
        let entries = batch.iter().map(|entry| (entry.sequence, entry.tokens.to_vec(), entry.want)).collect();
        Self { entries, mixture, routings }
    }

    fn is_at(&self, batch: &[Entry]) -> bool {
        let same = |(entry, (sequence, tokens, want)): (&Entry, &(u32, Vec<u32>, Want))| {
            entry.sequence == *sequence && entry.tokens == tokens && entry.want == *want
        };
        batch.len() == self.entries.len() && batch.iter().zip(&self.entries).all(same)
    }
}

pub(crate) struct Sequence {
    cache: KvCache,
    sampler: Option<Sampler>,
    sources: Arc<Sources>,
    /// What is known of the keys of each layer's KV heads; none where all keys are kept.
    heads: Vec<Mutex<HeadState>>,
}

/// A sequence as the map holds it: a step may keep it alive after it was freed.
pub(crate) struct Held {
    freed: AtomicBool,
    inner: Mutex<Sequence>,
    /// Apart from the rest, which a step in progress holds.
    routing: Mutex<Option<Routing>>,
}

/// The memory of sequences that have ended, to be dropped where that may take its time: giving back
/// hundreds of megabytes takes tens of milliseconds.
pub struct Freed {
    _held: Vec<Arc<Held>>,
}

impl Freed {
    fn new(held: Vec<Arc<Held>>) -> Self {
        for held in &held {
            held.freed.store(true, Ordering::Relaxed);
            // A step that holds it counts the memory until it ends.
            if let Ok(mut sequence) = held.inner.try_lock() {
                sequence.cache.discount();
            }
        }
        Self { _held: held }
    }
}

#[derive(Default)]
struct Sequences {
    next: u32,
    held: HashMap<u32, Arc<Held>>,
}

/// What a model may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most tokens in a step.
    pub max_tokens: usize,
    /// The most bytes of experts in memory; None: all of them. The others are read when they are needed.
    pub expert_memory: Option<usize>,
}

impl From<usize> for Limits {
    fn from(max_tokens: usize) -> Self {
        Self { max_tokens, expert_memory: None }
    }
}

pub struct Model {
    plan: Plan,
    compiled: Compiled,
    table: &'static KernelTable,
    layout: KvLayout,
    /// How new sequences choose keys.
    sources: Arc<Sources>,
    weights: RwLock<Weights>,
    /// Made at the first step, when the rope factors are there.
    ropes: Mutex<Option<Arc<Vec<Frequencies>>>>,
    executor: Mutex<Executor>,
    lists: Mutex<Lists>,
    paused: Mutex<Option<Paused>>,
    sequences: Mutex<Sequences>,
    kv_bytes: Arc<AtomicUsize>,
    /// The most threads that take part in a step.
    step_threads: AtomicUsize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Model {
    /// Verifies the plan and reserves memory for its tensors and for its steps.
    pub fn new(
        plan: Plan,
        table: &'static KernelTable,
        pool: Box<dyn Pool>,
        limits: impl Into<Limits>,
    ) -> Result<Self> {
        let Limits { max_tokens, expert_memory } = limits.into();
        if max_tokens == 0 || max_tokens > 1 << 16 {
            return Err(Error::argument(
                format!("maxStepTokens is {max_tokens}, expected 1 to 65536"),
                "Choose a chunk size within that range.",
            ));
        }
        let compiled = compile(&plan)?;
        let layout = KvLayout::new(plan.kv_cache.into(), &plan.kv_layers)
            .ok_or_else(|| Error::plan("a page of the cache is too large"))?;
        let sources = Arc::new(Sources::of_plan(&plan)?);
        let weights = Weights::new(&plan, &compiled, expert_memory)?;
        let executor = Executor::new(&plan, &compiled, pool, max_tokens)?;
        Ok(Self {
            plan,
            compiled,
            table,
            layout,
            sources,
            weights: RwLock::new(weights),
            ropes: Mutex::new(None),
            executor: Mutex::new(executor),
            lists: Mutex::default(),
            paused: Mutex::default(),
            sequences: Mutex::default(),
            kv_bytes: Arc::default(),
            step_threads: AtomicUsize::new(usize::MAX),
        })
    }

    pub fn isa(&self) -> &'static str {
        self.table.isa
    }

    pub fn threads(&self) -> usize {
        lock(&self.executor).pool.threads()
    }

    /// Lets at most so many of the threads, at least one, take part in steps that begin from now on. It
    /// changes no result.
    pub fn set_step_threads(&self, threads: usize) {
        self.step_threads.store(threads.max(1), Ordering::Relaxed);
    }

    /// How many rows of logits one step may return.
    pub fn max_logit_rows(&self) -> usize {
        lock(&self.executor).max_logit_rows
    }

    pub fn weight_bytes(&self) -> usize {
        self.weights.read().unwrap_or_else(PoisonError::into_inner).bytes()
    }

    /// Bytes that the caches of all sequences take at present.
    pub fn kv_bytes(&self) -> usize {
        self.kv_bytes.load(Ordering::Relaxed)
    }

    /// Loads tensor `id` of the plan from `offset` of a reader.
    pub fn load_tensor(&self, id: usize, reader: &dyn TensorReader, offset: u64) -> Result<()> {
        self.check_tensor(id)?;
        let executor = lock(&self.executor);
        let mut weights = self.weights.write().unwrap_or_else(PoisonError::into_inner);
        weights.load(id, reader, offset, executor.pool.as_ref())
    }

    /// Whether tensor `id` is not loaded but attached: its experts are read when they are needed.
    pub fn is_on_demand(&self, id: usize) -> Result<bool> {
        self.check_tensor(id)?;
        Ok(self.weights.read().unwrap_or_else(PoisonError::into_inner).is_on_demand(id))
    }

    /// Says where tensor `id`, which is read on demand, comes from: a reader and an offset or, where
    /// only the caller can read it, None (see [`Progress::Needs`]).
    pub fn attach_tensor(
        &self,
        id: usize,
        origin: Option<(Arc<dyn TensorReader + Send>, u64)>,
    ) -> Result<()> {
        self.check_tensor(id)?;
        self.weights.write().unwrap_or_else(PoisonError::into_inner).attach(id, origin)
    }

    /// Loads the next rows of tensor `id`: 16 at a time or a multiple, but for the last.
    pub fn push_rows(&self, id: usize, bytes: &[u8]) -> Result<()> {
        self.check_tensor(id)?;
        self.weights.write().unwrap_or_else(PoisonError::into_inner).push(id, bytes)
    }

    fn check_tensor(&self, id: usize) -> Result<()> {
        let count = self.plan.tensors.len();
        if id < count { Ok(()) } else { Err(Error::internal(format!("tensor {id} of {count}"))) }
    }

    /// A new empty sequence; a sampler is needed for [`Want::Sample`].
    pub fn create_sequence(&self, sampler: Option<SamplerSettings>) -> Result<u32> {
        self.open_sequence(sampler, Arc::clone(&self.sources))
    }

    /// The same with a choice of keys for each layer.
    pub fn create_sparse_sequence(
        &self,
        sampler: Option<SamplerSettings>,
        sources: Vec<BlockSource>,
    ) -> Result<u32> {
        let layers = self.plan.kv_layers.len();
        if !sources.is_empty() && sources.len() != layers {
            return Err(Error::internal(format!("{} choices of keys for {layers} layers", sources.len())));
        }
        self.open_sequence(sampler, Arc::new(Sources { prefill: sources.clone(), decode: sources }))
    }

    fn open_sequence(&self, sampler: Option<SamplerSettings>, sources: Arc<Sources>) -> Result<u32> {
        let sampler = sampler
            .map(|settings| Sampler::new(settings, self.plan.vocab_size).map_err(sampling_error))
            .transpose()?;
        let cache = KvCache::new(Arc::clone(&self.kv_bytes));
        let heads = if sources.prefill.is_empty() { 0 } else { self.layout.heads() };
        let heads = (0..heads).map(|_| Mutex::default()).collect();
        let held = Held {
            freed: AtomicBool::new(false),
            inner: Mutex::new(Sequence { cache, sampler, sources, heads }),
            routing: Mutex::default(),
        };
        let mut sequences = lock(&self.sequences);
        let id = sequences.next;
        sequences.next = id.checked_add(1).ok_or_else(|| Error::internal("no sequence numbers are left"))?;
        sequences.held.insert(id, Arc::new(held));
        Ok(id)
    }

    /// Counts, from zero, which experts a sequence's tokens are routed to; unknown ones are ignored.
    pub fn count_experts(&self, id: u32) {
        if let Some(held) = lock(&self.sequences).held.get(&id) {
            *lock(&held.routing) = Some(Routing::new(&self.compiled.mixtures));
        }
    }

    /// What was counted since `count_experts`, and no longer counts; None for unknown sequences.
    pub fn expert_counts(&self, id: u32) -> Option<Routing> {
        let sequences = lock(&self.sequences);
        lock(&sequences.held.get(&id)?.routing).take()
    }

    /// What a sequence's layers have kept of the blocks of keys that queries saw, since this was last asked;
    /// empty where all keys are kept, or the sequence is unknown.
    pub fn kept_keys(&self, id: u32) -> Vec<Tally> {
        let held = lock(&self.sequences).held.get(&id).cloned();
        let Some(held) = held else { return Vec::new() };
        let sequence = lock(&held.inner);
        if sequence.heads.is_empty() {
            return Vec::new();
        }
        let of_layer = |layer: usize| {
            let of = self.layout.layer(layer);
            let heads = &sequence.heads[of.heads_before..of.heads_before + of.kv_heads];
            heads.iter().fold(Tally::default(), |mut sum, head| {
                sum.add(lock(head).take_kept());
                sum
            })
        };
        (0..self.plan.kv_layers.len()).map(of_layer).collect()
    }

    /// Records which blocks of keys a sequence's layers keep, from now on; nothing where all are kept, or the
    /// sequence is unknown.
    pub fn record_keys(&self, id: u32) {
        let held = lock(&self.sequences).held.get(&id).cloned();
        let Some(held) = held else { return };
        for head in &lock(&held.inner).heads {
            lock(head).record();
        }
    }

    /// Ends recording, and gives for each KV head of one layer after another the layer, the length of its list
    /// and the list, see [`HeadState::take_recorded`]; empty where nothing was recorded.
    pub fn recorded_keys(&self, id: u32) -> Vec<u32> {
        let held = lock(&self.sequences).held.get(&id).cloned();
        let Some(held) = held else { return Vec::new() };
        let sequence = lock(&held.inner);
        let layers = 0..self.plan.kv_layers.len();
        let layers = layers.flat_map(|layer| std::iter::repeat_n(layer, self.layout.layer(layer).kv_heads));
        let lists = layers.zip(&sequence.heads).filter_map(|(layer, head)| {
            let list = lock(head).take_recorded()?;
            Some([layer as u32, list.len() as u32].into_iter().chain(list))
        });
        lists.flatten().collect()
    }

    /// Leaves a sequence as it was after its first `length` tokens, between steps; unknown ones are ignored.
    pub fn rewind(&self, id: u32, length: usize) {
        let held = lock(&self.sequences).held.get(&id).cloned();
        let Some(held) = held else { return };
        let mut sequence = lock(&held.inner);
        sequence.cache.truncate(length);
        if let Some(sampler) = &mut sequence.sampler {
            sampler.truncate(length);
        }
        // What is known of later keys goes when the next step begins.
        sequence.heads.iter().for_each(|head| lock(head).distrust());
    }

    /// Ends a sequence; unknown ones are ignored. Its memory goes with the result or, where a step
    /// holds the sequence, with that step.
    pub fn free_sequence(&self, id: u32) -> Freed {
        let held = lock(&self.sequences).held.remove(&id);
        Freed::new(held.into_iter().collect())
    }

    /// Ends all sequences, which cuts a running step short.
    pub fn free_all(&self) -> Freed {
        let held = std::mem::take(&mut lock(&self.sequences).held);
        Freed::new(held.into_values().collect())
    }

    /// Returns when no step runs.
    pub fn wait_idle(&self) {
        drop(lock(&self.executor));
    }

    /// Appends each entry's tokens to its sequence and computes what it wants. On an error no
    /// sequence has changed.
    pub fn step(&self, batch: &[Entry]) -> Result<Vec<Output>> {
        match self.advance(batch)? {
            Progress::Done(outputs) => Ok(outputs),
            Progress::Needs(_) => Err(Error::internal("a step that needs experts which nobody supplies")),
        }
    }

    /// The same, as far as it comes without experts that only the caller can read. Once they are
    /// supplied, the same call goes on where it stopped; any other gives the step up.
    pub fn advance(&self, batch: &[Entry]) -> Result<Progress> {
        let mut lists = std::mem::take(&mut *lock(&self.lists));
        let result = self.advance_with(batch, &mut lists);
        lists.held.clear();
        *lock(&self.lists) = lists;
        result
    }

    fn advance_with(&self, batch: &[Entry], lists: &mut Lists) -> Result<Progress> {
        let Lists { held, sequences: spare, laid_out, routings, spare_run } = lists;
        self.find(batch, held)?;
        let mut executor = lock(&self.executor);
        let executor = &mut *executor;
        let paused = lock(&self.paused).take().filter(|paused| paused.is_at(batch));
        let mut sequences: Vec<MutexGuard<Sequence>> = emptied(std::mem::take(spare));
        sequences.extend(held.iter().map(|held| lock(&held.inner)));
        self.lay_out(batch, &sequences, executor, laid_out)?;
        for (sequence, entry) in sequences.iter_mut().zip(batch) {
            sequence.cache.reserve(&self.layout, entry.tokens.len())?;
        }
        let mut admitted = paused.is_some();
        let mut at = match paused {
            Some(paused) => {
                *routings = paused.routings;
                Some(paused.mixture)
            }
            None => {
                self.begin_routings(held, routings);
                for sequence in &sequences {
                    sequence.heads.iter().for_each(|head| lock(head).begin(sequence.cache.tokens()));
                }
                self.run(executor, (held, &mut sequences), laid_out, routings, spare_run, true)?
            }
        };
        while let Some(mixture) = at {
            let wanted = self.bring_experts(executor, mixture, admitted)?;
            if !wanted.is_empty() {
                *lock(&self.paused) = Some(Paused::new(batch, mixture, std::mem::take(routings)));
                return Ok(Progress::Needs(wanted));
            }
            admitted = false;
            at = self.run(executor, (held, &mut sequences), laid_out, routings, spare_run, false)?;
        }
        let results = self.collect(batch, &mut sequences, executor, laid_out.logit_rows)?;
        for (sequence, entry) in sequences.iter_mut().zip(batch) {
            sequence.cache.advance(entry.tokens.len());
            sequence.heads.iter().for_each(|head| lock(head).settle());
        }
        for (held, counted) in held.iter().zip(&*routings) {
            if let (Some(routing), Some(counted)) = (&mut *lock(&held.routing), counted) {
                routing.add(&lock(counted));
            }
        }
        *spare = emptied(sequences);
        Ok(Progress::Done(results))
    }

    /// Packs an expert's matrix that a step needs.
    pub fn supply(&self, wanted: Wanted, bytes: &[u8]) -> Result<()> {
        let executor = lock(&self.executor);
        let mut weights = self.weights.write().unwrap_or_else(PoisonError::into_inner);
        let demand = weights.demand.as_mut().ok_or_else(|| Error::internal("no experts are wanted"))?;
        demand.supply(wanted, bytes, executor.pool.as_ref(), self.threads_of_step())
    }

    /// Where a step counts the routes of sequences that have them counted.
    fn begin_routings(&self, held: &[Arc<Held>], routings: &mut Vec<Option<Mutex<Routing>>>) {
        routings.resize_with(held.len(), || None);
        for (held, routing) in held.iter().zip(routings) {
            match (lock(&held.routing).is_some(), &mut *routing) {
                (true, Some(before)) => lock(before).clear(),
                (true, None) => *routing = Some(Mutex::new(Routing::new(&self.compiled.mixtures))),
                (false, _) => *routing = None,
            }
        }
    }

    fn threads_of_step(&self) -> usize {
        self.step_threads.load(Ordering::Relaxed)
    }

    /// Makes room for a mixture's experts and reads those that have a reader; gives the others.
    fn bring_experts(&self, executor: &mut Executor, mixture: usize, admitted: bool) -> Result<Vec<Wanted>> {
        let mut weights = self.weights.write().unwrap_or_else(PoisonError::into_inner);
        let demand = weights.demand.as_mut().ok_or_else(|| Error::internal("no experts are wanted"))?;
        if !admitted {
            let (active, from) = executor.wanted();
            let window = demand.admit(mixture, active, from);
            executor.admit(window);
        }
        let wanted = executor.admitted();
        demand.fill(mixture, wanted, executor.pool.as_ref(), self.threads_of_step())
    }

    /// Begins a step or goes on with it: see [`Executor::run`].
    fn run(
        &self,
        executor: &mut Executor,
        (held, sequences): (&[Arc<Held>], &mut [MutexGuard<Sequence>]),
        laid_out: &LaidOut,
        routings: &[Option<Mutex<Routing>>],
        spare: &mut RunLists,
        begin: bool,
    ) -> Result<Option<usize>> {
        let weights = self.weights.read().unwrap_or_else(PoisonError::into_inner);
        let ropes = self.frequencies(&weights)?;
        let RunLists { pages, entries } = std::mem::take(spare);
        let (mut pages, mut entries) = (emptied(pages), emptied(entries));
        for sequence in sequences {
            let Sequence { cache, sources, heads, .. } = &mut **sequence;
            let first = pages.len();
            pages.extend(cache.shared());
            entries.push(EntryState { pages: first..pages.len(), sources, heads });
        }
        let work = Work {
            tokens: &laid_out.tokens,
            outputs: &laid_out.outputs,
            logit_rows: laid_out.logit_rows,
            threads: self.threads_of_step(),
            pages: &pages,
            entries: &entries,
            routings,
            cancelled: &|| held.iter().all(|held| held.freed.load(Ordering::Relaxed)),
        };
        let bound = Bound {
            plan: &self.plan,
            compiled: &self.compiled,
            table: self.table,
            weights: &weights,
            layout: &self.layout,
            ropes: &ropes,
        };
        if begin {
            executor.begin(&bound, &work)?;
        }
        let result = executor.run(&bound, &work);
        *spare = RunLists { pages: emptied(pages), entries: emptied(entries) };
        result
    }

    fn find(&self, batch: &[Entry], found: &mut Vec<Arc<Held>>) -> Result<()> {
        let sequences = lock(&self.sequences);
        for entry in batch {
            let held = sequences.held.get(&entry.sequence);
            let held = held.ok_or_else(|| Error::disposed(&format!("sequence {}", entry.sequence)))?;
            if found.iter().any(|other| Arc::ptr_eq(other, held)) {
                return Err(Error::internal(format!("sequence {} is twice in a step", entry.sequence)));
            }
            found.push(Arc::clone(held));
        }
        Ok(())
    }

    fn lay_out(
        &self,
        batch: &[Entry],
        sequences: &[MutexGuard<Sequence>],
        executor: &Executor,
        LaidOut { tokens, outputs, hidden, logit_rows }: &mut LaidOut,
    ) -> Result<()> {
        tokens.clear();
        outputs.clear();
        hidden.clear();
        for (i, (entry, sequence)) in batch.iter().zip(sequences).enumerate() {
            let (start, count) = (sequence.cache.tokens(), entry.tokens.len());
            self.check_entry(entry, start, sequence.sampler.is_some())?;
            let first = tokens.len();
            tokens.extend(entry.tokens.iter().enumerate().map(|(t, &id)| Token {
                id,
                entry: i,
                position: start + t,
            }));
            match entry.want {
                Want::Nothing => {}
                Want::Sample | Want::LastLogits => outputs.push(first + count - 1),
                Want::AllLogits => outputs.extend(first..first + count),
                Want::AllHidden => hidden.extend(first..first + count),
            }
        }
        *logit_rows = outputs.len();
        if tokens.len() > executor.max_tokens || *logit_rows > executor.max_logit_rows {
            return Err(Error::argument(
                format!(
                    "a step of {} tokens and {} rows of logits, at most {} and {} fit",
                    tokens.len(),
                    logit_rows,
                    executor.max_tokens,
                    executor.max_logit_rows
                ),
                "Split the step.",
            ));
        }
        outputs.append(hidden);
        Ok(())
    }

    fn check_entry(&self, entry: &Entry, start: usize, has_sampler: bool) -> Result<()> {
        let count = entry.tokens.len();
        if count == 0 || entry.want == Want::Sample && !has_sampler {
            return Err(Error::internal("an entry without tokens, or one to sample without a sampler"));
        }
        if let Some(id) = entry.tokens.iter().find(|&&id| id as usize >= self.plan.vocab_size) {
            return Err(Error::argument(
                format!("token {id} is outside the vocabulary of {}", self.plan.vocab_size),
                "Use token ids that this model's tokenizer gives.",
            ));
        }
        if start + count > self.plan.context_length {
            return Err(Error {
                code: "CONTEXT_OVERFLOW",
                message: format!(
                    "{} tokens, but the context holds {}",
                    start + count,
                    self.plan.context_length
                ),
                cure: "Shorten the prompt, or load the model with a larger contextLength.",
            });
        }
        Ok(())
    }

    fn frequencies(&self, weights: &Weights) -> Result<Arc<Vec<Frequencies>>> {
        let mut ropes = lock(&self.ropes);
        if let Some(ropes) = &*ropes {
            return Ok(Arc::clone(ropes));
        }
        if let Some(id) = weights.missing() {
            return Err(Error::internal(format!("tensor {} was not loaded", self.plan.tensors[id].name)));
        }
        let factors = |name: &String| {
            let id = self.plan.tensors.iter().position(|tensor| tensor.name == *name);
            id.map(|id| weights.vector(id))
        };
        let made: Vec<Frequencies> = self
            .plan
            .ropes
            .iter()
            .map(|rope| Frequencies::new(rope, rope.factors.as_ref().and_then(factors)))
            .collect();
        let made = Arc::new(made);
        *ropes = Some(Arc::clone(&made));
        Ok(made)
    }

    fn collect(
        &self,
        batch: &[Entry],
        sequences: &mut [MutexGuard<Sequence>],
        executor: &mut Executor,
        logit_rows: usize,
    ) -> Result<Vec<Output>> {
        let vocab = self.plan.vocab_size;
        let hidden_width = self.plan.buffers[self.compiled.hidden].width;
        let (mut logit, mut hidden) = (0, logit_rows);
        let mut results = Vec::with_capacity(batch.len());
        let mut fault = None;
        for (entry, sequence) in batch.iter().zip(sequences.iter_mut()) {
            let (start, count) = (sequence.cache.tokens(), entry.tokens.len());
            let rows = if entry.want == Want::AllLogits { count } else { 1 };
            if let Some(sampler) = &mut sequence.sampler {
                entry.tokens.iter().for_each(|&token| sampler.accept(token));
            }
            let result = match entry.want {
                Want::Nothing => Ok(Output::Nothing),
                Want::Sample => {
                    let position = (start + count) as u64;
                    logit += 1;
                    sample(sequence, executor.logits(logit - 1..logit, vocab), position)
                }
                Want::LastLogits | Want::AllLogits => {
                    logit += rows;
                    finite(executor.logits(logit - rows..logit, vocab), rows, entry, start)
                }
                Want::AllHidden => {
                    hidden += count;
                    let values = executor.rows(self.compiled.hidden, hidden_width, hidden - count..hidden);
                    finite(values, count, entry, start)
                }
            };
            match result {
                Ok(result) => results.push(result),
                Err(error) => fault = fault.or(Some(error)),
            }
        }
        let Some(fault) = fault else { return Ok(results) };
        for sequence in sequences {
            let len = sequence.cache.tokens();
            if let Some(sampler) = &mut sequence.sampler {
                sampler.truncate(len);
            }
        }
        Err(fault)
    }
}

fn sample(sequence: &mut Sequence, logits: &mut [f32], position: u64) -> Result<Output> {
    let sampler = sequence.sampler.as_mut().ok_or_else(|| Error::internal("no sampler"))?;
    sampler.sample(logits, position).map(Output::Token).map_err(sampling_error)
}

/// The results of the last `rows` tokens of an entry, of which the first is at position `start`.
fn finite(values: &[f32], rows: usize, entry: &Entry, start: usize) -> Result<Output> {
    let Some(bad) = values.iter().position(|x| !x.is_finite()) else {
        return Ok(Output::Values(values.to_vec()));
    };
    let at = entry.tokens.len() - rows + bad / (values.len() / rows);
    Err(Error {
        code: "NON_FINITE",
        message: format!(
            "the results of token {} at position {} are infinite or not a number",
            entry.tokens[at],
            start + at
        ),
        cure: "The weights are damaged: try another file of the model.",
    })
}

fn sampling_error(error: SamplingError) -> Error {
    let (code, cure) = match error {
        SamplingError::InvalidSetting { .. } => ("INVALID_ARGUMENT", "Choose a value within the range."),
        SamplingError::TokenOutOfRange { .. } => {
            ("INVALID_ARGUMENT", "Use token ids that this model's tokenizer gives.")
        }
        SamplingError::NonFinite { .. } => {
            ("NON_FINITE", "The weights are damaged, or a penalty is extreme: try another file or setting.")
        }
        SamplingError::AllBanned => {
            ("INVALID_ARGUMENT", "Leave at least one token without a bias of -Infinity.")
        }
    };
    Error { code, message: error.to_string(), cure }
}
