//! The scalar reference: what every fast kernel must equal bit for bit. Plain loops, one output at
//! a time, written from the numerics contract and the format definitions.

use crate::acts::{ActRow, NonFinite};
use crate::exp::{clamped_swiglu, exp, gelu, power, silu};
use crate::float16::{f16_to_f32, f32_to_f16, round_bf16, round_f16};
use crate::kernels::attend::AttendScratch;
use crate::kernels::attention::{AttendJob, BLOCK, CHUNK, CacheType, MAX_SCALE, Query, StoreJob, runs};
use crate::kernels::matmul::{GluJob, LinearJob};
use crate::kernels::rows::Activation;
use crate::packed::{ActKind, Matrix};
use crate::select::pages::{padded_dim, row_blocks};
use crate::select::{
    Hashing, PackedKeys, PageScores, PageVector, RowScores, SUB, SampledScores, Shrinking, SmallRow, Sums,
    small,
};
use crate::simd::{ActBlock, LANES, QK};
use crate::view::Shared;
use std::ops::Range;

/// The product of row `row` of the weights with a token: of its one column, or the sum of its two.
fn dot(weight: &Matrix, row: usize, acts: &crate::acts::Acts, token: usize) -> f32 {
    match acts.kind.columns() {
        2 => dot_column(weight, row, acts, token * 2) + dot_column(weight, row, acts, token * 2 + 1),
        _ => dot_column(weight, row, acts, token),
    }
}

fn dot_column(weight: &Matrix, row: usize, acts: &crate::acts::Acts, column: usize) -> f32 {
    let (k, column) = (acts.k, column * acts.stride);
    if !acts.kind.quantised() {
        let mut w = vec![0.0; k];
        weight.read_row(row, &mut w);
        return w.iter().zip(&acts.floats[column * k..]).fold(0.0, |acc, (w, x)| acc + w * x);
    }
    let mut acc = 0.0f32;
    let shared = acts.kind.blocks();
    for (run, x) in acts.blocks[column * (k / QK)..][..k / QK].chunks_exact(shared).enumerate() {
        let (mut dot, mut sum) = (0, 0);
        for (block, x) in x.iter().enumerate() {
            let w = weight.block(row, run * shared + block);
            for (i, x) in x.values.iter().map(|&x| x as i32).enumerate() {
                dot += w.scales[i / 16] * w.values[i] * x;
                sum += w.minimums[i / 16] * x;
            }
        }
        let w = weight.block(row, run * shared);
        acc += (w.scale * x[0].scale) * dot as f32;
        if weight.format().has_minimum() {
            acc -= (w.minimum * x[0].scale) * sum as f32;
        }
    }
    acc
}

pub fn linear(job: &LinearJob) {
    let first = job.tiles.start * LANES;
    let last = (job.tiles.end * LANES).min(job.weight.rows());
    for row in first..last {
        for column in 0..job.acts.count / job.acts.kind.columns() {
            let mut value = dot(job.weight, row, &job.acts, column);
            if let Some(bias) = job.bias {
                value += bias[row];
            }
            let at = column * job.width + row;
            // SAFETY: rows of the job's tiles belong to it alone.
            let out = unsafe { job.out.write(at..at + 1) };
            out[0] = if job.add { out[0] + value } else { value };
        }
    }
}

pub fn glu(job: &GluJob) {
    let first = job.tiles.start * LANES;
    let last = (job.tiles.end * LANES).min(job.gate.rows());
    for row in first..last {
        for column in 0..job.acts.count / job.acts.kind.columns() {
            let biased = |weight, bias: Option<&[f32]>| {
                let value = dot(weight, row, &job.acts, column);
                bias.map_or(value, |bias| value + bias[row])
            };
            let (gate, up) = (biased(job.gate, job.biases[0]), biased(job.up, job.biases[1]));
            let at = column * job.width + row;
            // SAFETY: rows of the job's tiles belong to it alone.
            let out = unsafe { job.out.write(at..at + 1) };
            out[0] = gated(job.activation, gate, up);
        }
    }
}

fn gated(activation: Activation, gate: f32, up: f32) -> f32 {
    match activation {
        Activation::Silu => silu(gate) * up,
        Activation::Gelu => gelu(gate) * up,
        Activation::ClampedSwiglu => clamped_swiglu(gate, up),
    }
}

pub fn gate_rows(activation: Activation, gates: &mut [f32], ups: &[f32]) {
    gates.iter_mut().zip(ups).for_each(|(gate, &up)| *gate = gated(activation, *gate, up));
}

/// Sums by 16 virtual lanes: lane j adds elements j, j + 16, ...; then 8, 4, 2, 1.
fn lane_sum(values: impl Iterator<Item = f32>) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for (i, value) in values.enumerate() {
        lanes[i % LANES] += value;
    }
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

pub fn rms_norm(x: &mut [f32], weight: &[f32], eps: f32) {
    for x in x.chunks_exact_mut(weight.len()) {
        let mean = lane_sum(x.iter().map(|x| x * x)) / x.len() as f32;
        let inverse = if mean.is_finite() { 1.0 / (mean + eps).sqrt() } else { f32::NAN };
        for (x, w) in x.iter_mut().zip(weight) {
            *x = (*x * inverse) * w;
        }
    }
}

pub fn softcap(x: &mut [f32], cap: f32) {
    x.iter_mut().for_each(|x| *x = crate::exp::softcap(*x, cap));
}

pub fn prepare(kind: ActKind, x: &[f32], to: ActRow<'_>) -> Result<(), NonFinite> {
    let ActRow { floats, blocks } = to;
    match kind {
        ActKind::F32 => floats.copy_from_slice(x),
        ActKind::F16 => round(x, floats, round_f16),
        ActKind::BF16 => round(x, floats, round_bf16),
        ActKind::F16Pair => round_pair(x, floats, round_f16),
        ActKind::BF16Pair => round_pair(x, floats, round_bf16),
        ActKind::Q8 | ActKind::Q8K => quantise(x, blocks, kind.blocks()),
        ActKind::Q8Pair | ActKind::Q8KPair => {
            let (blocks, rest) = blocks.split_at_mut(x.len() / QK);
            quantise(x, blocks, kind.blocks());
            for (i, left) in floats.iter_mut().enumerate() {
                let block = &blocks[i / QK];
                *left = x[i] - block.scale * block.values[i % QK] as f32;
            }
            quantise(floats, rest, kind.blocks());
        }
    }
    let finite = x.iter().all(|x| x.is_finite()) && floats.iter().all(|x| x.is_finite());
    if finite { Ok(()) } else { Err(NonFinite) }
}

fn round(x: &[f32], out: &mut [f32], to: fn(f32) -> f32) {
    out.iter_mut().zip(x).for_each(|(out, &x)| *out = to(x));
}

fn round_pair(x: &[f32], out: &mut [f32], to: fn(f32) -> f32) {
    let (values, rest) = out.split_at_mut(x.len());
    round(x, values, to);
    for i in 0..x.len() {
        rest[i] = to(x[i] - values[i]);
    }
}

/// With a scale for every so many blocks.
fn quantise(x: &[f32], blocks: &mut [ActBlock], shared: usize) {
    for (x, blocks) in x.chunks_exact(QK * shared).zip(blocks.chunks_exact_mut(shared)) {
        let amax = x.iter().fold(0.0f32, |a, &b| if b.abs() > a { b.abs() } else { a });
        let inverse = 127.0 / amax;
        for (x, block) in x.chunks_exact(QK).zip(blocks) {
            let (scale, inverse) = if inverse.is_infinite() { (0.0, 0.0) } else { (amax / 127.0, inverse) };
            let value = |i: usize| (x[i] * inverse).round_ties_even() as i8;
            *block = ActBlock::new(scale, std::array::from_fn(value));
        }
    }
}

pub fn store_kv(job: &StoreJob) -> Result<(), NonFinite> {
    let mut finite = true;
    for head in 0..job.heads() {
        let [keys_at, values_at] = job.head_at(head);
        let k = &job.k[head * job.head_dim..][..job.head_dim];
        let v = &job.v[head * job.value_dim..][..job.value_dim];
        let key = |d: usize| key_place(job.head_dim, job.slot, d);
        let value = |d: usize| value_place(job.value_dim, job.slot, d);
        finite &= match job.cache {
            CacheType::F16 => store_half(job, k, keys_at, key) & store_half(job, v, values_at, value),
            CacheType::Q8 => {
                let key_scale = |run: usize| key_place(runs(job.head_dim), job.slot, run);
                let value_scale = |run: usize| run * BLOCK + job.slot;
                store_bytes(job, k, keys_at, key_scale, key)
                    & store_bytes(job, v, values_at, value_scale, value)
            }
        };
    }
    if finite { Ok(()) } else { Err(NonFinite) }
}

/// Where dimension d of a position's key is among a page's: `[4 sub-blocks][dim][16 keys]`.
fn key_place(dim: usize, slot: usize, d: usize) -> usize {
    (slot / LANES * dim + d) * LANES + slot % LANES
}

/// Where dimension d of a position's value is among a page's: [64 positions][dim padded to 16].
fn value_place(dim: usize, slot: usize, d: usize) -> usize {
    slot * dim.next_multiple_of(LANES) + d
}

fn store_half(job: &StoreJob, x: &[f32], at: usize, place: impl Fn(usize) -> usize) -> bool {
    for (d, &x) in x.iter().enumerate() {
        // SAFETY: the slot belongs to this job alone.
        unsafe { job.page.set(at + place(d), f32_to_f16(x)) };
    }
    x.iter().all(|&x| round_f16(x).is_finite())
}

/// Runs of 32 as bytes and an F16 scale: d = amax / 127, q = nearest_even(x * (127 / amax)).
fn store_bytes(
    job: &StoreJob,
    x: &[f32],
    at: usize,
    scale_place: impl Fn(usize) -> usize,
    place: impl Fn(usize) -> usize,
) -> bool {
    let first = (at + runs(x.len()) * BLOCK) * 2;
    let mut finite = true;
    for (run, values) in x.chunks(QK).enumerate() {
        let amax = values.iter().fold(0.0f32, |a, &b| if b.abs() > a { b.abs() } else { a });
        let inverse = 127.0 / amax;
        let (scale, inverse) =
            if inverse.is_infinite() { (0, 0.0) } else { (f32_to_f16(amax / 127.0), inverse) };
        finite &= f16_to_f32(scale) <= f16_to_f32(MAX_SCALE);
        // SAFETY: the slot belongs to this job alone.
        unsafe { job.page.set(at + scale_place(run), scale) };
        for (i, &x) in values.iter().enumerate() {
            finite &= x.is_finite();
            let q = (x * inverse).round_ties_even() as i8;
            // SAFETY: as above.
            unsafe { job.page.bytes().set(first + place(run * QK + i), q) };
        }
    }
    finite
}

/// One KV head's keys or values in a page, and how they are read back.
struct Stored<'a> {
    cache: CacheType,
    dim: usize,
    words: &'a [u16],
}

impl Stored<'_> {
    /// A number by its place, without its scale.
    fn number(&self, place: usize) -> f32 {
        match self.cache {
            CacheType::F16 => f16_to_f32(self.words[place]),
            CacheType::Q8 => {
                let word = self.words[runs(self.dim) * BLOCK + place / 2];
                f32::from(word.to_ne_bytes()[place % 2] as i8)
            }
        }
    }

    /// A scale by its place.
    fn scale(&self, place: usize) -> f32 {
        f16_to_f32(self.words[place])
    }

    /// q · the key in a slot.
    fn dot(&self, slot: usize, q: &[f32]) -> f32 {
        let number = |d: usize| self.number(key_place(self.dim, slot, d));
        let product = |dims: Range<usize>| dims.fold(0.0, |acc, d| acc + number(d) * round_f16(q[d]));
        match self.cache {
            CacheType::F16 => product(0..self.dim),
            CacheType::Q8 => (0..runs(self.dim)).fold(0.0, |acc, run| {
                let dims = run * QK..self.dim.min((run + 1) * QK);
                acc + product(dims) * self.scale(key_place(runs(self.dim), slot, run))
            }),
        }
    }

    /// What dimension d of the value in a slot adds with the probability p: a product of two numbers, which is exact.
    fn term(&self, slot: usize, d: usize, p: f32) -> f32 {
        let number = self.number(value_place(self.dim, slot, d));
        match self.cache {
            CacheType::F16 => p * number,
            CacheType::Q8 => {
                let weight = p * self.scale(d / QK * BLOCK + slot);
                let large = weight * 129.0;
                (large - (large - weight)) * number
            }
        }
    }
}

/// The softmax state of a row over some positions: o is relative to exp(max).
struct Partial {
    max: f32,
    sum: f32,
    o: Vec<f32>,
}

pub fn attend(job: &AttendJob, _: &mut AttendScratch) {
    for query in job.queries {
        let all = job.chunks().map(|chunk| attend_chunk(job, query, chunk));
        finish(job, query, all.reduce(merge));
    }
}

pub fn attend_part(job: &AttendJob, chunks: Range<usize>, states: Shared<f32>, _: &mut AttendScratch) {
    for (i, chunk) in chunks.enumerate() {
        for (row, query) in job.queries.iter().enumerate() {
            let at = (i * job.queries.len() + row) * job.state_len();
            let Partial { max, sum, o } = attend_chunk(job, query, chunk);
            // SAFETY: the part's states belong to its job alone.
            let state = unsafe { states.write(at..at + job.state_len()) };
            (state[0], state[1]) = (max, sum);
            state[LANES..LANES + o.len()].copy_from_slice(&o);
        }
    }
}

pub fn merge_parts(job: &AttendJob, states: &[f32], _: &mut AttendScratch) {
    for (row, query) in job.queries.iter().enumerate() {
        let of_row = states.chunks_exact(job.state_len()).skip(row).step_by(job.queries.len());
        let o = LANES..LANES + job.value_dim;
        let partials = of_row.map(|s| Partial { max: s[0], sum: s[1], o: s[o.clone()].to_vec() });
        finish(job, query, partials.reduce(merge));
    }
}

fn finish(job: &AttendJob, query: &Query, total: Option<Partial>) {
    let sink = query.sink.map(|sink| Partial { max: sink, sum: 1.0, o: vec![0.0; job.value_dim] });
    if let Some(Partial { sum, o, .. }) = total.into_iter().chain(sink).reduce(merge) {
        // SAFETY: a query's result belongs to its job alone.
        let out = unsafe { job.out.write(query.out..query.out + job.value_dim) };
        out.iter_mut().zip(o).for_each(|(out, o)| *out = o / sum);
    }
}

/// Whether a query's softmax takes part of a position, by the definition: block by block, key by key.
fn kept(job: &AttendJob, query: &Query, position: usize) -> bool {
    let seen = job.visible(query).contains(&position);
    seen && job.kept.is_none_or(|kept| {
        let near = position < kept.sinks || position + kept.recent > query.position;
        let block = kept.blocks.iter().find(|block| block.index as usize == position / BLOCK);
        block.is_some_and(|block| block.whole || near)
    })
}

fn attend_chunk(job: &AttendJob, query: &Query, chunk: usize) -> Partial {
    let dim = job.head_dim;
    let mut max = f32::NEG_INFINITY;
    let mut lanes = [0.0f32; LANES];
    let mut o = vec![0.0f32; job.value_dim];
    let positions = chunk * CHUNK..(query.position + 1).min((chunk + 1) * CHUNK);
    for block in positions.start / BLOCK..positions.end.div_ceil(BLOCK) {
        // SAFETY: pages are written before the step's attention starts, not during it.
        let page = unsafe { job.pages[block].read(0..job.pages[block].len()) };
        let keys = Stored { cache: job.cache, dim, words: &page[job.keys_at..] };
        let values = Stored { cache: job.cache, dim: job.value_dim, words: &page[job.values_at..] };
        let is_kept = |slot: &usize| kept(job, query, block * BLOCK + slot);
        let slots: Vec<usize> = (0..BLOCK).filter(is_kept).collect();
        let mut scores = [f32::NEG_INFINITY; BLOCK];
        for &slot in &slots {
            let score = keys.dot(slot, &job.q[query.q..query.q + dim]) * job.scale;
            scores[slot] = job.softcap.map_or(score, |cap| crate::exp::softcap(score, cap));
        }
        let new = scores.iter().fold(max, |a, &b| if b > a { b } else { a });
        // No key so far: keep every exponent's argument a number.
        let offset = if new == f32::NEG_INFINITY { 0.0 } else { new };
        let correction = exp(max - offset);
        max = new;
        let p = scores.map(|s| round_f16(exp(s - offset)));
        lanes.iter_mut().for_each(|l| *l *= correction);
        p.iter().enumerate().for_each(|(i, p)| lanes[i % LANES] += p);
        for (d, o) in o.iter_mut().enumerate() {
            *o = *o * correction + 0.0;
            for &slot in &slots {
                *o += values.term(slot, d, p[slot]);
            }
        }
    }
    Partial { max, sum: lane_sum(lanes.into_iter()), o }
}

/// q · key `lane` of a sub-block, in order of the dimensions; the products are exact.
fn key_dot(keys: &[[u16; LANES]], lane: usize, q: impl Iterator<Item = f32>) -> f32 {
    keys.iter().zip(q).fold(0.0, |sum, (key, q)| f16_to_f32(key[lane]) * q + sum)
}

pub fn widen(from: &[[u16; LANES]], to: &mut [[f32; LANES]]) {
    from.iter().zip(to).for_each(|(from, to)| *to = from.map(f16_to_f32));
}

pub fn expand_keys(job: &PackedKeys, out: &mut [[u16; LANES]]) {
    for (i, (bytes, out)) in job.bytes.iter().zip(out).enumerate() {
        let (sub, d) = (i / job.dim, i % job.dim);
        let scales = job.scales[sub * runs(job.dim) + d / QK];
        *out = std::array::from_fn(|lane| f32_to_f16(f32::from(bytes[lane]) * f16_to_f32(scales[lane])));
    }
}

pub fn round_halves(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = round_f16(*x));
}

pub fn row_scores(job: &RowScores, out: &mut [[f32; LANES]]) {
    let subs = job.keys.len() / job.dim;
    for (query, out) in job.queries.chunks_exact(job.dim).zip(out.chunks_exact_mut(subs.max(1))) {
        for (sub, out) in job.keys.chunks_exact(job.dim).zip(out) {
            *out = std::array::from_fn(|lane| key_dot(sub, lane, query.iter().copied()) * job.scale);
        }
    }
}

fn highest(values: impl Iterator<Item = f32>) -> f32 {
    values.fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
}

pub fn row_sums(scores: &[[f32; LANES]], out: &mut [[f32; 2]]) {
    for (scores, out) in scores.as_flattened().chunks_exact(BLOCK).zip(out) {
        let most = highest(scores.iter().copied());
        *out = [most, lane_sum(scores.iter().map(|x| exp(x - most)))];
    }
}

pub fn softmax(row: &mut [[f32; LANES]]) {
    let row = row.as_flattened_mut();
    let most = highest(row.iter().copied());
    row.iter_mut().for_each(|x| *x = exp(*x - most));
    let by = 1.0 / lane_sum(row.iter().copied());
    row.iter_mut().for_each(|x| *x *= by);
}

pub fn shrink_keys(job: &Shrinking, values: &mut [PageVector], scales: &mut [[f32; LANES]]) {
    let dim = job.less.len();
    for (sub, keys) in job.keys.chunks_exact(dim).enumerate() {
        for lane in 0..LANES {
            let key: Vec<f32> =
                keys.iter().zip(job.less).map(|(k, less)| f16_to_f32(k[lane]) - less).collect();
            let largest = highest(key.iter().map(|x| x.abs()));
            let by = if largest > 0.0 { small::MOST / largest } else { 0.0 };
            scales[sub][lane] = largest / small::MOST;
            for d in 0..dim.next_multiple_of(4) {
                let byte = key.get(d).map_or(0, |x| (x * by).round_ties_even() as i32 + small::OFFSET);
                values[sub * small::vectors(dim) + d / 4].0[lane * 4 + d % 4] = byte as u8;
            }
        }
    }
}

pub fn shrink_rows(rows: &[f32], dim: usize, values: &mut [[i8; LANES]], of: &mut [SmallRow]) {
    let vectors = padded_dim(dim) / LANES;
    for ((row, values), of) in rows.chunks_exact(dim).zip(values.chunks_exact_mut(vectors)).zip(of) {
        let largest = highest(row.iter().map(|q| q.abs()).chain([0.0]));
        let by = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        let values = values.as_flattened_mut();
        values.fill(0);
        values.iter_mut().zip(row).for_each(|(to, q)| *to = (q * by).round_ties_even() as i8);
        let sum: i32 = values.iter().map(|&q| i32::from(q)).sum();
        *of = SmallRow { scale: largest / 127.0, start: -small::OFFSET * sum };
    }
}

pub fn sampled_sums(job: &SampledScores, out: &mut [Sums]) {
    let vectors = job.keys.len() / SUB;
    for ((group, of), out) in job.lanes.chunks_exact(vectors).zip(job.of).zip(out) {
        for lane in 0..LANES {
            let four = |vector: &PageVector| -> [u8; 4] { std::array::from_fn(|i| vector.0[lane * 4 + i]) };
            let products = |key: &PageVector, query: &PageVector| -> i32 {
                four(key).iter().zip(four(query)).map(|(&k, q)| i32::from(k) * i32::from(q as i8)).sum()
            };
            let start = i32::from_le_bytes(four(&of.starts));
            let score = |sub: usize| {
                let keys = &job.keys[sub * vectors..][..vectors];
                let dot: i32 = keys.iter().zip(group).map(|(key, query)| products(key, query)).sum();
                (start + dot) as f32 * (job.scales[sub][lane] * of.scales[lane])
            };
            let in_order = |a: f32, b: f32| if a < b { (a, b) } else { (b, a) };
            let (low, high) = in_order(score(0), score(1));
            let (other_low, other_high) = in_order(score(2), score(3));
            let (between, most) = in_order(high, other_high);
            out.most[lane] = most;
            // That of the highest is 1.
            out.sum[lane] = power(low - most) + power(other_low - most) + power(between - most) + 1.0;
        }
    }
}

pub fn add_shares(sums: &mut [Sums], real: &[[f32; LANES]], mass: &mut [[f32; LANES]]) {
    let groups = real.len();
    for (group, real) in real.iter().enumerate() {
        for lane in 0..LANES {
            let of_group = || sums[group..].iter().step_by(groups);
            let most = highest(of_group().map(|of| of.most[lane]));
            let weight = |of: &Sums| of.sum[lane] * power(of.most[lane] - most);
            let by = real[lane] / of_group().map(weight).fold(0.0, |a, b| a + b);
            for (of, mass) in of_group().zip(mass.iter_mut()) {
                mass[lane] += weight(of) * by;
            }
        }
    }
}

pub fn page_scores(job: &PageScores, out: &mut [[f32; LANES]]) {
    let groups = job.tiles.len() / job.scales.len();
    for (query, out) in job.queries.chunks_exact(job.blocks()).zip(out.chunks_exact_mut(job.scales.len())) {
        let query: Vec<i32> = query.iter().flat_map(|block| block.values).map(i32::from).collect();
        for ((tile, scales), out) in job.tiles.chunks_exact(groups).zip(job.scales).zip(out) {
            for lane in 0..LANES {
                let value = |i: usize| i32::from(tile[i / 4].0[lane * 4 + i % 4]) - 128;
                let dot: i32 = query.iter().enumerate().map(|(i, q)| q * value(i)).sum();
                out[lane] = dot as f32 * scales[lane];
            }
        }
    }
}

pub fn stand_out(rows: &[[f32; LANES]], count: usize, most: &mut [[f32; LANES]]) {
    rows.chunks_exact(most.len()).for_each(|row| raise(row, count, most));
}

fn raise(row: &[[f32; LANES]], count: usize, most: &mut [[f32; LANES]]) {
    let scores = &row.as_flattened()[..count];
    let mean = lane_sum(scores.iter().copied()) / count as f32;
    let variance = lane_sum(scores.iter().map(|x| x * x)) / count as f32 - mean * mean;
    let by = if variance > 0.0 { 1.0 / variance.sqrt() } else { 0.0 };
    for (x, most) in row.as_flattened().iter().zip(most.as_flattened_mut()) {
        let above = x * by - mean * by;
        *most = if above > *most { above } else { *most };
    }
}

pub fn sign_halves(queries: &[f32], dim: usize, out: &mut [ActBlock]) {
    let half = padded_dim(dim);
    for (query, out) in queries.chunks_exact(dim).zip(out.chunks_exact_mut(row_blocks(dim))) {
        let largest = highest(query.iter().map(|q| q.abs()).chain([0.0]));
        let by = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        let mut values = vec![0i8; out.len() * QK];
        for (d, q) in query.iter().enumerate() {
            let q = (q * by).round_ties_even() as i8;
            values[if q < 0 { d } else { half + d }] = q;
        }
        for (values, out) in values.as_chunks().0.iter().zip(out) {
            *out = ActBlock::new(1.0, *values);
        }
    }
}

pub fn buckets(job: &Hashing, out: &mut [u16]) {
    let rounds = job.rotations.len() / job.dim;
    for (rows, out) in job.rows.chunks_exact(job.dim).zip(out.chunks_exact_mut(LANES * rounds)) {
        for (row, out) in out.chunks_exact_mut(rounds).enumerate() {
            for (directions, out) in job.rotations.chunks_exact(job.dim).zip(out) {
                let along: [f32; LANES] = std::array::from_fn(|lane| {
                    directions.iter().zip(rows).fold(0.0, |sum, (of_dim, x)| sum + of_dim[lane] * x[row])
                });
                let (first, last) = along.split_at(LANES / 2);
                *out = (nearest(first) * LANES + nearest(last)) as u16;
            }
        }
    }
}

/// Which of the directions or, after them, of their opposites is the nearest; ties go to the lowest.
fn nearest(along: &[f32]) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    let both = along.iter().copied().chain(along.iter().map(|x| -x));
    for (i, x) in both.enumerate() {
        if x > best.1 {
            best = (i, x);
        }
    }
    best.0
}

fn merge(a: Partial, b: Partial) -> Partial {
    if b.max == f32::NEG_INFINITY {
        return a;
    }
    if a.max == f32::NEG_INFINITY {
        return b;
    }
    let max = if b.max > a.max { b.max } else { a.max };
    let (x, y) = (exp(a.max - max), exp(b.max - max));
    let o = a.o.iter().zip(&b.o).map(|(a, b)| a * x + b * y).collect();
    Partial { max, sum: a.sum * x + b.sum * y, o }
}
