use kernels::float16::*;

#[test]
fn every_f16_survives_the_round_trip() {
    for h in 0..=u16::MAX {
        let x = f16_to_f32(h);
        if x.is_nan() {
            assert!(f16_to_f32(f32_to_f16(x)).is_nan());
        } else {
            assert_eq!(f32_to_f16(x), h, "{h:04x}");
        }
    }
}

#[test]
fn f16_rounds_to_nearest_even() {
    for h in 0..0x7bffu16 {
        let (a, b) = (f16_to_f32(h) as f64, f16_to_f32(h + 1) as f64);
        let middle = ((a + b) / 2.0) as f32;
        let even = if h & 1 == 0 { h } else { h + 1 };
        assert_eq!(f32_to_f16(middle), even, "{h:04x}");
        assert_eq!(f32_to_f16(f32::from_bits(middle.to_bits() + 1)), h + 1);
        assert_eq!(f32_to_f16(f32::from_bits(middle.to_bits() - 1)), h);
    }
    assert_eq!(f32_to_f16(65519.996), 0x7bff);
    assert_eq!(f32_to_f16(65520.0), 0x7c00);
    assert_eq!(f32_to_f16(-1e30), 0xfc00);
}

#[test]
fn bf16_rounds_and_flushes() {
    assert_eq!(round_bf16(1.0 + 1.0 / 256.0), 1.0);
    assert_eq!(round_bf16(1.0 + 3.0 / 256.0), 1.0 + 2.0 / 128.0);
    assert_eq!(round_bf16(2f32.powi(-61)), 0.0);
    assert_eq!(round_bf16(2f32.powi(-60)), 2f32.powi(-60));
    assert!(round_bf16(f32::NAN).is_nan());
}
