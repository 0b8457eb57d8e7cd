//! Rotary position embedding angles (Su et al., 2021, arXiv:2104.09864) with linear, per-frequency
//! and YaRN scaling (Peng et al., 2023, arXiv:2309.00071), in f64 by `libm`, rounded to f32 once.

use crate::plan::Rope;

/// Frequencies of one rope of a plan.
pub struct Frequencies {
    per_position: Vec<f64>,
    magnitude: f64,
}

impl Frequencies {
    /// `factors`: the rope's per-frequency divisors, where it has them (`dims / 2` of them).
    pub fn new(rope: &Rope, factors: Option<&[f32]>) -> Self {
        let dims = rope.dims as f64;
        let scale = 1.0 / rope.factor;
        let (low, high) = correction_range(rope);
        let frequency = |i: usize| {
            let divisor = factors.map_or(1.0, |f| f[i] as f64);
            let extrapolated = libm::pow(rope.base, -2.0 * i as f64 / dims) / divisor;
            let ramp = (i as f64 - low) / (high - low).max(0.001);
            let mix = (1.0 - ramp.clamp(0.0, 1.0)) * rope.ext_factor;
            extrapolated * scale * (1.0 - mix) + extrapolated * mix
        };
        // DeepSeek's YaRN leaves rotations their length and stretches whole scores: see `score_scale`.
        let plain = rope.ext_factor == 0.0 || rope.log_multiplier.is_some();
        let stretch = if plain { 1.0 } else { 1.0 + 0.1 * libm::log(rope.factor.max(1.0)) };
        Self {
            per_position: (0..rope.dims / 2).map(frequency).collect(),
            magnitude: rope.attn_factor * stretch,
        }
    }

    pub fn pairs(&self) -> usize {
        self.per_position.len()
    }

    /// Writes (cos, sin) of each pair at a position.
    pub fn angles(&self, position: usize, out: &mut [[f32; 2]]) {
        for (out, frequency) in out.iter_mut().zip(&self.per_position) {
            let (sin, cos) = libm::sincos(position as f64 * frequency);
            *out = [(cos * self.magnitude) as f32, (sin * self.magnitude) as f32];
        }
    }
}

/// What attention scores are multiplied by, for the queries' and the keys' part: see `Rope.logMultiplier`.
pub fn score_scale(rope: &Rope) -> f64 {
    let log = libm::log(rope.factor.max(1.0));
    let stretch = rope.log_multiplier.map_or(1.0, |k| rope.attn_factor * (1.0 + k * log));
    stretch * stretch
}

/// The pairs between which YaRN goes from extrapolation to interpolation.
fn correction_range(rope: &Rope) -> (f64, f64) {
    let dims = rope.dims as f64;
    let pair = |rotations: f64| {
        let wavelength = rope.original_context as f64 / (rotations * 2.0 * std::f64::consts::PI);
        dims * libm::log(wavelength) / (2.0 * libm::log(rope.base))
    };
    let (low, high) = (pair(rope.beta_fast), pair(rope.beta_slow));
    let (low, high) = if rope.exact_ramp { (low, high) } else { (libm::floor(low), libm::ceil(high)) };
    (low.max(0.0), high.min(dims - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Layout;

    fn plain(dims: usize) -> Rope {
        Rope {
            dims,
            base: 10_000.0,
            layout: Layout::Neox,
            factor: 1.0,
            ext_factor: 0.0,
            attn_factor: 1.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_context: 4096,
            exact_ramp: false,
            factors: None,
            log_multiplier: None,
        }
    }

    fn angles(rope: &Rope, factors: Option<&[f32]>, position: usize) -> Vec<[f32; 2]> {
        let frequencies = Frequencies::new(rope, factors);
        let mut out = vec![[0.0; 2]; frequencies.pairs()];
        frequencies.angles(position, &mut out);
        out
    }

    fn assert_close(got: &[[f32; 2]], want: impl Fn(usize) -> f64, magnitude: f64) {
        for (i, [cos, sin]) in got.iter().enumerate() {
            let theta = want(i);
            assert!((*cos as f64 - magnitude * theta.cos()).abs() < 1e-6, "pair {i}");
            assert!((*sin as f64 - magnitude * theta.sin()).abs() < 1e-6, "pair {i}");
        }
    }

    #[test]
    fn plain_angles() {
        assert_close(&angles(&plain(64), None, 77), |i| 77.0 * 10_000f64.powf(-(i as f64) / 32.0), 1.0);
    }

    #[test]
    fn linear_scaling_divides_positions() {
        let rope = Rope { factor: 4.0, ..plain(64) };
        assert_eq!(angles(&rope, None, 400), angles(&plain(64), None, 100));
    }

    #[test]
    fn factors_divide_frequencies() {
        let factors: Vec<f32> = (0..32).map(|i| 1.0 + i as f32).collect();
        let want = |i: usize| 9.0 * 10_000f64.powf(-(i as f64) / 32.0) / (1.0 + i as f64);
        assert_close(&angles(&plain(64), Some(&factors), 9), want, 1.0);
    }

    #[test]
    fn a_log_multiplier_stretches_scores_instead_of_rotations() {
        let yarn = Rope { factor: 40.0, ext_factor: 1.0, ..plain(64) };
        assert_eq!(score_scale(&yarn), 1.0);
        let rope = Rope { log_multiplier: Some(0.0707), ..yarn.clone() };
        // DeepSeek-V2: 0.0707 ln 40 + 1, squared.
        assert!((score_scale(&rope) - 1.589_626).abs() < 1e-5, "{}", score_scale(&rope));
        let length = |rope: &Rope| angles(rope, None, 5)[0].map(f64::from).map(|x| x * x).iter().sum::<f64>();
        assert!((length(&rope) - 1.0).abs() < 1e-6);
        assert!((length(&yarn) - (1.0 + 0.1 * 40f64.ln()).powi(2)).abs() < 1e-5);
    }

    #[test]
    fn a_ramp_begins_at_whole_pairs_or_where_its_formula_says() {
        // gpt-oss: 32 rotations end at pair 8.09, one at 17.40.
        let rope = Rope { base: 150_000.0, factor: 32.0, ext_factor: 1.0, ..plain(64) };
        let range = |exact_ramp: bool| correction_range(&Rope { exact_ramp, ..rope.clone() });
        assert_eq!(range(false), (8.0, 18.0));
        let (low, high) = range(true);
        assert!((low - 8.0929).abs() < 1e-3 && (high - 17.3975).abs() < 1e-3, "{low} {high}");
    }

    #[test]
    fn a_shorter_context_stretches_nothing() {
        let rope = Rope { factor: 0.5, ext_factor: 1.0, ..plain(64) };
        let [cos, sin] = angles(&rope, None, 5)[0].map(f64::from);
        assert!((cos * cos + sin * sin - 1.0).abs() < 1e-6);
        assert_eq!(score_scale(&Rope { log_multiplier: Some(0.1), ..rope }), 1.0);
    }

    #[test]
    fn yarn_keeps_high_and_interpolates_low_frequencies() {
        let rope = Rope { factor: 8.0, ext_factor: 1.0, ..plain(128) };
        let got = angles(&rope, None, 5);
        let base = |i: usize| 5.0 * 10_000f64.powf(-(i as f64) / 64.0);
        let magnitude = 1.0 + 0.1 * 8f64.ln();
        // 32 rotations within 4,096 positions end at pair 20.9; one rotation at pair 45.03.
        assert_close(&got[..20], base, magnitude);
        let low: Vec<[f32; 2]> = got[46..].to_vec();
        assert_close(&low, |i| base(i + 46) / 8.0, magnitude);
    }
}
