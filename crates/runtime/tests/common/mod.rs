//! Small models for tests: plans with every op, and seeded weights.

// Each test is a program of its own, and uses some of this.
#![allow(dead_code)]

use kernels::table::available;
use runtime::model::Model;
use runtime::plan::Plan;
use runtime::threads::OsPool;
use runtime::weights::TensorReader;
use serde_json::{Value, json};

pub const VOCAB: usize = 50;
pub const WIDTH: usize = 32;

/// One layer with every op, Q8_0 matrices.
pub fn plan() -> Value {
    plan_of(WIDTH)
}

/// The same with a stream of another width.
pub fn plan_of(width: usize) -> Value {
    let matrix = |name: &str, rows: usize, cols: usize| json!({ "name": name, "type": "Q8_0", "rows": rows, "cols": cols });
    let tokens = |name: &str, width: usize| json!({ "name": name, "width": width, "rows": "tokens" });
    json!({
        "version": 1, "name": "test", "vocabSize": VOCAB, "contextLength": 100,
        "kvLayers": [{ "kvHeads": 2, "headDim": 8 }],
        "tensors": [
            matrix("embd", VOCAB, width), matrix("q", 32, width), matrix("k", 16, width), matrix("v", 16, width),
            matrix("o", width, 32), matrix("gate", 64, width), matrix("up", 64, width), matrix("down", width, 64),
            { "name": "norm", "type": "F32", "rows": 1, "cols": width },
        ],
        "buffers": [
            tokens("x", width), tokens("n", width), tokens("q", 32), tokens("k", 16), tokens("v", 16),
            tokens("a", 32), tokens("f", 64),
            { "name": "s", "width": width, "rows": "outputs" }, { "name": "h", "width": width, "rows": "outputs" },
        ],
        "ropes": [{
            "dims": 8, "base": 10000.0, "layout": "neox", "factor": 1.0, "extFactor": 0.0, "attnFactor": 1.0,
            "betaFast": 32.0, "betaSlow": 1.0, "originalContext": 100,
        }],
        "ops": [
            { "op": "embed", "table": "embd", "out": "x" },
            { "op": "rms_norm", "x": "x", "weight": "norm", "out": "n", "eps": 1e-5 },
            { "op": "linear", "x": "n", "weight": "q", "out": "q", "precise": true },
            { "op": "linear", "x": "n", "weight": "k", "out": "k", "precise": true },
            { "op": "linear", "x": "n", "weight": "v", "out": "v" },
            { "op": "rope", "x": "q", "rope": 0, "headDim": 8 },
            { "op": "rope", "x": "k", "rope": 0, "headDim": 8 },
            { "op": "attention", "q": "q", "k": "k", "v": "v", "out": "a", "layer": 0, "heads": 4 },
            { "op": "linear", "x": "a", "weight": "o", "out": "x", "add": true },
            { "op": "rms_norm", "x": "x", "weight": "norm", "out": "n", "eps": 1e-5 },
            { "op": "glu", "x": "n", "gate": "gate", "up": "up", "activation": "silu", "out": "f" },
            { "op": "linear", "x": "f", "weight": "down", "out": "x", "add": true },
            { "op": "select_outputs", "x": "x", "out": "s" },
            { "op": "rms_norm", "x": "s", "weight": "norm", "out": "h", "eps": 1e-5 },
            { "op": "logits", "x": "h", "weight": "embd" },
        ],
        "hidden": "h",
    })
}

/// Seeded bytes as a source of weights.
pub struct Noise {
    pub seed: u64,
    pub norm: f32,
}

impl TensorReader for Noise {
    fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), String> {
        if offset >= 1 << 40 {
            for bytes in to.chunks_exact_mut(4) {
                bytes.copy_from_slice(&self.norm.to_le_bytes());
            }
            return Ok(());
        }
        for (i, byte) in to.iter_mut().enumerate() {
            let at = offset + i as u64;
            *byte = match at % 34 {
                0 => 0,
                1 => 0x24, // an F16 scale of 2^-6
                _ => (at.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(self.seed) >> 40) as u8,
            };
        }
        Ok(())
    }
}

pub fn tokens(n: usize) -> Vec<u32> {
    (0..n).map(|i| (i * 7 % VOCAB) as u32).collect()
}

/// The plan with its feed-forward layer made two mixtures of 32 experts, of which a token uses 1 and
/// then 8; an expert's 40 rows do not fill tiles.
pub fn mixture() -> Value {
    let mut plan = plan();
    let stack = |name: &str, rows: usize, cols: usize| json!({ "name": name, "type": "F16", "rows": rows, "cols": cols, "experts": 32 });
    let tensors = plan["tensors"].as_array_mut().unwrap();
    tensors.retain(|t| !["gate", "up", "down"].contains(&t["name"].as_str().unwrap()));
    tensors.push(json!({ "name": "router", "type": "Q8_0", "rows": 32, "cols": WIDTH }));
    tensors.extend([stack("gate", 40, WIDTH), stack("up", 40, WIDTH), stack("down", WIDTH, 40)]);
    let buffers = plan["buffers"].as_array_mut().unwrap();
    buffers.retain(|b| b["name"] != "f");
    buffers.push(json!({ "name": "g", "width": 32, "rows": "tokens" }));
    let ops = plan["ops"].as_array_mut().unwrap();
    let at = ops.iter().position(|op| op["op"] == "glu").unwrap();
    let mixture = |top_k: usize| {
        vec![
            json!({ "op": "linear", "x": "n", "weight": "router", "out": "g", "precise": true }),
            json!({
                "op": "experts", "x": "n", "gates": "g", "gate": "gate", "up": "up", "down": "down",
                "activation": "silu", "out": "x", "topK": top_k, "normalise": true, "scale": 1.0,
            }),
        ]
    };
    let norm = json!({ "op": "rms_norm", "x": "x", "weight": "norm", "out": "n", "eps": 1e-5 });
    ops.splice(at..at + 2, [mixture(1), vec![norm], mixture(8)].concat());
    plan
}

/// F16 and BF16 values around 0 of seeded bytes; F32 ones; Q8_0 and Q4_K blocks.
pub struct Mixed(pub Vec<String>, pub usize);

impl TensorReader for Mixed {
    fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), String> {
        match self.0[self.1].as_str() {
            "F32" => to.chunks_exact_mut(4).for_each(|b| b.copy_from_slice(&1f32.to_le_bytes())),
            "BF16" => to.chunks_exact_mut(2).enumerate().for_each(|(i, b)| {
                let at = offset + i as u64 * 2 + ((self.1 as u64) << 32);
                let bits = (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u16;
                b.copy_from_slice(&((bits & 0x81ff) | 0x3c00).to_le_bytes());
            }),
            "F16" => to.chunks_exact_mut(2).enumerate().for_each(|(i, b)| {
                let at = offset + i as u64 * 2 + ((self.1 as u64) << 32);
                let bits = (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u16;
                // Exponents of 2^-6 to 2^-3, either sign.
                b.copy_from_slice(&((bits & 0x8fff) | 0x2000).to_le_bytes());
            }),
            "Q4_K" => to.iter_mut().enumerate().for_each(|(i, byte)| {
                let at = offset + i as u64;
                *byte = match at % 144 {
                    0 | 2 => 0,
                    1 | 3 => 0x10, // scales of 2^-11
                    _ => (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8,
                };
            }),
            _ => Noise { seed: self.1 as u64, norm: 1.0 }.read(offset, to)?,
        }
        Ok(())
    }
}

/// The plan with values smaller than keys, capped scores and logits, and a sink for each head.
pub fn capped(logits_cap: f32) -> Value {
    let mut plan = plan();
    plan["kvLayers"] = json!([{ "kvHeads": 2, "headDim": 8, "valueDim": 4 }]);
    let tensors = plan["tensors"].as_array_mut().unwrap();
    tensors.retain(|t| !["v", "o"].contains(&t["name"].as_str().unwrap()));
    tensors.push(json!({ "name": "v", "type": "F16", "rows": 8, "cols": WIDTH }));
    tensors.push(json!({ "name": "o", "type": "F16", "rows": WIDTH, "cols": 16 }));
    tensors.push(json!({ "name": "sinks", "type": "F32", "rows": 1, "cols": 4 }));
    for buffer in plan["buffers"].as_array_mut().unwrap() {
        match buffer["name"].as_str().unwrap() {
            "v" => buffer["width"] = json!(8),
            "a" => buffer["width"] = json!(16),
            _ => {}
        }
    }
    let ops = plan["ops"].as_array_mut().unwrap();
    let attention = ops.iter_mut().find(|op| op["op"] == "attention").unwrap();
    attention["softcap"] = json!(2.0);
    attention["sinks"] = json!("sinks");
    ops.last_mut().unwrap()["softcap"] = json!(logits_cap);
    plan
}

pub fn loaded(value: &Value, isa: usize, threads: usize) -> Model {
    let types: Vec<String> =
        value["tensors"].as_array().unwrap().iter().map(|t| t["type"].as_str().unwrap().into()).collect();
    let plan = Plan::parse(value.to_string().as_bytes()).unwrap();
    let model = Model::new(plan, available()[isa], Box::new(OsPool::new(threads)), 256).unwrap();
    for id in 0..types.len() {
        model.load_tensor(id, &Mixed(types.clone(), id), 0).unwrap();
    }
    model
}
