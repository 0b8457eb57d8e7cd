//! The automatic policy on attention whose shape is known: where it is concentrated, `auto` keeps its mass with
//! few blocks; where it is spread out, all of them.

use kernels::float16::f32_to_f16;
use kernels::kernels::attention::{BLOCK, CacheType, key_len};
use kernels::select::{Keys, Queries, SmallKeys, kept_mass};
use kernels::simd::LANES;
use kernels::table::available;
use kernels::view::Shared;
use runtime::choose::{Asked, HeadState, Method};
use runtime::plan::Policy;

const DIM: usize = 64;
const HEADS: usize = 4;
/// 32,768 keys.
const BLOCKS: usize = 512;
const QUALITY: f32 = 0.98;
const SCALE: f32 = 0.125;

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

    fn normals(&mut self, n: usize) -> Vec<f32> {
        let mut normal = || {
            let mut unit = || ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
            let radius = (-2.0 * unit().ln()).sqrt();
            (radius * (std::f64::consts::TAU * unit()).cos()) as f32
        };
        (0..n).map(|_| normal()).collect()
    }

    /// Of length 1.
    fn direction(&mut self) -> Vec<f32> {
        let x = self.normals(DIM);
        let length = x.iter().map(|x| x * x).sum::<f32>().sqrt();
        x.iter().map(|x| x / length).collect()
    }
}

/// Keys of independent normal numbers, some of which are then planted.
struct Haystack(Vec<Vec<u16>>);

impl Haystack {
    fn new(random: &mut Random) -> Self {
        let page = |_| random.normals(key_len(DIM)).into_iter().map(f32_to_f16).collect();
        Self((0..BLOCKS).map(page).collect())
    }

    fn plant(&mut self, positions: std::ops::Range<usize>, key: &[f32]) {
        for position in positions {
            let slot = position % BLOCK;
            for (d, &x) in key.iter().enumerate() {
                self.0[position / BLOCK][(slot / LANES * DIM + d) * LANES + slot % LANES] = f32_to_f16(x);
            }
        }
    }

    fn with<T>(&mut self, work: impl FnOnce(Keys) -> T) -> T {
        let pages: Vec<Shared<u16>> = self.0.iter_mut().map(|page| Shared::new(page)).collect();
        work(Keys { cache: CacheType::F16, pages: &pages, at: 0, head_dim: DIM })
    }
}

/// Queries of length 4 in a random direction each, all of which look along one direction by `pull`.
fn queries(random: &mut Random, tokens: usize, direction: &[f32], pull: f32) -> Queries {
    let rows: Vec<Vec<f32>> = (0..HEADS * tokens)
        .map(|_| random.normals(DIM).iter().zip(direction).map(|(x, u)| 0.5 * x + pull * u).collect())
        .collect();
    Queries::new(available()[0], HEADS, tokens, DIM, rows.iter().map(Vec::as_slice))
}

/// The earlier blocks that `auto` keeps, and the share of the attention mass of all queries that these hold.
fn kept(hay: &mut Haystack, state: &mut HeadState, queries: Queries, position: usize) -> (Vec<u32>, f32) {
    let table = available()[0];
    let method = Method::new(&Policy::Auto { quality: QUALITY, from: 4096 }, DIM).expect("a policy");
    hay.with(|keys| {
        state.update(table, keys, &method, 0);
        state.update(table, keys, &method, BLOCKS);
        let asked = Asked { keys, queries, scale: SCALE, softcap: None, first: 0, own: BLOCKS, position };
        let Some(choice) = state.choose(table, &method, &asked, &mut SmallKeys::default()) else {
            return ((0..BLOCKS as u32).collect(), 1.0);
        };
        let kept: Vec<u32> =
            choice.kept().blocks.iter().map(|block| block.index).filter(|&b| b < BLOCKS as u32).collect();
        let mass = kept_mass(table, keys, &asked.queries.values, (SCALE, None), BLOCKS, &kept);
        (kept, mass)
    })
}

/// The same with the blocks as a share of all.
fn keep(hay: &mut Haystack, state: &mut HeadState, queries: Queries, position: usize) -> (f32, f32) {
    let (kept, mass) = kept(hay, state, queries, position);
    (kept.len() as f32 / BLOCKS as f32, mass)
}

/// What a key has to score so that `count` of them hold all but a 1,000th of the mass: the others' exponentials
/// are 1.9 on average.
fn strong(count: usize) -> f32 {
    ((BLOCKS * BLOCK) as f32 * 1.9 * 1000.0 / count as f32).ln()
}

const PULL: f32 = 8.0;

#[test]
fn concentrated_prompts_keep_their_mass_with_few_blocks() {
    let mut random = Random(1);
    let mut hay = Haystack::new(&mut random);
    for needles in [1, 4, 12] {
        let (mut kept, mut mass) = (0.0, 0.0);
        for _ in 0..4 {
            let direction = random.direction();
            let key: Vec<f32> = direction.iter().map(|u| u * strong(16 * needles) / (PULL * SCALE)).collect();
            for _ in 0..needles {
                let first = random.below(BLOCKS * BLOCK / 16 - 1) * 16;
                hay.plant(first..first + 16, &key);
            }
            let queries = queries(&mut random, BLOCK, &direction, PULL);
            let of = keep(&mut hay, &mut HeadState::default(), queries, BLOCKS * BLOCK + BLOCK - 1);
            (kept, mass) = (kept + of.0 / 4.0, mass + of.1 / 4.0);
        }
        assert!(mass >= QUALITY, "{needles} runs: a mass of {mass}");
        assert!(kept <= 0.1, "{needles} runs: {kept} of the blocks");
    }
}

/// One query of a block has so little of the block's mass that `quality` would allow to leave it out.
#[test]
fn a_needle_that_one_query_looks_for_is_kept() {
    let mut random = Random(4);
    let mut hay = Haystack::new(&mut random);
    for _ in 0..6 {
        let (common, lone) = (random.direction(), random.direction());
        let mut plant = |direction: &[f32], block: usize, count: usize| {
            let key: Vec<f32> = direction.iter().map(|u| u * strong(count) / (PULL * SCALE)).collect();
            hay.plant(block * BLOCK + 16..block * BLOCK + 32, &key);
        };
        (0..4).for_each(|_| plant(&common, random.below(BLOCKS), 64));
        let block = random.below(BLOCKS);
        plant(&lone, block, 16);
        let mut queries = queries(&mut random, BLOCK, &common, PULL);
        let of_one = looking_along(&mut random, &lone);
        queries.values[21 * DIM..22 * DIM].copy_from_slice(&of_one);
        let position = BLOCKS * BLOCK + BLOCK - 1;
        let (kept, _) = kept(&mut hay, &mut HeadState::default(), queries, position);
        assert!(kept.contains(&(block as u32)), "block {block} is not among {kept:?}");
        assert!(kept.len() <= BLOCKS / 10, "{} blocks", kept.len());
    }
}

/// Half of a block's queries look along a direction, the others at everything: what the former keep is not enough.
#[test]
fn a_block_some_of_whose_queries_look_at_everything_is_dense() {
    let mut random = Random(5);
    let mut hay = Haystack::new(&mut random);
    let direction = random.direction();
    let key: Vec<f32> = direction.iter().map(|u| u * strong(16) / (PULL * SCALE)).collect();
    hay.plant(1600..1616, &key);
    for looking in [0..BLOCK / 2, BLOCK / 2..BLOCK, 3..BLOCK, 0..BLOCK - 4] {
        let mut queries = queries(&mut random, BLOCK, &direction, 0.0);
        for head in 0..HEADS {
            for token in looking.clone() {
                let row = looking_along(&mut random, &direction);
                queries.values[(head * BLOCK + token) * DIM..][..DIM].copy_from_slice(&row);
            }
        }
        let position = BLOCKS * BLOCK + BLOCK - 1;
        let (_, mass) = kept(&mut hay, &mut HeadState::default(), queries, position);
        // Estimated from one pair in sixteen.
        assert!(mass >= QUALITY - 0.005, "{looking:?}: a mass of {mass}");
    }
}

fn looking_along(random: &mut Random, direction: &[f32]) -> Vec<f32> {
    random.normals(DIM).iter().zip(direction).map(|(x, u)| 0.5 * x + PULL * u).collect()
}

#[test]
fn single_tokens_keep_their_needle() {
    let mut random = Random(2);
    let mut hay = Haystack::new(&mut random);
    for _ in 0..8 {
        let direction = random.direction();
        let key: Vec<f32> = direction.iter().map(|u| u * strong(1) / (PULL * SCALE)).collect();
        let at = random.below(BLOCKS * BLOCK);
        hay.plant(at..at + 1, &key);
        let mut state = HeadState::default();
        // The first is at a position where it is measured, which later ones trust.
        for position in [BLOCKS * BLOCK, BLOCKS * BLOCK + 1] {
            let queries = queries(&mut random, 1, &direction, PULL);
            let (kept, mass) = keep(&mut hay, &mut state, queries, position);
            assert!(mass >= QUALITY - 0.01, "a mass of {mass}");
            assert!(kept <= 0.125, "{kept} of the blocks");
        }
    }
}

#[test]
fn spread_attention_stays_dense() {
    let mut random = Random(3);
    let mut hay = Haystack::new(&mut random);
    let nowhere = vec![0.0; DIM];
    for (tokens, position) in [(BLOCK, BLOCKS * BLOCK + BLOCK - 1), (1, BLOCKS * BLOCK)] {
        let mut state = HeadState::default();
        let queries = queries(&mut random, tokens, &nowhere, 0.0);
        assert_eq!(keep(&mut hay, &mut state, queries, position), (1.0, 1.0));
        // What attention held, not what the choice that was not taken would have.
        state.settle();
        let kept = state.take_kept();
        assert_eq!((kept.mass, kept.measured), (1.0, 1));
    }
}
