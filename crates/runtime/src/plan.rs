//! A plan as it crosses from TypeScript: JSON, one object per op. `ts/plan/types.ts` says what each means.

use crate::error::{Error, Result};
use kernels::kernels::attention::CacheType;
use serde::Deserialize;

pub const VERSION: u32 = 1;

#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Plan {
    pub version: u32,
    pub name: String,
    pub vocab_size: usize,
    pub context_length: usize,
    pub kv_layers: Vec<KvLayer>,
    /// What the cache holds keys and values as.
    #[serde(default)]
    pub kv_cache: KvCacheType,
    pub tensors: Vec<Tensor>,
    pub buffers: Vec<Buffer>,
    pub ropes: Vec<Rope>,
    pub ops: Vec<Op>,
    /// Which keys attention keeps, where that is not all.
    #[serde(default)]
    pub sparse: Option<Sparse>,
    pub hidden: String,
}

#[derive(Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvCacheType {
    #[default]
    #[serde(rename = "f16")]
    F16,
    #[serde(rename = "q8_0")]
    Q8,
}

impl From<KvCacheType> for CacheType {
    fn from(of: KvCacheType) -> Self {
        match of {
            KvCacheType::F16 => Self::F16,
            KvCacheType::Q8 => Self::Q8,
        }
    }
}

#[derive(Deserialize, Clone, Copy, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KvLayer {
    pub kv_heads: usize,
    pub head_dim: usize,
    pub value_dim: Option<usize>,
}

impl KvLayer {
    /// The size of a head's values.
    pub fn values(&self) -> usize {
        self.value_dim.unwrap_or(self.head_dim)
    }
}

#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Tensor {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub rows: usize,
    pub cols: usize,
    /// How many matrices of that shape follow one another: the experts of a layer.
    #[serde(default)]
    pub experts: Option<usize>,
}

#[derive(Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum RowKind {
    Tokens,
    Outputs,
}

/// A policy for each layer of the cache, or one for all.
#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Sparse {
    /// For several queries of a block of 64 positions at once.
    pub prefill: Vec<Policy>,
    /// For single ones.
    pub decode: Vec<Policy>,
}

/// `ts/attention/types.ts` says what each means.
#[derive(Deserialize, Clone, Debug, PartialEq)]
#[serde(tag = "policy", rename_all = "kebab-case", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Policy {
    Dense,
    Pattern {
        sinks: usize,
        recent: usize,
        dilated: usize,
        dilation: usize,
        global: Vec<u32>,
        stride: usize,
        random: usize,
        seed: u64,
    },
    Antidiagonal {
        stride: usize,
        mass: f32,
        keep: f32,
        tokens: usize,
    },
    VerticalSlash {
        keep: f32,
        tokens: usize,
    },
    Lsh {
        rounds: usize,
        seed: u64,
        keep: f32,
        tokens: usize,
    },
    Bounds {
        keep: f32,
        tokens: usize,
    },
    Auto {
        quality: f32,
        from: usize,
    },
}

#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Buffer {
    pub name: String,
    pub width: usize,
    pub rows: RowKind,
}

#[derive(Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    Interleaved,
    Neox,
}

#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rope {
    pub dims: usize,
    pub base: f64,
    pub layout: Layout,
    pub factor: f64,
    pub ext_factor: f64,
    pub attn_factor: f64,
    pub beta_fast: f64,
    pub beta_slow: f64,
    pub original_context: usize,
    #[serde(default)]
    pub exact_ramp: bool,
    pub factors: Option<String>,
    pub log_multiplier: Option<f64>,
}

#[derive(Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    Silu,
    Gelu,
    #[serde(rename = "clamped_swiglu")]
    ClampedSwiglu,
}

#[derive(Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Scoring {
    #[default]
    Softmax,
    Sigmoid,
    Chosen,
}

#[derive(Deserialize, Clone, Copy, Debug)]
#[serde(deny_unknown_fields)]
pub struct Groups {
    pub count: usize,
    pub used: usize,
    pub best: usize,
}

#[derive(Deserialize, Clone, Debug)]
#[serde(tag = "op", rename_all = "snake_case", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Op {
    Embed {
        table: String,
        out: String,
        scale: Option<f32>,
    },
    RmsNorm {
        x: String,
        weight: String,
        out: String,
        eps: f32,
    },
    Linear {
        x: String,
        weight: String,
        bias: Option<String>,
        out: String,
        #[serde(default)]
        add: bool,
        #[serde(default)]
        precise: bool,
    },
    Glu {
        x: String,
        gate: String,
        up: String,
        activation: Activation,
        out: String,
        gate_bias: Option<String>,
        up_bias: Option<String>,
    },
    Experts {
        x: String,
        gates: String,
        gate: String,
        up: String,
        down: String,
        activation: Activation,
        out: String,
        top_k: usize,
        normalise: bool,
        scale: f32,
        #[serde(default)]
        scoring: Scoring,
        selection_bias: Option<String>,
        groups: Option<Groups>,
        gate_bias: Option<String>,
        up_bias: Option<String>,
        down_bias: Option<String>,
    },
    /// A weight matrix for each head.
    LinearHeads {
        x: String,
        weight: String,
        out: String,
        #[serde(default)]
        precise: bool,
    },
    Gate {
        x: String,
        gate: String,
    },
    Copy {
        x: String,
        out: String,
        x_heads: usize,
        heads: usize,
        from: usize,
        to: usize,
        count: usize,
    },
    Rope {
        x: String,
        rope: usize,
        head_dim: usize,
        #[serde(default)]
        at: usize,
    },
    Attention {
        q: String,
        k: String,
        v: String,
        out: String,
        layer: usize,
        heads: usize,
        scale: Option<f32>,
        /// The rope whose score multiplier applies.
        rope: Option<usize>,
        window: Option<usize>,
        softcap: Option<f32>,
        sinks: Option<String>,
    },
    Add {
        x: String,
        out: String,
    },
    SelectOutputs {
        x: String,
        out: String,
    },
    Logits {
        x: String,
        weight: String,
        bias: Option<String>,
        softcap: Option<f32>,
    },
}

impl Plan {
    pub fn parse(json: &[u8]) -> Result<Self> {
        let plan: Self = serde_json::from_slice(json)
            .map_err(|e| Error::plan(format!("the plan is not readable: {e}")))?;
        if plan.version != VERSION {
            return Err(Error::plan(format!("the plan has version {}, expected {VERSION}", plan.version)));
        }
        Ok(plan)
    }
}
