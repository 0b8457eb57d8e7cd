//! Single keys that single queries look for, found by every policy that chooses by content: of 32,768 keys one
//! matches one query of a block, whichever it is, at any depth.

use kernels::float16::f32_to_f16;
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
    fn new(random: &mut Random, dim: usize) -> Self {
        let page = |_| random.normals(key_len(dim)).into_iter().map(f32_to_f16).collect();
        Self { pages: (0..BLOCKS).map(page).collect(), dim }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }

    /// Turns one key towards the query, so long that it has its share of the query's attention: the scores of
    /// the others are normal numbers.
    fn plant(&mut self, at: usize, query: &[f32]) {
        let square: f64 = query.iter().map(|&q| f64::from(q) * f64::from(q)).sum();
        let others = ((BLOCKS * BLOCK) as f64).ln() + square / (2 * self.dim) as f64;
        let score = others + (SHARE / (1.0 - SHARE)).ln();
        let by = (score / (square * f64::from(self.scale()))) as f32;
        let slot = at % BLOCK;
        for (d, q) in query.iter().enumerate() {
            self.pages[at / BLOCK][(slot / LANES * self.dim + d) * LANES + slot % LANES] = f32_to_f16(q * by);
        }
    }
}

/// A policy, and the queries that it chooses for.
struct Case {
    policy: Policy,
    heads: usize,
    tokens: usize,
}

/// What a policy makes of one needle: whether it is found, and the mass that is kept of dense attention's.
fn look(hay: &mut Haystack, random: &mut Random, case: &Case) -> (bool, f32) {
    let (table, dim, &Case { ref policy, heads, tokens }) = (available()[0], hay.dim, case);
    let rows: Vec<Vec<f32>> = (0..heads * tokens).map(|_| random.normals(dim)).collect();
    let seeker = random.below(heads * tokens);
    let at = random.below(BLOCKS * BLOCK);
    hay.plant(at, &rows[seeker]);
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

#[test]
fn every_policy_by_content_finds_single_keys_of_single_queries() {
    let (keep, tokens) = (KEEP, 0);
    let prompt = |policy: Policy| Case { policy, heads: 4, tokens: BLOCK };
    let single = |policy: Policy| Case { policy, heads: 4, tokens: 1 };
    let antidiagonal = |stride: usize| Policy::Antidiagonal { stride, mass: 1.0, keep, tokens };
    let lsh = Policy::Lsh { rounds: 8, seed: 5, keep, tokens };
    let cases = [
        prompt(antidiagonal(8)),
        prompt(antidiagonal(16)),
        prompt(Policy::VerticalSlash { keep, tokens }),
        prompt(lsh.clone()),
        prompt(Policy::Bounds { keep, tokens }),
        prompt(Policy::Auto { quality: 0.98, from: 4096 }),
        single(antidiagonal(16)),
        single(Policy::VerticalSlash { keep, tokens }),
        single(lsh),
        single(Policy::Bounds { keep, tokens }),
        single(Policy::Auto { quality: 0.98, from: 4096 }),
    ];
    let mut random = Random(88_172_645_463_325_252);
    for dim in HEAD_DIMS {
        let mut hay = Haystack::new(&mut random, dim);
        for case in &cases {
            let looked: Vec<(bool, f32)> = (0..NEEDLES).map(|_| look(&mut hay, &mut random, case)).collect();
            let found = looked.iter().filter(|of| of.0).count();
            let mass = looked.iter().map(|of| of.1).sum::<f32>() / NEEDLES as f32;
            let what = format!("{:?}, {} tokens, heads of {dim}", case.policy, case.tokens);
            assert_eq!(found, NEEDLES, "{what}");
            assert!(mass > 0.99, "{what}: a mass of {mass}");
        }
    }
}
