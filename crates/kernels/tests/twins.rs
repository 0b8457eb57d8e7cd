//! Every ISA's kernels equal the scalar reference bit for bit, on odd shapes and extreme values.

use kernels::acts::{ActStore, NonFinite};
use kernels::kernels::attention::{AttendJob, AttendScratch, BLOCK, Query, StoreJob, key_len, value_len};
use kernels::kernels::matmul::{GluJob, LinearJob};
use kernels::kernels::rows::Activation;
use kernels::packed::{ActKind, Format, Matrix, pack_tile};
use kernels::simd::LANES;
use kernels::table::{KernelTable, available};
use kernels::view::{Aligned, Shared};
use proptest::prelude::*;

const KINDS: [ActKind; 7] = [
    ActKind::F32,
    ActKind::F16,
    ActKind::BF16,
    ActKind::Q8,
    ActKind::F16Pair,
    ActKind::BF16Pair,
    ActKind::Q8Pair,
];

/// A small seeded generator (SplitMix64), so that cases are cheap and repeatable.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Mostly around 1, sometimes huge, tiny, or zero of either sign.
    fn float(&mut self) -> f32 {
        let unit = (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0;
        match self.next() % 40 {
            0 => 0.0,
            1 => -0.0,
            2 => unit * 3e4,
            3 => unit * 1e-6,
            4 => unit * 1e-30,
            _ => unit * 4.0,
        }
    }

    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }

    /// A matrix as a file has it, scales finite, every quantised value possible.
    fn matrix(&mut self, format: Format, rows: usize, cols: usize) -> Matrix {
        let mut matrix = Matrix::zeroed(format, rows, cols).unwrap();
        let tile_bytes = format.tile_bytes(cols);
        let tiles = matrix.shared_tiles();
        for tile in 0..rows.div_ceil(LANES) {
            let count = (rows - tile * LANES).min(LANES);
            let mut source: Vec<u8> = Vec::new();
            for _ in 0..count * cols / format.block() {
                let x = self.float();
                match format {
                    Format::F32 => source.extend(x.to_le_bytes()),
                    Format::BF16 => source.extend(((x.to_bits() >> 16) as u16).to_le_bytes()),
                    _ => source.extend(kernels::float16::f32_to_f16(x).to_le_bytes()),
                }
                if format.block() > 1 {
                    let extreme = self.next().is_multiple_of(4);
                    for _ in 2..format.block_bytes() {
                        source.push(if extreme { 0x80 } else { self.next() as u8 });
                    }
                }
            }
            // SAFETY: one thread.
            let to = unsafe { tiles.write(tile * tile_bytes..(tile + 1) * tile_bytes) };
            pack_tile(format, cols, &source, to);
        }
        matrix
    }
}

fn fast() -> Vec<&'static KernelTable> {
    let mut tables = available();
    tables.pop();
    println!("compared: {:?}", tables.iter().map(|table| table.isa).collect::<Vec<_>>());
    tables
}

fn scalar() -> &'static KernelTable {
    available().pop().unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
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
    let (kind, k) = (kind_of(w.format(), precise), w.cols());
    let count = x.len() / k;
    let mut store = ActStore::new(count, k).unwrap();
    prepare_all(table, kind, x, k, &mut store).unwrap();
    let mut out = start.to_vec();
    (table.linear)(&LinearJob {
        weight: w,
        tiles: 0..w.tiles(),
        // SAFETY: one thread.
        acts: unsafe { store.shared().all(kind, count, k) },
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
) -> Vec<f32> {
    let (kind, k) = (kind_of(gate.format(), precise), gate.cols());
    let count = x.len() / k;
    let mut store = ActStore::new(count, k).unwrap();
    prepare_all(table, kind, x, k, &mut store).unwrap();
    let mut out = vec![0.0; count * gate.rows()];
    (table.glu)(&GluJob {
        gate,
        up,
        tiles: 0..gate.tiles(),
        // SAFETY: one thread.
        acts: unsafe { store.shared().all(kind, count, k) },
        activation,
        out: Shared::new(&mut out),
        width: gate.rows(),
    });
    out
}

fn store(table: &KernelTable, k: &[f32], v: &[f32], slot: usize, page: Shared<u16>) -> Result<(), NonFinite> {
    (table.store_kv)(&StoreJob { k, v, page, keys_at: 0, values_at: key_len(k.len()), slot })
}

/// One sequence's keys and values, stored by `table`, and attention for its last `queries` tokens.
fn run_attention(table: &KernelTable, seed: u64, case: &AttentionCase) -> Vec<f32> {
    let AttentionCase { head_dim, group, length, queries, window, stale } = *case;
    let mut random = Random(seed);
    let (keys, values) = (key_len(head_dim), value_len(head_dim));
    let blocks = length.div_ceil(BLOCK);
    let mut pages: Vec<Aligned<u16>> = (0..blocks).map(|_| Aligned::zeroed(keys + values).unwrap()).collect();
    for page in &mut pages {
        page.as_mut_slice().fill(stale);
    }
    for position in 0..length {
        let (k, v) = (random.floats(head_dim), random.floats(head_dim));
        store(table, &k, &v, position % BLOCK, pages[position / BLOCK].shared()).unwrap();
    }
    let q = random.floats(queries * group * head_dim);
    let rows: Vec<Query> = (0..queries * group)
        .map(|i| Query { at: i * head_dim, position: length - queries + i / group })
        .collect();
    let mut out = vec![0.0; q.len()];
    let pages: Vec<Shared<u16>> = pages.iter_mut().map(|page| page.shared()).collect();
    (table.attend)(
        &AttendJob {
            queries: &rows,
            q: &q,
            out: Shared::new(&mut out),
            head_dim,
            pages: &pages,
            keys_at: 0,
            values_at: keys,
            scale: 1.0 / (head_dim as f32).sqrt(),
            window,
        },
        &mut AttendScratch::default(),
    );
    out
}

#[derive(Clone, Copy, Debug)]
struct AttentionCase {
    head_dim: usize,
    group: usize,
    length: usize,
    queries: usize,
    window: Option<usize>,
    /// What unwritten slots hold: 0x7e00 is a NaN, which must never be read into a result.
    stale: u16,
}

fn attention_case() -> impl Strategy<Value = AttentionCase> {
    let dims = prop::sample::select(vec![8usize, 16, 40, 64, 80, 128]);
    (dims, 1usize..5, 1usize..200, 1usize..12, prop::option::of(1usize..150), any::<bool>()).prop_map(
        |(head_dim, group, length, queries, window, nan)| AttentionCase {
            head_dim,
            group,
            length,
            queries: queries.min(length),
            window,
            stale: if nan { 0x7e00 } else { 0 },
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn linear(
        seed: u64,
        format in prop::sample::select(Format::ALL.to_vec()),
        rows in 1usize..70,
        blocks in 1usize..6,
        ragged in 0usize..32,
        count in 1usize..20,
        biased: bool,
        precise: bool,
    ) {
        let mut random = Random(seed);
        let cols = if format.block() == 1 { blocks * 32 + ragged } else { blocks * 32 };
        let w = random.matrix(format, rows, cols);
        let x = random.floats(cols * count);
        let bias = random.floats(rows);
        let start = random.floats(rows * count);
        let bias = biased.then_some(bias.as_slice());
        let want = run_linear(scalar(), &w, &x, precise, bias, &start);
        for table in fast() {
            prop_assert_eq!(bits(&run_linear(table, &w, &x, precise, bias, &start)), bits(&want), "{}", table.isa);
        }
    }

    #[test]
    fn glu(
        seed: u64,
        format in prop::sample::select(Format::ALL.to_vec()),
        rows in 1usize..40,
        count in 1usize..10,
        gelu: bool,
        precise: bool,
    ) {
        let mut random = Random(seed);
        let (gate, up) = (random.matrix(format, rows, 64), random.matrix(format, rows, 64));
        let x: Vec<f32> = random.floats(64 * count).iter().map(|x| x * 0.01).collect();
        let activation = if gelu { Activation::Gelu } else { Activation::Silu };
        let want = run_glu(scalar(), &gate, &up, &x, precise, activation);
        for table in fast() {
            let got = run_glu(table, &gate, &up, &x, precise, activation);
            prop_assert_eq!(bits(&got), bits(&want), "{}", table.isa);
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
    fn attention(seed: u64, case in attention_case()) {
        let want = run_attention(scalar(), seed, &case);
        prop_assert!(want.iter().all(|x| x.is_finite()));
        for table in fast() {
            prop_assert_eq!(bits(&run_attention(table, seed, &case)), bits(&want), "{}", table.isa);
        }
    }
}

#[test]
fn attention_across_chunks() {
    for window in [None, Some(700), Some(1500)] {
        let case = AttentionCase { head_dim: 32, group: 3, length: 2100, queries: 5, window, stale: 0 };
        let want = run_attention(scalar(), 7, &case);
        for table in fast() {
            assert_eq!(bits(&run_attention(table, 7, &case)), bits(&want), "{} {window:?}", table.isa);
        }
    }
}

#[test]
fn a_query_does_not_depend_on_its_neighbours() {
    for table in available() {
        let all =
            AttentionCase { head_dim: 64, group: 2, length: 150, queries: 9, window: Some(70), stale: 0 };
        let together = run_attention(table, 3, &all);
        // The same keys, values and queries, the last token's queries alone.
        let mut random = Random(3);
        let mut last = Vec::new();
        for _ in 0..150 * 2 {
            random.floats(64);
        }
        let q = random.floats(9 * 2 * 64);
        last.extend_from_slice(&q[8 * 2 * 64..]);
        let alone = attention_of(table, 3, &all, &last);
        assert_eq!(bits(&together[8 * 2 * 64..]), bits(&alone), "{}", table.isa);
    }
}

/// Attention of given queries at the sequence's last position.
fn attention_of(table: &KernelTable, seed: u64, case: &AttentionCase, q: &[f32]) -> Vec<f32> {
    let dim = case.head_dim;
    let (keys, values) = (key_len(dim), value_len(dim));
    let mut random = Random(seed);
    let mut pages: Vec<Aligned<u16>> =
        (0..case.length.div_ceil(BLOCK)).map(|_| Aligned::zeroed(keys + values).unwrap()).collect();
    for position in 0..case.length {
        let (k, v) = (random.floats(dim), random.floats(dim));
        store(table, &k, &v, position % BLOCK, pages[position / BLOCK].shared()).unwrap();
    }
    let pages: Vec<Shared<u16>> = pages.iter_mut().map(|page| page.shared()).collect();
    let queries: Vec<Query> =
        (0..q.len() / dim).map(|i| Query { at: i * dim, position: case.length - 1 }).collect();
    let mut out = vec![0.0; q.len()];
    let job = AttendJob {
        queries: &queries,
        q,
        out: Shared::new(&mut out),
        head_dim: dim,
        pages: &pages,
        keys_at: 0,
        values_at: keys,
        scale: 1.0 / (dim as f32).sqrt(),
        window: case.window,
    };
    (table.attend)(&job, &mut AttendScratch::default());
    out
}

#[test]
fn attention_matches_plain_softmax() {
    let case = AttentionCase { head_dim: 64, group: 1, length: 1300, queries: 1, window: None, stale: 0 };
    let got = run_attention(scalar(), 11, &case);
    let mut random = Random(11);
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for _ in 0..case.length {
        keys.push(random.floats(64));
        values.push(random.floats(64));
    }
    let q = random.floats(64);
    let scores: Vec<f64> = keys
        .iter()
        .map(|k| k.iter().zip(&q).map(|(&k, &q)| k as f64 * q as f64).sum::<f64>() / 8.0)
        .collect();
    let max = scores.iter().cloned().fold(f64::MIN, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| libm::exp(s - max)).collect();
    let sum: f64 = weights.iter().sum();
    for d in 0..64 {
        let want: f64 = weights.iter().zip(&values).map(|(w, v)| w / sum * v[d] as f64).sum();
        assert!((got[d] as f64 - want).abs() <= 2e-2 * (1.0 + want.abs()), "{d}: {} {want}", got[d]);
    }
}

#[test]
fn non_finite_activations_are_reported() {
    for table in available() {
        for kind in KINDS {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for at in [0, 31, 40, 63] {
                    let mut x = vec![1.0; 64];
                    x[at] = bad;
                    let mut store = ActStore::new(1, 64).unwrap();
                    let result = prepare_all(table, kind, &x, 64, &mut store);
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
        let w = random.matrix(format, 21, 64);
        for row in 0..21 {
            let mut values = vec![0.0; 64];
            w.read_row(row, &mut values);
            // A product with each unit vector picks the same value (activations of 1 are exact).
            for k in [0, 1, 15, 16, 31, 32, 47, 63] {
                let mut x = vec![0.0; 64];
                x[k] = 1.0;
                let product = run_linear(scalar(), &w, &x, false, None, &[0.0; 21])[row];
                let close = (product - values[k]).abs() <= 1e-6 * values[k].abs();
                assert!(close, "{format:?} row {row} column {k}: {product} {}", values[k]);
            }
        }
    }
}

#[test]
fn two_parts_keep_twice_the_bits() {
    let mut random = Random(9);
    for format in [Format::Q8_0, Format::Q4_0, Format::F16, Format::BF16] {
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
