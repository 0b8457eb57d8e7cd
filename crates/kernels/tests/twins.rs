//! Every ISA's kernels equal the scalar reference bit for bit, on odd shapes and extreme values.

#![cfg_attr(all(target_family = "wasm", target_feature = "relaxed-simd"), feature(asm_experimental_arch))]

mod common;

use common::{Random, bits, fast, scalar};
use kernels::acts::{ActStore, Acts, NonFinite};
use kernels::float16::{BF16_TINY, f16_to_f32, f32_to_f16};
use kernels::kernels::matmul::{GluJob, LinearJob};
use kernels::kernels::rows::Activation;
use kernels::packed::{ActKind, Format, Matrix, Shape, pack_tile};
use kernels::simd::LANES;
use kernels::table::{KernelTable, available};
use kernels::view::Shared;
use kernels::ways::{WAYS, choose};
use proptest::prelude::*;

#[cfg(all(target_family = "wasm", target_feature = "relaxed-simd"))]
kernels::wasm_functions!("../src/simd/wasm_slab.s");

const KINDS: [ActKind; 9] = [
    ActKind::F32,
    ActKind::F16,
    ActKind::BF16,
    ActKind::Q8,
    ActKind::Q8K,
    ActKind::F16Pair,
    ActKind::BF16Pair,
    ActKind::Q8Pair,
    ActKind::Q8KPair,
];

const EXTREMES: [u8; 4] = [0x80, 0x00, 0xff, 0x7f];

impl Random {
    /// A matrix as a file has it, scales finite, every quantised value possible.
    fn matrix(&mut self, format: Format, rows: usize, cols: usize) -> Matrix {
        let source: Vec<u8> =
            (0..rows * cols / format.block()).flat_map(|_| self.file_block(format)).collect();
        packed(format, rows, cols, &source)
    }

    /// A block as a file has it: random bytes, or all the same extreme one, around its scales.
    fn file_block(&mut self, format: Format) -> Vec<u8> {
        let extreme = EXTREMES.get(self.next() as usize % 16).copied();
        self.block_of(format, extreme)
    }

    fn block_of(&mut self, format: Format, extreme: Option<u8>) -> Vec<u8> {
        let mut block: Vec<u8> =
            (0..format.block_bytes()).map(|_| extreme.unwrap_or(self.next() as u8)).collect();
        if format == Format::MXFP4 {
            block[0] =
                [0, 1, 2].get(self.next() as usize % 16).copied().unwrap_or(100 + self.next() as u8 % 50);
        }
        let floats: &[usize] = match format {
            Format::F32 | Format::BF16 | Format::MXFP4 => &[],
            Format::Q4_1 | Format::Q5_1 | Format::Q4_K | Format::Q5_K => &[0, 2],
            Format::Q2_K => &[80, 82],
            Format::Q3_K => &[108],
            Format::Q6_K => &[208],
            _ => &[0],
        };
        for &at in floats {
            block[at..at + 2].copy_from_slice(&f32_to_f16(self.float()).to_le_bytes());
        }
        match format {
            Format::F32 => self.float().to_le_bytes().to_vec(),
            Format::BF16 => ((self.float().to_bits() >> 16) as u16).to_le_bytes().to_vec(),
            _ => block,
        }
    }
}

/// A matrix of the rows of a file.
fn packed(format: Format, rows: usize, cols: usize, source: &[u8]) -> Matrix {
    let mut matrix = Matrix::zeroed(Shape { format, rows, cols }).unwrap();
    let tile_bytes = format.tile_bytes(cols);
    let tiles = matrix.shared_tiles();
    for (tile, rows) in source.chunks(format.row_bytes(cols) * LANES).enumerate() {
        // SAFETY: one thread.
        pack_tile(format, cols, rows, unsafe { tiles.write(tile * tile_bytes..(tile + 1) * tile_bytes) });
    }
    matrix
}

fn prepare_all(
    table: &KernelTable,
    kind: ActKind,
    x: &[f32],
    k: usize,
    store: &mut ActStore,
) -> Result<(), NonFinite> {
    let shared = store.shared();
    for (row, x) in x.chunks_exact(k).enumerate() {
        // SAFETY: one thread.
        (table.prepare)(kind, x, unsafe { shared.row(kind, row, k) })?;
    }
    Ok(())
}

/// What activations a format takes, in one part or in two.
fn kind_of(format: Format, precise: bool) -> ActKind {
    let kind = format.activations();
    if precise { kind.precise() } else { kind }
}

fn run_linear(
    table: &KernelTable,
    w: &Matrix,
    x: &[f32],
    precise: bool,
    bias: Option<&[f32]>,
    start: &[f32],
) -> Vec<f32> {
    run_prepared(table, w, x, precise, |acts| acts, bias, start)
}

/// The product with what `of` takes of the activations.
fn run_prepared(
    table: &KernelTable,
    w: &Matrix,
    x: &[f32],
    precise: bool,
    of: fn(Acts) -> Acts,
    bias: Option<&[f32]>,
    start: &[f32],
) -> Vec<f32> {
    let (kind, k) = (kind_of(w.format(), precise), w.cols());
    let count = x.len() / k;
    let mut store = ActStore::new(count, k).unwrap();
    prepare_all(table, kind, x, k, &mut store).unwrap();
    // SAFETY: one thread.
    run_stored(table, w, of(unsafe { store.shared().all(kind, count, k) }), bias, start)
}

/// The product with what a store has.
fn run_stored(table: &KernelTable, w: &Matrix, acts: Acts, bias: Option<&[f32]>, start: &[f32]) -> Vec<f32> {
    let mut out = start.to_vec();
    (table.linear)(&LinearJob {
        weight: w,
        tiles: 0..w.tiles(),
        acts,
        bias,
        add: true,
        out: Shared::new(&mut out),
        width: w.rows(),
    });
    out
}

fn run_glu(
    table: &KernelTable,
    gate: &Matrix,
    up: &Matrix,
    x: &[f32],
    precise: bool,
    activation: Activation,
    biases: [Option<&[f32]>; 2],
) -> Vec<f32> {
    let (kind, k) = (kind_of(gate.format(), precise), gate.cols());
    let count = x.len() / k;
    let mut store = ActStore::new(count, k).unwrap();
    prepare_all(table, kind, x, k, &mut store).unwrap();
    let mut out = vec![0.0; count * gate.rows()];
    (table.glu)(&GluJob {
        gate,
        up,
        biases,
        tiles: 0..gate.tiles(),
        // SAFETY: one thread.
        acts: unsafe { store.shared().all(kind, count, k) },
        activation,
        out: Shared::new(&mut out),
        width: gate.rows(),
    });
    out
}

/// Every ISA multiplies random weights and activations as the scalar reference does.
fn linear_agrees(
    random: &mut Random,
    format: Format,
    [rows, cols, count]: [usize; 3],
    biased: bool,
    precise: bool,
) -> Result<(), TestCaseError> {
    let w = random.matrix(format, rows, cols);
    let x = random.floats(cols * count);
    let bias = random.floats(rows);
    let start = random.floats(rows * count);
    let bias = biased.then_some(bias.as_slice());
    let want = run_linear(scalar(), &w, &x, precise, bias, &start);
    for table in fast() {
        let got = run_linear(table, &w, &x, precise, bias, &start);
        prop_assert_eq!(bits(&got), bits(&want), "{}", table.isa);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn linear(
        seed: u64,
        format in prop::sample::select(Format::ALL.to_vec()),
        rows in 1usize..70,
        blocks in 1usize..40,
        ragged in 0usize..32,
        count in 1usize..20,
        biased: bool,
        precise: bool,
    ) {
        let mut random = Random(seed);
        let cols = if format.block() == 1 { blocks * 32 + ragged } else { (blocks * 32).next_multiple_of(format.block()) };
        linear_agrees(&mut random, format, [rows, cols, count], biased, precise)?;
    }

    /// The values of precise activations are plain activations.
    #[test]
    fn linear_of_values_alone(
        seed: u64,
        format in prop::sample::select(Format::ALL.to_vec()),
        count in 1usize..40,
    ) {
        let mut random = Random(seed);
        let cols = format.block().max(64);
        let w = random.matrix(format, 33, cols);
        let (x, start) = (random.floats(cols * count), random.floats(33 * count));
        let want = run_linear(scalar(), &w, &x, false, None, &start);
        for table in available() {
            let got = run_prepared(table, &w, &x, true, |acts| acts.plain(), None, &start);
            prop_assert_eq!(bits(&got), bits(&want), "{}", table.isa);
        }
    }

    /// Products computed apart, then multiplied, are what one kernel gives.
    #[test]
    fn glu_in_parts(
        seed: u64,
        format in prop::sample::select(Format::ALL.to_vec()),
        rows in 1usize..40,
        count in 1usize..10,
        activation in prop::sample::select(vec![Activation::Silu, Activation::Gelu, Activation::ClampedSwiglu]),
    ) {
        let mut random = Random(seed);
        let cols = format.block().max(64);
        let (gate, up) = (random.matrix(format, rows, cols), random.matrix(format, rows, cols));
        let x = random.floats(cols * count);
        let zeros = vec![0.0; rows * count];
        let want = run_glu(scalar(), &gate, &up, &x, false, activation, [None, None]);
        for table in available() {
            let [mut gates, ups] = [&gate, &up].map(|w| run_linear(table, w, &x, false, None, &zeros));
            (table.gate_rows)(activation, &mut gates, &ups);
            prop_assert_eq!(bits(&gates), bits(&want), "{}", table.isa);
        }
    }

    #[test]
    fn rms_norm(seed: u64, width in 1usize..300, runs in 1usize..4) {
        let mut random = Random(seed);
        let (x, weight) = (random.floats(width * runs), random.floats(width));
        let mut want = x.clone();
        (scalar().rms_norm)(&mut want, &weight, 1e-5);
        for table in fast() {
            let mut got = x.clone();
            (table.rms_norm)(&mut got, &weight, 1e-5);
            prop_assert_eq!(bits(&got), bits(&want), "{}", table.isa);
        }
    }

    #[test]
    fn softcap(seed: u64, width in 1usize..100, cap in prop::sample::select(vec![1e-3f32, 30.0, 1e4])) {
        let mut random = Random(seed);
        let x = random.floats(width);
        let mut want = x.clone();
        (scalar().softcap)(&mut want, cap);
        for table in fast() {
            let mut got = x.clone();
            (table.softcap)(&mut got, cap);
            prop_assert_eq!(bits(&got), bits(&want), "{}", table.isa);
        }
    }
}

/// Large matrices matter to tiles, which x86-64 alone has; elsewhere these tests run in emulators.
const LARGE_CASES: u32 = if cfg!(target_arch = "x86_64") { 256 } else { 48 };

proptest! {
    #![proptest_config(ProptestConfig { cases: LARGE_CASES, failure_persistence: None, ..ProptestConfig::default() })]

    /// More columns than a kernel takes at once.
    #[test]
    fn linear_of_many_columns(
        seed: u64,
        format in prop::sample::select(Format::ALL.to_vec()),
        rows in 1usize..170,
        blocks in 1usize..20,
        count in prop_oneof![30usize..50, 140usize..300],
        precise: bool,
    ) {
        let mut random = Random(seed);
        let cols = (blocks * 32).next_multiple_of(format.block());
        linear_agrees(&mut random, format, [rows, cols, count], false, precise)?;
    }

    #[test]
    fn glu(
        seed: u64,
        format in prop::sample::select(Format::ALL.to_vec()),
        other in prop::sample::select(Format::ALL.to_vec()),
        rows in 1usize..90,
        count in prop_oneof![1usize..20, 30usize..40, 140usize..150],
        activation in prop::sample::select(vec![Activation::Silu, Activation::Gelu, Activation::ClampedSwiglu]),
        scale in prop::sample::select(vec![0.01f32, 1.0]),
        biased: [bool; 2],
        precise: bool,
    ) {
        let mut random = Random(seed);
        let cols = format.block().max(64);
        // Both take the same activations.
        let other = if other.activations() == format.activations() { other } else { format };
        let (gate, up) = (random.matrix(format, rows, cols), random.matrix(other, rows, cols));
        let x: Vec<f32> = random.floats(cols * count).iter().map(|x| x * scale).collect();
        let biases = [random.floats(rows), random.floats(rows)];
        let biases = [0, 1].map(|i| biased[i].then_some(biases[i].as_slice()));
        let want = run_glu(scalar(), &gate, &up, &x, precise, activation, biases);
        for table in fast() {
            let got = run_glu(table, &gate, &up, &x, precise, activation, biases);
            prop_assert_eq!(bits(&got), bits(&want), "{}", table.isa);
        }
    }
}

/// Whole bytes and activations as large as they get, with more columns and blocks than are unpacked at once.
#[test]
fn bytes_of_any_size_with_many_columns() {
    let (rows, cols, count) = (LANES, 32 * 37, 43);
    for weights in [[0x80; 32], [0x7f; 32], std::array::from_fn(|i| [0x80, 0x7f, 0, 0xff, 1][i % 5])] {
        let block = [[0, 0x3c].as_slice(), &weights].concat();
        let w = packed(Format::Q8_0, rows, cols, &block.repeat(rows * cols / 32));
        for at in [|_| 1.0, |_| -1.0, |i| [1.0, -1.0, 0.0][i % 3]] as [fn(usize) -> f32; 3] {
            let x: Vec<f32> = (0..cols * count).map(at).collect();
            let start = vec![0.0; rows * count];
            let want = run_linear(scalar(), &w, &x, false, None, &start);
            for table in fast() {
                let got = run_linear(table, &w, &x, false, None, &start);
                assert_eq!(bits(&got), bits(&want), "{}", table.isa);
            }
        }
    }
}

/// Sums of 16 bits, where an ISA has them, are largest when the halves of a block, or pairs of values, have opposite signs.
#[test]
fn extreme_bytes_of_every_format_with_many_columns() {
    let mut random = Random(91);
    let (rows, cols, count) = (LANES, 512, 13);
    let quantised = Format::ALL.into_iter().filter(|format| format.activations().quantised());
    for format in quantised {
        for extreme in EXTREMES {
            let blocks = rows * cols / format.block();
            let source: Vec<u8> = (0..blocks).flat_map(|_| random.block_of(format, Some(extreme))).collect();
            let w = packed(format, rows, cols, &source);
            for period in [1, 2, 4, 8, 16, 32, 64] {
                let sign = |i: usize| if (i / period).is_multiple_of(2) { -1.0 } else { 1.0 };
                let x: Vec<f32> = (0..cols * count).map(|i| sign(i + i / cols * period / 2)).collect();
                let start = vec![0.0; rows * count];
                let want = run_linear(scalar(), &w, &x, false, None, &start);
                for table in fast() {
                    let got = run_linear(table, &w, &x, false, None, &start);
                    assert_eq!(bits(&got), bits(&want), "{} {format:?} {extreme} {period}", table.isa);
                }
            }
        }
    }
}

/// Files may have them: the row's products are infinite, and those of the rows beside it what they were.
#[test]
fn an_infinite_scale() {
    let mut random = Random(57);
    let (rows, cols) = (LANES + 5, 32 * 37);
    for format in [Format::Q4_0, Format::Q8_0] {
        let mut source: Vec<u8> = (0..rows * 37).flat_map(|_| random.file_block(format)).collect();
        let at = (3 * 37 + 33) * format.block_bytes();
        source[at..at + 2].copy_from_slice(&0x7c00_u16.to_le_bytes());
        let w = packed(format, rows, cols, &source);
        for (count, precise) in [(1, false), (1, true), (2, false), (5, false), (13, false)] {
            let (x, start) = (random.floats(cols * count), vec![0.0; rows * count]);
            let want = run_linear(scalar(), &w, &x, precise, None, &start);
            assert!(want.iter().enumerate().all(|(i, y)| y.is_infinite() == (i % rows == 3)), "{want:?}");
            for table in fast() {
                let got = run_linear(table, &w, &x, precise, None, &start);
                assert_eq!(bits(&got), bits(&want), "{} {format:?} {count}", table.isa);
            }
        }
    }
}

#[test]
fn non_finite_activations_are_reported() {
    for table in available() {
        for kind in KINDS {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for at in [0, 31, 40, 63, 255] {
                    let mut x = vec![1.0; 256];
                    x[at] = bad;
                    let mut store = ActStore::new(1, 256).unwrap();
                    let result = prepare_all(table, kind, &x, 256, &mut store);
                    assert_eq!(result, Err(NonFinite), "{} {kind:?} {bad} at {at}", table.isa);
                }
            }
        }
        let mut store = ActStore::new(1, 32).unwrap();
        let large = vec![1e6; 32];
        assert_eq!(prepare_all(table, ActKind::F16, &large, 32, &mut store), Err(NonFinite));
        assert_eq!(prepare_all(table, ActKind::Q8, &large, 32, &mut store), Ok(()));
        let tiny = vec![1e-38; 32];
        assert_eq!(prepare_all(table, ActKind::Q8, &tiny, 32, &mut store), Ok(()));
    }
}

#[test]
fn rows_read_back_as_the_format_defines() {
    let mut random = Random(5);
    for format in Format::ALL {
        let cols = format.block().max(64);
        let w = random.matrix(format, 21, cols);
        for row in 0..21 {
            let mut values = vec![0.0; cols];
            w.read_row(row, &mut values);
            // A product with each unit vector picks the same value (activations of 1 are exact).
            for k in [0, 1, 15, 16, 31, 32, 47, 63, cols - 17, cols - 1] {
                let mut x = vec![0.0; cols];
                x[k] = 1.0;
                let product = run_linear(scalar(), &w, &x, false, None, &[0.0; 21])[row];
                // With a minimum, a difference of larger numbers.
                let size = values.iter().fold(0.0, |a: f32, b| a.max(b.abs()));
                let close = (product - values[k]).abs() <= 1e-6 * size;
                assert!(close, "{format:?} row {row} column {k}: {product} {}", values[k]);
            }
        }
    }
}

#[test]
fn every_way_of_reading_weights_gives_the_same() {
    let mut random = Random(51);
    for format in Format::ALL {
        // Whole pairs of tiles and one left over, blocks in whole groups and some left over.
        for (rows, blocks) in [(16, 1), (32, 2), (70, 3), (91, 5), (200, 9)] {
            for way in 0..WAYS {
                // Other tests may go that way, too: it must not matter.
                choose(way);
                for count in 1..=2 {
                    linear_agrees(&mut random, format, [rows, blocks * format.block(), count], true, false)
                        .unwrap();
                }
            }
        }
    }
    choose(0);
}

#[test]
fn every_mxfp4_scale() {
    let mut random = Random(21);
    let mut source = Vec::new();
    for e in 0..=255 {
        // The first value is 1.0 times the scale.
        source.extend([e, 0x02]);
        source.extend((1..16).map(|_| random.next() as u8));
    }
    let w = packed(Format::MXFP4, 256, 32, &source);
    for e in 0..=255 {
        let mut values = [0.0; 32];
        w.read_row(e, &mut values);
        assert_eq!(values[0], libm::exp2(e as f64 - 127.0) as f32, "{e}");
    }
    for size in [1e-5, 1.0, 1e5] {
        let x: Vec<f32> = random.floats(32 * 7).iter().map(|x| x * size).collect();
        let want = run_linear(scalar(), &w, &x, false, None, &[0.0; 256 * 7]);
        for table in fast() {
            let got = run_linear(table, &w, &x, false, None, &[0.0; 256 * 7]);
            assert_eq!(bits(&got), bits(&want), "{} {size}", table.isa);
        }
    }
}

#[test]
fn two_parts_keep_twice_the_bits() {
    let mut random = Random(9);
    for format in Format::ALL.into_iter().filter(|&format| format != Format::F32) {
        let w = random.matrix(format, 16, 256);
        let x: Vec<f32> = (0..256).map(|_| (random.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect();
        let mut errors = [0.0f64; 2];
        for row in 0..16 {
            let mut values = vec![0.0; 256];
            w.read_row(row, &mut values);
            let want: f64 = values.iter().zip(&x).map(|(&w, &x)| w as f64 * x as f64).sum();
            for precise in [false, true] {
                let got = run_linear(scalar(), &w, &x, precise, None, &[0.0; 16])[row];
                errors[precise as usize] += (got as f64 - want).powi(2);
            }
        }
        assert!(errors[1].sqrt() * 50.0 < errors[0].sqrt(), "{format:?}: {errors:?}");
    }
}

#[test]
fn rows_read_back_as_gguf_py_has_them() {
    for (format, block, step, want) in VECTORS {
        let source = bytes(block);
        let w = packed(format, 1, format.block(), &source);
        let mut values = vec![0.0; format.block()];
        w.read_row(0, &mut values);
        let got: Vec<u8> = values.iter().step_by(step).flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(got, bytes(want), "{format:?}");
    }
}

/// The same in every row and every block of a whole tile and of one that is not, with other rows around it.
#[test]
fn rows_keep_apart() {
    const BLOCKS: usize = 3;
    let mut random = Random(31);
    for (format, block, step, want) in VECTORS {
        for row in 0..LANES + 5 {
            let at = row % BLOCKS;
            let before = row * BLOCKS + at;
            let after = (LANES + 5) * BLOCKS - before - 1;
            let mut source: Vec<u8> = (0..before).flat_map(|_| random.file_block(format)).collect();
            source.extend(bytes(block));
            source.extend((0..after).flat_map(|_| random.file_block(format)));
            let w = packed(format, LANES + 5, BLOCKS * format.block(), &source);
            let mut values = vec![0.0; BLOCKS * format.block()];
            w.read_row(row, &mut values);
            let part = &values[at * format.block()..][..format.block()];
            let got: Vec<u8> = part.iter().step_by(step).flat_map(|x| x.to_le_bytes()).collect();
            assert_eq!(got, bytes(want), "{format:?}, row {row}");
        }
    }
}

#[test]
fn floats_read_back_as_they_were() {
    let mut random = Random(32);
    for format in [Format::F32, Format::F16, Format::BF16] {
        for (rows, cols) in [(1, 1), (16, 32), (21, 75), (5, 64), (16, 31)] {
            // What the format can hold.
            let rounded = |x: f32| match format {
                Format::F32 => x,
                Format::F16 => f16_to_f32(f32_to_f16(x)),
                _ if x.abs() < BF16_TINY => 0.0f32.copysign(x),
                _ => f32::from_bits(x.to_bits() >> 16 << 16),
            };
            let values: Vec<f32> = random.floats(rows * cols).into_iter().map(rounded).collect();
            let to_bytes = |&x: &f32| match format {
                Format::F32 => x.to_le_bytes().to_vec(),
                Format::F16 => f32_to_f16(x).to_le_bytes().to_vec(),
                _ => ((x.to_bits() >> 16) as u16).to_le_bytes().to_vec(),
            };
            let w = packed(format, rows, cols, &values.iter().flat_map(to_bytes).collect::<Vec<_>>());
            for (row, want) in values.chunks(cols).enumerate() {
                let mut got = vec![0.0; cols];
                w.read_row(row, &mut got);
                assert_eq!(bits(&got), bits(want), "{format:?}, row {row} of {rows}x{cols}");
            }
        }
    }
}

/// A store is filled anew for each of a model's matrices; of rows as long as these, not all columns are kept in place.
#[test]
fn columns_that_were_multiplied_before_do_not_matter() {
    let mut random = Random(34);
    for (format, cols) in
        [(Format::Q4_0, 512), (Format::Q4_K, 512), (Format::Q2_K, 512), (Format::Q4_1, 104 << 10)]
    {
        let (rows, count) = (LANES, if cols > 512 { 64 } else { 289 });
        // Only tiles keep columns, and others take long for so many.
        let mut tables = fast();
        tables.retain(|table| cols <= 512 || table.isa == "amx");
        if tables.is_empty() {
            continue;
        }
        let w = random.matrix(format, rows, cols);
        let mut store = ActStore::new(count, cols).unwrap();
        for x in [random.floats(cols * count), random.floats(cols * count)] {
            for table in &tables {
                prepare_all(table, format.activations(), &x, cols, &mut store).unwrap();
                // SAFETY: one thread.
                let acts = unsafe { store.shared().all(format.activations(), count, cols) };
                let [got, again] =
                    [(), ()].map(|()| run_stored(table, &w, acts, None, &vec![0.0; rows * count]));
                for token in [0, count - 1] {
                    let x = &x[token * cols..][..cols];
                    let want = run_linear(scalar(), &w, x, false, None, &vec![0.0; rows]);
                    assert_eq!(bits(&got[token * rows..][..rows]), bits(&want), "{}, {format:?}", table.isa);
                }
                assert_eq!(bits(&again), bits(&got), "{}, {format:?}", table.isa);
            }
        }
    }
}

#[test]
fn what_a_tile_held_before_does_not_matter() {
    let mut random = Random(33);
    for format in Format::ALL {
        let cols = 2 * format.block();
        for rows in [1, 9, 16] {
            let source: Vec<u8> = (0..rows * 2).flat_map(|_| random.file_block(format)).collect();
            let mut fresh = Matrix::zeroed(Shape { format, rows, cols }).unwrap();
            fresh.pack(&source);
            let used = random.matrix(format, LANES, cols);
            let mut used = used.reshaped(Shape { format, rows, cols }).unwrap();
            used.pack(&source);
            assert!(used.tile(0) == fresh.tile(0), "{format:?}, {rows} rows");
        }
        let small = random.matrix(format, 1, format.block());
        assert!(small.reshaped(Shape { format, rows: 64, cols: cols * 8 }).is_none());
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

/// A random block, and what `gguf.quants.dequantize` of the Python package gguf makes of it, as bytes
/// of every n-th float.
#[rustfmt::skip]
const VECTORS: [(Format, &str, usize, &str); 13] = [
    (Format::Q8_0, "e6b2becf931aed15f5d3ef2d059d9f3c36ec6d2ec75220cd240786de399208950e0f", 1, "00a663410003294180fbbb41005cb3c00012834000de90c000c4174000371b41008c6a4000371bc100f889bf80bcaa418049a74100f44ec100423ac100f8894080fbbbc100aa1ec1009b4441006b8dc100c0dcc000e92f410058f8c00028c1bf0067d241008cea40009b44c100b5bd4100c0dcbf8088b841002841c000f44ec0"),
    (Format::Q4_0, "ecba1818e2c9089f1a1ba37a2129c94346a6", 1, "00000080000000800020a64000805dbf0000008000d0c1c00080ddbf002026c000708a400080ddbf00d0c14000805dbf00805dbf00708a400080dd3f0080dd3f00d0c14000d0c1400020a6c000805dc00080dd4000805dbf00d0c14000d0c1400080ddbf00805d3f0020a6400020a64000805dc000805d4000805d400080ddbf"),
    (Format::Q4_1, "80b458b9089c191d9d92be73db872764ed7f48e3", 1, "00c03ac0006081c000c04cc000608ac000608ac000809dbf006093c00080c1bf00c070c000c028c000c028c00080e5bf00608ac000609cc000c03ac00080c1bf00002bbf00c04cc0000073bf000073bf00c04cc000c04cc000c070c000c028c000608ac000c03ac000809dbf00c016c0006093c000c028c00080e5bf006093c0"),
    (Format::Q5_0, "a2b349844ac13e2ceeefe2bc0ecdb9c149eecdf4a06e", 1, "00b855c00040743f0040f43e00fc64c000b855400040743f00b855c00030373f00b8d53f00fc6440006409c00040f43e0030373f003037400040744000b855c0007446400040f4be0040f43e00b855c00040f43e00a8983f000000800040743f00ec27c00040743f003037400040f43e0040743f0040743e00a818c00030b7bf"),
    (Format::Q5_1, "2f3e5c3895287ea628363bb20d9987de3bbfef4ac19a52f0", 1, "0096164200201d410023294200c06840008135420054674100dc354100b03b4200668c4100debd4100debd4100f4224200d0054000f4224200c0684000800b3f00c068400056ef410056ef4100232942003cca4100c51c42009616420022a54100d8a5400023294200b03b420050d74000c4984100c51c420064044100df4142"),
    (Format::Q2_K, "73a7610032f7a623fa62615067c1080b3d2d47e41d5aa4a9093dcd95e712a33e0ec0a7787351ba306b7bf5c5347b777986c1c4077f5621411daafbb427370b85a171ce5f5ee1ee40991f4217376dcd9b0f3ba538", 7, "0060b5bf0060b5bf0020784000c0bd3e00c8b9c0007826c0002056bf00000000000000000000000000d0e43f0000bc3c00201d4100560bc1000003bf00c8b9c000a094bf00a094bf0030be3f00020f4100178e4100c0e73f00003c3d00f05ec0002056bf007826c000c839c000c839c000ba704100ba704100f0dec000b4c2c000e0614100e0e1400000000000efe84100000000"),
    (Format::Q3_K, "d502b09b61974da19dd8773f936a544cf94bc07c0ac4e3bd5fe6e14af9cadfb85a875da7ebbbfd37ec2b4963587773d43b94b9d731e55ba87d723501c3e8cbae1d1da139ff7bf0d1e7c9e3e92ff4b66d045efcf466853ac2b19f5a53cf13e4e09a0c74626ea3311a2c86ea973432", 7, "007808c100b44cc1007888400050dfc00050df400080463f0080c63f00505f40007c274100505fc000928b410018bac0004821400048214100e014bf000000000000008000e014c000505fc0007ca740007ca740000000800080464100b0adbf004482c000b0adbf002078c00020f84000ec71c1004821410018ba400020f83f0000000000ca304100b8ebc00080c63e00e0143f"),
    (Format::Q4_K, "a03c51c0cb90cc7a4fcbbc62af2e762586c76b36a611ccb29df095cc4e1cbf4a0e2cf3a0aef902df3b6dfb2567ef7e4687772d8600c3d28f49fef265bfde4f66f2170321efa2e79c4fa27beefff2563242aa1fcc0353272e95b5430b033e32bffe686e2ec5b691c0a5bfb25444762591c342bff0b2e0cbebfb35f9796eacad34451f3240f6a7d4d9bff8bb969fc0422b", 7, "005fd942003e674280275f4380d7124300cff242007b9e42803d3e4300f67242007b9e42007bc342003e1d4300dfa14300cfa84300dfa14300814f4320ea864420ea8644403c29448058cc438052894380528943a07d864400cd494340f21f4440a61244403e2d4440a61244801cf043800b5143e0862144800b5143e0ea1144801ca5438064bd4380d48c4380d48c4380b08043"),
    (Format::Q5_K, "24b53033d6f97ac93702d6561e0838ca6dd339f9a816d90d930843891f8c895e9f93530deea9bb151144b34409068b31773b7ab7b2fcbf368c9876a029f5cfdb81b7c97eac03732033890e112e51f84ba8b7936938382b7ec92a474ecd3c76d939ac7191096819f7453664efc6f948b58a600207a334b43630949ebf29fc838b3203b3f159bbb9b4b5c9d5d15f2c480da847ab4b87e30cae73801aa2e5b7475ec1d394281699f696944f47167a8866ab", 7, "00ed2ec380db27c3007967c300a712c3806760c3c0e549c360d4d2c3e074f7c3008f5dc2006893c280ec51c3c0ad03c4c067ebc3a0a711c480769ac200f663c200876fc2004341c200187bc2c04fc7c3801cf9c30028a1c18045d1c300e8d7c200e857c200f00fc300e5f2c300f00fc200dd82c20004d7c180ac25c3807e7ac300a340c300a340c3007ebdc34014ecc380bb08c3"),
    (Format::Q6_K, "5f1ef84dba45038ecb5990ae8bf0b932a5d33d09d499c47e644fb69ecfd51a2071b628ec4a3c127bec2ce2f7f1584789438a99bab5bb2bc6cab5237f4337c764ae6ec5aa74880405401f419e9f9e1a8759665226db1d8a342387a508940dc3bd527e87af64a98163e82fbef474b06661ba567a4eed03d2e8849e0c1505b69964fc0a220643564e59b3d2edb945d21759a1820c7ed173137bf133ec0fdcfde1172997b34c5ca3f78b8f9745128fabe2eb3b48f2da12a91b90e08f2ebb3be670bec14a22027dcf77f273ea570cbfdf94d7d4bb", 7, "b0ff82c40096f6c230a5c0442048e2c420df99440014054380b615c400382c4200382c4200e0bb4100a1744500a1f44280d70fc330d989c4d0545a45b0ff02c500305b4200305bc200cabf4340cb28c588065ac5002a01430046d74200432a438064ffc40043aac200e0bbc100d8ea42a01b0fc4c09cdec32087294400bf41c4a05532c500851e44404f114500000000007aa0c4"),
    (Format::IQ4_NL, "213977be7063e7f5d9a1f4d1724c6bb1b619", 1, "0028cdc0803c6442c0d7a2c280b026c20028cdc00083b3c1005a0541005a85c20051fbc1005a85c280d954c280ea074200e6c241005a85c200ac61c1005a05410028cdc000e6c2410028cdc000ac61c1803c644240e4904280f230420039804140e4904280f230420028cdc00051fbc100ac61c100e6c24100e6c241005a85c2"),
    (Format::IQ4_XS, "b337a5def348bc57c8bfd06800f4004363001d7d5d3451920252e675caf86051ac36c48c7f46609e44eabf2aee3f19958fc6ddb424e4b91abd39909e804842718c1566ee6d87cd6355add150232ce7b4cb3c7cdec1df8f16aeba8c1bc1d7402bf96f75573d963983b35b6c91617493677bc4f5e1f72854aa3b15902a8c1836558b05fc32e0ed7c32", 7, "002ec8c0b84ecb4360a522449cb830c450f25a4380bc864180a1bc4180bc8641007b40c1002ec8c0002e484280a13cc3c04eab4300491243407374c380bc86c20049924200fc99c18007cc42a0059943802216c4c01a4ac300fa66c2c867a243d0e62843842053c444281fc4d0e62843c033e143c033e143408ebe42708865c3d0ffbf4368d7b0c3ece40544305e83c45cd76044"),
    (Format::MXFP4, "7dea776e2600703e6b7daad5a601a625db", 1, "000080be0000c03f000080bf0000803f0000000000000000000080bf0000c0be000040bf000080be0000403f0000803f0000003e0000803f0000403f0000c0be000080bf0000c03f0000803f0000803e000000000000c03f0000c03e0000803f0000c03f000080be000040bf000080be00000000000080be0000803e000040bf"),
];
