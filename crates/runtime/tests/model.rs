//! A small model end to end in Rust: plans are verified, steps are atomic, batches change nothing.

mod common;

use common::{Mixed, Noise, VOCAB, WIDTH, capped, loaded, mixture, plan, plan_of, tokens};
use kernels::packed::Format;
use kernels::sampling::SamplerSettings;
use kernels::table::available;
use proptest::prelude::*;
use runtime::error::Error;
use runtime::model::{Entry, Limits, Model, Output, Progress, Want};
use runtime::plan::Plan;
use runtime::sparse::{BlockSource, Pattern};
use runtime::threads::OsPool;
use runtime::weights::TensorReader;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

fn build(plan: &Value) -> Result<Model, Error> {
    let plan = Plan::parse(plan.to_string().as_bytes())?;
    Model::new(plan, available()[0], Box::new(OsPool::new(2)), 64)
}

fn model_with(norm: f32) -> Model {
    let plan = plan();
    let model = build(&plan).unwrap();
    let mut offset = 0;
    for (id, tensor) in plan["tensors"].as_array().unwrap().iter().enumerate() {
        let at = if tensor["type"] == "F32" { 1 << 40 } else { offset };
        model.load_tensor(id, &Noise { seed: 7, norm }, at).unwrap();
        offset += 34 * tensor["rows"].as_u64().unwrap() * tensor["cols"].as_u64().unwrap() / 32;
    }
    model
}

fn model() -> Model {
    model_with(1.0)
}

fn logits(model: &Model, sequence: u32, tokens: &[u32]) -> Vec<u32> {
    match model.step(&[Entry { sequence, tokens, want: Want::AllLogits }]).unwrap().remove(0) {
        Output::Values(values) => values.iter().map(|x| x.to_bits()).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn chunks_and_batches_change_nothing() {
    let model = model();
    let prompt = tokens(60);
    let whole = logits(&model, model.create_sequence(None).unwrap(), &prompt);
    for chunk in [1, 7, 16] {
        let sequence = model.create_sequence(None).unwrap();
        let parts: Vec<u32> = prompt.chunks(chunk).flat_map(|part| logits(&model, sequence, part)).collect();
        assert!(parts == whole, "chunks of {chunk}");
    }
    let (a, b) = (model.create_sequence(None).unwrap(), model.create_sequence(None).unwrap());
    let batch = [
        Entry { sequence: a, tokens: &prompt[..30], want: Want::AllLogits },
        Entry { sequence: b, tokens: &prompt[..20], want: Want::AllLogits },
    ];
    let results = model.step(&batch).unwrap();
    for (result, count) in results.iter().zip([30, 20]) {
        let Output::Values(values) = result else { panic!("{result:?}") };
        assert!(values.iter().map(|x| x.to_bits()).eq(whole[..count * VOCAB].iter().copied()));
    }
}

#[test]
fn hidden_states_and_logits_mix_in_a_step() {
    let model = model();
    let prompt = tokens(9);
    let alone = logits(&model, model.create_sequence(None).unwrap(), &prompt);
    let (a, b) = (model.create_sequence(None).unwrap(), model.create_sequence(None).unwrap());
    let batch = [
        Entry { sequence: a, tokens: &prompt, want: Want::AllHidden },
        Entry { sequence: b, tokens: &prompt, want: Want::LastLogits },
    ];
    let results = model.step(&batch).unwrap();
    let (Output::Values(hidden), Output::Values(last)) = (&results[0], &results[1]) else {
        panic!("{results:?}")
    };
    assert_eq!(hidden.len(), 9 * WIDTH);
    assert!(last.iter().map(|x| x.to_bits()).eq(alone[8 * VOCAB..].iter().copied()));
}

fn code(result: Result<Vec<Output>, Error>) -> &'static str {
    result.unwrap_err().code
}

#[test]
fn a_failed_step_changes_no_sequence() {
    let model = model();
    let prompt = tokens(40);
    let whole = logits(&model, model.create_sequence(None).unwrap(), &prompt);
    let sequence = model.create_sequence(None).unwrap();
    logits(&model, sequence, &prompt[..20]);
    let step = |tokens: &[u32]| model.step(&[Entry { sequence, tokens, want: Want::LastLogits }]);
    assert_eq!(code(step(&[VOCAB as u32])), "INVALID_ARGUMENT");
    assert_eq!(code(step(&[])), "INTERNAL");
    assert_eq!(code(step(&tokens(65))), "INVALID_ARGUMENT");
    let rest = logits(&model, sequence, &prompt[20..]);
    assert!(rest == whole[20 * VOCAB..]);
}

#[test]
fn the_context_is_a_limit() {
    let model = model();
    let sequence = model.create_sequence(None).unwrap();
    for part in tokens(100).chunks(50) {
        logits(&model, sequence, part);
    }
    let result = model.step(&[Entry { sequence, tokens: &[1], want: Want::Nothing }]);
    assert_eq!(code(result), "CONTEXT_OVERFLOW");
}

#[test]
fn damaged_weights_are_reported() {
    for norm in [f32::NAN, f32::INFINITY, 3e38] {
        let model = model_with(norm);
        let sequence = model.create_sequence(None).unwrap();
        let result = model.step(&[Entry { sequence, tokens: &[1, 2], want: Want::LastLogits }]);
        assert_eq!(code(result), "NON_FINITE", "{norm}");
    }
}

/// Weights of `types`, but some rows of tensor `id` are infinite.
struct Wounded<'a> {
    types: &'a [String],
    id: usize,
    rows: &'a [usize],
}

impl TensorReader for Wounded<'_> {
    fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), String> {
        Mixed(self.types.to_vec(), self.id).read(offset, to)?;
        let (unit, values) = if self.types[self.id] == "F16" { (2, 1) } else { (34, 32) };
        for (at, bytes) in to.chunks_exact_mut(unit).enumerate() {
            let row = (offset as usize / unit + at) * values / WIDTH;
            if self.rows.contains(&row) {
                bytes[..2].copy_from_slice(&0x7c00u16.to_le_bytes());
            }
        }
        Ok(())
    }
}

/// The mixtures, with rows of a tensor that are infinite.
fn wounded(tensor: &str, rows: &[usize], threads: usize) -> Model {
    let value = mixture();
    let tensors = value["tensors"].as_array().unwrap();
    let types: Vec<String> = tensors.iter().map(|t| t["type"].as_str().unwrap().into()).collect();
    let plan = Plan::parse(value.to_string().as_bytes()).unwrap();
    let model = Model::new(plan, available()[0], Box::new(OsPool::new(threads)), 64).unwrap();
    for (id, of) in tensors.iter().enumerate() {
        let rows = if of["name"] == tensor { rows } else { &[] };
        model.load_tensor(id, &Wounded { types: &types, id, rows }, 0).unwrap();
    }
    model
}

#[test]
fn what_is_not_finite_is_named_as_the_first_token_by_any_number_of_threads() {
    let prompt = tokens(64);
    let (all, bad) = ((0..2000).collect::<Vec<_>>(), [23, 40].map(|at| prompt[at] as usize));
    for (tensor, rows, position) in [("embd", &bad[..], 23), ("up", &all, 0)] {
        for threads in [1, 2, 3] {
            let model = wounded(tensor, rows, threads);
            let sequence = model.create_sequence(None).unwrap();
            for _ in 0..20 {
                let entry = Entry { sequence, tokens: &prompt, want: Want::LastLogits };
                let error = model.step(&[entry]).unwrap_err();
                let id = prompt[position];
                let expected = format!(
                    "the activations of token {id} at position {position} became infinite or not a number"
                );
                assert_eq!((error.code, error.message), ("NON_FINITE", expected), "{tensor} {threads}");
            }
        }
    }
}

#[test]
fn results_that_are_not_finite_are_named_by_their_token() {
    // Weights of the logits alone, so that all activations are finite.
    let mut value = plan();
    value["tensors"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "name": "head", "type": "F16", "rows": VOCAB, "cols": WIDTH }));
    let ops = value["ops"].as_array_mut().unwrap();
    ops.last_mut().unwrap()["weight"] = json!("head");
    let tensors = value["tensors"].as_array().unwrap();
    let types: Vec<String> = tensors.iter().map(|t| t["type"].as_str().unwrap().into()).collect();
    let model = build(&value).unwrap();
    for (id, of) in tensors.iter().enumerate() {
        let rows = if of["name"] == "head" { &[3][..] } else { &[] };
        model.load_tensor(id, &Wounded { types: &types, id, rows }, 0).unwrap();
    }
    let sequence = model.create_sequence(None).unwrap();
    for (want, position) in [(Want::AllLogits, 0), (Want::LastLogits, 8)] {
        let prompt = tokens(9);
        let error = model.step(&[Entry { sequence, tokens: &prompt, want }]).unwrap_err();
        let id = prompt[position];
        let expected =
            format!("the results of token {id} at position {position} are infinite or not a number");
        assert_eq!((error.code, error.message), ("NON_FINITE", expected));
    }
}

#[test]
fn a_step_before_all_weights_are_loaded_is_refused() {
    let model = build(&plan()).unwrap();
    let sequence = model.create_sequence(None).unwrap();
    let result = model.step(&[Entry { sequence, tokens: &[1], want: Want::Nothing }]);
    let error = result.unwrap_err();
    assert!(error.message.contains("embd"), "{error}");
}

#[test]
fn freed_sequences_give_their_memory_back() {
    let model = model();
    for _ in 0..3 {
        let sequence = model.create_sequence(None).unwrap();
        logits(&model, sequence, &tokens(60));
        assert!(model.kv_bytes() > 0);
        model.free_sequence(sequence);
        assert_eq!(model.kv_bytes(), 0);
        let result = model.step(&[Entry { sequence, tokens: &[1], want: Want::Nothing }]);
        assert_eq!(code(result), "DISPOSED");
    }
}

/// A sampler that finds no token, once a step has computed everything.
fn all_banned() -> SamplerSettings {
    SamplerSettings {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        penalty_window: -1,
        seed: 1,
        logit_bias: (0..VOCAB as u32).map(|token| (token, f32::NEG_INFINITY)).collect(),
    }
}

#[test]
fn a_sampler_that_fails_takes_its_tokens_back() {
    let model = model();
    let sequence = model.create_sequence(Some(all_banned())).unwrap();
    let step = |want| model.step(&[Entry { sequence, tokens: &[1, 2], want }]);
    assert_eq!(code(step(Want::Sample)), "INVALID_ARGUMENT");
    let plain = logits(&model, model.create_sequence(None).unwrap(), &[1, 2]);
    assert!(logits(&model, sequence, &[1, 2]) == plain);
}

#[test]
fn pushed_rows_equal_rows_that_were_read() {
    let (read, pushed) = (model(), build(&plan()).unwrap());
    let mut offset = 0;
    for (id, tensor) in plan()["tensors"].as_array().unwrap().iter().enumerate() {
        let (rows, cols) =
            (tensor["rows"].as_u64().unwrap() as usize, tensor["cols"].as_u64().unwrap() as usize);
        let format = Format::by_name(tensor["type"].as_str().unwrap()).unwrap();
        let mut bytes = vec![0; rows * format.row_bytes(cols)];
        let at = if format == Format::F32 { 1 << 40 } else { offset };
        Noise { seed: 7, norm: 1.0 }.read(at, &mut bytes).unwrap();
        for part in bytes.chunks(16 * format.row_bytes(cols)) {
            pushed.push_rows(id, part).unwrap();
        }
        offset += 34 * (rows * cols / 32) as u64;
    }
    let prompt = tokens(12);
    let of = |model: &Model| logits(model, model.create_sequence(None).unwrap(), &prompt);
    assert!(of(&read) == of(&pushed));
}

/// Every number in a plan, as a path of keys.
fn numbers(value: &Value, path: &mut Vec<String>, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            path.push(key.clone());
            numbers(value, path, found);
            path.pop();
        }),
        Value::Array(items) => items.iter().enumerate().for_each(|(i, value)| {
            path.push(i.to_string());
            numbers(value, path, found);
            path.pop();
        }),
        Value::Number(_) => found.push(format!("/{}", path.join("/"))),
        _ => {}
    }
}

#[test]
fn hostile_numbers_are_refused_or_harmless() {
    let plan = plan();
    let mut paths = Vec::new();
    numbers(&plan, &mut Vec::new(), &mut paths);
    assert!(paths.len() > 40, "{paths:?}");
    let hostile = [
        json!(0),
        json!(1),
        json!(-1),
        json!(3),
        json!(0.5),
        json!(1u64 << 40),
        json!(u64::MAX),
        json!(1e300),
    ];
    for path in &paths {
        for value in &hostile {
            let mut changed = plan.clone();
            *changed.pointer_mut(path).unwrap() = value.clone();
            if let Err(error) = build(&changed) {
                assert!(matches!(error.code, "PLAN_INVALID" | "OUT_OF_MEMORY"), "{path} {value}: {error}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Ops left out, doubled or in another order: refused, or a plan that runs without a panic.
    #[test]
    fn shuffled_ops_never_panic(picks in prop::collection::vec(0usize..15, 1..20)) {
        let mut changed = plan();
        let ops: Vec<Value> = picks.iter().map(|&i| changed["ops"][i].clone()).collect();
        changed["ops"] = Value::Array(ops);
        if let Err(error) = build(&changed) {
            prop_assert_eq!(error.code, "PLAN_INVALID");
        }
    }
}

/// Experts, each of which must be announced before it is read.
struct Announced {
    inner: Mixed,
    stretches: Mutex<Vec<std::ops::Range<u64>>>,
}

impl TensorReader for Announced {
    fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), String> {
        let end = offset + to.len() as u64;
        let within = |stretch: &std::ops::Range<u64>| stretch.start <= offset && end <= stretch.end;
        if !self.stretches.lock().unwrap().iter().any(within) {
            return Err(format!("{offset} to {end} was not announced"));
        }
        self.inner.read(offset, to)
    }

    fn announce(&self, offset: u64, bytes: usize) {
        self.stretches.lock().unwrap().push(offset..offset + bytes as u64);
    }
}

fn mixture_on(isa: usize, threads: usize) -> Model {
    loaded(&mixture(), isa, threads)
}

#[test]
fn experts_do_not_depend_on_isa_threads_or_chunks() {
    let prompt = tokens(60);
    let scalar = mixture_on(available().len() - 1, 1);
    let want = logits(&scalar, scalar.create_sequence(None).unwrap(), &prompt);
    assert!(want.iter().any(|&bits| bits != want[0]));
    for isa in 0..available().len() {
        for threads in [1, 3] {
            let model = mixture_on(isa, threads);
            for chunk in [1, 7, 60] {
                let sequence = model.create_sequence(None).unwrap();
                let got: Vec<u32> =
                    prompt.chunks(chunk).flat_map(|part| logits(&model, sequence, part)).collect();
                assert!(got == want, "{} with {threads} threads, chunks of {chunk}", available()[isa].isa);
            }
        }
    }
}

#[test]
fn caps_and_sinks_do_not_depend_on_isa_threads_or_chunks() {
    let prompt = tokens(60);
    let plan = capped(0.25);
    let scalar = loaded(&plan, available().len() - 1, 1);
    let want = logits(&scalar, scalar.create_sequence(None).unwrap(), &prompt);
    let largest = want.iter().map(|&bits| f32::from_bits(bits).abs()).fold(0.0, f32::max);
    assert!((0.2..=0.25).contains(&largest), "{largest}");
    for isa in 0..available().len() {
        let model = loaded(&plan, isa, 3);
        for chunk in [1, 7, 60] {
            let sequence = model.create_sequence(None).unwrap();
            let got: Vec<u32> =
                prompt.chunks(chunk).flat_map(|part| logits(&model, sequence, part)).collect();
            assert!(got == want, "{}, chunks of {chunk}", available()[isa].isa);
        }
    }
}

#[test]
fn long_attention_is_split_over_threads_without_a_difference() {
    let mut plan = capped(1.0);
    plan["contextLength"] = json!(3000);
    let prompt = tokens(2300);
    let last = |isa: usize, threads: usize, chunk: usize| {
        let model = loaded(&plan, isa, threads);
        let (long, short) = (model.create_sequence(None).unwrap(), model.create_sequence(None).unwrap());
        prompt[..2200].chunks(chunk).for_each(|part| drop(logits(&model, long, part)));
        // One long sequence and a short one, token by token; then more tokens than one at once.
        let mut got = Vec::new();
        for token in prompt[2200..2240].chunks(1) {
            let entry = |sequence| Entry { sequence, tokens: token, want: Want::LastLogits };
            got.extend(model.step(&[entry(long), entry(short)]).unwrap());
        }
        let entry = Entry { sequence: long, tokens: &prompt[2240..2260], want: Want::AllLogits };
        got.extend(model.step(&[entry]).unwrap());
        got
    };
    let want = last(0, 1, 64);
    assert!(last(0, 8, 50) == want);
    assert!(last(available().len() - 1, 3, 64) == want);
}

#[test]
fn a_q8_cache_gives_the_same_everywhere_in_less_memory() {
    let mut plan = capped(1.0);
    plan["contextLength"] = json!(3000);
    let prompt = tokens(1300);
    let run = |plan: &Value, isa: usize, threads: usize, chunk: usize| {
        let model = loaded(plan, isa, threads);
        let (sequence, beside) = (model.create_sequence(None).unwrap(), model.create_sequence(None).unwrap());
        let mut got: Vec<u32> =
            prompt.chunks(chunk).flat_map(|part| logits(&model, sequence, part)).collect();
        assert_eq!(model.kv_bytes() % 21, 0, "as many pages as 1,300 positions need");
        let bytes = model.kv_bytes() / 21;
        for token in prompt[..40].chunks(1) {
            let entry = |sequence| Entry { sequence, tokens: token, want: Want::LastLogits };
            for output in model.step(&[entry(sequence), entry(beside)]).unwrap() {
                let Output::Values(values) = output else { panic!("{output:?}") };
                got.extend(values.iter().map(|x| x.to_bits()));
            }
        }
        (got, bytes)
    };
    let half = run(&plan, 0, 2, 64);
    // Heads of 8: values take room for 16.
    assert_eq!(half.1, 64 * 2 * (8 + 16) * 2);
    plan["kvCache"] = json!("f16");
    assert!(run(&plan, 0, 2, 64) == half);
    plan["kvCache"] = json!("q8_0");
    let want = run(&plan, 0, 1, 64);
    assert_eq!(want.1, 64 * 2 * (8 + 2 + 16 + 2));
    assert!(want.0 != half.0);
    assert!(run(&plan, 0, 8, 50) == want);
    assert!(run(&plan, available().len() - 1, 3, 7) == want);
    plan["kvCache"] = json!("q4_0");
    assert_eq!(Plan::parse(plan.to_string().as_bytes()).err().map(|error| error.code), Some("PLAN_INVALID"));
}

#[test]
fn sparse_sequences_do_not_depend_on_isa_threads_chunks_or_neighbours() {
    let mut plan = capped(1.0);
    plan["contextLength"] = json!(2000);
    let prompt = tokens(1300);
    let run = |model: &Model, sources: Vec<BlockSource>, chunk: usize| -> Vec<u32> {
        let sequence = model.create_sparse_sequence(None, sources).unwrap();
        prompt.chunks(chunk).flat_map(|part| logits(model, sequence, part)).collect()
    };
    let pattern = Pattern { sinks: 5, random: 2, seed: 9, stride: 7, ..Pattern::recent(90) };
    let fixed = || vec![BlockSource::Fixed(pattern.clone())];
    let (model, many) = (loaded(&plan, 0, 2), loaded(&plan, 0, 8));
    let want = run(&model, fixed(), 64);
    let dense = run(&model, Vec::new(), 64);
    assert!(want != dense);
    assert!(run(&many, fixed(), 37) == want);
    assert!(run(&loaded(&plan, available().len() - 1, 1), fixed(), 64) == want);
    // All blocks are the dense attention; a window of positions is the plan's own window.
    let all = vec![(0..40).collect()];
    assert!(run(&model, vec![BlockSource::Listed(all)], 50) == dense);
    let ops = plan["ops"].as_array_mut().unwrap();
    ops.iter_mut().find(|op| op["op"] == "attention").unwrap()["window"] = json!(90);
    let windowed = run(&loaded(&plan, 0, 2), Vec::new(), 64);
    assert!(run(&model, vec![BlockSource::Fixed(Pattern::recent(90))], 41) == windowed);
    // In one step with a dense sequence.
    let (a, b) = (many.create_sparse_sequence(None, fixed()).unwrap(), many.create_sequence(None).unwrap());
    for (i, tokens) in prompt.chunks(20).enumerate() {
        let entry = |sequence| Entry { sequence, tokens, want: Want::AllLogits };
        let results = many.step(&[entry(a), entry(b)]).unwrap();
        for (result, whole) in results.iter().zip([&want, &dense]) {
            let Output::Values(values) = result else { panic!("{result:?}") };
            let part = &whole[i * 20 * VOCAB..][..values.len()];
            assert!(values.iter().map(|x| x.to_bits()).eq(part.iter().copied()));
        }
    }
    assert!(model.create_sparse_sequence(None, vec![BlockSource::Dense; 2]).is_err());
}

/// A plan whose attention chooses by content.
fn choosing(policy: Value) -> Value {
    let mut plan = capped(1.0);
    plan["contextLength"] = json!(2000);
    plan["sparse"] = json!({ "prefill": [policy], "decode": [policy] });
    plan
}

#[test]
fn choices_by_content_do_not_depend_on_isa_threads_or_chunks() {
    let prompt = tokens(1300);
    let run = |model: &Model, chunk: usize| -> Vec<u32> {
        let sequence = model.create_sequence(None).unwrap();
        prompt.chunks(chunk).flat_map(|part| logits(model, sequence, part)).collect()
    };
    let dense = run(&loaded(&choosing(json!({ "policy": "dense" })), 0, 2), 256);
    for policy in [
        json!({ "policy": "antidiagonal", "stride": 8, "mass": 0.9, "keep": 0.3, "tokens": 64 }),
        json!({ "policy": "vertical-slash", "keep": 0.2, "tokens": 64 }),
        json!({ "policy": "lsh", "rounds": 4, "seed": 5, "keep": 0.2, "tokens": 64 }),
        json!({ "policy": "bounds", "keep": 0.2, "tokens": 64 }),
        json!({ "policy": "auto", "quality": 0.5, "from": 300 }),
    ] {
        let plan = choosing(policy.clone());
        let want = run(&loaded(&plan, 0, 2), 256);
        assert!(want != dense, "{policy}");
        assert!(run(&loaded(&plan, 0, 8), 64) == want, "{policy}");
        assert!(run(&loaded(&plan, available().len() - 1, 1), 128) == want, "{policy}");
        // After a step that was refused.
        let model = loaded(&plan, 0, 2);
        let sequence = model.create_sequence(None).unwrap();
        let mut got: Vec<u32> =
            prompt[..640].chunks(128).flat_map(|part| logits(&model, sequence, part)).collect();
        let refused = Entry { sequence, tokens: &[u32::MAX], want: Want::AllLogits };
        assert!(model.step(&[refused]).is_err());
        got.extend(prompt[640..].chunks(192).flat_map(|part| logits(&model, sequence, part)));
        assert!(got == want, "{policy}");
        let kept = model.kept_keys(sequence);
        assert_eq!(kept.len(), 1);
        assert!(kept[0].kept < kept[0].seen, "{policy}: {kept:?}");
        assert_eq!(model.kept_keys(sequence)[0].seen, 0);
        let mut small = plan;
        small["kvCache"] = json!("q8_0");
        let want_small = run(&loaded(&small, 0, 2), 256);
        assert!(want_small != want, "{policy}");
        assert!(run(&loaded(&small, available().len() - 1, 3), 128) == want_small, "{policy}");
    }
    let all = json!({ "policy": "antidiagonal", "stride": 4, "mass": 1.0, "keep": 1.0, "tokens": 0 });
    assert!(run(&loaded(&choosing(all), 0, 2), 64) == dense);
}

#[test]
fn a_failed_step_leaves_nothing_of_its_keys_and_choices() {
    let lsh = json!({ "policy": "lsh", "rounds": 4, "seed": 5, "keep": 0.2, "tokens": 64 });
    let bounds = json!({ "policy": "bounds", "keep": 0.2, "tokens": 64 });
    let antidiagonal =
        json!({ "policy": "antidiagonal", "stride": 8, "mass": 0.9, "keep": 0.3, "tokens": 64 });
    let auto = json!({ "policy": "auto", "quality": 0.5, "from": 300 });
    let dense = json!({ "policy": "dense" });
    let (prompt, other) = (tokens(1300), tokens(1800));
    for [prefill, decode] in
        [[&antidiagonal, &dense], [&lsh, &bounds], [&auto, &auto], [&bounds, &bounds], [&lsh, &lsh]]
    {
        let mut plan = choosing(json!(null));
        plan["sparse"] = json!({ "prefill": [prefill], "decode": [decode] });
        let model = loaded(&plan, 0, 2);
        let [calm, troubled] = [0; 2].map(|_| {
            let sequence = model.create_sequence(Some(all_banned())).unwrap();
            model.record_keys(sequence);
            sequence
        });
        // Single tokens and prompts by turns, each after a step of other tokens that fails at its end.
        let mut at = 0;
        for take in [256, 256, 63, 1, 1, 192, 3, 64, 1, 255] {
            let failing =
                Entry { sequence: troubled, tokens: &other[at + 100..at + 300], want: Want::Sample };
            assert_eq!(code(model.step(&[failing])), "INVALID_ARGUMENT");
            let part = &prompt[at..at + take];
            assert!(
                logits(&model, troubled, part) == logits(&model, calm, part),
                "{prefill} {decode} at {at}"
            );
            at += take;
        }
        assert_eq!(model.kept_keys(troubled), model.kept_keys(calm), "{prefill} {decode}");
        assert_eq!(model.recorded_keys(troubled), model.recorded_keys(calm), "{prefill} {decode}");
    }
}

#[test]
fn a_rewound_sequence_is_as_it_was() {
    let lsh = json!({ "policy": "lsh", "rounds": 4, "seed": 5, "keep": 0.2, "tokens": 64 });
    let bounds = json!({ "policy": "bounds", "keep": 0.2, "tokens": 64 });
    let auto = json!({ "policy": "auto", "quality": 0.5, "from": 100 });
    let dense = json!({ "policy": "dense" });
    let settings = || SamplerSettings {
        repetition_penalty: 1.3,
        penalty_window: 40,
        logit_bias: Vec::new(),
        ..all_banned()
    };
    let (prompt, other) = (tokens(700), tokens(1300));
    for (policy, cache) in
        [(&dense, "f16"), (&dense, "q8_0"), (&lsh, "f16"), (&bounds, "f16"), (&auto, "f16")]
    {
        let mut plan = choosing(json!(null));
        plan["sparse"] = json!({ "prefill": [policy], "decode": [policy] });
        plan["kvCache"] = json!(cache);
        let model = loaded(&plan, 0, 2);
        for held in [1, 40, 64, 300, 449, 600] {
            let [straight, back] = [0; 2].map(|_| model.create_sequence(Some(settings())).unwrap());
            for sequence in [straight, back] {
                for part in prompt[..held].chunks(256) {
                    logits(&model, sequence, part);
                }
            }
            for part in [&other[900..1100], &other[3..4], &other[4..5]] {
                logits(&model, back, part);
            }
            model.rewind(back, held);
            let next = |sequence: u32| {
                let rest = logits(&model, sequence, &prompt[held..held + 90]);
                let drawn = Entry { sequence, tokens: &other[..1], want: Want::Sample };
                (rest, model.step(&[drawn]).unwrap())
            };
            assert!(next(back) == next(straight), "{policy} {cache} at {held}");
        }
    }
    // Not longer than it is, and none that is not there.
    let model = model();
    let sequence = model.create_sequence(None).unwrap();
    logits(&model, sequence, &prompt[..5]);
    model.rewind(sequence, 9);
    model.rewind(sequence + 1, 0);
    let fresh = model.create_sequence(None).unwrap();
    logits(&model, fresh, &prompt[..5]);
    assert!(logits(&model, sequence, &prompt[5..9]) == logits(&model, fresh, &prompt[5..9]));
}

#[test]
fn hostile_policies_are_refused() {
    for policy in [
        json!({ "policy": "antidiagonal", "stride": 0, "mass": 0.9, "keep": 0.3, "tokens": 64 }),
        json!({ "policy": "antidiagonal", "stride": 8, "mass": 2.0, "keep": 0.3, "tokens": 64 }),
        json!({ "policy": "bounds", "keep": -1.0, "tokens": 64 }),
        json!({ "policy": "lsh", "rounds": 99, "seed": 5, "keep": 0.2, "tokens": 64 }),
        json!({ "policy": "auto", "quality": 7.0, "from": 300 }),
        json!({ "policy": "guess" }),
    ] {
        let refused = build(&choosing(policy.clone())).map(|_| ()).unwrap_err();
        assert_eq!(refused.code, "PLAN_INVALID", "{policy}");
    }
    let mut plan = choosing(json!({ "policy": "dense" }));
    plan["sparse"]["decode"] = json!([]);
    assert_eq!(build(&plan).map(|_| ()).unwrap_err().code, "PLAN_INVALID");
}

#[test]
fn hostile_caps_and_sinks_are_refused() {
    for (field, value) in
        [("softcap", json!(0)), ("softcap", json!(1e300)), ("softcap", json!(-1)), ("sinks", json!("q"))]
    {
        let mut plan = capped(1.0);
        let op = plan["ops"].as_array_mut().unwrap().iter_mut().find(|op| op["op"] == "attention").unwrap();
        op[field] = value.clone();
        assert_eq!(build(&plan).map(|_| ()).unwrap_err().code, "PLAN_INVALID", "{field} {value}");
    }
    assert_eq!(build(&capped(-1.0)).map(|_| ()).unwrap_err().code, "PLAN_INVALID");
    let mut plan = capped(1.0);
    plan["kvLayers"][0]["valueDim"] = json!(577);
    assert_eq!(build(&plan).map(|_| ()).unwrap_err().code, "PLAN_INVALID");
}

#[test]
fn threads_that_come_late_do_no_harm() {
    // More threads than cores, so that some reach a phase when others have gone on; and the two
    // mixtures use different numbers of experts, so that what a late thread sees is another's.
    let (done, finished) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let model = mixture_on(0, 8);
        let prompt = tokens(12);
        let alone = mixture_on(0, 1);
        let run = |model: &Model| {
            let sequence = model.create_sequence(None).unwrap();
            let got = logits(model, sequence, &prompt);
            model.free_sequence(sequence);
            got
        };
        let want = run(&alone);
        let same = (0..1000).all(|_| run(&model) == want);
        // The receiver is gone only if the test has failed already.
        let _ = done.send(same);
    });
    let same = finished.recv_timeout(std::time::Duration::from_secs(60));
    assert_eq!(same, Ok(true), "a step hung or gave other results");
}

#[test]
fn hostile_mixtures_are_refused() {
    for (field, value) in
        [("topK", json!(0)), ("topK", json!(33)), ("scale", json!(1e300)), ("x", json!("x"))]
    {
        let mut plan = mixture();
        let op = plan["ops"].as_array_mut().unwrap().iter_mut().find(|op| op["op"] == "experts").unwrap();
        op[field] = value;
        assert_eq!(build(&plan).map(|_| ()).unwrap_err().code, "PLAN_INVALID", "{field}");
    }
}

#[test]
fn routes_are_counted_where_asked_and_of_steps_that_succeed() {
    let model = mixture_on(0, 2);
    let (a, b) = (model.create_sequence(None).unwrap(), model.create_sequence(None).unwrap());
    model.count_experts(a);
    let prompt = tokens(20);
    let batch =
        |tokens: &'static [u32]| [a, b].map(|sequence| Entry { sequence, tokens, want: Want::Nothing });
    model.step(&batch(prompt.clone().leak())).unwrap();
    assert_eq!(code(model.step(&batch(&[1, 99]))), "INVALID_ARGUMENT");
    let alone = mixture_on(available().len() - 1, 1);
    let c = alone.create_sequence(None).unwrap();
    alone.count_experts(c);
    for token in prompt.chunks(1) {
        alone.step(&[Entry { sequence: c, tokens: token, want: Want::Nothing }]).unwrap();
    }
    let (shared, single) = (model.expert_counts(a).unwrap().0, alone.expert_counts(c).unwrap().0);
    assert_eq!(model.expert_counts(b), None);
    assert_eq!(model.expert_counts(a), None, "counting has ended");
    for ((shared, single), top_k) in shared.iter().zip(&single).zip([1, 8]) {
        assert_eq!(shared.tokens, single.tokens);
        assert_eq!(shared.tokens.iter().sum::<u32>(), 20 * top_k);
        let used = shared.tokens.iter().filter(|&&count| count > 0).count() as u32;
        assert_eq!((shared.reads, single.reads), (used, 20 * top_k));
    }
}

/// The mixtures with a bias for the choice of experts, the same one for both.
fn biased_mixture() -> Value {
    let mut plan = mixture();
    plan["contextLength"] = json!(3000);
    plan["tensors"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "name": "bias", "type": "F32", "rows": 1, "cols": 32 }));
    for op in plan["ops"].as_array_mut().unwrap().iter_mut().filter(|op| op["op"] == "experts") {
        op["selectionBias"] = json!("bias");
    }
    plan
}

/// What adds `bias` to the score of expert 5.
struct Favour(f32);

impl TensorReader for Favour {
    fn read(&self, _: u64, to: &mut [u8]) -> Result<(), String> {
        for (expert, bytes) in to.chunks_exact_mut(4).enumerate() {
            bytes.copy_from_slice(&if expert == 5 { self.0 } else { 0.0 }.to_le_bytes());
        }
        Ok(())
    }
}

fn favouring(bias: f32, isa: usize, threads: usize) -> Model {
    let value = biased_mixture();
    let tensors = value["tensors"].as_array().unwrap();
    let types: Vec<String> = tensors.iter().map(|t| t["type"].as_str().unwrap().into()).collect();
    let plan = Plan::parse(value.to_string().as_bytes()).unwrap();
    let model = Model::new(plan, available()[isa], Box::new(OsPool::new(threads)), 3000).unwrap();
    for (id, tensor) in tensors.iter().enumerate() {
        match tensor["name"].as_str() {
            Some("bias") => model.load_tensor(id, &Favour(bias), 0).unwrap(),
            _ => model.load_tensor(id, &Mixed(types.clone(), id), 0).unwrap(),
        }
    }
    model
}

#[test]
fn thousands_of_tokens_to_one_expert() {
    const TOKENS: usize = 2500;
    let prompt = tokens(TOKENS);
    let run = |isa: usize, threads: usize, chunk: usize| {
        let model = favouring(1e3, isa, threads);
        let sequence = model.create_sequence(None).unwrap();
        model.count_experts(sequence);
        let last: Vec<u32> = prompt.chunks(chunk).flat_map(|part| logits(&model, sequence, part)).collect();
        for layer in &model.expert_counts(sequence).unwrap().0 {
            assert_eq!(layer.tokens[5], TOKENS as u32);
        }
        last
    };
    let whole = run(0, 2, TOKENS);
    assert!(whole.iter().all(|&bits| f32::from_bits(bits).is_finite()));
    assert!(run(0, 3, 311) == whole, "in chunks");
    assert!(run(available().len() - 1, 1, TOKENS) == whole, "on the scalar reference");
}

#[test]
fn scores_that_are_not_numbers_end_the_step() {
    for bias in [f32::NAN, f32::INFINITY] {
        let model = favouring(bias, 0, 2);
        let sequence = model.create_sequence(None).unwrap();
        for count in [1, 7] {
            let tokens = tokens(count);
            let result = model.step(&[Entry { sequence, tokens: &tokens, want: Want::LastLogits }]);
            assert_eq!(code(result), "NON_FINITE", "{bias}");
        }
    }
}

#[test]
fn gates_and_ups_that_take_different_activations_are_multiplied_apart() {
    let prompt = tokens(12);
    let run = |plan: &Value, isa: usize, threads: usize, chunk: usize| -> Vec<u32> {
        let model = loaded(plan, isa, threads);
        let sequence = model.create_sequence(None).unwrap();
        prompt.chunks(chunk).flat_map(|part| logits(&model, sequence, part)).collect()
    };
    let pairs = [("F16", "Q8_0"), ("Q8_0", "F16"), ("Q4_K", "Q8_0"), ("Q8_0", "Q4_K"), ("BF16", "F16")];
    let mut results = Vec::new();
    for (gate, up) in pairs {
        let mut plan = plan_of(256);
        for tensor in plan["tensors"].as_array_mut().unwrap() {
            match tensor["name"].as_str().unwrap() {
                "gate" => tensor["type"] = json!(gate),
                "up" => tensor["type"] = json!(up),
                _ => {}
            }
        }
        let scalar = run(&plan, available().len() - 1, 1, 12);
        for isa in 0..available().len() {
            for (threads, chunk) in [(1, 1), (3, 12), (2, 5)] {
                assert!(run(&plan, isa, threads, chunk) == scalar, "{gate} {up}, {}", available()[isa].isa);
            }
        }
        results.push(scalar);
    }
    // Each has other weights or other activations.
    assert!((0..results.len()).all(|i| !results[..i].contains(&results[i])));
}

/// [`mixture`] with a gate and an up stack of these types.
fn mixture_of(gate: &str, up: &str) -> Value {
    let mut plan = mixture();
    for tensor in plan["tensors"].as_array_mut().unwrap() {
        match tensor["name"].as_str().unwrap() {
            "gate" => tensor["type"] = json!(gate),
            "up" => tensor["type"] = json!(up),
            _ => {}
        }
    }
    plan
}

#[test]
fn gates_and_ups_of_experts_that_take_different_activations_are_multiplied_apart() {
    let prompt = tokens(20);
    let run = |plan: &Value, model: Model, chunk: usize| -> Vec<u32> {
        let sequence = model.create_sequence(None).unwrap();
        prompt.chunks(chunk).flat_map(|part| supplied_logits(plan, &model, sequence, part)).collect()
    };
    let mut results = Vec::new();
    for (gate, up) in [("F16", "Q8_0"), ("Q8_0", "F16"), ("BF16", "F16")] {
        let plan = mixture_of(gate, up);
        let scalar = run(&plan, loaded(&plan, available().len() - 1, 1), 20);
        for (isa, table) in available().iter().enumerate() {
            for (threads, chunk) in [(1, 1), (3, 20), (2, 7)] {
                let text = format!("{gate} {up}, {}, chunks of {chunk}", table.isa);
                assert!(run(&plan, loaded(&plan, isa, threads), chunk) == scalar, "{text}");
                let open: &dyn Fn(Mixed) -> Mixed = &|inner| inner;
                for (slots, open) in [(1, Some(open)), (9, Some(open)), (1, None), (9, None)] {
                    let model = on_demand(&plan, isa, threads, EXPERT_BYTES * slots, open);
                    assert!(run(&plan, model, chunk) == scalar, "{text}, {slots} slots");
                }
            }
        }
        results.push(scalar);
    }
    // Each has other weights or other activations.
    assert!((0..results.len()).all(|i| !results[..i].contains(&results[i])));
}

/// Ones, but for this tensor of F32 a million.
struct Loud(Mixed, bool);

impl TensorReader for Loud {
    fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), String> {
        self.0.read(offset, to)?;
        if self.1 {
            to.chunks_exact_mut(4).for_each(|b| b.copy_from_slice(&1e6f32.to_le_bytes()));
        }
        Ok(())
    }
}

#[test]
fn activations_too_large_for_the_ups_of_experts_alone_end_the_step() {
    // F32 takes any number, BF16 those of a million, F16 none.
    for (up, fits) in [("F16", false), ("BF16", true)] {
        let mut plan = mixture_of("F32", up);
        let tensors = plan["tensors"].as_array_mut().unwrap();
        tensors.iter_mut().find(|tensor| tensor["name"] == "down").unwrap()["type"] = json!("F32");
        tensors.push(json!({ "name": "loud", "type": "F32", "rows": 1, "cols": WIDTH }));
        let types: Vec<String> = tensors.iter().map(|t| t["type"].as_str().unwrap().into()).collect();
        let ops = plan["ops"].as_array_mut().unwrap();
        let experts = ops.iter().rposition(|op| op["op"] == "experts").unwrap();
        ops[..experts].iter_mut().rfind(|op| op["op"] == "rms_norm").unwrap()["weight"] = json!("loud");
        let model = build(&plan).unwrap();
        for id in 0..types.len() {
            let reader = Loud(Mixed(types.clone(), id), id + 1 == types.len());
            model.load_tensor(id, &reader, 0).unwrap();
        }
        for count in [1, 5] {
            let sequence = model.create_sequence(None).unwrap();
            let tokens = &tokens(count)[..];
            let result = model.step(&[Entry { sequence, tokens, want: Want::AllLogits }]);
            assert_eq!(
                result.map(|_| ()).map_err(|error| error.code),
                if fits { Ok(()) } else { Err("NON_FINITE") }
            );
        }
    }
}

#[test]
fn gates_and_ups_in_one_tensor_must_be_of_twice_as_many_matrices() {
    for (experts, fits) in [(64, true), (32, false), (63, false)] {
        let mut plan = mixture();
        let tensors = plan["tensors"].as_array_mut().unwrap();
        tensors.retain(|tensor| tensor["name"] != "up");
        tensors.iter_mut().find(|tensor| tensor["name"] == "gate").unwrap()["experts"] = json!(experts);
        for op in plan["ops"].as_array_mut().unwrap().iter_mut().filter(|op| op["op"] == "experts") {
            op["up"] = json!("gate");
        }
        let code = build(&plan).map(|_| ()).map_err(|error| error.code);
        assert_eq!(code, if fits { Ok(()) } else { Err("PLAN_INVALID") }, "{experts}");
    }
}

#[test]
fn routers_and_copies_that_do_not_fit_are_refused() {
    type Change = fn(&mut Value);
    let experts = |plan: &mut Value, field: &str, to: Value| {
        let ops = plan["ops"].as_array_mut().unwrap();
        ops.iter_mut().find(|op| op["op"] == "experts").unwrap()[field] = to;
    };
    let refused = |plan: &Value| match Plan::parse(plan.to_string().as_bytes()) {
        Ok(plan) => {
            Model::new(plan, available()[0], Box::new(OsPool::new(1)), 8).map(|_| ()).unwrap_err().code
        }
        Err(error) => error.code,
    };
    for (field, to) in [
        ("groups", json!({ "count": 5, "used": 1, "best": 1 })),
        ("groups", json!({ "count": 4, "used": 5, "best": 1 })),
        ("groups", json!({ "count": 4, "used": 1, "best": 3 })),
        ("groups", json!({ "count": 32, "used": 1, "best": 2 })),
        ("scoring", json!("loudest")),
        ("topK", json!(33)),
        ("selectionBias", json!("norm2")),
        ("gateBias", json!("norm")),
    ] {
        let mut plan = mixture();
        experts(&mut plan, field, to.clone());
        assert_eq!(refused(&plan), "PLAN_INVALID", "{field} {to}");
    }
    let copy = json!({ "op": "copy", "x": "q", "out": "k", "xHeads": 4, "heads": 4, "from": 0, "to": 0, "count": 4 });
    let changes: [Change; 6] = [
        |copy| copy["count"] = json!(5),
        |copy| copy["from"] = json!(5),
        |copy| copy["to"] = json!(usize::MAX),
        |copy| copy["xHeads"] = json!(2),
        |copy| copy["heads"] = json!(0),
        |copy| copy["out"] = json!("q"),
    ];
    for change in changes {
        let (mut plan, mut copy) = (plan(), copy.clone());
        change(&mut copy);
        plan["ops"].as_array_mut().unwrap().insert(5, copy.clone());
        assert_eq!(refused(&plan), "PLAN_INVALID", "{copy}");
    }
}

/// Bytes that one expert of each mixture of [`mixture`] takes when packed.
const EXPERT_BYTES: usize = 2 * 2 * (2 * 48 * WIDTH + 32 * 40);

/// A mixture of which so many bytes of experts fit into memory; attached to readers that `open` gives, or to the caller.
fn on_demand<R: TensorReader + Send + 'static>(
    value: &Value,
    isa: usize,
    threads: usize,
    expert_memory: usize,
    open: Option<&dyn Fn(Mixed) -> R>,
) -> Model {
    let types: Vec<String> =
        value["tensors"].as_array().unwrap().iter().map(|t| t["type"].as_str().unwrap().into()).collect();
    let plan = Plan::parse(value.to_string().as_bytes()).unwrap();
    let limits = Limits { max_tokens: 64, expert_memory: Some(expert_memory) };
    let model = Model::new(plan, available()[isa], Box::new(OsPool::new(threads)), limits).unwrap();
    for id in 0..types.len() {
        let reader = Mixed(types.clone(), id);
        if model.is_on_demand(id).unwrap() {
            let origin = open.map(|open| (Arc::new(open(reader)) as Arc<dyn TensorReader + Send>, 0));
            model.attach_tensor(id, origin).unwrap();
        } else {
            model.load_tensor(id, &reader, 0).unwrap();
        }
    }
    model
}

/// The logits of a step whose experts this function supplies.
fn supplied_logits(plan: &Value, model: &Model, sequence: u32, tokens: &[u32]) -> Vec<u32> {
    let tensors = plan["tensors"].as_array().unwrap();
    let types: Vec<String> = tensors.iter().map(|t| t["type"].as_str().unwrap().into()).collect();
    loop {
        match model.advance(&[Entry { sequence, tokens, want: Want::AllLogits }]).unwrap() {
            Progress::Done(mut outputs) => match outputs.remove(0) {
                Output::Values(values) => return values.iter().map(|x| x.to_bits()).collect(),
                other => panic!("{other:?}"),
            },
            Progress::Needs(wanted) => {
                for wanted in wanted {
                    let [rows, cols] =
                        ["rows", "cols"].map(|of| tensors[wanted.tensor][of].as_u64().unwrap() as usize);
                    let bytes = rows * Format::by_name(&types[wanted.tensor]).unwrap().row_bytes(cols);
                    let mut data = vec![0; bytes];
                    let at = (wanted.matrix * bytes) as u64;
                    Mixed(types.clone(), wanted.tensor).read(at, &mut data).unwrap();
                    model.supply(wanted, &data).unwrap();
                }
            }
        }
    }
}

#[test]
fn experts_on_demand_change_no_result() {
    let (prompt, plan) = (tokens(60), mixture());
    let whole = mixture_on(available().len() - 1, 1);
    let want = logits(&whole, whole.create_sequence(None).unwrap(), &prompt);
    for isa in 0..available().len() {
        for slots in [1, 3, 8, 20, 31] {
            for readers in [true, false] {
                let open = |inner| Announced { inner, stretches: Mutex::default() };
                let open = readers.then_some(&open as &dyn Fn(Mixed) -> Announced);
                let model = on_demand(&plan, isa, 1 + slots % 3, EXPERT_BYTES * slots, open);
                for chunk in [1, 7, 60] {
                    let sequence = model.create_sequence(None).unwrap();
                    let run = |part| match readers {
                        true => logits(&model, sequence, part),
                        false => supplied_logits(&plan, &model, sequence, part),
                    };
                    let got: Vec<u32> = prompt.chunks(chunk).flat_map(run).collect();
                    assert!(got == want, "{} with {slots} slots, chunks of {chunk}", available()[isa].isa);
                }
            }
        }
    }
}

/// Experts that can be read so many times more.
struct Breakable {
    inner: Mixed,
    reads: Arc<AtomicUsize>,
}

impl TensorReader for Breakable {
    fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), String> {
        let less = |reads: usize| reads.checked_sub(1);
        match self.reads.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less) {
            Ok(_) => self.inner.read(offset, to),
            Err(_) => Err("the disk is gone".into()),
        }
    }
}

#[test]
fn a_step_whose_experts_cannot_be_read_fails_as_a_whole() {
    let prompt = tokens(40);
    let whole = mixture_on(0, 1);
    let want = logits(&whole, whole.create_sequence(None).unwrap(), &prompt);
    let reads = Arc::new(AtomicUsize::new(usize::MAX));
    let open = |inner| Breakable { inner, reads: Arc::clone(&reads) };
    let model = on_demand(&mixture(), 0, 2, EXPERT_BYTES * 4, Some(&open));
    let sequence = model.create_sequence(None).unwrap();
    let mut got = logits(&model, sequence, &prompt[..20]);
    // Slots are full now: some experts are read into them, others while they are multiplied, gate, up and down.
    for left in [0, 1, 3, 10, 25, 40, 60] {
        reads.store(left, Ordering::Relaxed);
        let entry = Entry { sequence, tokens: &prompt[20..], want: Want::AllLogits };
        let refused = model.step(&[entry]).unwrap_err();
        assert_eq!((refused.code, refused.message.as_str()), ("SOURCE_READ", "the disk is gone"), "{left}");
    }
    reads.store(usize::MAX, Ordering::Relaxed);
    got.extend(logits(&model, sequence, &prompt[20..]));
    assert!(got == want);
}
