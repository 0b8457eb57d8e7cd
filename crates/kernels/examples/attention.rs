//! Time of attention for one KV head: `attention HEAD_DIM GROUP DEPTH TOKENS [REPEATS]`, over an F16 cache or, with
//! `FRUGAL_KV=q8_0`, over one of that type.
//! Prints Gflop/s over all pairs of queries and the keys that they see, and the machine's f32 peak.
use kernels::kernels::attend::AttendScratch;
use kernels::kernels::attention::{AttendJob, BLOCK, CacheType, MAX_QUERIES, Query, StoreJob};
use kernels::table::available;
use kernels::view::{Aligned, Shared};
use std::time::Instant;

fn main() {
    let args: Vec<usize> = std::env::args().skip(1).map(|a| a.parse().expect("a number")).collect();
    let &[dim, group, depth, tokens] = args.first_chunk().expect("HEAD_DIM GROUP DEPTH TOKENS");
    let repeats = args.get(4).copied().unwrap_or(3);
    let isa = std::env::var("FRUGAL_ISA").ok();
    let table =
        available().into_iter().find(|t| isa.as_deref().is_none_or(|isa| isa == t.isa)).expect("the ISA");
    let q8 = std::env::var("FRUGAL_KV").is_ok_and(|kind| kind == "q8_0");
    let cache = if q8 { CacheType::Q8 } else { CacheType::F16 };
    let (keys, values) = (cache.key_words(dim), cache.value_words(dim));
    let mut seed = 1u64;
    let mut random = || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let mut pages: Vec<Aligned<u16>> =
        (0..depth.div_ceil(BLOCK)).map(|_| Aligned::zeroed(keys + values).unwrap()).collect();
    for position in 0..depth {
        let (k, v): (Vec<f32>, Vec<f32>) = (0..dim).map(|_| (random(), random())).unzip();
        let page = pages[position / BLOCK].shared();
        let slot = position % BLOCK;
        let (head_dim, value_dim) = (dim, dim);
        let job = StoreJob { k: &k, v: &v, head_dim, value_dim, cache, page, start: 0, slot };
        (table.store_kv)(&job).unwrap();
    }
    let q: Vec<f32> = (0..tokens * group * dim).map(|_| random()).collect();
    let mut out = vec![0.0; q.len()];
    let pages: Vec<Shared<u16>> = pages.iter_mut().map(|page| page.shared()).collect();
    let queries: Vec<Query> = (0..tokens * group)
        .map(|i| Query { q: i * dim, out: i * dim, position: depth - tokens + i / group, sink: None })
        .collect();
    let pairs: usize = queries.iter().map(|q| q.position + 1).sum();
    let mut scratch = AttendScratch::default();
    let mut best = f64::MAX;
    for _ in 0..repeats {
        let start = Instant::now();
        for queries in queries.chunks(MAX_QUERIES) {
            (table.attend)(
                &AttendJob {
                    queries,
                    q: &q,
                    out: Shared::new(&mut out),
                    head_dim: dim,
                    value_dim: dim,
                    cache,
                    pages: &pages,
                    keys_at: 0,
                    values_at: keys,
                    scale: 1.0 / (dim as f32).sqrt(),
                    softcap: None,
                    window: None,
                    kept: None,
                },
                &mut scratch,
            );
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    let start = Instant::now();
    let ops = (kernels::peaks::peaks(table.isa).float)(200_000);
    let peak = ops as f64 / start.elapsed().as_secs_f64() / 1e9;
    let sum: f32 = out.iter().sum();
    let flops = 4.0 * (pairs * dim) as f64;
    let bytes = (depth.div_ceil(BLOCK) * (keys + values) * 2) as f64;
    println!(
        "{} dim {dim} group {group} depth {depth} tokens {tokens}: {:.3} ms, {:.1} Gflop/s, {:.0}% of {peak:.0}, {:.1} GB/s of cache ({sum})",
        table.isa,
        best * 1e3,
        flops / best / 1e9,
        flops / best / 1e7 / peak,
        bytes / best / 1e9
    );
}
