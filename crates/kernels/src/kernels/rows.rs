//! Kernels that work on one token's row: norm, rotation, rounding and quantising, activations.

use super::{exp, padded, softcap, tree_sum};
use crate::acts::{ActRow, NonFinite};
use crate::exp::{CLAMP, CLAMPED_ALPHA, GELU_CUBIC, GELU_SCALE};
use crate::packed::ActKind;
use crate::select::round_halves;
use crate::simd::{ActBlock, LANES, QK, Simd};

/// How RoPE pairs the dimensions of a head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pairing {
    /// 2i with 2i + 1.
    Interleaved,
    /// i with i + dims / 2.
    Neox,
}

/// The gate's activation in a gated feed-forward layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Activation {
    Silu,
    Gelu,
    /// gpt-oss: SiLU of 1.702 times the gate, both sides clamped, and one more than up (OpenAI, 2025, arXiv:2508.10925).
    ClampedSwiglu,
}

/// x = x / sqrt(mean(x²) + eps) * weight for each run of `weight.len()` values of x
/// (Zhang and Sennrich, 2019, arXiv:1910.07467).
#[inline(always)]
pub fn rms_norm<S: Simd>(s: S, x: &mut [f32], weight: &[f32], eps: f32) {
    for x in x.chunks_exact_mut(weight.len()) {
        let (vectors, rest) = x.as_chunks::<LANES>();
        let mut squares = s.splat(0.0);
        for v in vectors {
            let v = s.load(v);
            squares = s.add(squares, s.mul(v, v));
        }
        let v = s.load(&padded(rest));
        squares = s.add(squares, s.mul(v, v));
        let mut lanes = [0.0; LANES];
        s.store(squares, &mut lanes);
        let mean = tree_sum(lanes) / x.len() as f32;
        // Squares that overflow must not turn the row into zeros.
        let inverse = if mean.is_finite() { 1.0 / (mean + eps).sqrt() } else { f32::NAN };
        for (x, &w) in x.iter_mut().zip(weight) {
            *x = (*x * inverse) * w;
        }
    }
}

/// Rotates the first `2 * angles.len()` values of each head of `head_dim` in place; `angles` holds (cos, sin).
#[inline(always)]
pub fn rope(x: &mut [f32], head_dim: usize, pairing: Pairing, angles: &[[f32; 2]]) {
    for head in x.chunks_exact_mut(head_dim) {
        match pairing {
            Pairing::Interleaved => {
                for ([a, b], &[cos, sin]) in head.as_chunks_mut::<2>().0.iter_mut().zip(angles) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            }
            Pairing::Neox => {
                let (first, second) = head.split_at_mut(angles.len());
                for ((a, b), &[cos, sin]) in first.iter_mut().zip(second).zip(angles) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            }
        }
    }
}

/// x = cap * tanh(x / cap); see [`crate::exp::softcap`].
#[inline(always)]
pub fn softcap_all<S: Simd>(s: S, x: &mut [f32], cap: f32) {
    let mut capped = [0.0; LANES];
    for part in x.chunks_mut(LANES) {
        s.store(softcap(s, s.load(&padded(part)), cap), &mut capped);
        part.copy_from_slice(&capped[..part.len()]);
    }
}

/// Turns one token's activations into what weights of `kind` take.
///
/// # Errors
/// [`NonFinite`] when a value is infinite or NaN, or becomes so by rounding to F16.
#[inline(always)]
pub fn prepare<S: Simd>(s: S, kind: ActKind, x: &[f32], to: ActRow<'_>) -> Result<(), NonFinite> {
    let half = match kind {
        ActKind::Q8 | ActKind::Q8K => return quantise(s, x, to.blocks, kind.blocks()),
        ActKind::Q8Pair | ActKind::Q8KPair => return quantise_pair(s, x, to, kind.blocks()),
        ActKind::F32 => false,
        ActKind::F16 | ActKind::F16Pair | ActKind::BF16 | ActKind::BF16Pair => true,
    };
    let bf16 = matches!(kind, ActKind::BF16 | ActKind::BF16Pair);
    // `rest` is empty where the kind keeps nothing of what rounding leaves.
    let (values, rest) = to.floats.split_at_mut(x.len());
    values.copy_from_slice(x);
    if half {
        round_half(s, bf16, values);
        for ((rest, &x), &value) in rest.iter_mut().zip(x).zip(values.iter()) {
            *rest = x - value;
        }
        round_half(s, bf16, rest);
    }
    all_finite(s, to.floats)
}

/// To the nearest F16 or BF16 values.
#[inline(always)]
fn round_half<S: Simd>(s: S, bf16: bool, values: &mut [f32]) {
    if bf16 {
        values.iter_mut().for_each(|x| *x = crate::float16::round_bf16(*x));
        return;
    }
    round_halves(s, values);
}

#[inline(always)]
fn all_finite<S: Simd>(s: S, x: &[f32]) -> Result<(), NonFinite> {
    // x - x is 0 for a finite x and NaN for any other.
    let mut sum = s.splat(0.0);
    let (whole, rest) = x.as_chunks();
    for x in whole.iter().chain([&padded(rest)]) {
        let v = s.load(x);
        sum = s.add(sum, s.sub(v, v));
    }
    let mut lanes = [0.0; LANES];
    s.store(sum, &mut lanes);
    if lanes.iter().all(|&lane| lane == 0.0) { Ok(()) } else { Err(NonFinite) }
}

/// The values, then what rounding left of them: x - d * q.
#[inline(always)]
fn quantise_pair<S: Simd>(s: S, x: &[f32], to: ActRow<'_>, shared: usize) -> Result<(), NonFinite> {
    let (blocks, rest) = to.blocks.split_at_mut(x.len() / QK);
    quantise(s, x, blocks, shared)?;
    let parts = to.floats.as_chunks_mut::<QK>().0.iter_mut().zip(x.as_chunks::<QK>().0);
    for ((left, x), block) in parts.zip(blocks.iter()) {
        let scale = s.splat(block.scale);
        let halves = left.as_chunks_mut::<LANES>().0.iter_mut().zip(x.as_chunks::<LANES>().0);
        for ((left, x), values) in halves.zip(block.values.as_chunks::<LANES>().0) {
            s.store(s.sub(s.load(x), s.mul(scale, s.load_i8(values))), left);
        }
    }
    quantise(s, to.floats, rest, shared)
}

/// Per `shared` blocks of 32: d = amax / 127 and q = nearest_even(x * (127 / amax)); all zero when amax is 0
/// or so small that 127 / amax overflows.
#[inline(always)]
fn quantise<S: Simd>(s: S, x: &[f32], blocks: &mut [ActBlock], shared: usize) -> Result<(), NonFinite> {
    let mut check = s.splat(0.0);
    for (x, blocks) in x.chunks_exact(QK * shared).zip(blocks.chunks_exact_mut(shared)) {
        let mut largest = s.splat(0.0);
        for v in x.as_chunks::<LANES>().0 {
            let v = s.load(v);
            check = s.add(check, s.sub(v, v));
            largest = s.max(s.abs(v), largest);
        }
        let amax = s.max_lane(largest);
        let inverse = 127.0 / amax;
        if inverse.is_infinite() {
            blocks.fill(ActBlock::new(0.0, [0; QK]));
            continue;
        }
        for (x, block) in x.as_chunks::<QK>().0.iter().zip(blocks.iter_mut()) {
            // In place: a copy would be a call of its own in WebAssembly.
            block.scale = amax / 127.0;
            for (v, out) in x.as_chunks::<LANES>().0.iter().zip(block.values.as_chunks_mut::<LANES>().0) {
                s.store_i8(s.mul(s.load(v), s.splat(inverse)), out);
            }
            let [first, second] = block.values.as_chunks().0 else { unreachable!("two halves") };
            block.put_sums([s.sum_i8(first), s.sum_i8(second)]);
        }
        if shared > 1 {
            ActBlock::pair_up(blocks);
        }
    }
    let mut lanes = [0.0; LANES];
    s.store(check, &mut lanes);
    if lanes.iter().all(|&lane| lane == 0.0) { Ok(()) } else { Err(NonFinite) }
}

/// gates = activation(gates) * ups, for products that were computed apart.
#[inline(always)]
pub fn gate_all<S: Simd>(s: S, activation: Activation, gates: &mut [f32], ups: &[f32]) {
    let mut results = [0.0; LANES];
    for (gates, ups) in gates.chunks_mut(LANES).zip(ups.chunks(LANES)) {
        let (gate, up) = (s.load(&padded(gates)), s.load(&padded(ups)));
        s.store(gated(s, activation, gate, up), &mut results);
        gates.copy_from_slice(&results[..gates.len()]);
    }
}

/// activation(gate) * up.
#[inline(always)]
pub(crate) fn gated<S: Simd>(s: S, activation: Activation, mut gate: S::F, mut up: S::F) -> S::F {
    let u = match activation {
        Activation::Silu => gate,
        Activation::ClampedSwiglu => {
            let (low, high) = (s.splat(-CLAMP), s.splat(CLAMP));
            gate = s.select_less(high, gate, high, gate);
            up = s.select_less(high, up, high, s.select_less(up, low, low, up));
            up = s.add(up, s.splat(1.0));
            s.mul(s.splat(CLAMPED_ALPHA), gate)
        }
        Activation::Gelu => {
            let cube = s.mul(s.mul(gate, gate), gate);
            s.mul(s.splat(GELU_SCALE), s.add(gate, s.mul(s.splat(GELU_CUBIC), cube)))
        }
    };
    let negated = s.sub(s.splat(0.0), u);
    let activated = s.div(gate, s.add(s.splat(1.0), exp(s, negated)));
    s.mul(activated, up)
}
