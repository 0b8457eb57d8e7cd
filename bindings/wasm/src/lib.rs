//! The runtime for WebAssembly: converts, calls, converts back. One instance holds one model, as the
//! memory of an instance is only given back as a whole.

// The compiler offers assembly for WebAssembly as a feature that may still change.
#![cfg_attr(target_feature = "relaxed-simd", feature(asm_experimental_arch))]

use js_sys::{Array, Float32Array, Uint32Array};
use kernels::packed::Format;
use kernels::sampling::SamplerSettings;
use kernels::table::available;
use runtime::choose::Tally;
use runtime::demand::Wanted;
use runtime::error::{Error, Result};
use runtime::model::{Entry, Limits, Model, Output, Progress, Want};
use runtime::plan::Plan;
use runtime::routing::Routing;
use runtime::threads::{Lender, LentPool};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wasm_bindgen::prelude::*;

#[cfg(target_feature = "relaxed-simd")]
kernels::wasm_functions!("../../../crates/kernels/src/simd/wasm_slab.s");

static MODEL: Mutex<Option<Arc<Model>>> = Mutex::new(None);
static LENDER: Mutex<Option<Lender>> = Mutex::new(None);
/// Bytes of experts that wait to be packed.
static STAGED: Mutex<VecDeque<(Wanted, Vec<u8>)>> = Mutex::new(VecDeque::new());

fn held() -> MutexGuard<'static, Option<Arc<Model>>> {
    MODEL.lock().unwrap_or_else(PoisonError::into_inner)
}

fn model() -> Result<Arc<Model>> {
    held().clone().ok_or_else(|| Error::disposed("the model"))
}

/// Code, message and cure travel as three lines, as from the native addon.
fn refuse(error: Error) -> JsError {
    let message = error.message.replace('\n', " ");
    JsError::new(&format!("{}\n{message}\n{}", error.code, error.cure))
}

type Answer<T> = std::result::Result<T, JsError>;

/// Instruction sets of this module, fastest first.
#[wasm_bindgen]
pub fn isas() -> Vec<String> {
    available().iter().map(|table| table.isa.to_string()).collect()
}

/// GGML types that the kernels take.
#[wasm_bindgen(js_name = tensorTypes)]
pub fn tensor_types() -> Vec<String> {
    Format::ALL.iter().map(|format| format.name().to_string()).collect()
}

/// Compiles a plan (JSON as UTF-8) and reserves its memory. `isa`: one of `isas()`. `expert_memory`: the most
/// bytes of experts in memory; without it all of them. The caller has made sure that the weights fit into the addresses.
#[wasm_bindgen]
pub fn compile(
    plan: &[u8],
    threads: usize,
    isa: &str,
    max_step_tokens: usize,
    expert_memory: Option<f64>,
) -> Answer<()> {
    let limits =
        Limits { max_tokens: max_step_tokens, expert_memory: expert_memory.map(|bytes| bytes as usize) };
    new_model(plan, threads, isa, limits).map_err(refuse)
}

fn new_model(plan: &[u8], threads: usize, isa: &str, limits: Limits) -> Result<()> {
    let table = available().into_iter().find(|table| table.isa == isa).ok_or_else(|| {
        Error::argument(
            format!("this module does not have the instruction set {isa}"),
            "Choose one of those that the backend lists, or leave it out.",
        )
    })?;
    let plan = Plan::parse(plan)?;
    let pool = LentPool::new(threads);
    let lender = pool.lender();
    let model = Model::new(plan, table, Box::new(pool), limits)?;
    *LENDER.lock().unwrap_or_else(PoisonError::into_inner) = Some(lender);
    *held() = Some(Arc::new(model));
    Ok(())
}

/// Lends the calling worker to the model as thread `thread`, until the model is disposed of.
#[wasm_bindgen]
pub fn work(thread: usize) {
    let lender = LENDER.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(lender) = lender {
        lender.work(thread);
    }
}

/// Cuts the step in progress short; the model is gone when that has ended.
#[wasm_bindgen]
pub fn dispose() {
    let model = held().take();
    drop(model.map(|model| model.free_all()));
}

/// A panic becomes an error of JavaScript that says where it was. The instance is of no use after it.
#[wasm_bindgen(start)]
pub fn start() {
    std::panic::set_hook(Box::new(|panic| wasm_bindgen::throw_str(&panic.to_string())));
}

#[wasm_bindgen]
pub fn threads() -> Answer<usize> {
    model().map(|model| model.threads()).map_err(refuse)
}

#[wasm_bindgen(js_name = weightBytes)]
pub fn weight_bytes() -> Answer<f64> {
    model().map(|model| model.weight_bytes() as f64).map_err(refuse)
}

#[wasm_bindgen(js_name = maxLogitRows)]
pub fn max_logit_rows() -> Answer<usize> {
    model().map(|model| model.max_logit_rows()).map_err(refuse)
}

#[wasm_bindgen(js_name = kvBytes)]
pub fn kv_bytes() -> f64 {
    held().as_ref().map_or(0.0, |model| model.kv_bytes() as f64)
}

/// Packs the next rows of tensor `id`.
#[wasm_bindgen(js_name = pushRows)]
pub fn push_rows(id: usize, rows: &[u8]) -> Answer<()> {
    model().and_then(|model| model.push_rows(id, rows)).map_err(refuse)
}

/// Whether the experts of tensor `id` are read when they are needed.
#[wasm_bindgen(js_name = isOnDemand)]
pub fn is_on_demand(id: usize) -> Answer<bool> {
    model().and_then(|model| model.is_on_demand(id)).map_err(refuse)
}

/// The experts of tensor `id`, which is read on demand, come from the caller: see `step`.
#[wasm_bindgen(js_name = attachTensor)]
pub fn attach_tensor(id: usize) -> Answer<()> {
    model().and_then(|model| model.attach_tensor(id, None)).map_err(refuse)
}

/// Takes the bytes of a matrix of an expert that a step needs, for `packStaged`.
#[wasm_bindgen]
pub fn stage(tensor: usize, matrix: usize, bytes: Vec<u8>) {
    let mut staged = STAGED.lock().unwrap_or_else(PoisonError::into_inner);
    staged.push_back((Wanted { tensor, matrix }, bytes));
}

/// Packs, on all threads, the matrix that was staged first.
#[wasm_bindgen(js_name = packStaged)]
pub fn pack_staged() -> Answer<()> {
    let staged = STAGED.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let pack = |(wanted, bytes): (Wanted, Vec<u8>)| model().and_then(|model| model.supply(wanted, &bytes));
    staged.map_or(Ok(()), pack).map_err(refuse)
}

#[wasm_bindgen]
extern "C" {
    /// `SamplerSettings` of the TypeScript backends.
    pub type Settings;
    #[wasm_bindgen(method, getter)]
    fn temperature(this: &Settings) -> f32;
    #[wasm_bindgen(method, getter, js_name = topK)]
    fn top_k(this: &Settings) -> u32;
    #[wasm_bindgen(method, getter, js_name = topP)]
    fn top_p(this: &Settings) -> f32;
    #[wasm_bindgen(method, getter, js_name = minP)]
    fn min_p(this: &Settings) -> f32;
    #[wasm_bindgen(method, getter, js_name = repetitionPenalty)]
    fn repetition_penalty(this: &Settings) -> f32;
    #[wasm_bindgen(method, getter, js_name = frequencyPenalty)]
    fn frequency_penalty(this: &Settings) -> f32;
    #[wasm_bindgen(method, getter, js_name = presencePenalty)]
    fn presence_penalty(this: &Settings) -> f32;
    #[wasm_bindgen(method, getter, js_name = penaltyWindow)]
    fn penalty_window(this: &Settings) -> i32;
    #[wasm_bindgen(method, getter)]
    fn seed(this: &Settings) -> u64;
    #[wasm_bindgen(method, getter, js_name = biasTokens)]
    fn bias_tokens(this: &Settings) -> Vec<u32>;
    #[wasm_bindgen(method, getter, js_name = biasValues)]
    fn bias_values(this: &Settings) -> Vec<f32>;
}

fn sampler_settings(settings: &Settings) -> SamplerSettings {
    SamplerSettings {
        temperature: settings.temperature(),
        top_k: settings.top_k(),
        top_p: settings.top_p(),
        min_p: settings.min_p(),
        repetition_penalty: settings.repetition_penalty(),
        frequency_penalty: settings.frequency_penalty(),
        presence_penalty: settings.presence_penalty(),
        penalty_window: settings.penalty_window(),
        seed: settings.seed(),
        logit_bias: settings.bias_tokens().into_iter().zip(settings.bias_values()).collect(),
    }
}

#[wasm_bindgen(js_name = createSequence)]
pub fn create_sequence(settings: Option<Settings>) -> Answer<u32> {
    let settings = settings.as_ref().map(sampler_settings);
    model().and_then(|model| model.create_sequence(settings)).map_err(refuse)
}

/// How many of the threads take part in steps from now on.
#[wasm_bindgen(js_name = setStepThreads)]
pub fn set_step_threads(threads: usize) -> Answer<()> {
    model().map(|model| model.set_step_threads(threads)).map_err(refuse)
}

/// Starts to count, from zero, which experts the sequence's tokens are routed to.
#[wasm_bindgen(js_name = countExperts)]
pub fn count_experts(sequence: u32) -> Answer<()> {
    model().map(|model| model.count_experts(sequence)).map_err(refuse)
}

/// Ends counting and gives, for one mixture of experts after another, how many tokens each expert got,
/// and each mixture's reads and misses; nothing where it never began or the sequence has ended.
#[wasm_bindgen(js_name = expertCounts)]
pub fn expert_counts(sequence: u32) -> Option<Array> {
    let Routing(tallies) = held().as_ref()?.expert_counts(sequence)?;
    let tokens: Vec<u32> = tallies.iter().flat_map(|tally| &tally.tokens).copied().collect();
    let reads: Vec<u32> = tallies.iter().map(|tally| tally.reads).collect();
    let misses: Vec<u32> = tallies.iter().map(|tally| tally.misses).collect();
    Some([tokens, reads, misses].iter().map(|counts| Uint32Array::from(counts.as_slice())).collect())
}

/// Four numbers for each layer: blocks of keys kept and seen, the sum of the measured shares of the attention
/// mass, and how many were measured. Empty where all keys are kept.
#[wasm_bindgen(js_name = keptKeys)]
pub fn kept_keys(sequence: u32) -> Vec<f64> {
    let tallies = held().as_ref().map_or(Vec::new(), |model| model.kept_keys(sequence));
    tallies.iter().flat_map(Tally::numbers).collect()
}

/// Records which blocks of keys the sequence's layers keep, from now on.
#[wasm_bindgen(js_name = recordKeys)]
pub fn record_keys(sequence: u32) -> Answer<()> {
    model().map(|model| model.record_keys(sequence)).map_err(refuse)
}

/// Ends recording, and gives for each KV head of one layer after another the layer, the length of its list and the
/// list: for each choice the queries' block, how many blocks of keys are kept, and these; 0 and none where that is all.
#[wasm_bindgen(js_name = recordedKeys)]
pub fn recorded_keys(sequence: u32) -> Vec<u32> {
    held().as_ref().map_or(Vec::new(), |model| model.recorded_keys(sequence))
}

/// Leaves the sequence as it was after its first `length` tokens; not while a step holds it.
#[wasm_bindgen]
pub fn rewind(sequence: u32, length: u32) -> Answer<()> {
    model().map(|model| model.rewind(sequence, length as usize)).map_err(refuse)
}

/// Ends the sequence at once; a step that holds it is cut short.
#[wasm_bindgen(js_name = freeSequence)]
pub fn free_sequence(sequence: u32) {
    if let Some(model) = held().as_ref() {
        drop(model.free_sequence(sequence));
    }
}

/// Entry i appends `counts[i]` of the tokens to `sequences[i]` and wants `wants[i]`: 0 nothing,
/// 1 a sampled token, 2 the last logits, 3 all logits, 4 all hidden states. Gives for each entry
/// undefined, a token's number, or a `Float32Array`. Where it needs experts of the caller it gives a `Uint32Array`
/// of tensor and expert of each matrix, and goes on in the same call made again once they are supplied.
#[wasm_bindgen]
pub fn step(sequences: &[u32], counts: &[u32], tokens: &[u32], wants: &[u8]) -> Answer<JsValue> {
    let progress = model().and_then(|model| model.advance(&entries(sequences, counts, tokens, wants)?));
    Ok(match progress.map_err(refuse)? {
        Progress::Done(outputs) => outputs.into_iter().map(value_of).collect::<Array>().into(),
        Progress::Needs(wanted) => {
            let pair = |wanted: &Wanted| [wanted.tensor as u32, wanted.matrix as u32];
            let pairs: Vec<u32> = wanted.iter().flat_map(pair).collect();
            Uint32Array::from(pairs.as_slice()).into()
        }
    })
}

fn value_of(output: Output) -> JsValue {
    match output {
        Output::Nothing => JsValue::UNDEFINED,
        Output::Token(token) => token.into(),
        Output::Values(values) => Float32Array::from(values.as_slice()).into(),
    }
}

fn entries<'a>(
    sequences: &[u32],
    counts: &[u32],
    mut tokens: &'a [u32],
    wants: &[u8],
) -> Result<Vec<Entry<'a>>> {
    let mut entries = Vec::with_capacity(sequences.len());
    for ((&sequence, &count), &want) in sequences.iter().zip(counts).zip(wants) {
        let (these, rest) = tokens
            .split_at_checked(count as usize)
            .ok_or_else(|| Error::internal("a step with fewer tokens than it counts"))?;
        tokens = rest;
        let want = match want {
            0 => Want::Nothing,
            1 => Want::Sample,
            2 => Want::LastLogits,
            3 => Want::AllLogits,
            _ => Want::AllHidden,
        };
        entries.push(Entry { sequence, tokens: these, want });
    }
    Ok(entries)
}
