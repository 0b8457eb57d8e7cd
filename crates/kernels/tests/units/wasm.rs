use kernels::float16::{f16_to_f32, f32_to_f16};
use kernels::simd::wasm::{Wasm, WordDots};
use kernels::simd::{LANES, Simd};

#[test]
fn f16_conversions_equal_the_plain_ones() {
    let token = Wasm::<WordDots>::detect().unwrap();
    let mut back = [0; LANES];
    let mut wide = [0.0; LANES];
    for first in (0..=u16::MAX).step_by(LANES) {
        let halves: [u16; LANES] = std::array::from_fn(|lane| first + lane as u16);
        token.store(token.load_f16(&halves), &mut wide);
        let plain = halves.map(f16_to_f32);
        assert_eq!(wide.map(f32::to_bits), plain.map(f32::to_bits), "{first:04x}");
        // The value itself, and the floats around the middle between it and the next one.
        for offset in [0, 0xfff, 0x1000, 0x1001] {
            let x = plain.map(|x| f32::from_bits(x.to_bits() + offset));
            if x.iter().any(|x| x.is_nan()) {
                continue;
            }
            token.store_f16(token.load(&x), &mut back);
            assert_eq!(back, x.map(f32_to_f16), "{first:04x} + {offset:x}");
        }
    }
}

#[test]
fn large_and_infinite_floats_become_infinite_halves() {
    let token = Wasm::<WordDots>::detect().unwrap();
    let x = [65519.996, 65520.0, 1e30, f32::INFINITY].map(|x| [x, -x, x, -x]).concat();
    let x: [f32; LANES] = x.try_into().unwrap();
    let mut back = [0; LANES];
    token.store_f16(token.load(&x), &mut back);
    assert_eq!(back, x.map(f32_to_f16));
    let nan = [f32::NAN; LANES];
    token.store_f16(token.load(&nan), &mut back);
    assert!(back.iter().all(|h| h & 0x7c00 == 0x7c00), "{back:x?}");
}
