//! A step of decoding allocates nothing but the list of results that it returns.

// Locks of some other systems allocate when they are first contended.
#![cfg(target_os = "linux")]

mod common;

use common::{capped, loaded, mixture, plan, tokens};
use kernels::sampling::SamplerSettings;
use runtime::model::{Entry, Model, Output, Want};
use serde_json::{Value, json};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The first so many positions fill a page; what a sequence holds then grows no more until the next is full.
const PROMPT: usize = 70;
const WARM: usize = 8;
const STEPS: usize = 30;

fn settings(seed: u64) -> SamplerSettings {
    SamplerSettings {
        temperature: 0.8,
        top_k: 20,
        top_p: 0.9,
        min_p: 0.05,
        repetition_penalty: 1.1,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        penalty_window: 16,
        seed,
        logit_bias: Vec::new(),
    }
}

/// So many weights that threads share a step, and room for a long prompt.
fn large(mut plan: Value) -> Value {
    const ROWS: usize = 40_000;
    plan["vocabSize"] = json!(ROWS);
    plan["tensors"][0]["rows"] = json!(ROWS);
    plan["contextLength"] = json!(3000);
    plan
}

/// Allocations of [`STEPS`] steps of decoding after a few; every step is of one token of each sequence.
fn allocations(model: &Model, sequences: usize, prompt: usize) -> usize {
    let ids: Vec<u32> =
        (0..sequences).map(|i| model.create_sequence(Some(settings(i as u64))).unwrap()).collect();
    let mut last = vec![1; sequences];
    for &sequence in &ids {
        model.count_experts(sequence);
        for part in tokens(prompt).chunks(200) {
            model.step(&[Entry { sequence, tokens: part, want: Want::Nothing }]).unwrap();
        }
    }
    let mut before = 0;
    for i in 0..WARM + STEPS {
        if i == WARM {
            before = ALLOCATIONS.load(Ordering::SeqCst);
        }
        let entry = |at: usize| Entry { sequence: ids[at], tokens: &last[at..=at], want: Want::Sample };
        let outputs = match sequences {
            1 => model.step(&[entry(0)]),
            _ => model.step(&[entry(0), entry(1), entry(2)]),
        };
        for (output, last) in outputs.unwrap().iter().zip(&mut last) {
            let Output::Token(token) = output else { panic!("{output:?}") };
            *last = *token;
        }
    }
    ALLOCATIONS.load(Ordering::SeqCst) - before
}

#[test]
fn steps_allocate_their_list_of_results_alone() {
    let mut small = plan();
    small["kvCache"] = json!("q8_0");
    let plans =
        [("plain", plan()), ("experts", mixture()), ("sinks and caps", capped(1.0)), ("Q8_0 cache", small)];
    for (name, plan) in plans {
        for threads in [1, 3] {
            let model = loaded(&large(plan.clone()), 0, threads);
            for (sequences, prompt) in [(1, PROMPT), (3, PROMPT), (1, 2300)] {
                let count = allocations(&model, sequences, prompt);
                assert_eq!(
                    count, STEPS,
                    "{name}: {sequences} sequences, a prompt of {prompt}, {threads} threads"
                );
            }
        }
    }
}
