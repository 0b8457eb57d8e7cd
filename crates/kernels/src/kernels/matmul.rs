//! Fused quantised matrix multiplication.
//!
//! ```text
//! for each block of columns whose activations fit the cache:
//!   for each tile of 16 rows, or two at once:      the packed weights are read in order
//!     for each group of columns (tokens):
//!       for each block along K, ascending:         one lane is one output: the order never changes
//!         exact integer dot products, or products that are exact in f32
//!         acc += (d_w * d_x) * dot                 two rounded products, one rounded sum
//!         acc -= (m_w * d_x) * sum(x)              the same, for formats with a minimum
//!       bias, then residual or gate, then store
//! ```
//!
//! With one or two columns the work is as fast as memory, if that is asked for early and in order. So whole
//! numbers go tile by tile there.
//!
//! Columns go in groups so that a weight vector in a register serves several tokens, and tiles in
//! pairs so that a broadcast activation serves two; a token's result does not depend on either.

use super::padded;
use super::rows::{Activation, gated};
use super::scales::{self, HalfScales, Scales};
use crate::acts::Acts;
use crate::packed::{Format, Matrix, group_of};
use crate::simd::values::{Bytes, E2m1, Five, Four, Iq4, Six, Three, Two, Values};
use crate::simd::{ActBlock, LANES, QK, Simd, Work};
use crate::view::Shared;
use std::marker::PhantomData;
use std::ops::Range;

/// out = x · wᵀ + bias, or out += x · wᵀ + bias, for some tiles of w.
pub struct LinearJob<'a> {
    pub weight: &'a Matrix,
    pub tiles: Range<usize>,
    pub acts: Acts<'a>,
    pub bias: Option<&'a [f32]>,
    /// Add to what `out` holds.
    pub add: bool,
    /// [tokens, width]; the job's own are the columns of its tiles' rows.
    pub out: Shared<'a, f32>,
    pub width: usize,
}

/// out = activation(x · gateᵀ + bias) * (x · upᵀ + bias), for some tiles of both matrices.
pub struct GluJob<'a> {
    pub gate: &'a Matrix,
    pub up: &'a Matrix,
    /// Of the gate and of up.
    pub biases: [Option<&'a [f32]>; 2],
    pub tiles: Range<usize>,
    pub acts: Acts<'a>,
    pub activation: Activation,
    pub out: Shared<'a, f32>,
    pub width: usize,
}

/// Bytes of activations that are used again for every tile: about half of a second-level cache.
const COLUMN_BYTES: usize = 384 << 10;

/// How many columns are multiplied with all of a job's tiles before the next: a multiple of every
/// group's size.
fn column_block(acts: &Acts) -> usize {
    let bytes = if acts.kind.quantised() { acts.k / QK * size_of::<ActBlock>() } else { acts.k * 4 };
    (COLUMN_BYTES / bytes / 12 * 12).max(12)
}

/// The most columns, up to the ISA's own, that `left` fills.
#[inline(always)]
fn group<S: Simd>(left: usize) -> usize {
    let fits = |&size: &usize| size <= left && size <= S::COLUMNS;
    // Eight are better two halves than six and the rest.
    if left == 8 && S::COLUMNS >= 4 { 4 } else { [6, 4, 2].into_iter().find(fits).unwrap_or(1) }
}

#[inline(always)]
pub fn linear<S: Simd>(s: S, job: &LinearJob) {
    let block = column_block(&job.acts);
    for start in (0..job.acts.count).step_by(block) {
        let columns = start..(start + block).min(job.acts.count);
        let mut tile = job.tiles.start;
        while tile < job.tiles.end {
            // Floats have one chain of sums per tile: two at once keep the units busier.
            let single = columns.len() <= STREAMED && job.acts.kind.quantised();
            let pair = !single && tile + 1 < job.tiles.end;
            tile += if const { S::TILES == 2 } {
                if pair {
                    linear_tiles::<S, 2>(s, job, tile, columns.clone())
                } else {
                    linear_tiles::<S, 1>(s, job, tile, columns.clone())
                }
            } else {
                linear_tiles::<S, 1>(s, job, tile, columns.clone())
            };
        }
    }
}

#[inline(always)]
fn linear_tiles<S: Simd, const R: usize>(s: S, job: &LinearJob, tile: usize, columns: Range<usize>) -> usize {
    let mut column = columns.start;
    while column < columns.end {
        let first = column == columns.start;
        column += match group::<S>(columns.end - column) {
            6 if const { S::COLUMNS >= 6 } => linear_columns::<S, R, 6>(s, job, tile, column, first),
            4 => linear_columns::<S, R, 4>(s, job, tile, column, first),
            2 => linear_columns::<S, R, 2>(s, job, tile, column, first),
            _ => linear_columns::<S, R, 1>(s, job, tile, column, first),
        };
    }
    R
}

/// The gate and the up matrix take the places of two tiles.
#[inline(always)]
pub fn glu<S: Simd>(s: S, job: &GluJob) {
    let block = column_block(&job.acts);
    for start in (0..job.acts.count).step_by(block) {
        let end = (start + block).min(job.acts.count);
        for tile in job.tiles.clone() {
            let mut column = start;
            while column < end {
                column += match group::<S>(end - column) {
                    6 if const { S::COLUMNS >= 6 } => {
                        glu_columns::<S, 6>(s, job, tile, column, column == start)
                    }
                    4 => glu_columns::<S, 4>(s, job, tile, column, column == start),
                    2 => glu_columns::<S, 2>(s, job, tile, column, column == start),
                    _ => glu_columns::<S, 1>(s, job, tile, column, column == start),
                };
            }
        }
    }
}

#[inline(always)]
fn linear_columns<S: Simd, const R: usize, const C: usize>(
    s: S,
    job: &LinearJob,
    tile: usize,
    column: usize,
    first: bool,
) -> usize {
    let tiles = std::array::from_fn(|r| job.weight.tile(tile + r));
    if C > STREAMED {
        claim::<S, C>(
            s,
            &job.out,
            job.width,
            column / job.acts.kind.columns(),
            tile * LANES..(tile + R) * LANES,
        );
    }
    let next = if first { R * job.weight.format().tile_bytes(job.weight.cols()) } else { 0 };
    let sums = multiply::<S, R, C>(s, job.weight.format(), tiles, &job.acts, Place { column, next });
    for (r, sums) in sums.into_iter().enumerate() {
        finish_linear(s, job, tile + r, column, sums);
    }
    C
}

/// Asks for the places of results long before they are known: they are far apart, so no cache has kept them.
#[inline(always)]
fn claim<S: Simd, const C: usize>(s: S, out: &Shared<f32>, width: usize, first: usize, rows: Range<usize>) {
    for token in first..first + C {
        let at = (token * width + rows.start).min(out.len());
        // SAFETY: it is only asked for.
        s.prefetch_write(unsafe { out.read(at..(at + rows.len()).min(out.len())) });
    }
}

/// The biases of a tile's rows, the rest 0.
#[inline(always)]
fn bias_of(bias: Option<&[f32]>, row: usize, rows: usize) -> [f32; LANES] {
    padded(bias.map_or(&[], |bias| &bias[row..row + rows]))
}

/// The products of one tile, with bias, to where they belong.
#[inline(always)]
fn finish_linear<S: Simd, const C: usize>(
    s: S,
    job: &LinearJob,
    tile: usize,
    column: usize,
    sums: [S::F; C],
) {
    let row = tile * LANES;
    let rows = (job.weight.rows() - row).min(LANES);
    let bias = bias_of(job.bias, row, rows);
    let per_token = job.acts.kind.columns();
    for c in (0..C).step_by(per_token) {
        let sum = if per_token == 2 { s.add(sums[c], sums[(c + 1) % C]) } else { sums[c] };
        let sum = if job.bias.is_some() { s.add(sum, s.load(&bias)) } else { sum };
        let at = (column + c) / per_token * job.width + row;
        // SAFETY: rows of this tile belong to this job alone.
        finish(s, sum, job.add, unsafe { job.out.write(at..at + rows) });
    }
}

/// The results of a tile's rows, of which the last tile may lack some, to or onto `out`.
#[inline(always)]
fn finish<S: Simd>(s: S, results: S::F, add: bool, out: &mut [f32]) {
    if let Ok(out) = <&mut [f32; LANES]>::try_from(&mut *out) {
        s.store(if add { s.add(s.load(out), results) } else { results }, out);
        return;
    }
    let mut values = [0.0; LANES];
    s.store(results, &mut values);
    for (out, value) in out.iter_mut().zip(values) {
        *out = if add { *out + value } else { value };
    }
}

#[inline(always)]
fn glu_columns<S: Simd, const C: usize>(
    s: S,
    job: &GluJob,
    tile: usize,
    column: usize,
    first: bool,
) -> usize {
    let tiles = [job.gate.tile(tile), job.up.tile(tile)];
    if C > STREAMED {
        claim::<S, C>(
            s,
            &job.out,
            job.width,
            column / job.acts.kind.columns(),
            tile * LANES..(tile + 1) * LANES,
        );
    }
    let (acts, format) = (&job.acts, job.gate.format());
    let next = if first { format.tile_bytes(job.gate.cols()) } else { 0 };
    let [gates, ups] =
        multiply_pair::<S, C>(s, [format, job.up.format()], tiles, acts, Place { column, next });
    let row = tile * LANES;
    let rows = (job.gate.rows() - row).min(LANES);
    let per_token = job.acts.kind.columns();
    let [gate_bias, up_bias] = job.biases.map(|bias| bias_of(bias, row, rows));
    for c in (0..C).step_by(per_token) {
        let (mut gate, mut up) = (gates[c], ups[c]);
        if per_token == 2 {
            gate = s.add(gate, gates[(c + 1) % C]);
            up = s.add(up, ups[(c + 1) % C]);
        }
        if job.biases[0].is_some() {
            gate = s.add(gate, s.load(&gate_bias));
        }
        if job.biases[1].is_some() {
            up = s.add(up, s.load(&up_bias));
        }
        let at = (column + c) / per_token * job.width + row;
        // SAFETY: rows of this tile belong to this job alone.
        let out = unsafe { job.out.write(at..at + rows) };
        finish(s, gated(s, job.activation, gate, up), false, out);
    }
    C
}

/// Which columns are multiplied with tiles.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// The first of them.
    pub column: usize,
    /// How far after each tile lies the one that comes next, which is asked for meanwhile; 0: it has been.
    pub next: usize,
}

/// Two tiles of matrices that may differ in format.
#[inline(always)]
fn multiply_pair<S: Simd, const C: usize>(
    s: S,
    formats: [Format; 2],
    tiles: [&[u8]; 2],
    acts: &Acts,
    place: Place,
) -> [[S::F; C]; 2] {
    if const { S::TILES == 2 } && formats[0] == formats[1] {
        return multiply::<S, 2, C>(s, formats[0], tiles, acts, place);
    }
    let [first] = multiply::<S, 1, C>(s, formats[0], [tiles[0]], acts, place);
    let [second] = multiply::<S, 1, C>(s, formats[1], [tiles[1]], acts, place);
    [first, second]
}

/// R tiles times C columns: lane j of result [r][c] is row j of tile r times column c.
#[inline(always)]
pub(crate) fn multiply<S: Simd, const R: usize, const C: usize>(
    s: S,
    format: Format,
    tiles: [&[u8]; R],
    acts: &Acts,
    place: Place,
) -> [[S::F; C]; R] {
    match format {
        Format::F32 => call::<S, Floats<Single>, R, C>(s, tiles, acts, place),
        Format::F16 => call::<S, Floats<Half<false>>, R, C>(s, tiles, acts, place),
        Format::BF16 => call::<S, Floats<Half<true>>, R, C>(s, tiles, acts, place),
        Format::Q8_0 => call::<S, Blocks<Bytes, scales::Half>, R, C>(s, tiles, acts, place),
        Format::Q4_0 => call::<S, Blocks<Four<8>, scales::Half>, R, C>(s, tiles, acts, place),
        Format::Q4_1 => call::<S, Blocks<Four<0>, scales::HalfMinimum>, R, C>(s, tiles, acts, place),
        Format::Q5_0 => call::<S, Blocks<Five<16>, scales::Half>, R, C>(s, tiles, acts, place),
        Format::Q5_1 => call::<S, Blocks<Five<0>, scales::HalfMinimum>, R, C>(s, tiles, acts, place),
        Format::IQ4_NL => call::<S, Blocks<Iq4, scales::Half>, R, C>(s, tiles, acts, place),
        Format::IQ4_XS => call::<S, Blocks<Iq4, scales::SixBitsSigned>, R, C>(s, tiles, acts, place),
        Format::MXFP4 => call::<S, Blocks<E2m1, scales::E8m0>, R, C>(s, tiles, acts, place),
        Format::Q4_K => call::<S, Blocks<Four<0>, scales::SixBits>, R, C>(s, tiles, acts, place),
        Format::Q5_K => call::<S, Blocks<Five<0>, scales::SixBits>, R, C>(s, tiles, acts, place),
        Format::Q6_K => call::<S, Halves<Six, scales::Bytes>, R, C>(s, tiles, acts, place),
        Format::Q3_K => call::<S, Halves<Three, scales::SixBitPairs>, R, C>(s, tiles, acts, place),
        Format::Q2_K => call::<S, Halves<Two, scales::FourBitPairs>, R, C>(s, tiles, acts, place),
    }
}

/// How R tiles of a kind of weights are multiplied with C columns.
trait Kernel {
    fn multiply<S: Simd, const R: usize, const C: usize>(
        s: S,
        tiles: [&[u8]; R],
        acts: &Acts,
        place: Place,
    ) -> [[S::F; C]; R];
}

/// F32.
struct Single;
/// F16 or BF16.
struct Half<const BF16: bool>;
/// Floating-point weights.
struct Floats<F>(PhantomData<F>);
/// Blocks of 32 with one scale each.
struct Blocks<V, K>(PhantomData<(V, K)>);
/// Blocks of 32 whose halves have whole numbers as scales of their own.
struct Halves<V, K>(PhantomData<(V, K)>);

struct Multiply<'a, K, const R: usize, const C: usize> {
    tiles: [&'a [u8]; R],
    acts: &'a Acts<'a>,
    place: Place,
    kernel: PhantomData<K>,
}

impl<S: Simd, K: Kernel, const R: usize, const C: usize> Work<S> for Multiply<'_, K, R, C> {
    type Output = [[S::F; C]; R];

    #[inline(always)]
    fn run(self, s: S) -> Self::Output {
        K::multiply::<S, R, C>(s, self.tiles, self.acts, self.place)
    }
}

#[inline(always)]
fn call<S: Simd, K: Kernel, const R: usize, const C: usize>(
    s: S,
    tiles: [&[u8]; R],
    acts: &Acts,
    place: Place,
) -> [[S::F; C]; R] {
    s.call(Multiply { tiles, acts, place, kernel: PhantomData::<K> })
}

#[inline(always)]
fn columns<const C: usize>(floats: &[f32], k: usize, column: usize) -> [&[f32]; C] {
    std::array::from_fn(|c| &floats[(column + c) * k..(column + c + 1) * k])
}

/// A floating-point type that weights are kept in.
trait Float {
    type Bits;
    fn rows(tile: &[u8]) -> &[[Self::Bits; LANES]];
    fn load<S: Simd>(s: S, row: &[Self::Bits; LANES]) -> S::F;
    /// sum + w * x, fused only where the product is exact.
    fn accumulate<S: Simd>(s: S, w: S::F, x: S::F, sum: S::F) -> S::F;
}

impl Float for Single {
    type Bits = f32;

    #[inline(always)]
    fn rows(tile: &[u8]) -> &[[f32; LANES]] {
        as_f32(tile)
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, row: &[f32; LANES]) -> S::F {
        s.load(row)
    }
    #[inline(always)]
    fn accumulate<S: Simd>(s: S, w: S::F, x: S::F, sum: S::F) -> S::F {
        s.add(sum, s.mul(w, x))
    }
}

impl<const BF16: bool> Float for Half<BF16> {
    type Bits = u16;

    #[inline(always)]
    fn rows(tile: &[u8]) -> &[[u16; LANES]] {
        as_u16(tile)
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, row: &[u16; LANES]) -> S::F {
        if BF16 { s.load_bf16(row) } else { s.load_f16(row) }
    }
    #[inline(always)]
    fn accumulate<S: Simd>(s: S, w: S::F, x: S::F, sum: S::F) -> S::F {
        s.mul_add_exact(w, x, sum)
    }
}

impl<F: Float> Kernel for Floats<F> {
    #[inline(always)]
    fn multiply<S: Simd, const R: usize, const C: usize>(
        s: S,
        tiles: [&[u8]; R],
        acts: &Acts,
        place: Place,
    ) -> [[S::F; C]; R] {
        let x = columns::<C>(acts.floats, acts.k, place.column);
        let rows = tiles.map(|tile| &F::rows(tile)[..acts.k]);
        let per_line = const { 64 / size_of::<[F::Bits; LANES]>() };
        let mut sums = [[s.splat(0.0); C]; R];
        for k in 0..acts.k {
            if k % per_line == 0 {
                ask::<S, _, R, C>(s, at(rows, k), place);
            }
            let mut w = [s.splat(0.0); R];
            for r in 0..R {
                w[r] = F::load(s, &rows[r][k]);
            }
            for c in 0..C {
                let x = s.splat(x[c][k]);
                for r in 0..R {
                    sums[r][c] = F::accumulate(s, w[r], x, sums[r][c]);
                }
            }
        }
        sums
    }
}

/// Element b of each slice. (No closures in kernels: they may not inherit the ISA's features.)
#[inline(always)]
fn at<T, const N: usize>(slices: [&[T]; N], b: usize) -> [&T; N] {
    let mut items = [&slices[0][b]; N];
    for n in 1..N {
        items[n] = &slices[n][b];
    }
    items
}

/// Up to so many columns, memory is what limits the speed.
const STREAMED: usize = 2;

/// Asks for memory that is not in a cache yet. With few columns: for all of each tile's item at once and in order,
/// whatever the order and the time of its use. With more: for the same item of the next tiles, which has all the time
/// that these take.
#[inline(always)]
fn ask<S: Simd, T: ?Sized, const R: usize, const C: usize>(s: S, items: [&T; R], place: Place) {
    for item in items {
        if C <= STREAMED {
            s.prefetch(item);
        } else if const { S::ASKS_NEXT } && place.next > 0 {
            s.prefetch_next(item, place.next);
        }
    }
}

/// A group of blocks of a tile: see [`crate::packed`].
struct Group {
    /// Its first block, and its runs of blocks that share their scales.
    first: usize,
    runs: usize,
    /// Where in the tile its scales are, and its values.
    scales: usize,
    values: usize,
}

/// Walks the groups of a tile.
struct Groups {
    /// Blocks.
    done: usize,
    all: usize,
    /// Where the next group is in the tile.
    at: usize,
    /// Blocks of a run, bytes of a block's values and of a run's scales.
    sizes: [usize; 3],
}

impl Groups {
    #[inline(always)]
    fn new(all: usize, sizes: [usize; 3]) -> Self {
        Self { done: 0, all, at: 0, sizes }
    }

    #[inline(always)]
    fn next(&mut self) -> Option<Group> {
        let [run, values, scales] = self.sizes;
        let runs = group_of(scales).min((self.all - self.done) / run);
        if runs == 0 {
            return None;
        }
        let at = self.at + runs * scales;
        let group = Group { first: self.done, runs, scales: self.at, values: at };
        self.done += runs * run;
        self.at = at + runs * run * values;
        Some(group)
    }
}

/// C columns' blocks.
#[inline(always)]
fn block_columns<'a, const C: usize>(acts: &Acts<'a>, column: usize) -> [&'a [ActBlock]; C] {
    let blocks = acts.k / QK;
    std::array::from_fn(|c| &acts.blocks[(column + c) * blocks..(column + c + 1) * blocks])
}

/// `len` bytes of each slice.
#[inline(always)]
fn range<const N: usize>(slices: [&[u8]; N], at: usize, len: usize) -> [&[u8]; N] {
    let mut parts = slices;
    for n in 0..N {
        parts[n] = &slices[n][at..][..len];
    }
    parts
}

impl<V: Values, K: Scales> Kernel for Blocks<V, K> {
    #[inline(always)]
    fn multiply<S: Simd, const R: usize, const C: usize>(
        s: S,
        tiles: [&[u8]; R],
        acts: &Acts,
        place: Place,
    ) -> [[S::F; C]; R] {
        let x = block_columns::<C>(acts, place.column);
        let bytes = const { V::LAYOUT.bytes() };
        let mut sums = [[s.splat(0.0); C]; R];
        let mut groups = Groups::new(acts.k / QK, const { [K::RUN, V::LAYOUT.bytes(), K::BYTES] });
        while let Some(group) = groups.next() {
            for run in 0..group.runs {
                let scales = range(tiles, group.scales + run * K::BYTES, K::BYTES);
                for i in 0..K::RUN {
                    let block = run * K::RUN + i;
                    let values = range(tiles, group.values + block * bytes, bytes);
                    ask::<S, _, R, C>(s, values, place);
                    if i == 0 {
                        ask::<S, _, R, C>(s, scales, place);
                    }
                    let x = at(x, group.first + block);
                    let dots = s.dot::<V, R, C>(values, x);
                    add_scaled::<S, K, R, C>(s, &mut sums, dots, scales, i, x);
                }
            }
        }
        sums
    }
}

/// Adds a block's dot products times its scales; block `i` of a run.
#[inline(always)]
fn add_scaled<S: Simd, K: Scales, const R: usize, const C: usize>(
    s: S,
    sums: &mut [[S::F; C]; R],
    dots: [[S::I; C]; R],
    scales: [&[u8]; R],
    i: usize,
    x: [&ActBlock; C],
) {
    for r in 0..R {
        let d = K::scale(s, scales[r], i);
        for c in 0..C {
            let t = s.mul(d, s.splat(x[c].scale));
            sums[r][c] = s.add(sums[r][c], s.mul(t, s.int_to_float(dots[r][c])));
        }
    }
    if K::MINIMUM {
        let mut minimums = [s.splat(0.0); R];
        for r in 0..R {
            minimums[r] = K::minimum(s, scales[r], i);
        }
        for c in 0..C {
            let sum = s.int_to_float(s.minus_sum(x[c], s.pairs(1)));
            for r in 0..R {
                let t = s.mul(minimums[r], s.splat(x[c].scale));
                sums[r][c] = s.add(sums[r][c], s.mul(t, sum));
            }
        }
    }
}

impl<V: Values, K: HalfScales> Kernel for Halves<V, K> {
    #[inline(always)]
    fn multiply<S: Simd, const R: usize, const C: usize>(
        s: S,
        tiles: [&[u8]; R],
        acts: &Acts,
        place: Place,
    ) -> [[S::F; C]; R] {
        const RUN: usize = 8;
        let x = block_columns::<C>(acts, place.column);
        let bytes = const { V::LAYOUT.bytes() };
        let mut sums = [[s.splat(0.0); C]; R];
        let mut groups = Groups::new(acts.k / QK, const { [RUN, V::LAYOUT.bytes(), K::BYTES] });
        while let Some(group) = groups.next() {
            for run in 0..group.runs {
                let scales = range(tiles, group.scales + run * K::BYTES, K::BYTES);
                for i in 0..RUN {
                    let block = run * RUN + i;
                    let values = range(tiles, group.values + block * bytes, bytes);
                    ask::<S, _, R, C>(s, values, place);
                    if i == 0 {
                        ask::<S, _, R, C>(s, scales, place);
                    }
                    let x = at(x, group.first + block);
                    add_halves::<S, V, K, R, C>(s, &mut sums, values, scales, i, x);
                }
            }
        }
        sums
    }
}

/// Adds a block's products; block `i` of a run.
#[inline(always)]
fn add_halves<S: Simd, V: Values, K: HalfScales, const R: usize, const C: usize>(
    s: S,
    sums: &mut [[S::F; C]; R],
    values: [&[u8]; R],
    scales: [&[u8]; R],
    i: usize,
    x: [&ActBlock; C],
) {
    let mut numbers = [s.pairs(0); R];
    for r in 0..R {
        numbers[r] = K::scales(s, scales[r], i);
    }
    let dots = s.dot_halves::<V, R, C>(values, numbers, x);
    for r in 0..R {
        let d = K::scale(s, scales[r]);
        for c in 0..C {
            let t = s.mul(d, s.splat(x[c].scale));
            sums[r][c] = s.add(sums[r][c], s.mul(t, dots[r][c]));
        }
        if K::MINIMUM {
            let (m, numbers) = (K::minimum(s, scales[r]), K::minimums(s, scales[r], i));
            for c in 0..C {
                let sum = s.int_to_float(s.minus_sum(x[c], numbers));
                let t = s.mul(m, s.splat(x[c].scale));
                sums[r][c] = s.add(sums[r][c], s.mul(t, sum));
            }
        }
    }
}

fn as_f32(bytes: &[u8]) -> &[[f32; LANES]] {
    // SAFETY: every byte pattern is a valid f32; align_to checks the alignment.
    let (before, rows, _) = unsafe { bytes.align_to::<[f32; LANES]>() };
    assert!(before.is_empty());
    rows
}

fn as_u16(bytes: &[u8]) -> &[[u16; LANES]] {
    // SAFETY: every byte pattern is a valid u16; align_to checks the alignment.
    let (before, rows, _) = unsafe { bytes.align_to::<[u16; LANES]>() };
    assert!(before.is_empty());
    rows
}
