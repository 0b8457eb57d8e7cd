//! Verifies a plan and turns it into phases: runs of work that need no synchronisation inside.
//!
//! Row-wise ops that follow one another (norm, rotation, storing keys and values, quantising) become
//! one phase, done token by token; matrix multiplications that share their prepared input become
//! one phase over all their tiles. Every name is resolved here, once.

use crate::attention::Shape;
use crate::error::{Error, Result};
use crate::plan::{Activation, Buffer, Layout, Op, Plan, RowKind, Scoring};
use crate::rope::score_scale;
use kernels::kernels::attention::MAX_HEAD_DIM;
use kernels::kernels::rows;
use kernels::packed::{ActKind, Format};
use kernels::route::{self, Router};
use std::collections::HashMap;

pub type BufferId = usize;
pub type TensorId = usize;

/// How a tensor is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// Packed tiles.
    Matrix(Format),
    /// f32 values: norms, biases, rope factors.
    Vector(Format),
    /// One matrix for each expert.
    Experts(Format),
    /// One matrix for each head.
    Heads(Format),
}

/// A step of work on one row (a token or an output).
#[derive(Clone, Debug)]
pub enum RowOp {
    Embed {
        table: TensorId,
        out: BufferId,
        scale: Option<f32>,
    },
    RmsNorm {
        x: BufferId,
        weight: TensorId,
        out: BufferId,
        eps: f32,
    },
    Rope {
        x: BufferId,
        rope: usize,
        head_dim: usize,
        at: usize,
        pairing: rows::Pairing,
    },
    Copy(CopyHeads),
    /// x = activation(x) * up.
    Glu {
        x: BufferId,
        up: BufferId,
        activation: rows::Activation,
    },
    /// x times the sigmoid of the gate.
    Gate {
        x: BufferId,
        gate: BufferId,
    },
    StoreKv {
        k: BufferId,
        v: BufferId,
        layer: usize,
    },
    Route(Experts),
    /// Sums a token's slots in order of rank.
    Combine(Experts),
    Add {
        x: BufferId,
        out: BufferId,
    },
    Select {
        x: BufferId,
        out: BufferId,
    },
    Prepare {
        x: BufferId,
        kind: ActKind,
    },
    /// Each head's part by itself, the tokens of a head side by side.
    PrepareHeads {
        x: BufferId,
        kind: ActKind,
        k: usize,
    },
}

/// Part of each head of `x`, or of its only one, to a place in each head of `out`.
#[derive(Clone, Copy, Debug)]
pub struct CopyHeads {
    pub x: BufferId,
    pub out: BufferId,
    pub x_heads: usize,
    pub heads: usize,
    pub from: usize,
    pub to: usize,
    pub count: usize,
}

#[derive(Clone, Debug)]
pub struct LinearPart {
    pub weight: TensorId,
    pub bias: Option<TensorId>,
    pub out: Out,
    pub add: bool,
    /// Of precise activations, only the values are multiplied.
    pub plain: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Out {
    Buffer(BufferId),
    Logits,
}

#[derive(Clone, Copy, Debug)]
pub struct Attention {
    pub q: BufferId,
    pub out: BufferId,
    pub layer: usize,
    pub heads: usize,
    pub scale: f32,
    pub window: Option<usize>,
    pub softcap: Option<f32>,
    /// A logit for each head.
    pub sinks: Option<TensorId>,
    /// Which of [`Compiled::shapes`] it has.
    pub shape: usize,
}

/// What a tensor holds of each expert: of expert e, part e * `step` + `first`. Gates and ups may be one tensor's, in
/// turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parts {
    pub tensor: TensorId,
    step: usize,
    first: usize,
}

impl Parts {
    pub fn one_each(tensor: TensorId) -> Self {
        Self { tensor, step: 1, first: 0 }
    }

    fn of_two(a: TensorId, b: TensorId) -> [Self; 2] {
        if a == b {
            return [0, 1].map(|first| Self { tensor: a, step: 2, first });
        }
        [a, b].map(Self::one_each)
    }

    pub fn of(&self, expert: usize) -> usize {
        expert * self.step + self.first
    }
}

/// How many experts a mixture has, and their gate, up and down matrices.
#[derive(Clone, Copy, Debug)]
pub struct Mixture {
    pub count: usize,
    pub stacks: [Parts; 3],
}

/// A mixture of experts: what all its phases need.
#[derive(Clone, Copy, Debug)]
pub struct Experts {
    /// How many mixtures come before it in the plan.
    pub mixture: usize,
    pub gates: BufferId,
    pub router: Router,
    /// Experts, and the widths of the model and of an expert.
    pub count: usize,
    pub width: usize,
    pub inner: usize,
    /// Added to the scores that choose.
    pub selection_bias: Option<TensorId>,
    pub gate: Parts,
    pub up: Parts,
    pub down: Parts,
    pub gate_bias: Option<Parts>,
    pub up_bias: Option<Parts>,
    pub down_bias: Option<Parts>,
    pub activation: rows::Activation,
    pub x: BufferId,
    /// What x is turned into for gates and for ups, and what the experts' inner activations are.
    pub x_kind: ActKind,
    pub up_kind: ActKind,
    pub inner_kind: ActKind,
    pub out: BufferId,
}

#[derive(Clone, Debug)]
pub enum Phase {
    Rows {
        on: RowKind,
        ops: Vec<RowOp>,
    },
    Linear {
        on: RowKind,
        kind: ActKind,
        k: usize,
        parts: Vec<LinearPart>,
    },
    Glu {
        on: RowKind,
        kind: ActKind,
        k: usize,
        gate: TensorId,
        up: TensorId,
        biases: [Option<TensorId>; 2],
        activation: rows::Activation,
        out: BufferId,
    },
    /// A matrix for each head, applied to the head's part of what was prepared.
    LinearHeads {
        kind: ActKind,
        weight: TensorId,
        out: BufferId,
    },
    /// Chooses the keys of sequences that do not keep all.
    ChooseKeys(Attention),
    Attention(Attention),
    /// Merges what threads computed of the same queries.
    MergeAttention(Attention),
    /// Sorts the step's (token, rank) pairs by expert: each pair's place is a slot.
    Group(Experts),
    /// Copies the prepared x of each slot's token next to the others of its expert.
    Spread(Experts),
    /// Gate, up and activation, for each expert and its slots.
    ExpertGlu(Experts),
    /// Prepares what the slots hold.
    PrepareSlots(Experts),
    ExpertDown(Experts),
}

pub struct Compiled {
    pub phases: Vec<Phase>,
    /// The plan's, then those that it has no names for.
    pub buffers: Vec<Buffer>,
    /// Phases before this one do not need the logits.
    pub head_start: usize,
    /// What logits are capped with.
    pub logits_cap: Option<f32>,
    pub uses: Vec<Use>,
    /// Every shape of attention.
    pub shapes: Vec<Shape>,
    pub hidden: BufferId,
    pub mixtures: Vec<Mixture>,
    /// The widest row that is ever prepared.
    pub prepared_width: usize,
}

/// The largest width, count or length a plan may state: products of two stay far from overflow.
const LIMIT: usize = 1 << 31;

const MAX_EXPERTS: usize = 1 << 16;

struct Compiler<'a> {
    plan: &'a Plan,
    tensors: HashMap<&'a str, TensorId>,
    names: HashMap<&'a str, BufferId>,
    buffers: Vec<Buffer>,
    uses: Vec<Option<Use>>,
    phases: Vec<Phase>,
    mixtures: Vec<Mixture>,
    shapes: Vec<Shape>,
    /// Which buffer's rows the prepared floats and the prepared bytes hold.
    prepared: HashMap<bool, (BufferId, ActKind)>,
    prepared_width: usize,
    written: Vec<bool>,
    /// The op being compiled, for messages.
    at: usize,
}

/// A linear op's fields, but for where the result goes.
struct Linear<'a> {
    x: &'a str,
    weight: &'a str,
    bias: Option<&'a str>,
    add: bool,
    precise: bool,
}

pub fn compile(plan: &Plan) -> Result<Compiled> {
    let mut compiler = Compiler::new(plan)?;
    let (mut head_start, mut logits_cap) = (None, None);
    for (at, op) in plan.ops.iter().enumerate() {
        compiler.at = at;
        if head_start.is_some() {
            return Err(compiler.fault("comes after the logits, which must be last"));
        }
        if let Op::Logits { softcap, .. } = op {
            (head_start, logits_cap) = (Some(compiler.phases.len()), *softcap);
        }
        compiler.op(op)?;
    }
    let head_start = head_start.ok_or_else(|| Error::plan("the plan has no logits op"))?;
    let hidden = compiler.buffer(&plan.hidden)?;
    if plan.buffers[hidden].rows != RowKind::Outputs || !compiler.written[hidden] {
        return Err(Error::plan(format!("hidden buffer {} is not a written output buffer", plan.hidden)));
    }
    let mut uses = Vec::with_capacity(plan.tensors.len());
    for (tensor, of) in plan.tensors.iter().zip(&compiler.uses) {
        uses.push(of.ok_or_else(|| Error::plan(format!("tensor {} is not used", tensor.name)))?);
    }
    Ok(Compiled {
        phases: compiler.phases,
        buffers: compiler.buffers,
        head_start,
        logits_cap,
        uses,
        shapes: compiler.shapes,
        hidden,
        mixtures: compiler.mixtures,
        prepared_width: compiler.prepared_width,
    })
}

impl<'a> Compiler<'a> {
    fn new(plan: &'a Plan) -> Result<Self> {
        check_sizes(plan)?;
        let tensors: HashMap<_, _> =
            plan.tensors.iter().enumerate().map(|(i, t)| (t.name.as_str(), i)).collect();
        let names: HashMap<_, _> =
            plan.buffers.iter().enumerate().map(|(i, b)| (b.name.as_str(), i)).collect();
        if tensors.len() != plan.tensors.len() || names.len() != plan.buffers.len() {
            return Err(Error::plan("two tensors or two buffers have the same name"));
        }
        let mut compiler = Self {
            plan,
            tensors,
            names,
            buffers: plan.buffers.clone(),
            uses: vec![None; plan.tensors.len()],
            phases: Vec::new(),
            mixtures: Vec::new(),
            shapes: Vec::new(),
            prepared: HashMap::new(),
            prepared_width: 0,
            written: vec![false; plan.buffers.len()],
            at: 0,
        };
        for rope in &plan.ropes {
            if let Some(name) = &rope.factors {
                compiler.vector(name, rope.dims / 2)?;
            }
        }
        Ok(compiler)
    }

    fn fault(&self, what: impl std::fmt::Display) -> Error {
        Error::plan(format!("op {} ({:?}) {what}", self.at, self.plan.ops[self.at]))
    }

    fn op(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::Embed { table, out, scale } => self.embed(table, out, *scale),
            Op::RmsNorm { x, weight, out, eps } => self.rms_norm(x, weight, out, *eps),
            Op::Linear { x, weight, bias, out, add, precise } => {
                let out = self.buffer(out)?;
                if *add && !self.written[out] {
                    return Err(self.fault("adds to a buffer that nothing wrote"));
                }
                let bias = bias.as_deref();
                self.linear(Linear { x, weight, bias, add: *add, precise: *precise }, Out::Buffer(out))
            }
            Op::Logits { x, weight, bias, softcap } => {
                self.check_softcap(*softcap)?;
                let bias = bias.as_deref();
                self.linear(Linear { x, weight, bias, add: false, precise: false }, Out::Logits)
            }
            Op::Glu { x, gate, up, activation, out, gate_bias, up_bias } => {
                self.glu(x, [gate, up], [gate_bias.as_deref(), up_bias.as_deref()], *activation, out)
            }
            Op::Experts { .. } => self.experts(op),
            Op::LinearHeads { x, weight, out, precise } => self.linear_heads(x, weight, out, *precise),
            Op::Gate { x, gate } => self.gate(x, gate),
            Op::Copy { .. } => self.copy(op),
            Op::Rope { x, rope, head_dim, at } => self.rope(x, *rope, *head_dim, *at),
            Op::Attention { .. } => self.attention(op),
            Op::Add { x, out } => self.add(x, out),
            Op::SelectOutputs { x, out } => self.select(x, out),
        }
    }

    fn embed(&mut self, table: &str, out: &str, scale: Option<f32>) -> Result<()> {
        let out = self.buffer(out)?;
        let table = self.matrix(table, self.plan.vocab_size, self.width(out))?;
        if self.buffers[out].rows != RowKind::Tokens {
            return Err(self.fault("embeds into a buffer of outputs"));
        }
        self.push_row(RowKind::Tokens, RowOp::Embed { table, out, scale });
        self.wrote(out);
        Ok(())
    }

    fn rms_norm(&mut self, x: &str, weight: &str, out: &str, eps: f32) -> Result<()> {
        let (x, out) = (self.read(x)?, self.buffer(out)?);
        let id = *self.tensors.get(weight).ok_or_else(|| self.fault("names a tensor the plan lacks"))?;
        let run = self.plan.tensors[id].cols;
        let weight = self.vector(weight, run)?;
        if self.width(x) != self.width(out) || !self.width(x).is_multiple_of(run) {
            return Err(self.fault("has widths that do not fit"));
        }
        let on = self.same_rows(x, out)?;
        self.push_row(on, RowOp::RmsNorm { x, weight, out, eps });
        self.wrote(out);
        Ok(())
    }

    fn add(&mut self, x: &str, out: &str) -> Result<()> {
        let (x, out) = (self.read(x)?, self.read(out)?);
        if x == out || self.width(x) != self.width(out) {
            return Err(self.fault("has buffers that do not fit"));
        }
        let on = self.same_rows(x, out)?;
        self.push_row(on, RowOp::Add { x, out });
        self.wrote(out);
        Ok(())
    }

    fn linear(&mut self, spec: Linear, out: Out) -> Result<()> {
        let Linear { x, weight, bias, add, precise } = spec;
        let x = self.read(x)?;
        let (width, rows) = match out {
            Out::Buffer(out) => (self.width(out), self.buffers[out].rows),
            Out::Logits => (self.plan.vocab_size, RowKind::Outputs),
        };
        if self.buffers[x].rows != rows || out == Out::Buffer(x) {
            return Err(self.fault("has buffers that do not fit"));
        }
        let k = self.width(x);
        let weight = self.matrix(weight, width, k)?;
        let bias = bias.map(|bias| self.vector(bias, width)).transpose()?;
        let plain = self.format(weight).activations();
        let both = plain.precise();
        // Logits too, but of quantised weights: these are the largest matrix, and no other product takes over what is lost.
        let precise = precise || out == Out::Logits && !plain.quantised();
        // What the precise kind holds is the plain kind too.
        let kind = if precise || self.is_prepared(x, both) { both } else { plain };
        let fresh = self.prepare(x, kind);
        let part = LinearPart { weight, bias, out, add, plain: !precise };
        match self.phases.last_mut() {
            // A kind prepared earlier is not fresh either, though the last phase may read another.
            Some(Phase::Linear { parts, kind: last, .. })
                if !fresh && *last == kind && out != Out::Logits && parts.iter().all(|p| p.out != out) =>
            {
                parts.push(part);
            }
            _ => self.phases.push(Phase::Linear { on: rows, kind, k, parts: vec![part] }),
        }
        if let Out::Buffer(out) = out {
            self.wrote(out);
        }
        Ok(())
    }

    fn glu(
        &mut self,
        x: &str,
        [gate, up]: [&str; 2],
        biases: [Option<&str>; 2],
        activation: Activation,
        out: &str,
    ) -> Result<()> {
        let (from, to) = (self.read(x)?, self.buffer(out)?);
        let on = self.same_rows(from, to)?;
        let (k, width) = (self.width(from), self.width(to));
        let matrices = [self.matrix(gate, width, k)?, self.matrix(up, width, k)?];
        let [kind, up_kind] = matrices.map(|matrix| self.format(matrix).activations());
        if from == to {
            return Err(self.fault("writes what it reads"));
        }
        let activation = activation_of(activation);
        if kind == up_kind {
            self.prepare(from, kind);
            let [gate, up] = matrices;
            let [gate_bias, up_bias] =
                biases.map(|bias| bias.map(|bias| self.vector(bias, width)).transpose());
            let biases = [gate_bias?, up_bias?];
            self.phases.push(Phase::Glu { on, kind, k, gate, up, biases, activation, out: to });
        } else {
            // They take different activations, so each is multiplied by itself.
            let products = |weight, bias| Linear { x, weight, bias, add: false, precise: false };
            let beside = self.unnamed(width, on);
            self.linear(products(gate, biases[0]), Out::Buffer(to))?;
            self.linear(products(up, biases[1]), Out::Buffer(beside))?;
            self.push_row(on, RowOp::Glu { x: to, up: beside, activation });
        }
        self.wrote(to);
        Ok(())
    }

    /// A buffer beside the plan's, for what is used at once.
    fn unnamed(&mut self, width: usize, rows: RowKind) -> BufferId {
        let named = self.plan.buffers.len();
        let fits = |buffer: &Buffer| buffer.width == width && buffer.rows == rows;
        self.buffers[named..].iter().position(fits).map_or_else(
            || {
                self.buffers.push(Buffer { name: String::new(), width, rows });
                self.written.push(true);
                self.buffers.len() - 1
            },
            |at| named + at,
        )
    }

    fn experts(&mut self, op: &Op) -> Result<()> {
        let router = self.router(op)?;
        let Op::Experts {
            x,
            gates,
            gate,
            up,
            down,
            activation,
            out,
            selection_bias,
            gate_bias,
            up_bias,
            down_bias,
            ..
        } = op
        else {
            return Err(self.fault("is not a mixture of experts"));
        };
        let (x, gates, out) = (self.read(x)?, self.read(gates)?, self.read(out)?);
        let (width, count) = (self.width(x), self.width(gates));
        let inner = self.tensors.get(gate.as_str()).map_or(0, |&id| self.plan.tensors[id].rows);
        let merged = if gate == up { 2 } else { 1 };
        let gate = self.stack(gate, merged * count, inner, width)?;
        let up = self.stack(up, merged * count, inner, width)?;
        let [gate, up] = Parts::of_two(gate, up);
        let down = Parts::one_each(self.stack(down, count, width, inner)?);
        let [x_kind, up_kind, inner_kind] = [gate, up, down].map(|of| self.format(of.tensor).activations());
        let on_tokens = [x, gates, out].iter().all(|&b| self.buffers[b].rows == RowKind::Tokens);
        let fits = self.width(out) == width && out != x && ![gate.tensor, up.tensor].contains(&down.tensor);
        if !on_tokens || !fits || !router.fits(count) || !router.scale.is_finite() {
            return Err(self.fault("has experts, widths, groups or a top-k that do not fit"));
        }
        let mut bias =
            |name: &Option<String>, len| name.as_deref().map(|name| self.vector(name, len)).transpose();
        let selection_bias = bias(selection_bias, count)?;
        let merged = if gate_bias == up_bias { 2 } else { 1 };
        let gate_bias = bias(gate_bias, merged * count * inner)?;
        let up_bias = bias(up_bias, merged * count * inner)?;
        let [gate_bias, up_bias] = match (gate_bias, up_bias) {
            (Some(gate), Some(up)) => Parts::of_two(gate, up).map(Some),
            _ => [gate_bias, up_bias].map(|bias| bias.map(Parts::one_each)),
        };
        let down_bias = bias(down_bias, count * width)?.map(Parts::one_each);
        let activation = activation_of(*activation);
        let experts = Experts {
            mixture: self.mixtures.len(),
            gates,
            router,
            count,
            width,
            inner,
            selection_bias,
            gate,
            up,
            down,
            gate_bias,
            up_bias,
            down_bias,
            activation,
            x,
            x_kind,
            up_kind,
            inner_kind,
            out,
        };
        self.mixtures.push(Mixture { count, stacks: [gate, up, down] });
        self.prepare(x, x_kind);
        self.push_row(RowKind::Tokens, RowOp::Route(experts));
        self.wrote(gates);
        self.phases.extend([
            Phase::Group(experts),
            Phase::Spread(experts),
            Phase::ExpertGlu(experts),
            Phase::PrepareSlots(experts),
            Phase::ExpertDown(experts),
        ]);
        self.push_row(RowKind::Tokens, RowOp::Combine(experts));
        self.wrote(out);
        Ok(())
    }

    fn router(&self, op: &Op) -> Result<Router> {
        let Op::Experts { top_k, normalise, scale, scoring, groups, .. } = op else {
            return Err(self.fault("is not a mixture of experts"));
        };
        let scoring = match scoring {
            Scoring::Softmax => route::Scoring::Softmax,
            Scoring::Sigmoid => route::Scoring::Sigmoid,
            Scoring::Chosen => route::Scoring::Chosen,
        };
        let groups = groups.map(|of| route::Groups { count: of.count, used: of.used, best: of.best });
        Ok(Router { top_k: *top_k, scoring, groups, normalise: *normalise, scale: *scale })
    }

    fn linear_heads(&mut self, x: &str, weight: &str, out: &str, precise: bool) -> Result<()> {
        let (x, out) = (self.read(x)?, self.buffer(out)?);
        let heads = self.tensors.get(weight).and_then(|&id| self.plan.tensors[id].experts).unwrap_or(0);
        let on_tokens = [x, out].iter().all(|&b| self.buffers[b].rows == RowKind::Tokens);
        let even = |buffer| heads > 0 && self.width(buffer).is_multiple_of(heads);
        if !on_tokens || x == out || !even(x) || !even(out) {
            return Err(self.fault("has heads or buffers that do not fit"));
        }
        let (rows, k) = (self.width(out) / heads, self.width(x) / heads);
        let (weight, format) = self.stack_of(weight, heads, rows, k)?;
        let weight = self.claim(weight, Use::Heads(format))?;
        let plain = format.activations();
        let kind = if precise { plain.precise() } else { plain };
        self.push_row(RowKind::Tokens, RowOp::PrepareHeads { x, kind, k });
        self.prepared_width = self.prepared_width.max(self.width(x));
        // Nothing else can read what was prepared like that.
        self.prepared.remove(&kind.quantised());
        if kind.keeps_rest_in_floats() {
            self.prepared.remove(&false);
        }
        self.phases.push(Phase::LinearHeads { kind, weight, out });
        self.wrote(out);
        Ok(())
    }

    fn gate(&mut self, x: &str, gate: &str) -> Result<()> {
        let (x, gate) = (self.read(x)?, self.read(gate)?);
        if self.width(gate) != 1 || x == gate {
            return Err(self.fault("has a gate that is not one number"));
        }
        let on = self.same_rows(x, gate)?;
        self.push_row(on, RowOp::Gate { x, gate });
        self.wrote(x);
        Ok(())
    }

    fn copy(&mut self, op: &Op) -> Result<()> {
        let Op::Copy { x, out, x_heads, heads, from, to, count } = op else {
            return Err(self.fault("is not a copy"));
        };
        let (x, out) = (self.read(x)?, self.buffer(out)?);
        let (x_heads, heads, from, to, count) = (*x_heads, *heads, *from, *to, *count);
        let inside = |buffer, heads: usize, at: usize| {
            let width = self.width(buffer);
            heads > 0
                && width.is_multiple_of(heads)
                && at.checked_add(count).is_some_and(|end| end <= width / heads)
        };
        let fits = inside(x, x_heads, from) && inside(out, heads, to) && [1, heads].contains(&x_heads);
        if !fits || x == out || count == 0 {
            return Err(self.fault("copies what does not fit"));
        }
        let on = self.same_rows(x, out)?;
        self.push_row(on, RowOp::Copy(CopyHeads { x, out, x_heads, heads, from, to, count }));
        self.wrote(out);
        Ok(())
    }

    fn rope(&mut self, x: &str, rope: usize, head_dim: usize, at: usize) -> Result<()> {
        let x = self.read(x)?;
        let spec = self.plan.ropes.get(rope).ok_or_else(|| self.fault("names a rope the plan lacks"))?;
        let inside = at.checked_add(spec.dims).is_some_and(|end| end <= head_dim);
        if !inside || head_dim == 0 || !self.width(x).is_multiple_of(head_dim) {
            return Err(self.fault("has a head size that does not fit"));
        }
        let pairing = match spec.layout {
            Layout::Interleaved => rows::Pairing::Interleaved,
            Layout::Neox => rows::Pairing::Neox,
        };
        if self.buffers[x].rows != RowKind::Tokens {
            return Err(self.fault("rotates a buffer of outputs"));
        }
        self.push_row(RowKind::Tokens, RowOp::Rope { x, rope, head_dim, at, pairing });
        self.wrote(x);
        Ok(())
    }

    fn attention(&mut self, op: &Op) -> Result<()> {
        let Op::Attention { q, k, v, out, layer, heads, scale, rope, window, softcap, sinks } = op else {
            return Err(self.fault("is not attention"));
        };
        let (q, k, v, out) = (self.read(q)?, self.read(k)?, self.read(v)?, self.buffer(out)?);
        let (layer, heads) = (*layer, *heads);
        let kv = *self.plan.kv_layers.get(layer).ok_or_else(|| self.fault("names a layer the plan lacks"))?;
        let fits = heads < LIMIT
            && heads.is_multiple_of(kv.kv_heads)
            && self.width(q) == heads * kv.head_dim
            && self.width(out) == heads * kv.values()
            && self.width(k) == kv.kv_heads * kv.head_dim
            && self.width(v) == kv.kv_heads * kv.values();
        let apart = out != q && out != k && out != v;
        let on_tokens = [q, k, v, out].iter().all(|&b| self.buffers[b].rows == RowKind::Tokens);
        if !fits || !apart || !on_tokens || heads == 0 || *window == Some(0) {
            return Err(self.fault("has heads, widths or a window that do not fit"));
        }
        self.check_softcap(*softcap)?;
        let sinks = sinks.as_deref().map(|sinks| self.vector(sinks, heads)).transpose()?;
        self.push_row(RowKind::Tokens, RowOp::StoreKv { k, v, layer });
        let mut scale = scale.unwrap_or_else(|| 1.0 / (kv.head_dim as f32).sqrt());
        if let Some(rope) = rope {
            let rope = self.plan.ropes.get(*rope);
            let rope = rope.ok_or_else(|| self.fault("names a rope the plan lacks"))?;
            scale = (scale as f64 * score_scale(rope)) as f32;
        }
        let (window, softcap) = (*window, *softcap);
        let group = heads / kv.kv_heads;
        let shape = self.shape(Shape { kv_heads: kv.kv_heads, group, value_dim: kv.values(), window });
        let attention = Attention { q, out, layer, heads, scale, window, softcap, sinks, shape };
        self.phases.extend([
            Phase::ChooseKeys(attention),
            Phase::Attention(attention),
            Phase::MergeAttention(attention),
        ]);
        self.wrote(out);
        Ok(())
    }

    fn shape(&mut self, shape: Shape) -> usize {
        self.shapes.iter().position(|&known| known == shape).unwrap_or_else(|| {
            self.shapes.push(shape);
            self.shapes.len() - 1
        })
    }

    fn check_softcap(&self, softcap: Option<f32>) -> Result<()> {
        match softcap {
            Some(cap) if !(cap > 0.0 && (1.0 / cap).is_normal()) => {
                Err(self.fault("has a softcap out of range"))
            }
            _ => Ok(()),
        }
    }

    fn select(&mut self, x: &str, out: &str) -> Result<()> {
        let (x, out) = (self.read(x)?, self.buffer(out)?);
        let kinds = (self.buffers[x].rows, self.buffers[out].rows);
        if kinds != (RowKind::Tokens, RowKind::Outputs) || self.width(x) != self.width(out) {
            return Err(self.fault("does not select rows of tokens into rows of outputs"));
        }
        self.push_row(RowKind::Outputs, RowOp::Select { x, out });
        self.wrote(out);
        Ok(())
    }

    fn is_prepared(&self, x: BufferId, kind: ActKind) -> bool {
        self.prepared.get(&kind.quantised()) == Some(&(x, kind))
    }

    /// Sees to it that x's rows are prepared as `kind`; false when they already are.
    fn prepare(&mut self, x: BufferId, kind: ActKind) -> bool {
        let bytes = kind.quantised();
        if self.is_prepared(x, kind) {
            return false;
        }
        self.push_row(self.buffers[x].rows, RowOp::Prepare { x, kind });
        self.prepared.insert(bytes, (x, kind));
        if kind.keeps_rest_in_floats() {
            // What rounding leaves is held where the floats are.
            self.prepared.remove(&false);
        }
        self.prepared_width = self.prepared_width.max(self.width(x));
        true
    }

    fn push_row(&mut self, kind: RowKind, op: RowOp) {
        match self.phases.last_mut() {
            Some(Phase::Rows { on, ops }) if *on == kind => ops.push(op),
            _ => self.phases.push(Phase::Rows { on: kind, ops: vec![op] }),
        }
    }

    fn wrote(&mut self, buffer: BufferId) {
        self.written[buffer] = true;
        self.prepared.retain(|_, (of, _)| *of != buffer);
    }

    fn buffer(&self, name: &str) -> Result<BufferId> {
        let found = self.names.get(name).copied();
        found.ok_or_else(|| Error::plan(format!("op {} names buffer {name}, which the plan lacks", self.at)))
    }

    fn read(&self, name: &str) -> Result<BufferId> {
        let buffer = self.buffer(name)?;
        if self.written[buffer] {
            Ok(buffer)
        } else {
            Err(self.fault(format!("reads {name} before it is written")))
        }
    }

    fn width(&self, buffer: BufferId) -> usize {
        self.buffers[buffer].width
    }

    fn same_rows(&self, a: BufferId, b: BufferId) -> Result<RowKind> {
        let (a, b) = (self.buffers[a].rows, self.buffers[b].rows);
        if a == b { Ok(a) } else { Err(self.fault("mixes rows of tokens and of outputs")) }
    }

    fn format(&self, tensor: TensorId) -> Format {
        match self.uses[tensor] {
            Some(Use::Matrix(format) | Use::Vector(format) | Use::Experts(format) | Use::Heads(format)) => {
                format
            }
            None => Format::F32,
        }
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<TensorId> {
        let (id, format) = self.tensor(name, rows, cols, None)?;
        self.check_columns(name, format, cols)?;
        self.claim(id, Use::Matrix(format))
    }

    fn stack(&mut self, name: &str, count: usize, rows: usize, cols: usize) -> Result<TensorId> {
        let (id, format) = self.stack_of(name, count, rows, cols)?;
        self.claim(id, Use::Experts(format))
    }

    fn stack_of(&self, name: &str, count: usize, rows: usize, cols: usize) -> Result<(TensorId, Format)> {
        let (id, format) = self.tensor(name, rows, cols, Some(count))?;
        self.check_columns(name, format, cols)?;
        Ok((id, format))
    }

    fn check_columns(&self, name: &str, format: Format, cols: usize) -> Result<()> {
        let fits = cols.is_multiple_of(format.block());
        if fits {
            Ok(())
        } else {
            Err(self.fault(format!("has {name} with {cols} columns of {}", format.name())))
        }
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<TensorId> {
        let (id, format) = self.tensor(name, 1, len, None)?;
        if format.block() != 1 {
            return Err(Error::plan(format!(
                "{name} is {}, but a norm, bias or factor must be F32, F16 or BF16",
                format.name()
            )));
        }
        self.claim(id, Use::Vector(format))
    }

    fn tensor(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
        experts: Option<usize>,
    ) -> Result<(TensorId, Format)> {
        let id = *self
            .tensors
            .get(name)
            .ok_or_else(|| Error::plan(format!("tensor {name} is not in the plan")))?;
        let tensor = &self.plan.tensors[id];
        if (tensor.rows, tensor.cols, tensor.experts) != (rows, cols, experts) {
            let shape =
                |rows, cols, experts: Option<usize>| format!("{} of {rows} x {cols}", experts.unwrap_or(1));
            let found = shape(tensor.rows, tensor.cols, tensor.experts);
            return Err(Error::plan(format!(
                "tensor {name} is {found}, expected {}",
                shape(rows, cols, experts)
            )));
        }
        let format = Format::by_name(&tensor.kind).ok_or_else(|| {
            Error::plan(format!("tensor {name} has type {}, for which there is no kernel", tensor.kind))
        })?;
        Ok((id, format))
    }

    fn claim(&mut self, id: TensorId, of: Use) -> Result<TensorId> {
        match self.uses[id] {
            Some(before) if before != of => Err(Error::plan(format!(
                "tensor {} is used as a matrix and as a vector",
                self.plan.tensors[id].name
            ))),
            _ => {
                self.uses[id] = Some(of);
                Ok(id)
            }
        }
    }
}

fn activation_of(activation: Activation) -> rows::Activation {
    match activation {
        Activation::Silu => rows::Activation::Silu,
        Activation::Gelu => rows::Activation::Gelu,
        Activation::ClampedSwiglu => rows::Activation::ClampedSwiglu,
    }
}

fn check_sizes(plan: &Plan) -> Result<()> {
    let check = |what: &str, value: usize| {
        let fits = (1..LIMIT).contains(&value);
        if fits { Ok(()) } else { Err(Error::plan(format!("{what} is {value}, outside 1..{LIMIT}"))) }
    };
    check("the vocabulary size", plan.vocab_size)?;
    check("the context length", plan.context_length)?;
    for layer in &plan.kv_layers {
        check("a count of KV heads", layer.kv_heads)?;
        check("a head size", layer.head_dim)?;
        check("a head's value size", layer.values())?;
        let largest = layer.head_dim.max(layer.values());
        if largest > MAX_HEAD_DIM {
            return Err(Error::plan(format!("head size {largest} is over {MAX_HEAD_DIM}")));
        }
    }
    for tensor in &plan.tensors {
        check(&format!("{}'s rows", tensor.name), tensor.rows)?;
        check(&format!("{}'s columns", tensor.name), tensor.cols)?;
        check(&format!("{}'s experts", tensor.name), tensor.experts.unwrap_or(1))?;
        if tensor.experts.is_some_and(|experts| experts > MAX_EXPERTS) {
            return Err(Error::plan(format!("{} has more than {MAX_EXPERTS} experts", tensor.name)));
        }
    }
    for buffer in &plan.buffers {
        check(&format!("{}'s width", buffer.name), buffer.width)?;
    }
    for rope in &plan.ropes {
        check("a rope's dimensions", rope.dims)?;
        check("a rope's original context", rope.original_context)?;
        let finite =
            [rope.base, rope.factor, rope.ext_factor, rope.attn_factor, rope.beta_fast, rope.beta_slow];
        let positive = rope.base > 1.0 && rope.factor > 0.0 && rope.beta_fast > 0.0 && rope.beta_slow > 0.0;
        let multiplier = rope.log_multiplier.unwrap_or(0.0);
        if !positive
            || !multiplier.is_finite()
            || finite.iter().any(|x| !x.is_finite())
            || !rope.dims.is_multiple_of(2)
        {
            return Err(Error::plan("a rope's parameters are out of range"));
        }
    }
    Ok(())
}
