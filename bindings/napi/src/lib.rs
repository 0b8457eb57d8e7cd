//! The runtime for Node: converts, calls, converts back. Long calls run on libuv's threads.

mod files;
pub mod peaks;
pub mod quantize;
mod steps;

use files::Files;
use kernels::packed::Format;
use kernels::sampling::SamplerSettings;
use kernels::table::available;
use napi::bindgen_prelude::{AsyncTask, BigInt, Float32Array, Float64Array, Object, Uint8Array, Uint32Array};
use napi::{Env, Status, Task};
use napi_derive::napi;
use runtime::choose::Tally;
use runtime::demand::Wanted;
use runtime::error::Error;
use runtime::model::{Entry, Freed, Limits, Model, Output, Progress, Want};
use runtime::plan::Plan;
use runtime::routing::Routing;
use runtime::threads::OsPool;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use steps::Steps;

/// Code, message and cure travel as three lines; `ts/backend/native.ts` takes them apart.
fn refuse(error: Error) -> napi::Error {
    let message = error.message.replace('\n', " ");
    napi::Error::new(Status::GenericFailure, format!("{}\n{message}\n{}", error.code, error.cure))
}

/// No panic crosses into JavaScript.
fn guarded<T>(call: impl FnOnce() -> runtime::error::Result<T>) -> napi::Result<T> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err(Error::internal("the native engine panicked")))
        .map_err(refuse)
}

/// Instruction sets that this CPU can run, fastest first.
#[napi]
pub fn isas() -> Vec<String> {
    available().iter().map(|table| table.isa.to_string()).collect()
}

/// GGML types that the kernels take.
#[napi]
pub fn tensor_types() -> Vec<String> {
    Format::ALL.iter().map(|format| format.name().to_string()).collect()
}

#[napi(object)]
pub struct Settings {
    pub temperature: f64,
    pub top_k: u32,
    pub top_p: f64,
    pub min_p: f64,
    pub repetition_penalty: f64,
    pub frequency_penalty: f64,
    pub presence_penalty: f64,
    pub penalty_window: i32,
    pub seed: BigInt,
    pub bias_tokens: Uint32Array,
    pub bias_values: Float32Array,
}

#[napi(object)]
pub struct StepOutput {
    pub token: Option<u32>,
    pub values: Option<Float32Array>,
}

/// Counts of a sequence's routes, of one mixture of experts after another.
#[napi(object)]
pub struct ExpertCounts {
    /// How many tokens each expert of each mixture got.
    pub tokens: Uint32Array,
    pub reads: Uint32Array,
    pub misses: Uint32Array,
}

#[napi(object)]
pub struct StepProgress {
    /// One for each entry; absent where the step is not done.
    pub outputs: Option<Vec<StepOutput>>,
    /// What must be supplied first: matrix `matrices[i]` of the experts of tensor `tensors[i]`.
    pub tensors: Uint32Array,
    pub matrices: Uint32Array,
}

#[napi]
pub struct NativeModel {
    /// None once disposed of. Behind a lock, so that no call needs the object for itself alone.
    model: Mutex<Option<Arc<Model>>>,
    files: Arc<Files>,
    /// Started by the first step; None again once disposed of.
    steps: Mutex<Option<Steps>>,
}

#[napi]
impl NativeModel {
    /// `plan`: JSON as UTF-8. `isa`: one of `isas()`. `expert_memory`: the most bytes of experts in
    /// memory; without it all of them.
    #[napi(constructor)]
    pub fn new(
        plan: Uint8Array,
        threads: u32,
        isa: String,
        max_step_tokens: u32,
        expert_memory: Option<f64>,
    ) -> napi::Result<Self> {
        guarded(|| {
            let table = available().into_iter().find(|table| table.isa == isa).ok_or_else(|| {
                Error::argument(
                    format!("this CPU does not have the instruction set {isa}"),
                    "Choose one of those that the backend lists, or leave it out.",
                )
            })?;
            let plan = Plan::parse(&plan)?;
            let pool = Box::new(OsPool::new(threads as usize));
            let limits = Limits {
                max_tokens: max_step_tokens as usize,
                expert_memory: expert_memory.map(|bytes| bytes as usize),
            };
            let model = Model::new(plan, table, pool, limits)?;
            Ok(Self {
                model: Mutex::new(Some(Arc::new(model))),
                files: Arc::default(),
                steps: Mutex::default(),
            })
        })
    }

    fn held(&self) -> MutexGuard<'_, Option<Arc<Model>>> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self) -> napi::Result<Arc<Model>> {
        self.held().clone().ok_or_else(|| refuse(Error::disposed("the model")))
    }

    #[napi(getter)]
    pub fn threads(&self) -> napi::Result<u32> {
        Ok(self.get()?.threads() as u32)
    }

    /// How many of the threads take part in steps from now on.
    #[napi]
    pub fn set_step_threads(&self, threads: u32) -> napi::Result<()> {
        self.get()?.set_step_threads(threads as usize);
        Ok(())
    }

    #[napi(getter)]
    pub fn weight_bytes(&self) -> napi::Result<f64> {
        Ok(self.get()?.weight_bytes() as f64)
    }

    #[napi(getter)]
    pub fn max_logit_rows(&self) -> napi::Result<u32> {
        Ok(self.get()?.max_logit_rows() as u32)
    }

    #[napi]
    pub fn kv_bytes(&self) -> f64 {
        self.held().as_ref().map_or(0.0, |model| model.kv_bytes() as f64)
    }

    /// Whether the experts of tensor `id` are read when they are needed.
    #[napi]
    pub fn is_on_demand(&self, id: u32) -> napi::Result<bool> {
        let model = self.get()?;
        guarded(|| model.is_on_demand(id as usize))
    }

    /// The experts of tensor `id`, which is read on demand, come from the caller: see `step`.
    #[napi]
    pub fn attach_tensor(&self, id: u32) -> napi::Result<()> {
        let model = self.get()?;
        guarded(|| model.attach_tensor(id as usize, None))
    }

    /// Packs the matrix of an expert that a step needs.
    #[napi(ts_return_type = "Promise<void>")]
    pub fn supply(&self, tensor: u32, matrix: u32, bytes: Uint8Array) -> napi::Result<AsyncTask<Supply>> {
        let model = self.get()?;
        let wanted = Wanted { tensor: tensor as usize, matrix: matrix as usize };
        Ok(AsyncTask::new(Supply { model, wanted, bytes }))
    }

    /// Reads and packs tensor `id` from `offset` of a file, or notes where it is when it is read on demand.
    #[napi(ts_return_type = "Promise<void>")]
    pub fn load_tensor(&self, id: u32, path: String, offset: f64) -> napi::Result<AsyncTask<LoadTensor>> {
        let model = self.get()?;
        let files = Arc::clone(&self.files);
        Ok(AsyncTask::new(LoadTensor { model, files, id: id as usize, path, offset: offset as u64 }))
    }

    /// Packs the next rows of tensor `id`.
    #[napi(ts_return_type = "Promise<void>")]
    pub fn push_rows(&self, id: u32, rows: Uint8Array) -> napi::Result<AsyncTask<PushRows>> {
        let model = self.get()?;
        Ok(AsyncTask::new(PushRows { model, id: id as usize, rows }))
    }

    #[napi]
    pub fn create_sequence(&self, settings: Option<Settings>) -> napi::Result<u32> {
        let model = self.get()?;
        guarded(|| model.create_sequence(settings.map(sampler_settings)))
    }

    /// Starts to count, from zero, which experts the sequence's tokens are routed to.
    #[napi]
    pub fn count_experts(&self, sequence: u32) -> napi::Result<()> {
        self.get()?.count_experts(sequence);
        Ok(())
    }

    /// Ends counting; nothing where it never began or the sequence has ended.
    #[napi]
    pub fn expert_counts(&self, sequence: u32) -> Option<ExpertCounts> {
        let Routing(tallies) = self.held().as_ref()?.expert_counts(sequence)?;
        Some(ExpertCounts {
            tokens: tallies.iter().flat_map(|tally| &tally.tokens).copied().collect::<Vec<_>>().into(),
            reads: tallies.iter().map(|tally| tally.reads).collect::<Vec<_>>().into(),
            misses: tallies.iter().map(|tally| tally.misses).collect::<Vec<_>>().into(),
        })
    }

    /// Four numbers for each layer: blocks of keys kept and seen, the sum of the measured shares of the attention
    /// mass, and how many were measured. Empty where all keys are kept.
    #[napi]
    pub fn kept_keys(&self, sequence: u32) -> Float64Array {
        let tallies = self.held().as_ref().map_or(Vec::new(), |model| model.kept_keys(sequence));
        tallies.iter().flat_map(Tally::numbers).collect::<Vec<f64>>().into()
    }

    /// Records which blocks of keys the sequence's layers keep, from now on.
    #[napi]
    pub fn record_keys(&self, sequence: u32) -> napi::Result<()> {
        self.get()?.record_keys(sequence);
        Ok(())
    }

    /// Ends recording, and gives for each KV head of one layer after another the layer, the length of its list and the
    /// list: for each choice the queries' block, how many blocks of keys are kept, and these; 0 and none where that is all.
    #[napi]
    pub fn recorded_keys(&self, sequence: u32) -> Uint32Array {
        self.held().as_ref().map_or(Vec::new(), |model| model.recorded_keys(sequence)).into()
    }

    /// Leaves the sequence as it was after its first `length` tokens; not while a step holds it.
    #[napi]
    pub fn rewind(&self, sequence: u32, length: u32) -> napi::Result<()> {
        self.get()?.rewind(sequence, length as usize);
        Ok(())
    }

    /// Ends the sequence at once; its memory is given back on another thread.
    #[napi(ts_return_type = "Promise<void>")]
    pub fn free_sequence(&self, sequence: u32) -> AsyncTask<Free> {
        AsyncTask::new(Free { freed: self.held().as_ref().map(|model| model.free_sequence(sequence)) })
    }

    /// Entry i appends `counts[i]` of the tokens to `sequences[i]` and wants `wants[i]`: 0 nothing,
    /// 1 a sampled token, 2 the last logits, 3 all logits, 4 all hidden states. Where it needs experts of
    /// the caller, it goes on in the same call made again once they are supplied.
    #[napi(ts_return_type = "Promise<StepProgress>")]
    pub fn step<'env>(
        &self,
        env: &'env Env,
        sequences: Uint32Array,
        counts: Uint32Array,
        tokens: Uint32Array,
        wants: Uint8Array,
    ) -> napi::Result<Object<'env>> {
        let model = self.get()?;
        let (sequences, counts) = (sequences.to_vec(), counts.to_vec());
        let step = Step { model, sequences, counts, tokens: tokens.to_vec(), wants: wants.to_vec() };
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        let steps = match &mut *steps {
            Some(steps) => steps,
            none => none.insert(Steps::start()?),
        };
        let (deferred, promise) = env.create_deferred()?;
        steps.run(move || match step.run() {
            Ok(progress) => deferred.resolve(|_| Ok(progress_for_js(progress))),
            Err(error) => deferred.reject(error),
        });
        Ok(promise)
    }

    /// Frees everything once the step in progress, which is cut short, has ended.
    #[napi(ts_return_type = "Promise<void>")]
    pub fn dispose(&self) -> AsyncTask<Dispose> {
        let model = self.held().take();
        drop(self.steps.lock().unwrap_or_else(PoisonError::into_inner).take());
        let freed = model.as_ref().map(|model| model.free_all());
        AsyncTask::new(Dispose { model, freed })
    }
}

fn sampler_settings(settings: Settings) -> SamplerSettings {
    let biases = settings.bias_tokens.iter().zip(settings.bias_values.iter());
    SamplerSettings {
        temperature: settings.temperature as f32,
        top_k: settings.top_k,
        top_p: settings.top_p as f32,
        min_p: settings.min_p as f32,
        repetition_penalty: settings.repetition_penalty as f32,
        frequency_penalty: settings.frequency_penalty as f32,
        presence_penalty: settings.presence_penalty as f32,
        penalty_window: settings.penalty_window,
        seed: settings.seed.get_u64().1,
        logit_bias: biases.map(|(&token, &bias)| (token, bias)).collect(),
    }
}

pub struct LoadTensor {
    model: Arc<Model>,
    files: Arc<Files>,
    id: usize,
    path: String,
    offset: u64,
}

impl Task for LoadTensor {
    type Output = ();
    type JsValue = ();

    fn compute(&mut self) -> napi::Result<()> {
        guarded(|| {
            let reader = self.files.open(&self.path)?;
            if self.model.is_on_demand(self.id)? {
                return self.model.attach_tensor(self.id, Some((reader, self.offset)));
            }
            self.model.load_tensor(self.id, reader.as_ref(), self.offset)
        })
    }

    fn resolve(&mut self, _: Env, (): ()) -> napi::Result<()> {
        Ok(())
    }
}

pub struct PushRows {
    model: Arc<Model>,
    id: usize,
    rows: Uint8Array,
}

impl Task for PushRows {
    type Output = ();
    type JsValue = ();

    fn compute(&mut self) -> napi::Result<()> {
        guarded(|| self.model.push_rows(self.id, &self.rows))
    }

    fn resolve(&mut self, _: Env, (): ()) -> napi::Result<()> {
        Ok(())
    }
}

pub struct Supply {
    model: Arc<Model>,
    wanted: Wanted,
    bytes: Uint8Array,
}

impl Task for Supply {
    type Output = ();
    type JsValue = ();

    fn compute(&mut self) -> napi::Result<()> {
        guarded(|| self.model.supply(self.wanted, &self.bytes))
    }

    fn resolve(&mut self, _: Env, (): ()) -> napi::Result<()> {
        Ok(())
    }
}

struct Step {
    model: Arc<Model>,
    sequences: Vec<u32>,
    counts: Vec<u32>,
    tokens: Vec<u32>,
    wants: Vec<u8>,
}

impl Step {
    fn run(&self) -> napi::Result<Progress> {
        guarded(|| self.model.advance(&self.entries()?))
    }

    fn entries(&self) -> runtime::error::Result<Vec<Entry<'_>>> {
        let mut left = self.tokens.as_slice();
        let mut entries = Vec::with_capacity(self.sequences.len());
        for ((&sequence, &count), &want) in self.sequences.iter().zip(&self.counts).zip(&self.wants) {
            let (tokens, rest) = left
                .split_at_checked(count as usize)
                .ok_or_else(|| Error::internal("a step with fewer tokens than it counts"))?;
            left = rest;
            let want = match want {
                0 => Want::Nothing,
                1 => Want::Sample,
                2 => Want::LastLogits,
                3 => Want::AllLogits,
                _ => Want::AllHidden,
            };
            entries.push(Entry { sequence, tokens, want });
        }
        Ok(entries)
    }
}

fn progress_for_js(progress: Progress) -> StepProgress {
    let convert = |output| match output {
        Output::Nothing => StepOutput { token: None, values: None },
        Output::Token(token) => StepOutput { token: Some(token), values: None },
        Output::Values(values) => StepOutput { token: None, values: Some(Float32Array::new(values)) },
    };
    let (outputs, wanted) = match progress {
        Progress::Done(outputs) => (Some(outputs.into_iter().map(convert).collect()), Vec::new()),
        Progress::Needs(wanted) => (None, wanted),
    };
    StepProgress {
        outputs,
        tensors: wanted.iter().map(|wanted| wanted.tensor as u32).collect::<Vec<_>>().into(),
        matrices: wanted.iter().map(|wanted| wanted.matrix as u32).collect::<Vec<_>>().into(),
    }
}

pub struct Free {
    freed: Option<Freed>,
}

impl Task for Free {
    type Output = ();
    type JsValue = ();

    fn compute(&mut self) -> napi::Result<()> {
        drop(self.freed.take());
        Ok(())
    }

    fn resolve(&mut self, _: Env, (): ()) -> napi::Result<()> {
        Ok(())
    }
}

pub struct Dispose {
    model: Option<Arc<Model>>,
    freed: Option<Freed>,
}

impl Task for Dispose {
    type Output = ();
    type JsValue = ();

    fn compute(&mut self) -> napi::Result<()> {
        if let Some(model) = self.model.take() {
            // The step in progress holds the executor: once it is free, nothing else keeps the model.
            model.wait_idle();
        }
        drop(self.freed.take());
        Ok(())
    }

    fn resolve(&mut self, _: Env, (): ()) -> napi::Result<()> {
        Ok(())
    }
}
