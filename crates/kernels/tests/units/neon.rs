use std::arch::aarch64::int32x4_t;

use kernels::float16::{f16_to_f32, f32_to_f16};
use kernels::simd::neon::Neon;
use kernels::simd::values::{Bytes, E2m1, Five, Four, Iq4, Six, Three, Two, Values};
use kernels::simd::{ActBlock, LANES, QK, Simd};

/// Both forms where the CPU has both.
fn check_dots<V: Values, const DOT: bool, const C: usize>(w: &[u8], x: &[[i8; QK]; C]) {
    let Some(token) = Neon::<DOT>::detect() else {
        println!("no dot product instructions: their form was not run");
        return;
    };
    let blocks = x.map(|values| ActBlock::new(1.0, values));
    let [got] = token.dot::<V, 1, C>([w], blocks.each_ref());
    for c in 0..C {
        for lane in 0..LANES {
            let mut want = 0;
            for (k, &x) in x[c].iter().enumerate() {
                let group = lanes_of(V::group(token, w, k / 4));
                want += (group[lane].to_le_bytes()[k % 4] as i32 - V::OFFSET) * x as i32;
            }
            assert_eq!(lanes_of(got[c])[lane], want, "dot {DOT}, column {c} of {C}, lane {lane}");
        }
    }
}

fn lanes_of(words: [int32x4_t; 4]) -> [i32; LANES] {
    // SAFETY: sixteen i32 fill the registers exactly.
    unsafe { std::mem::transmute(words) }
}

fn check_values<V: Values>() {
    let mixed = |i: usize| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8;
    for byte in [None, Some(0x00), Some(0xff), Some(0x80), Some(0x0f), Some(0xf0)] {
        let w: Vec<u8> = (0..V::LAYOUT.bytes()).map(|i| byte.unwrap_or(mixed(i))).collect();
        let any = std::array::from_fn(|k| (mixed(k + 2000) as i8).max(-127));
        let turns = std::array::from_fn(|k| if mixed(k + 3000) & 1 == 0 { 127 } else { -127 });
        let x = [[-127; QK], [127; QK], any, turns];
        check_dots::<V, false, 4>(&w, &x);
        check_dots::<V, true, 4>(&w, &x);
        for x in x {
            check_dots::<V, false, 1>(&w, &[x]);
            check_dots::<V, true, 1>(&w, &[x]);
        }
    }
}

#[test]
fn both_forms_of_the_dot_products_are_exact() {
    check_values::<Bytes>();
    check_values::<Four<8>>();
    check_values::<Five<16>>();
    check_values::<Six>();
    check_values::<Three>();
    check_values::<Two>();
    check_values::<Iq4>();
    check_values::<E2m1>();
}

#[test]
fn f16_conversions_equal_the_plain_ones() {
    let token = Neon::<false>::detect().unwrap();
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
            token.store_f16(token.load(&x), &mut back);
            assert_eq!(back, x.map(f32_to_f16), "{first:04x} + {offset:x}");
        }
    }
}
