//! Choosing key blocks by content: every ISA chooses the same, planted needles are found, and what is
//! kept carries the attention mass.

use kernels::float16::{f16_to_f32, f32_to_f16};
use kernels::kernels::attention::{BLOCK, CacheType, StoreJob, key_len};
use kernels::select::{
    Bounds, Budget, Hashes, Hashing, Keys, LaneScales, PackedKeys, PageScores, PageVector, Queries,
    Rotations, RowScores, SUB, SampledScores, Shrinking, SmallKeys, SmallRow, Sums, add_highest,
    antidiagonal, bounds, choose, kept_mass, lsh, vertical_slash,
};
use kernels::simd::{ActBlock, LANES, QK};
use kernels::table::{KernelTable, available};
use kernels::view::Shared;

const HEAD_DIMS: [usize; 7] = [32, 64, 80, 96, 128, 192, 256];
const STRIDE: usize = 8;
/// Consecutive keys that match a query where one pair in `STRIDE` is looked at.
const RUN: usize = 2 * STRIDE;

/// A small seeded generator (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn normal(&mut self) -> f32 {
        let unit = |x: u64| ((x >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        let radius = (-2.0 * unit(self.next()).ln()).sqrt();
        (radius * (std::f64::consts::TAU * unit(self.next())).cos()) as f32
    }

    fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }
}

/// Keys of one head, page by page.
struct Haystack {
    pages: Vec<Vec<u16>>,
    dim: usize,
}

impl Haystack {
    fn new(random: &mut Random, blocks: usize, dim: usize) -> Self {
        let page = |_| (0..key_len(dim)).map(|_| f32_to_f16(random.normal())).collect();
        Self { pages: (0..blocks).map(page).collect(), dim }
    }

    fn set(&mut self, position: usize, key: &[f32]) {
        let slot = position % BLOCK;
        for (d, &x) in key.iter().enumerate() {
            self.pages[position / BLOCK][(slot / LANES * self.dim + d) * LANES + slot % LANES] =
                f32_to_f16(x);
        }
    }

    fn key(&self, position: usize) -> Vec<f32> {
        let slot = position % BLOCK;
        let at = |d: usize| (slot / LANES * self.dim + d) * LANES + slot % LANES;
        (0..self.dim).map(|d| f16_to_f32(self.pages[position / BLOCK][at(d)])).collect()
    }

    fn with<T>(&mut self, work: impl FnOnce(Keys) -> T) -> T {
        let dim = self.dim;
        let pages: Vec<Shared<u16>> = self.pages.iter_mut().map(|page| Shared::new(page)).collect();
        work(Keys { cache: CacheType::F16, pages: &pages, at: 0, head_dim: dim })
    }
}

fn scale(dim: usize) -> f32 {
    1.0 / (dim as f32).sqrt()
}

/// Makes `run` keys from `position` on match the query: each alone scores `score`.
fn plant(hay: &mut Haystack, position: usize, run: usize, query: &[f32], score: f32) {
    let square: f32 = query.iter().map(|q| q * q).sum();
    let factor = score / (square * scale(hay.dim));
    let key: Vec<f32> = query.iter().map(|q| q * factor).collect();
    (position..position + run).for_each(|at| hay.set(at, &key));
}

type Method = fn(&KernelTable, Keys, &Queries, usize, Budget) -> Vec<u32>;

fn by_antidiagonal(
    table: &KernelTable,
    keys: Keys,
    queries: &Queries,
    blocks: usize,
    budget: Budget,
) -> Vec<u32> {
    let mut small = SmallKeys::default();
    small.update(table, keys, 0..blocks);
    choose(&antidiagonal(table, &small, queries, scale(keys.head_dim), 0..blocks, STRIDE), budget)
}

fn by_lines(table: &KernelTable, keys: Keys, queries: &Queries, blocks: usize, budget: Budget) -> Vec<u32> {
    choose(&vertical_slash(table, keys, queries, scale(keys.head_dim), blocks), budget)
}

fn by_bounds(table: &KernelTable, keys: Keys, queries: &Queries, blocks: usize, budget: Budget) -> Vec<u32> {
    let mut of = Bounds::default();
    of.update(table, keys, blocks);
    choose(&bounds(table, &of, queries, 0..blocks), budget)
}

fn by_hashes(table: &KernelTable, keys: Keys, queries: &Queries, blocks: usize, budget: Budget) -> Vec<u32> {
    let rotations = Rotations::new(7, 8, keys.head_dim);
    let mut hashes = Hashes::default();
    hashes.update(table, &rotations, keys, blocks);
    choose(&lsh(table, &rotations, &hashes, queries, 0..blocks), budget)
}

/// A method, its queries' heads and tokens, which of the tokens looks for the needle, and how many keys it has.
struct Case {
    name: &'static str,
    method: Method,
    heads: usize,
    tokens: usize,
    seeker: usize,
    run: usize,
}

const CASES: [Case; 4] = [
    Case { name: "antidiagonal", method: by_antidiagonal, heads: 2, tokens: 64, seeker: 21, run: RUN },
    Case { name: "vertical-slash", method: by_lines, heads: 2, tokens: 64, seeker: 63, run: 1 },
    Case { name: "lsh", method: by_hashes, heads: 2, tokens: 64, seeker: 21, run: 1 },
    Case { name: "bounds", method: by_bounds, heads: 4, tokens: 1, seeker: 0, run: 1 },
];

fn queries(random: &mut Random, case: &Case, dim: usize) -> Queries {
    let rows: Vec<Vec<f32>> = (0..case.heads * case.tokens).map(|_| random.normals(dim)).collect();
    Queries::new(available()[0], case.heads, case.tokens, dim, rows.iter().map(Vec::as_slice))
}

#[test]
fn every_isa_chooses_the_same() {
    let tables = available();
    let mut random = Random(1);
    for case in &CASES {
        for (dim, tokens) in [(32, case.tokens), (80, case.tokens.min(37)), (64, 1)] {
            let case = Case { tokens, ..*case };
            let mut hay = Haystack::new(&mut random, 24, dim);
            let queries = queries(&mut random, &case, dim);
            for (blocks, mass) in [(24, 1.0), (23, 0.5), (2, 1.0), (1, 1.0), (0, 1.0)] {
                let budget = Budget { blocks: 6, mass, lone: 0 };
                let chosen: Vec<_> = tables
                    .iter()
                    .map(|table| hay.with(|keys| (case.method)(table, keys, &queries, blocks, budget)))
                    .collect();
                for (table, chosen_here) in tables.iter().zip(&chosen) {
                    assert_eq!(chosen_here, &chosen[chosen.len() - 1], "{} on {}", case.name, table.isa);
                }
            }
        }
    }
}

/// The kernels of all methods, bit for bit, at sizes that leave every kind of rest.
#[test]
fn every_isa_gives_the_bits_of_the_reference() {
    let tables = available();
    let (reference, others) = tables.split_last().expect("the reference");
    let mut random = Random(6);
    let sizes = [(32, 1, 4), (80, 3, 5), (64, 7, 8), (20, 16, 3), (64, 16, 9), (96, 16, 12), (256, 16, 4)];
    for (dim, rows, subs) in sizes {
        let keys: Vec<[u16; LANES]> =
            (0..subs * dim).map(|_| std::array::from_fn(|_| f32_to_f16(random.normal()))).collect();
        let half = |random: &mut Random| f16_to_f32(f32_to_f16(3.0 * random.normal()));
        let queries: Vec<f32> = (0..rows * dim).map(|_| half(&mut random)).collect();
        let sixteen = |random: &mut Random| std::array::from_fn(|_| half(random));
        let rotations: Vec<[f32; LANES]> = (0..rows * dim).map(|_| sixteen(&mut random)).collect();
        let unrounded = random.normals(rows * dim + 5);
        let byte = |random: &mut Random| PageVector(std::array::from_fn(|_| random.below(256) as u8));
        let tiles: Vec<PageVector> = (0..subs * dim).map(|_| byte(&mut random)).collect();
        let page_scales: Vec<[f32; LANES]> =
            (0..subs).map(|_| std::array::from_fn(|_| random.normal())).collect();
        let blocks = 2 * dim.next_multiple_of(LANES) / QK;
        let mut columns: Vec<ActBlock> = Vec::new();
        for row in 0..rows {
            let mut values: Vec<i8> =
                (0..blocks * QK).map(|_| (random.below(255) as i32 - 127) as i8).collect();
            // Most rows are a query's negative and positive parts.
            if row % 5 != 4 {
                let (negative, positive) = values.split_at_mut(blocks * QK / 2);
                for (low, high) in negative.iter_mut().zip(positive) {
                    (*low, *high) = if *low < *high { ((*low).min(0), 0) } else { (0, (*high).max(0)) };
                }
            }
            columns.extend(values.as_chunks::<QK>().0.iter().map(|&values| ActBlock::new(1.0, values)));
        }
        let run = |table: &KernelTable| {
            let scale = scale(dim);
            let mut wide = vec![[0.0; LANES]; keys.len()];
            (table.widen)(&keys, &mut wide);
            let mut halves = unrounded.clone();
            (table.round_halves)(&mut halves);
            let mut scores = vec![[0.0; LANES]; rows * subs];
            (table.row_scores)(&RowScores { keys: &keys, dim, queries: &queries, scale }, &mut scores);
            let whole = &scores[..scores.len() / SUB * SUB];
            let mut sums = vec![[0.0; 2]; whole.len() / SUB];
            (table.row_sums)(whole, &mut sums);
            let mut shares = whole.to_vec();
            (table.softmax)(&mut shares);
            let mut hashes = vec![0; subs * LANES * rows];
            (table.buckets)(&Hashing { rotations: &rotations, dim, rows: &wide }, &mut hashes);
            let vectors = subs.div_ceil(2);
            let tiles = &tiles[..vectors * blocks * QK / 4];
            let job = PageScores { tiles, scales: &page_scales[..vectors], queries: &columns };
            let mut paged = vec![[0.0; LANES]; rows * vectors];
            (table.page_scores)(&job, &mut paged);
            let mut most = vec![[-1.0; LANES]; vectors];
            let mut row = paged[..vectors].to_vec();
            row.as_flattened_mut()[vectors * LANES - 5..].fill(0.0);
            (table.stand_out)(&row, vectors * LANES - 5, &mut most);
            let floats = [
                wide.as_flattened(),
                &halves,
                scores.as_flattened(),
                sums.as_flattened(),
                shares.as_flattened(),
            ];
            let more = [paged.as_flattened(), most.as_flattened()];
            let floats = floats.into_iter().chain(more).flatten();
            (floats.map(|x| x.to_bits()).collect::<Vec<u32>>(), hashes)
        };
        let want = run(reference);
        for table in others {
            assert!(run(table) == want, "heads of {dim}, {rows} rows, {subs} sub-blocks on {}", table.isa);
        }
    }
}

/// What antidiagonals take, bit for bit, with the largest values and keys that are nothing.
#[test]
fn every_isa_samples_the_bits_of_the_reference() {
    let tables = available();
    let (reference, others) = tables.split_last().expect("the reference");
    let mut random = Random(7);
    for (dim, rows) in [(32usize, 1), (80, 3), (64, 7), (22, 16), (256, 2)] {
        let (blocks, vectors) = (3, dim.div_ceil(4));
        let less = random.normals(dim);
        let mut keys: Vec<[u16; LANES]> = (0..blocks * SUB * dim)
            .map(|i| std::array::from_fn(|_| f32_to_f16(random.normal() + less[i % dim])))
            .collect();
        for (key, less) in keys.iter_mut().zip(&less) {
            key[3] = f32_to_f16(*less);
        }
        let less: Vec<f32> = less.into_iter().map(|x| f16_to_f32(f32_to_f16(x))).collect();
        let mut queries: Vec<f32> =
            random.normals(rows * dim).into_iter().map(|x| f16_to_f32(f32_to_f16(3.0 * x))).collect();
        queries[..dim].fill(0.0);
        let mut bytes = |most: usize, offset: i32| {
            let byte = |_| (random.below(most + 1) as i32 - offset) as u8;
            let ends = |at: usize| [0, most][at] as i32 - offset;
            let (all, four) = (std::array::from_fn(byte), [0; 4].map(|_| ends(random.below(2)) as u8));
            PageVector(if random.below(2) == 0 { all } else { std::array::from_fn(|i| four[i % 4]) })
        };
        let full_keys: Vec<PageVector> = (0..SUB * vectors).map(|_| bytes(127, 0)).collect();
        let lanes: Vec<PageVector> = (0..rows * vectors).map(|_| bytes(254, 127)).collect();
        let starts: Vec<PageVector> = (0..rows).map(|_| bytes(15, 0)).collect();
        let of: Vec<LaneScales> = starts
            .iter()
            .map(|&starts| LaneScales { starts, scales: std::array::from_fn(|_| random.normal().abs()) })
            .collect();
        let real: Vec<[f32; LANES]> =
            (0..rows).map(|_| std::array::from_fn(|lane| (lane % 3).min(1) as f32)).collect();
        let run = |table: &KernelTable| {
            let mut values = vec![PageVector([9; 4 * LANES]); blocks * SUB * vectors];
            let mut scales = vec![[9.0; LANES]; blocks * SUB];
            (table.shrink_keys)(&Shrinking { keys: &keys, less: &less }, &mut values, &mut scales);
            let mut small = vec![[9; LANES]; rows * dim.div_ceil(LANES)];
            let mut of_rows = vec![SmallRow::default(); rows];
            (table.shrink_rows)(&queries, dim, &mut small, &mut of_rows);
            let mut sums = vec![Sums::NONE; blocks * rows];
            for (block, sums) in sums.chunks_exact_mut(rows).enumerate() {
                let keys = &values[block * SUB * vectors..][..SUB * vectors];
                let keys = if block == 0 { &full_keys } else { keys };
                let scales = &scales[block * SUB..][..SUB];
                (table.sampled_sums)(&SampledScores { keys, scales, lanes: &lanes, of: &of }, sums);
            }
            let before: Vec<f32> = sums.iter().flat_map(|of| [of.most, of.sum]).flatten().collect();
            let mut mass = vec![[0.5; LANES]; blocks];
            (table.add_shares)(&mut sums, &real, &mut mass);
            let floats = [scales.as_flattened(), &before, mass.as_flattened()].concat();
            assert!(floats.iter().all(|x| x.is_finite()));
            let bits: Vec<u32> = floats.into_iter().map(f32::to_bits).collect();
            (bits, values.into_iter().map(|vector| vector.0).collect::<Vec<_>>(), small, of_rows)
        };
        let want = run(reference);
        for table in others {
            assert!(run(table) == want, "heads of {dim}, {rows} rows on {}", table.isa);
        }
    }
}

/// The mass of blocks by all pairs of an antidiagonal, against the definition in f64; the same where all keys have a
/// long vector in common, which changes no softmax.
#[test]
fn sampled_mass_is_near_the_softmax_share() {
    let mut random = Random(11);
    let (dim, blocks) = (64, 6);
    let common: Vec<f32> = random.normals(dim).into_iter().map(|x| 20.0 * x).collect();
    for together in [0.0, 1.0] {
        let mut hay = Haystack::new(&mut random, blocks, dim);
        for position in 0..blocks * BLOCK {
            let key: Vec<f32> =
                random.normals(dim).iter().zip(&common).map(|(x, c)| x + c * together).collect();
            hay.set(position, &key);
        }
        let rows: Vec<Vec<f32>> = (0..2).map(|_| random.normals(dim)).collect();
        let queries = Queries::new(available()[0], 2, 1, dim, rows.iter().map(Vec::as_slice));
        let mut want = vec![0.0; blocks];
        for head in 0..2 {
            let q = queries.row(head, 0);
            let score = |position: usize| -> f64 {
                let dot = |(&k, &q): (&f32, &f32)| f64::from(k) * f64::from(q);
                hay.key(position).iter().zip(q).map(dot).sum::<f64>() * f64::from(scale(dim))
            };
            let scores: Vec<f64> = (0..blocks * BLOCK).map(score).collect();
            // One lane of a stride of 1 is one key in 16 with the query; all of them together are all keys.
            for lane in 0..LANES {
                let most = scores.iter().skip(lane).step_by(LANES).fold(f64::MIN, |a, &b| a.max(b));
                let weights: Vec<f64> =
                    scores.iter().skip(lane).step_by(LANES).map(|x| (x - most).exp()).collect();
                let total: f64 = weights.iter().sum();
                for (block, of) in weights.chunks_exact(SUB).enumerate() {
                    want[block] += of.iter().sum::<f64>() / total;
                }
            }
        }
        let got = hay.with(|keys| {
            let mut small = SmallKeys::default();
            small.update(available()[0], keys, 0..blocks);
            antidiagonal(available()[0], &small, &queries, scale(dim), 0..blocks, 1)
        });
        for (got, want) in got.iter().zip(&want) {
            assert!((f64::from(*got) - want).abs() < 0.02 * want, "{got} for {want}");
        }
    }
}

#[test]
fn masses_do_not_depend_on_keys_that_a_window_hides() {
    let (dim, blocks, first) = (64, 9, 4);
    let mut random = Random(5);
    let mut hay = Haystack::new(&mut random, blocks, dim);
    let rows: Vec<Vec<f32>> = (0..2 * 20).map(|_| random.normals(dim)).collect();
    let queries = Queries::new(available()[0], 2, 20, dim, rows.iter().map(Vec::as_slice));
    hay.with(|keys| {
        let table = available()[0];
        let mass = |made: usize| {
            let mut small = SmallKeys::default();
            // As steps go on.
            small.update(table, keys, made..blocks - 2);
            small.update(table, keys, first..blocks);
            antidiagonal(table, &small, &queries, scale(dim), first..blocks, STRIDE)
        };
        assert_eq!(mass(first), mass(0));
    });
}

#[test]
fn every_isa_expands_keys_to_the_bits_of_the_reference() {
    let tables = available();
    let (reference, others) = tables.split_last().expect("the reference");
    let mut random = Random(8);
    for (dim, runs) in [(32, 1), (80, 3), (64, 2), (20, 1)] {
        let scales =
            |random: &mut Random| f32_to_f16(512.0f32.min(1e-6 * 2f32.powf(29.0 * random.normal().abs())));
        let scales: Vec<[u16; LANES]> =
            (0..SUB * runs).map(|_| std::array::from_fn(|_| scales(&mut random))).collect();
        let bytes: Vec<[i8; LANES]> =
            (0..SUB * dim).map(|_| std::array::from_fn(|_| (random.below(255) as i32 - 127) as i8)).collect();
        let expand = |table: &KernelTable| {
            let mut out = vec![[0; LANES]; bytes.len()];
            (table.expand_keys)(&PackedKeys { scales: &scales, bytes: &bytes, dim }, &mut out);
            out
        };
        let want = expand(reference);
        assert!(want.iter().flatten().all(|&bits| f16_to_f32(bits).is_finite()));
        for table in others {
            assert!(expand(table) == want, "heads of {dim} on {}", table.isa);
        }
    }
}

/// Each method chooses from a Q8_0 cache what it would choose from an F16 cache of the same keys.
#[test]
fn keys_of_a_q8_cache_are_seen_as_f16() {
    let mut random = Random(9);
    let table = available()[0];
    let (blocks, q8) = (24, CacheType::Q8);
    for case in &CASES {
        for dim in [64, 80] {
            let words = q8.key_words(dim) + q8.value_words(dim);
            let mut pages = vec![vec![0; words]; blocks];
            let mut halves = Haystack { pages: vec![vec![0; key_len(dim)]; blocks], dim };
            for position in 0..blocks * BLOCK {
                let k = random.normals(dim);
                let page = Shared::new(&mut pages[position / BLOCK]);
                let slot = position % BLOCK;
                let job =
                    StoreJob { k: &k, v: &k, head_dim: dim, value_dim: dim, cache: q8, page, start: 0, slot };
                (table.store_kv)(&job).unwrap();
                let run = |x: &[f32]| -> Vec<f32> {
                    let amax = x.iter().fold(0.0f32, |a, x| a.max(x.abs()));
                    let d = f16_to_f32(f32_to_f16(amax / 127.0));
                    x.iter().map(|x| d * (x * (127.0 / amax)).round_ties_even()).collect()
                };
                halves.set(position, &k.chunks(32).flat_map(run).collect::<Vec<f32>>());
            }
            let queries = queries(&mut random, case, dim);
            let budget = Budget { blocks: 6, mass: 1.0, lone: 0 };
            let want = halves.with(|keys| (case.method)(table, keys, &queries, blocks, budget));
            let pages: Vec<Shared<u16>> = pages.iter_mut().map(|page| Shared::new(page)).collect();
            let keys = Keys { cache: q8, pages: &pages, at: 0, head_dim: dim };
            assert_eq!((case.method)(table, keys, &queries, blocks, budget), want, "{}", case.name);
            let mass =
                |keys: Keys| kept_mass(table, keys, queries.row(0, 0), (scale(dim), None), blocks, &want);
            assert_eq!(mass(keys), halves.with(mass), "{}", case.name);
        }
    }
}

/// Ties, zeros and opposites: the lowest place.
#[test]
fn buckets_go_to_the_lowest_of_equal_places() {
    let directions = [3.0, -3.0, 3.0, 1.0, 0.0, -0.0, 2.0, -2.0, 1.0, -5.0, 5.0, 0.0, 1.0, 2.0, 3.0, 4.0];
    for table in available() {
        let mut out = [9; LANES];
        let mut rows = [0.0; LANES];
        (rows[0], rows[2]) = (1.0, -1.0);
        (table.buckets)(&Hashing { rotations: &[directions], dim: 1, rows: &[rows] }, &mut out);
        // 3 at 0, 5 at 2; all zero: 0 and 0; turned round: 3 at 1, 5 at 1.
        assert_eq!(out[..3], [2, 0, LANES as u16 + 1], "{}", table.isa);
    }
}

/// Against 32,768 keys whose scores have a deviation of 1, a needle of 99.7% of the mass: at any depth, for all
/// head sizes, with a tenth of the blocks. One query of a block looks for it, the others for nothing.
#[test]
fn needles_are_found() {
    const BLOCKS: usize = 512;
    const NEEDLES: usize = 6;
    let table = available()[0];
    let mut random = Random(2);
    for dim in HEAD_DIMS {
        for case in &CASES {
            let mut hay = Haystack::new(&mut random, BLOCKS, dim);
            let planted: Vec<(Queries, usize)> = (0..NEEDLES)
                .map(|i| {
                    let queries = queries(&mut random, case, dim);
                    let depth = i * BLOCKS / NEEDLES * BLOCK + random.below(BLOCKS / NEEDLES * BLOCK - RUN);
                    // One key in `STRIDE` of a run is looked at: shorter pieces of it in a block may be missed.
                    let depth = if case.run > 1 { depth / STRIDE * STRIDE } else { depth };
                    let score = ((BLOCKS * BLOCK) as f32 * 1.65 * 300.0 / case.run as f32).ln();
                    plant(&mut hay, depth, case.run, queries.row(case.heads - 1, case.seeker), score);
                    (queries, depth)
                })
                .collect();
            let mut total = 0.0;
            for (queries, depth) in planted {
                let budget = Budget { blocks: BLOCKS / 10, mass: 1.0, lone: 0 };
                let (kept, mass) = hay.with(|keys| {
                    let kept = (case.method)(table, keys, &queries, BLOCKS, budget);
                    let seeker = queries.row(case.heads - 1, case.seeker);
                    let mass = kept_mass(table, keys, seeker, (scale(dim), None), BLOCKS, &kept);
                    (kept, mass)
                });
                assert!(kept.len() <= BLOCKS / 10, "{}: {} blocks", case.name, kept.len());
                // The block with most of the needle.
                let found = kept.contains(&(((depth + case.run / 2) / BLOCK) as u32));
                assert!(found, "{}, heads of {dim}: nothing at {depth}", case.name);
                total += mass;
            }
            let mean = total / NEEDLES as f32;
            assert!(mean > 0.99, "{}, heads of {dim}: a mass of {mean}", case.name);
        }
    }
}

#[test]
fn what_later_changes_is_forgotten() {
    let mut random = Random(3);
    let dim = 32;
    let case = &CASES[2];
    let queries = queries(&mut random, case, dim);
    let table = available()[0];
    let rotations = Rotations::new(9, 4, dim);
    let (mut hashes, mut limits) = (Hashes::default(), Bounds::default());
    let mut first = Haystack::new(&mut random, 20, dim);
    first.with(|keys| {
        hashes.update(table, &rotations, keys, 20);
        limits.update(table, keys, 20);
    });
    // The first 12 blocks stay, the others are written anew.
    let mut second = Haystack::new(&mut random, 20, dim);
    second.pages[..12].clone_from_slice(&first.pages[..12]);
    second.with(|keys| {
        let (mut fresh_hashes, mut fresh_limits) = (Hashes::default(), Bounds::default());
        for blocks in [12, 20] {
            hashes.update(table, &rotations, keys, blocks);
            limits.update(table, keys, blocks);
            fresh_hashes.update(table, &rotations, keys, blocks);
            fresh_limits.update(table, keys, blocks);
        }
        assert_eq!(
            lsh(table, &rotations, &hashes, &queries, 0..20),
            lsh(table, &rotations, &fresh_hashes, &queries, 0..20)
        );
        assert_eq!(bounds(table, &limits, &queries, 0..20), bounds(table, &fresh_limits, &queries, 0..20));
    });
}

#[test]
fn hashes_of_other_rotations_are_made_anew() {
    let mut random = Random(4);
    let dim = 32;
    let queries = queries(&mut random, &CASES[2], dim);
    let table = available()[0];
    let mut haystack = Haystack::new(&mut random, 20, dim);
    haystack.with(|keys| {
        let mut hashes = Hashes::default();
        for (seed, rounds) in [(9, 4), (9, 8), (7, 8), (7, 2)] {
            let rotations = Rotations::new(seed, rounds, dim);
            let mut fresh = Hashes::default();
            for blocks in [12, 20] {
                hashes.update(table, &rotations, keys, blocks);
                fresh.update(table, &rotations, keys, blocks);
            }
            let scores = |hashes| lsh(table, &rotations, hashes, &queries, 0..20);
            assert_eq!(scores(&hashes), scores(&fresh), "{rounds} rounds of {seed}");
        }
    });
}

/// Whole queries take ways of their own, by ISA and head: with rests of rows, of vectors of pages and of dimensions, and
/// with heads too long for the fast one.
#[test]
fn bounds_of_whole_queries_have_the_bits_of_the_reference() {
    let tables = available();
    let (reference, others) = tables.split_last().expect("the reference");
    let mut random = Random(12);
    for (dim, blocks, tokens) in [(32, 3, 5), (80, 7, 4), (64, 11, 3), (20, 9, 1), (256, 5, 2), (288, 2, 2)] {
        let mut hay = Haystack::new(&mut random, blocks, dim);
        let rows: Vec<Vec<f32>> = (0..2 * tokens).map(|_| random.normals(dim)).collect();
        let found = |hay: &mut Haystack, table: &KernelTable| {
            let queries = Queries::new(table, 2, tokens, dim, rows.iter().map(Vec::as_slice));
            hay.with(|keys| {
                let mut of = Bounds::default();
                of.update(table, keys, blocks);
                bounds(table, &of, &queries, 0..blocks).into_iter().map(f32::to_bits).collect::<Vec<u32>>()
            })
        };
        let want = found(&mut hay, reference);
        for table in others {
            assert_eq!(found(&mut hay, table), want, "heads of {dim} on {}", table.isa);
        }
    }
}

/// The bounds of each page, for one query along each dimension and its opposite: no key scores higher, and where
/// all keys of a page are the same, zeros of both signs among them, the bound is the score.
#[test]
fn bounds_choose_by_the_highest_values_of_either_sign() {
    let dim = 32;
    let table = available()[0];
    for sign in [1.0, -1.0] {
        let mut hay = Haystack { pages: vec![vec![f32_to_f16(-sign); key_len(dim)]; 6], dim };
        hay.set(3 * BLOCK + 17, &vec![-0.0; dim]);
        hay.set(4 * BLOCK + 60, &vec![sign * 0.01; dim]);
        let query = vec![sign; dim];
        let one = Queries::new(table, 1, 1, dim, std::iter::once(query.as_slice()));
        let budget = |blocks| Budget { blocks, mass: 1.0, lone: 0 };
        assert_eq!(hay.with(|keys| by_bounds(table, keys, &one, 6, budget(3))), [0, 4, 5]);
        assert_eq!(hay.with(|keys| by_bounds(table, keys, &one, 6, budget(4))), [0, 3, 4, 5]);
    }
}

#[test]
fn bounds_are_bounds() {
    let mut random = Random(4);
    for dim in [32, 80, 128, 256] {
        let mut hay = Haystack::new(&mut random, 3, dim);
        let query = random.normals(dim);
        let one = Queries::new(available()[0], 1, 1, dim, std::iter::once(query.as_slice()));
        // With a budget of one block beside the first and the last, only the block of the best key may be it.
        plant(&mut hay, BLOCK + 5, 1, &query, 60.0);
        let kept = hay
            .with(|keys| by_bounds(available()[0], keys, &one, 3, Budget { blocks: 3, mass: 1.0, lone: 0 }));
        assert_eq!(kept, [0, 1, 2]);
        let best = hay.key(BLOCK + 5);
        let dot: f32 = best.iter().zip(&query).map(|(k, q)| k * q).sum();
        assert!(dot > 0.0);
    }
}

/// Against the definition: exponentials of all scores, in f64.
#[test]
fn kept_mass_is_the_softmax_share() {
    let mut random = Random(5);
    let (dim, blocks) = (64, 9);
    let mut hay = Haystack::new(&mut random, blocks, dim);
    let query = random.normals(dim);
    let rounded: Vec<f32> = query.iter().map(|&q| f16_to_f32(f32_to_f16(q))).collect();
    let kept = [0u32, 4, 7];
    for cap in [None, Some(0.5)] {
        let weight = |position: usize| {
            let dot: f64 =
                hay.key(position).iter().zip(&rounded).map(|(&k, &q)| f64::from(k) * f64::from(q)).sum();
            let score = dot * f64::from(scale(dim));
            cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh()).exp()
        };
        let of = |blocks: &mut dyn Iterator<Item = usize>| -> f64 {
            blocks.flat_map(|block| block * BLOCK..(block + 1) * BLOCK).map(weight).sum()
        };
        let want = of(&mut kept.iter().map(|&b| b as usize)) / of(&mut (0..blocks));
        let got =
            hay.with(|keys| kept_mass(available()[0], keys, &rounded, (scale(dim), cap), blocks, &kept));
        assert!((f64::from(got) - want).abs() < 1e-5, "{got} for {want}");
    }
}

/// As in a layer with a sliding window of its own.
#[test]
fn the_last_blocks_are_scored_as_if_there_were_no_others() {
    let mut random = Random(71);
    let (dim, table) = (64, available()[0]);
    let mut hay = Haystack::new(&mut random, 9, dim);
    let queries = Queries::new(table, 1, 1, dim, std::iter::once(random.normals(dim).as_slice()));
    let rotations = Rotations::new(7, 8, dim);
    // Hashes are of keys without the first block's mean, so that stays.
    let mut without = Haystack { pages: [&hay.pages[..1], &hay.pages[4..]].concat(), dim };
    let by_hashes = |hay: &mut Haystack, from: usize, to: usize| {
        let mut hashes = Hashes::default();
        hay.with(|keys| hashes.update(table, &rotations, keys, to));
        lsh(table, &rotations, &hashes, &queries, from..to)
    };
    assert_eq!(by_hashes(&mut hay, 4, 9), by_hashes(&mut without, 1, 6));
    // Pages of two blocks share a vector: from an odd one on, the block before counts for what stands out.
    hay.with(|keys| {
        let by_bounds = |keys: Keys, from: usize, to: usize| {
            let mut limits = Bounds::default();
            limits.update(table, keys, to);
            bounds(table, &limits, &queries, from..to)
        };
        assert_eq!(by_bounds(keys, 4, 9), by_bounds(keys.from(4), 0, 5));
        assert_eq!(by_bounds(keys, 3, 9), by_bounds(keys.from(2), 0, 7)[1..]);
    });
}

#[test]
fn budgets_hold_and_ties_go_to_the_lower_block() {
    let all = Budget { blocks: 4, mass: 1.0, lone: 0 };
    assert_eq!(choose(&[1.0; 8], all), [0, 1, 2, 7]);
    assert_eq!(choose(&[0.0, 5.0, 1.0, 9.0, 2.0, 0.0], all), [0, 1, 3, 5]);
    assert_eq!(choose(&[0.0, 5.0, 1.0, 9.0, 2.0, 0.0], Budget { blocks: 4, mass: 0.5, lone: 0 }), [0, 3, 5]);
    let part = Budget { lone: 1, ..all };
    let mut kept = choose(&[0.0, 5.0, 1.0, 9.0, 2.0, 0.0], part);
    assert_eq!(kept, [0, 3, 5]);
    add_highest(&mut kept, &[9.0, 1.0, 2.0, 9.0, 2.0, 0.0], part.lone);
    assert_eq!(kept, [0, 2, 3, 5]);
    add_highest(&mut kept, &[0.0; 6], 9);
    assert_eq!(kept, [0, 1, 2, 3, 4, 5]);
    assert_eq!(choose(&[1.0], all), [0]);
    assert_eq!(choose(&[], all), [0u32; 0]);
}
