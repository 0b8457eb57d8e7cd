//! Single keys that single queries look for, found by every policy that chooses by content: of 32,768 keys one
//! matches one query of a block, whichever it is, at any depth.

use kernels::float16::{f16_to_f32, f32_to_f16};
use kernels::kernels::attention::{BLOCK, CacheType, key_len};
use kernels::select::{Keys, Queries, SmallKeys, kept_mass};
use kernels::simd::LANES;
use kernels::table::available;
use kernels::view::Shared;
use runtime::choose::{Asked, HeadState, Method};
use runtime::plan::Policy;

const HEAD_DIMS: [usize; 7] = [32, 64, 80, 96, 128, 192, 256];
/// 32,768 keys.
const BLOCKS: usize = 512;
/// Of each policy and head size.
const NEEDLES: usize = 3;
/// About the share of the dense attention mass that a needle has.
const SHARE: f64 = 0.997;
const KEEP: f32 = 0.1;

/// A small seeded generator (xorshift64*, Vigna, 2016).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize * n) >> 31
    }

    /// Two independent standard normal numbers (Box and Muller, 1958).
    fn pair(&mut self) -> [f32; 2] {
        let unit = |x: usize| (x as f32 + 0.5) / (1 << 23) as f32;
        let radius = (-2.0 * unit(self.below(1 << 23)).ln()).sqrt();
        let (sin, cos) = (std::f32::consts::TAU * unit(self.below(1 << 23))).sin_cos();
        [radius * sin, radius * cos]
    }

    fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n / 2).flat_map(|_| self.pair()).collect()
    }
}

/// Keys in pages as the cache has them.
struct Haystack {
    pages: Vec<Vec<u16>>,
    dim: usize,
}

impl Haystack {
    /// All keys have `common` added to them, a dimension of each in turn.
    fn new(random: &mut Random, common: &[f32]) -> Self {
        let shared = common.iter().flat_map(|&x| [x; LANES]).cycle();
        let mut page = |_| {
            let keys = random.normals(key_len(common.len()));
            keys.into_iter().zip(shared.clone()).map(|(x, y)| f32_to_f16(x + y)).collect()
        };
        Self { pages: (0..BLOCKS).map(&mut page).collect(), dim: common.len() }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }

    /// The query that has its share of its attention at one key, which stays as it is; none where the key is too short.
    fn query_for(&self, at: usize) -> Option<Vec<f32>> {
        let slot = at % BLOCK;
        let value = |d: usize| self.pages[at / BLOCK][(slot / LANES * self.dim + d) * LANES + slot % LANES];
        let key: Vec<f32> = (0..self.dim).map(|d| f16_to_f32(value(d))).collect();
        let square: f32 = key.iter().map(|k| k * k).sum();
        let root = square.sqrt();
        // Where the others' scores have a deviation of x, it is x * root, and they come to ln(keys) + x^2 / 2.
        let above = ((BLOCKS * BLOCK) as f32).ln() + (0.99f32 / 0.01).ln();
        let deviation = root - (square - 2.0 * above).sqrt();
        let query = || key.iter().map(|k| k * deviation * (self.dim as f32).sqrt() / root).collect();
        (square >= 2.0 * above).then(query)
    }

    /// Turns one key towards the query, so long that it has its share of the query's attention: the scores of
    /// the others are normal numbers, but for what all keys have in common.
    fn plant(&mut self, at: usize, query: &[f32], common: &[f32]) {
        let square: f64 = query.iter().map(|&q| f64::from(q) * f64::from(q)).sum();
        let others = ((BLOCKS * BLOCK) as f64).ln() + square / (2 * self.dim) as f64;
        let score = others + (SHARE / (1.0 - SHARE)).ln();
        let by = (score / (square * f64::from(self.scale()))) as f32;
        let slot = at % BLOCK;
        for (d, (q, common)) in query.iter().zip(common).enumerate() {
            let to = (slot / LANES * self.dim + d) * LANES + slot % LANES;
            self.pages[at / BLOCK][to] = f32_to_f16(q * by + common);
        }
    }
}

/// A policy, and the queries that it chooses for.
#[derive(Clone, Debug)]
struct Case {
    policy: Policy,
    heads: usize,
    tokens: usize,
    needle: Needle,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Needle {
    /// A key is turned towards a query, and made long.
    Key,
    /// A query is turned towards a key, and made long: the key is as long as the others.
    Query,
}

/// What a policy makes of one needle: whether it is found, and the mass that is kept of dense attention's.
fn look(hay: &mut Haystack, random: &mut Random, case: &Case, common: &[f32]) -> (bool, f32) {
    let (table, dim, &Case { ref policy, heads, tokens, .. }) = (available()[0], hay.dim, case);
    let mut rows: Vec<Vec<f32>> = (0..heads * tokens).map(|_| random.normals(dim)).collect();
    let seeker = random.below(heads * tokens);
    let mut at = random.below(BLOCKS * BLOCK);
    if case.needle == Needle::Key {
        hay.plant(at, &rows[seeker], common);
    } else {
        rows[seeker] = loop {
            match hay.query_for(at) {
                Some(query) => break query,
                None => at = random.below(BLOCKS * BLOCK),
            }
        };
    }
    let queries = Queries::new(table, heads, tokens, dim, rows.iter().map(Vec::as_slice));
    let looking = queries.row(seeker / tokens, seeker % tokens).to_vec();
    let scale = hay.scale();
    let method = Method::new(policy, dim).expect("a policy");
    let pages: Vec<Shared<u16>> = hay.pages.iter_mut().map(|page| Shared::new(page)).collect();
    let keys = Keys { cache: CacheType::F16, pages: &pages, at: 0, head_dim: dim };
    let mut state = HeadState::default();
    state.update(table, keys, &method, BLOCKS);
    let position = BLOCKS * BLOCK + tokens - 1;
    let asked = Asked { keys, queries, scale, softcap: None, first: 0, own: BLOCKS, position };
    let choice = state.choose(table, &method, &asked, &mut SmallKeys::default());
    let kept: Vec<u32> = match &choice {
        Some(choice) => choice.kept().blocks.iter().map(|block| block.index).collect(),
        None => (0..BLOCKS as u32).collect(),
    };
    let earlier: Vec<u32> = kept.into_iter().filter(|&block| block < BLOCKS as u32).collect();
    // `auto` has a budget of its own: here most queries look at nothing, for which it keeps all.
    let most = (KEEP * BLOCKS as f32).ceil() as usize;
    let within = matches!(policy, Policy::Auto { .. }) || earlier.len() <= most;
    assert!(within, "{policy:?}: {} blocks", earlier.len());
    let mass = kept_mass(table, keys, &looking, (scale, None), BLOCKS, &earlier);
    (earlier.contains(&((at / BLOCK) as u32)), mass)
}

const TOKENS: usize = 0;

fn antidiagonal(stride: usize) -> Policy {
    Policy::Antidiagonal { stride, mass: 1.0, keep: KEEP, tokens: TOKENS }
}

fn vertical_slash() -> Policy {
    Policy::VerticalSlash { keep: KEEP, tokens: TOKENS }
}

fn lsh() -> Policy {
    Policy::Lsh { rounds: 8, seed: 5, keep: KEEP, tokens: TOKENS }
}

fn bounds() -> Policy {
    Policy::Bounds { keep: KEEP, tokens: TOKENS }
}

fn auto() -> Policy {
    Policy::Auto { quality: 0.98, from: 4096 }
}

fn cases(needle: Needle, prompts: &[Policy], singles: &[Policy]) -> Vec<Case> {
    let of = |policies: &[Policy], tokens: usize| -> Vec<Case> {
        policies.iter().map(|policy| Case { policy: policy.clone(), heads: 4, tokens, needle }).collect()
    };
    [of(prompts, BLOCK), of(singles, 1)].concat()
}

/// All of a policy's needles are found in keys of the head size, to which something of a deviation is common.
fn assert_found(random: &mut Random, cases: &[Case], dim: usize, deviation: f32) {
    let common: Vec<f32> = random.normals(dim).into_iter().map(|x| x * deviation).collect();
    let mut hay = Haystack::new(random, &common);
    for case in cases {
        let mut look = || look(&mut hay, random, case, &common);
        let looked: Vec<(bool, f32)> = (0..NEEDLES).map(|_| look()).collect();
        let found = looked.iter().filter(|of| of.0).count();
        let mass = looked.iter().map(|of| of.1).sum::<f32>() / NEEDLES as f32;
        let what = format!("{case:?}, heads of {dim}, {deviation}");
        assert_eq!(found, NEEDLES, "{what}");
        let least = if case.needle == Needle::Key { 0.99 } else { 0.98 };
        assert!(mass > least, "{what}: a mass of {mass}");
    }
}

#[test]
fn every_policy_by_content_finds_single_keys_of_single_queries() {
    let prompts = [antidiagonal(8), antidiagonal(16), vertical_slash(), lsh(), bounds(), auto()];
    let singles = [antidiagonal(16), vertical_slash(), lsh(), bounds(), auto()];
    let cases = cases(Needle::Key, &prompts, &singles);
    let mut random = Random(88_172_645_463_325_252);
    for dim in HEAD_DIMS {
        assert_found(&mut random, &cases, dim, 0.0);
    }
    // Biases of keys give all of them something in common, which is no reason to find less.
    for dim in [64, 128] {
        assert_found(&mut random, &cases, dim, 3.0);
    }
}

/// Bounds of pages say too little of single tokens' then.
#[test]
fn keys_no_longer_than_others_are_found_by_what_looks_at_keys() {
    let prompts = [antidiagonal(8), antidiagonal(16), vertical_slash(), lsh(), bounds(), auto()];
    let singles = [antidiagonal(16), vertical_slash(), lsh(), auto()];
    let cases = cases(Needle::Query, &prompts, &singles);
    let mut random = Random(8_362_645_463_325_252);
    for dim in HEAD_DIMS {
        assert_found(&mut random, &cases, dim, 0.0);
    }
}
