//! The project's own exponential: one sequence of IEEE operations, the same in every ISA.
//!
//! Range reduction to |r| <= ln(2)/2, then the degree-7 polynomial published with the Cephes
//! library (Moshier, 1984-2000), then a scale by a power of two. Nothing is fused.

/// Below this the result would be subnormal: 0 instead.
pub const UNDERFLOW: f32 = -87.336_54;
/// Above this the power of two would overflow: infinity instead.
pub const OVERFLOW: f32 = 88.376_26;
pub(crate) const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts: the first has so few bits that its product with an exponent is exact.
pub(crate) const LN_2_HIGH: f32 = 0.693_359_4;
pub(crate) const LN_2_LOW: f32 = -2.121_944_4e-4;
pub(crate) const POLYNOMIAL: [f32; 6] =
    [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// e^x within 2 ulp; 0 below -87.3365, infinity above 88.3762, NaN for NaN.
pub fn exp(x: f32) -> f32 {
    if x < UNDERFLOW {
        return 0.0;
    }
    if x > OVERFLOW {
        return f32::INFINITY;
    }
    let n = (x * LOG2_E).round_ties_even();
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut p = POLYNOMIAL[0];
    for c in &POLYNOMIAL[1..] {
        p = p * r + c;
    }
    let y = (p * (r * r) + r) + 1.0;
    y * pow2(n)
}

/// 2^n for a whole n in -126..=127.
pub(crate) fn pow2(n: f32) -> f32 {
    f32::from_bits(((n as i32 + 127) as u32) << 23)
}

/// Below this [`power`] gives the same as for it.
pub(crate) const LOWEST_POWER: f32 = -125.0;
/// 1 + 2^-11.1, and so on: what is nearest to 2^x within half an octave, of all polynomials of three numbers.
pub(crate) const POWER: [f32; 3] = [0.238_428_94, 0.703_448, 1.000_443_1];

/// 2^x for x that is not over 0, within 0.18%: for weights that are only compared. Never less than 2^-125.5.
pub fn power(x: f32) -> f32 {
    let x = if x > LOWEST_POWER { x } else { LOWEST_POWER };
    let n = x.round_ties_even();
    let r = x - n;
    ((POWER[0] * r + POWER[1]) * r + POWER[2]) * pow2(n)
}

/// x / (1 + e^-x): SiLU, also the gate of SwiGLU.
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// tanh(x) as 1 - 2 / (1 + e^2x), within 2^-22.
pub fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (1.0 + exp(x + x))
}

/// Holds x within -cap..cap, smoothly: cap * tanh(x / cap), the quotient as a product with 1 / cap
/// (Gemma Team, 2024, arXiv:2408.00118).
pub fn softcap(x: f32, cap: f32) -> f32 {
    cap * tanh(x * (1.0 / cap))
}

/// 2 sqrt(2 / pi) and the cubic's weight in the tanh form of GELU.
pub(crate) const GELU_SCALE: f32 = 1.595_769;
pub(crate) const GELU_CUBIC: f32 = 0.044_715;

/// GELU in its tanh form (Hendrycks and Gimpel, 2016, arXiv:1606.08415), as x * sigmoid(2u).
pub fn gelu(x: f32) -> f32 {
    let u = GELU_SCALE * (x + GELU_CUBIC * ((x * x) * x));
    x / (1.0 + exp(-u))
}

/// What gpt-oss's gate is multiplied by within the sigmoid, and what both sides are clamped to.
pub(crate) const CLAMPED_ALPHA: f32 = 1.702;
pub(crate) const CLAMP: f32 = 7.0;

/// gpt-oss's SwiGLU: min(gate, 7) * sigmoid(1.702 * that) * (up within -7..=7, plus 1).
pub fn clamped_swiglu(gate: f32, up: f32) -> f32 {
    let gate = if gate > CLAMP { CLAMP } else { gate };
    let up = up.clamp(-CLAMP, CLAMP);
    gate / (1.0 + exp(-(CLAMPED_ALPHA * gate))) * (up + 1.0)
}
