//! Attention: every ISA equals the scalar reference bit for bit, whole or in parts, over all keys or
//! over blocks of them; and the reference equals a softmax over the keys that are kept.

mod common;

use common::{Random, bits, fast, scalar};
use kernels::float16::round_f16;
use kernels::kernels::attend::AttendScratch;
use kernels::kernels::attention::{
    AttendJob, BLOCK, CHUNK, CacheType, Kept, KeyBlock, MAX_QUERIES, Query, StoreJob,
};
use kernels::table::{KernelTable, available};
use kernels::view::{Aligned, Shared};
use proptest::prelude::*;

/// One sequence of one KV head, and queries for its last tokens.
#[derive(Clone, Debug)]
struct Case {
    seed: u64,
    head_dim: usize,
    value_dim: usize,
    cache: CacheType,
    group: usize,
    length: usize,
    queries: usize,
    window: Option<usize>,
    softcap: Option<f32>,
    sinks: bool,
    kept: Option<Pattern>,
    /// What unwritten slots hold: 0x7e00 is a NaN, which must never be read into a result.
    stale: u16,
    /// Values around 1 only, for comparisons with other arithmetic.
    gentle: bool,
}

#[derive(Clone, Debug)]
struct Pattern {
    blocks: Vec<KeyBlock>,
    sinks: usize,
    recent: usize,
}

impl Pattern {
    /// Each block kept or not, whole or not, by the bits of `seed`; always with the last queries' own.
    fn random(seed: u64, length: usize, queries: usize, sinks: usize, recent: usize) -> Self {
        let mut random = Random(seed);
        let own = (length - queries) / BLOCK;
        let blocks = (0..length.div_ceil(BLOCK)).filter_map(|index| {
            let [keep, whole] = [random.next(), random.next()].map(|bits| bits % 3 == 0);
            let keep = keep || index >= own;
            keep.then_some(KeyBlock { index: index as u32, whole: whole || index >= own })
        });
        Self { blocks: blocks.collect(), sinks, recent }
    }

    fn keeps(&self, position: usize, key: usize) -> bool {
        let near = key < self.sinks || key + self.recent > position;
        self.blocks.iter().any(|block| block.index as usize == key / BLOCK && (block.whole || near))
    }
}

fn plain(head_dim: usize, length: usize, queries: usize) -> Case {
    Case {
        seed: 7,
        head_dim,
        value_dim: head_dim,
        cache: CacheType::F16,
        group: 1,
        length,
        queries,
        window: None,
        softcap: None,
        sinks: false,
        kept: None,
        stale: 0,
        gentle: false,
    }
}

/// What a cache makes of a key or value, by the definition of its type.
fn as_cached(cache: CacheType, x: &[f32]) -> Vec<f32> {
    let run = |x: &[f32]| -> Vec<f32> {
        let amax = x.iter().fold(0.0f32, |a, x| a.max(x.abs()));
        let (d, inverse) = (round_f16(amax / 127.0), 127.0 / amax);
        let q = |x: &f32| if inverse.is_finite() { (x * inverse).round_ties_even() } else { 0.0 };
        x.iter().map(|x| d * q(x)).collect()
    };
    match cache {
        CacheType::F16 => x.iter().map(|&x| round_f16(x)).collect(),
        CacheType::Q8 => x.chunks(32).flat_map(run).collect(),
    }
}

/// A case's keys and values, as the cache has them, and its queries.
struct Data {
    pages: Vec<Aligned<u16>>,
    k: Vec<Vec<f32>>,
    v: Vec<Vec<f32>>,
    q: Vec<f32>,
    rows: Vec<Query>,
}

impl Case {
    /// Stored by `table`.
    fn data(&self, table: &KernelTable) -> Data {
        let mut random = Random(self.seed);
        let gentle = self.gentle;
        let mut floats = |n: usize| -> Vec<f32> {
            let soften = |x: f32| if gentle { round_f16(x.clamp(-1.5, 1.5)) } else { x };
            random.floats(n).into_iter().map(soften).collect()
        };
        let (keys, values) = (self.cache.key_words(self.head_dim), self.cache.value_words(self.value_dim));
        let page = || Aligned::zeroed(keys + values).unwrap();
        let mut pages: Vec<Aligned<u16>> = (0..self.length.div_ceil(BLOCK)).map(|_| page()).collect();
        pages.iter_mut().for_each(|page| page.as_mut_slice().fill(self.stale));
        let (mut all_k, mut all_v) = (Vec::new(), Vec::new());
        for position in 0..self.length {
            let (k, v) = (floats(self.head_dim), floats(self.value_dim));
            let (page, slot) = (pages[position / BLOCK].shared(), position % BLOCK);
            let (head_dim, value_dim, cache) = (self.head_dim, self.value_dim, self.cache);
            let job = StoreJob { k: &k, v: &v, head_dim, value_dim, cache, page, start: 0, slot };
            (table.store_kv)(&job).unwrap();
            all_k.push(as_cached(cache, &k));
            all_v.push(as_cached(cache, &v));
        }
        let q = floats(self.queries * self.group * self.head_dim);
        let heads: Vec<Option<f32>> = (0..self.group).map(|_| self.sinks.then(|| floats(1)[0])).collect();
        let rows = (0..self.queries * self.group).map(|i| Query {
            q: i * self.head_dim,
            out: i * self.value_dim,
            position: self.length - self.queries + i / self.group,
            sink: heads[i % self.group],
        });
        Data { pages, k: all_k, v: all_v, q, rows: rows.collect() }
    }

    /// The queries' results, `at_once` of them in each job, and each job in one go or by pieces of
    /// that many chunks.
    fn run_by(&self, table: &KernelTable, at_once: usize, piece: Option<usize>) -> Vec<f32> {
        let Data { mut pages, q, rows, .. } = self.data(table);
        let mut out = vec![0.0; rows.len() * self.value_dim];
        let pages: Vec<Shared<u16>> = pages.iter_mut().map(|page| page.shared()).collect();
        let mut scratch = AttendScratch::default();
        for queries in rows.chunks(at_once) {
            let job = AttendJob {
                queries,
                q: &q,
                out: Shared::new(&mut out),
                head_dim: self.head_dim,
                value_dim: self.value_dim,
                cache: self.cache,
                pages: &pages,
                keys_at: 0,
                values_at: self.cache.key_words(self.head_dim),
                scale: 1.0 / (self.head_dim as f32).sqrt(),
                softcap: self.softcap,
                window: self.window,
                kept: self.kept.as_ref().map(|kept| Kept {
                    blocks: &kept.blocks,
                    sinks: kept.sinks,
                    recent: kept.recent,
                }),
            };
            let Some(piece) = piece else {
                (table.attend)(&job, &mut scratch);
                continue;
            };
            let len = queries.len() * job.state_len();
            let mut states = vec![f32::NAN; job.chunks().len() * len];
            for (i, first) in job.chunks().step_by(piece).enumerate() {
                let chunks = first..(first + piece).min(job.chunks().end);
                let states = Shared::new(&mut states[i * piece * len..]);
                (table.attend_part)(&job, chunks, states, &mut scratch);
            }
            (table.merge_parts)(&job, &states, &mut scratch);
        }
        out
    }

    fn run(&self, table: &KernelTable) -> Vec<f32> {
        self.run_by(table, MAX_QUERIES, None)
    }

    fn sees(&self, position: usize, key: usize) -> bool {
        let in_window = self.window.is_none_or(|window| key + window > position);
        key <= position && in_window && self.kept.as_ref().is_none_or(|kept| kept.keeps(position, key))
    }

    /// The softmax over the keys that are kept, in f64, and what its terms amount to without signs.
    fn softmax(&self, data: &Data, row: usize) -> (Vec<f64>, Vec<f64>) {
        let query = data.rows[row];
        let q = &data.q[query.q..][..self.head_dim];
        let seen: Vec<usize> = (0..self.length).filter(|&key| self.sees(query.position, key)).collect();
        let score = |key: &usize| {
            let dot: f64 = q.iter().zip(&data.k[*key]).map(|(&q, &k)| q as f64 * k as f64).sum();
            let score = dot / (self.head_dim as f64).sqrt();
            self.softcap.map_or(score, |cap| cap as f64 * libm::tanh(score / cap as f64))
        };
        let scores: Vec<f64> = seen.iter().map(score).collect();
        let sink = query.sink.map(|sink| sink as f64);
        let max = scores.iter().copied().chain(sink).fold(f64::MIN, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| libm::exp(s - max)).collect();
        let sum = weights.iter().sum::<f64>() + sink.map_or(0.0, |sink| libm::exp(sink - max));
        let terms = |d: usize| {
            let terms = weights.iter().zip(&seen).map(move |(w, &key)| w / sum * data.v[key][d] as f64);
            terms.fold((0.0, 0.0), |(sum, size): (f64, f64), term| (sum + term, size + term.abs()))
        };
        (0..self.value_dim).map(terms).unzip()
    }
}

prop_compose! {
    fn cases()(
        seed: u64,
        head_dim in prop::sample::select(vec![8usize, 16, 40, 64, 80, 128]),
        value_dim in prop::option::of(prop::sample::select(vec![8usize, 24, 64, 128])),
        group in 1usize..5,
        length in 1usize..300,
        queries in 1usize..20,
        window in prop::option::of(1usize..150),
        softcap in prop::option::of(prop::sample::select(vec![0.5f32, 30.0, 50.0])),
        kept in prop::option::of((0usize..80, 1usize..150)),
        [sinks, nan, gentle, q8] in any::<[bool; 4]>(),
    ) -> Case {
        let queries = queries.min(length);
        let pattern = |(sinks, recent)| Pattern::random(seed ^ 1, length, queries, sinks, recent);
        Case {
            seed,
            head_dim,
            value_dim: value_dim.unwrap_or(head_dim),
            cache: if q8 { CacheType::Q8 } else { CacheType::F16 },
            group,
            length,
            queries,
            window,
            softcap,
            sinks,
            kept: kept.map(pattern),
            stale: if nan { 0x7e00 } else { 0 },
            gentle,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_isa_equals_the_reference(case in cases(), at_once in 1..=MAX_QUERIES) {
        let want = case.run(scalar());
        prop_assert!(want.iter().all(|x| x.is_finite()));
        for table in fast() {
            prop_assert_eq!(bits(&case.run_by(table, at_once, None)), bits(&want), "{}", table.isa);
        }
    }

    #[test]
    fn every_isa_stores_the_same(case in cases()) {
        let want = case.data(scalar()).pages;
        for table in fast() {
            for (page, want) in case.data(table).pages.iter().zip(&want) {
                prop_assert!(page.as_slice() == want.as_slice(), "{}", table.isa);
            }
        }
    }

    #[test]
    fn the_reference_is_a_softmax_over_what_is_kept(case in cases()) {
        let case = Case { gentle: true, ..case };
        let (got, data) = (case.run(scalar()), case.data(scalar()));
        for row in 0..data.rows.len() {
            let (want, size) = case.softmax(&data, row);
            for (d, got) in got[row * case.value_dim..][..case.value_dim].iter().enumerate() {
                let error = (*got as f64 - want[d]).abs();
                prop_assert!(error <= 2e-3 * size[d] + 1e-6, "row {} {}: {} {}", row, d, got, want[d]);
            }
        }
    }

    #[test]
    fn keeping_all_blocks_is_dense(case in cases(), recent in 0usize..100) {
        let blocks = 0..case.length.div_ceil(BLOCK) as u32;
        let blocks = blocks.map(|index| KeyBlock { index, whole: true }).collect();
        let all = Case { kept: Some(Pattern { blocks, sinks: 0, recent }), ..case.clone() };
        let dense = Case { kept: None, ..case };
        for table in available() {
            prop_assert_eq!(bits(&all.run(table)), bits(&dense.run(table)), "{}", table.isa);
        }
    }

    /// A window in positions is one in blocks whose edges are limited.
    #[test]
    fn a_window_of_blocks_is_a_window(case in cases(), window in 1usize..150) {
        let blocks = 0..case.length.div_ceil(BLOCK) as u32;
        let blocks = blocks.map(|index| KeyBlock { index, whole: false }).collect();
        let kept = Case { kept: Some(Pattern { blocks, sinks: 0, recent: window }), window: None, ..case.clone() };
        let plain = Case { kept: None, window: Some(window), ..case };
        for table in available() {
            prop_assert_eq!(bits(&kept.run(table)), bits(&plain.run(table)), "{}", table.isa);
        }
    }
}

#[test]
fn chunks_by_themselves_merge_to_the_same_bits() {
    for (window, sparse) in [(None, false), (Some(700), false), (Some(1500), false), (None, true)] {
        let length = 4 * CHUNK + 50;
        let kept = sparse.then(|| Pattern::random(3, length, 5, 4, 90));
        for cache in CacheType::ALL {
            let kept = kept.clone();
            let case = Case { cache, group: 3, window, kept, sinks: true, ..plain(32, length, 5) };
            let want = case.run(scalar());
            for table in available() {
                for piece in [None, Some(1), Some(2), Some(9)] {
                    let got = case.run_by(table, MAX_QUERIES, piece);
                    assert_eq!(bits(&got), bits(&want), "{} {cache:?} {window:?} {piece:?}", table.isa);
                }
            }
        }
    }
}

#[test]
fn a_query_does_not_depend_on_its_neighbours() {
    for table in available() {
        for cache in CacheType::ALL {
            let case = Case { cache, group: 2, window: Some(70), ..plain(64, 150, 9) };
            let together = case.run(table);
            for at_once in [1, 3, 5] {
                assert_eq!(bits(&case.run_by(table, at_once, None)), bits(&together), "{}", table.isa);
            }
        }
    }
}

#[test]
fn heads_of_every_size() {
    for (head_dim, value_dim) in [(64, 64), (96, 96), (192, 128), (256, 256), (576, 512)] {
        for cache in CacheType::ALL {
            let case = Case { value_dim, cache, group: 3, ..plain(head_dim, 140, 6) };
            let want = case.run(scalar());
            for table in fast() {
                assert_eq!(bits(&case.run(table)), bits(&want), "{} {cache:?} {head_dim}", table.isa);
            }
        }
    }
}

#[test]
fn a_q8_cache_takes_34_bytes_where_f16_takes_64() {
    for dim in [32, 64, 128, 256, 512, 576] {
        let [half, bytes] = CacheType::ALL.map(|cache| cache.key_words(dim) + cache.value_words(dim));
        assert_eq!(bytes * 64, half * 34, "heads of {dim}");
    }
    // A shorter run has a scale too.
    assert_eq!(CacheType::Q8.key_words(80) * 2, BLOCK * (80 + 3 * 2));
}

#[test]
fn what_does_not_fit_the_cache_is_refused() {
    // The largest values: 65,519.9 is the last float that rounds to a finite F16 number, and 512.2 the last scale to 512.
    let cases = [(CacheType::F16, 65519.9, 65520.0), (CacheType::Q8, 127.0 * 512.2, 127.0 * 512.3)];
    for (cache, fits, too_large) in cases {
        for table in available() {
            let mut page = Aligned::zeroed(cache.key_words(40) + cache.value_words(40)).unwrap();
            let mut store = |at: usize, x: f32| {
                let mut k = [[0.5; 40]; 2];
                k[at / 40][at % 40] = x;
                let job = StoreJob {
                    k: &k[0],
                    v: &k[1],
                    head_dim: 40,
                    value_dim: 40,
                    cache,
                    page: page.shared(),
                    start: 0,
                    slot: 9,
                };
                (table.store_kv)(&job)
            };
            for at in [0, 17, 31, 39, 40, 79] {
                for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, too_large, -too_large] {
                    assert!(store(at, x).is_err(), "{} {cache:?}: {x} at {at}", table.isa);
                }
                for x in [fits, -fits, 0.0, 1e-42] {
                    assert!(store(at, x).is_ok(), "{} {cache:?}: {x} at {at}", table.isa);
                }
            }
        }
    }
}
