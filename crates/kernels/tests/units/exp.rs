use kernels::exp::*;

fn ulps(got: f32, want: f64) -> f64 {
    let exponent = libm::ilogb(want).max(-126);
    ((got as f64 - want) / libm::exp2(exponent as f64 - 23.0)).abs()
}

#[test]
fn exp_is_within_two_ulp() {
    let mut worst = 0.0f64;
    let (mut x, end) = (UNDERFLOW, OVERFLOW);
    while x <= end {
        worst = worst.max(ulps(exp(x), libm::exp(x as f64)));
        x += 0.000_37;
    }
    assert!(worst <= 2.0, "worst error {worst} ulp");
}

#[test]
fn exp_at_its_edges() {
    assert_eq!(exp(0.0), 1.0);
    assert_eq!(exp(-0.0), 1.0);
    assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    assert_eq!(exp(-88.0), 0.0);
    assert_eq!(exp(89.0), f32::INFINITY);
    assert!(exp(OVERFLOW).is_finite());
    assert!(exp(UNDERFLOW) >= f32::MIN_POSITIVE);
    assert!(exp(f32::NAN).is_nan());
    assert_eq!([tanh(f32::NEG_INFINITY), tanh(-60.0), tanh(0.0), tanh(60.0)], [-1.0, -1.0, 0.0, 1.0]);
}

#[test]
fn activations_match_their_definitions() {
    for i in -400..400 {
        let x = i as f32 * 0.05;
        let wide = x as f64;
        let silu_want = wide / (1.0 + libm::exp(-wide));
        let u = libm::sqrt(2.0 / std::f64::consts::PI) * (wide + 0.044715 * wide * wide * wide);
        let gelu_want = 0.5 * wide * (1.0 + libm::tanh(u));
        assert!((silu(x) as f64 - silu_want).abs() <= 1e-6 * wide.abs().max(1e-3));
        assert!((gelu(x) as f64 - gelu_want).abs() <= 1e-6 * wide.abs().max(1e-3));
        assert!((tanh(x) as f64 - libm::tanh(wide)).abs() <= 2.4e-7);
        assert!((softcap(x, 5.0) as f64 - 5.0 * libm::tanh(wide / 5.0)).abs() <= 2e-6);
        for up in [-9.0, -1.0, 0.5, 30.0] {
            let gate = wide.min(7.0);
            let want = gate / (1.0 + libm::exp(-1.702 * gate)) * (f64::clamp(up, -7.0, 7.0) + 1.0);
            assert!((clamped_swiglu(x, up as f32) as f64 - want).abs() <= 2e-6 * want.abs().max(1e-3));
        }
    }
}
