use kernels::float16::round_f16;
use kernels::quantize::*;
use proptest::prelude::*;

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// What comes back after writing and reading, and the deviation that was reported.
fn round_trip(target: Target, values: &[f32]) -> (Vec<f32>, Deviation) {
    let mut out = vec![0xa5; target.bytes(values.len())];
    let deviation = quantize(Source::F32, target, &bytes_of(values), &mut out).expect("finite values");
    let mut back = vec![f32::NAN; values.len()];
    decode(target, &out, &mut back);
    (back, deviation)
}

fn relative(deviation: Deviation) -> f64 {
    (deviation.errors / deviation.squares).sqrt()
}

/// SplitMix64, and twelve uniform numbers for a normal one.
fn normals(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u32 << 24) as f32
    };
    (0..count).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
}

const BLOCKS: [Target; 4] = [Target::Q8_0, Target::Q4_0, Target::Q4_K, Target::Q6_K];

/// The worst relative error of a block: half a step of the coarsest reasonable choice, and the
/// rounding of the scales.
fn bound(target: Target, peak: f32) -> f32 {
    match target {
        Target::F32 => 0.0,
        Target::F16 => peak / 2048.0 + f32::from_bits(0x3380_0000),
        Target::BF16 => peak / 256.0 + f32::MIN_POSITIVE,
        Target::Q8_0 => peak / 127.0 * 0.56 + 1e-7,
        // Cutting off a peak that stands out may cost it, but never all of it.
        Target::Q4_0 => peak * 0.35 + 1e-7,
        Target::Q4_K => peak * 0.35 + 1e-6,
        Target::Q6_K => peak * 0.10 + 1e-6,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_value_comes_back_within_the_formats_bound(seed: u64, exponent in -16i32..10, outlier in 0usize..512) {
        let mut values = normals(seed, 256);
        let unit = 2f32.powi(exponent);
        values.iter_mut().for_each(|x| *x *= unit);
        if let Some(x) = values.get_mut(outlier) {
            *x *= 8.0;
        }
        for target in Target::ALL {
            let (back, _) = round_trip(target, &values);
            // A K block's integers share one scale: its bound is that of the whole block.
            let peak = values.iter().fold(0.0f32, |peak, x| peak.max(x.abs()));
            for (x, y) in values.iter().zip(&back) {
                prop_assert!((x - y).abs() <= bound(target, peak), "{target:?}: {x} came back as {y}, peak {peak}");
            }
        }
    }

    #[test]
    fn the_reported_deviation_is_that_of_the_bytes(seed: u64) {
        let values = normals(seed, 512);
        for target in Target::ALL {
            let (back, deviation) = round_trip(target, &values);
            let errors: f64 = values.iter().zip(&back).map(|(&x, &y)| (x as f64 - y as f64).powi(2)).sum();
            prop_assert!((errors - deviation.errors).abs() <= 1e-9 * errors.max(1e-30));
        }
    }

    #[test]
    fn what_is_read_as_half_precision_stays_as_it_is(bits: u16) {
        for (source, target) in [(Source::F16, Target::F16), (Source::BF16, Target::BF16)] {
            let mut out = [0; 2];
            match quantize(source, target, &bits.to_le_bytes(), &mut out) {
                Ok(_) => prop_assert_eq!(u16::from_le_bytes(out), bits),
                Err(fault) => prop_assert_eq!(fault, Fault::NonFinite { element: 0 }),
            }
        }
    }
}

#[test]
fn normal_values_lose_no_more_than_measured() {
    let values = normals(1, 256 * 64);
    for (target, most) in [
        (Target::F16, 0.0003),
        (Target::BF16, 0.0017),
        (Target::Q8_0, 0.0056),
        (Target::Q4_0, 0.0875),
        (Target::Q4_K, 0.0705),
        (Target::Q6_K, 0.0167),
    ] {
        let (_, deviation) = round_trip(target, &values);
        assert!(relative(deviation) <= most, "{target:?}: {}", relative(deviation));
    }
}

#[test]
fn q4_0_is_never_worse_than_its_plain_definition() {
    for seed in 0..200 {
        let values = normals(seed, 32);
        let peak = values.iter().fold(0.0f32, |peak, &x| if x.abs() > peak.abs() { x } else { peak });
        let d = round_f16(peak / -8.0);
        let plain: f64 = values
            .iter()
            .map(|&x| (x as f64 - (d * (x / d).round_ties_even().clamp(-8.0, 7.0)) as f64).powi(2))
            .sum();
        let (_, deviation) = round_trip(Target::Q4_0, &values);
        assert!(deviation.errors <= plain * 1.0001, "seed {seed}: {} against {plain}", deviation.errors);
    }
}

#[test]
fn zeros_come_back_as_zeros() {
    for target in Target::ALL {
        for zero in [0.0f32, -0.0] {
            let (back, deviation) = round_trip(target, &[zero; 256]);
            assert!(back.iter().all(|&x| x == 0.0), "{target:?}");
            assert_eq!(deviation, Deviation::default());
        }
    }
}

#[test]
fn one_value_throughout_comes_back_nearly_exact() {
    for target in BLOCKS {
        for value in [1.0f32, -1.0, 0.37, -0.37, 1234.5, -1234.5, 1e-3, -1e-3] {
            let (back, _) = round_trip(target, &[value; 256]);
            for y in back {
                assert!((y - value).abs() <= value.abs() * 0.003, "{target:?}: {value} came back as {y}");
            }
        }
    }
}

#[test]
fn a_single_value_among_zeros_survives() {
    for target in BLOCKS {
        for (place, value) in [(0, 3.0f32), (255, -3.0), (100, 0.01)] {
            let mut values = [0.0; 256];
            values[place] = value;
            let (back, _) = round_trip(target, &values);
            for (i, y) in back.into_iter().enumerate() {
                let want = values[i];
                assert!((y - want).abs() <= value.abs() * 0.005, "{target:?} [{i}]: {want} came back as {y}");
            }
        }
    }
}

#[test]
fn huge_and_tiny_values_stay_finite_and_in_proportion() {
    for target in BLOCKS {
        let huge: Vec<f32> = normals(2, 256).iter().map(|x| x / 8.0 * target.reach()).collect();
        let (back, deviation) = round_trip(target, &huge);
        assert!(back.iter().all(|x| x.is_finite()), "{target:?}");
        assert!(relative(deviation) < 0.1, "{target:?}: {}", relative(deviation));
        // Below the smallest scale of F16, 6e-8, nothing can be held; the nearest is zero or one step.
        for exponent in [-20, -24, -30, -60, -126, -149] {
            let tiny: Vec<f32> = normals(3, 256).iter().map(|x| x * 2f32.powi(exponent)).collect();
            let (back, _) = round_trip(target, &tiny);
            for (x, y) in tiny.iter().zip(back) {
                assert!(
                    (x - y).abs() <= 6e-8 + 0.2 * 2f32.powi(exponent) * 4.0,
                    "{target:?}: {x} came back as {y}"
                );
            }
        }
    }
}

#[test]
fn what_cannot_be_held_is_refused_by_its_place() {
    for target in Target::ALL {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = normals(4, 1024);
            values[777] = bad;
            let mut out = vec![0; target.bytes(1024)];
            let result = quantize(Source::F32, target, &bytes_of(&values), &mut out);
            assert_eq!(result, Err(Fault::NonFinite { element: 777 }), "{target:?}");
        }
    }
    for target in Target::ALL.into_iter().filter(|&target| target != Target::F32) {
        let mut values = normals(5, 512);
        values[300] = -3e38;
        let mut out = vec![0; target.bytes(512)];
        let result = quantize(Source::F32, target, &bytes_of(&values), &mut out);
        if target == Target::BF16 {
            assert!(result.is_ok());
            continue;
        }
        assert_eq!(result, Err(Fault::TooLarge { element: 300, value: -3e38 }), "{target:?}");
    }
}

/// The bits of a fixed input: they must be these on every machine.
#[test]
fn the_bits_are_the_same_everywhere() {
    let values = normals(6, 256 * 16);
    let digest = |target: Target| {
        let mut out = vec![0; target.bytes(values.len())];
        quantize(Source::F32, target, &bytes_of(&values), &mut out).expect("finite values");
        // FNV-1a.
        out.iter()
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, &byte| (hash ^ byte as u64).wrapping_mul(0x100_0000_01b3))
    };
    assert_eq!(
        BLOCKS.map(digest),
        [14289106186140076934, 14855920510637084986, 4603109096601028499, 15808772267706540272]
    );
}
