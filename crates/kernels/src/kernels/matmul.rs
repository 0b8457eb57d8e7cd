//! Fused quantised matrix multiplication.
//!
//! ```text
//! for each block of columns whose activations fit the cache:
//!   for each tile of 16 rows, or two at once:      the packed weights are read in order
//!     for each group of columns (tokens):
//!       for each block along K, ascending:         one lane is one output: the order never changes
//!         exact integer dot products, or products that are exact in f32
//!         (of 256 columns: each 32 or 16 times a whole number, added, exactly too)
//!         acc += (d_w * d_x) * dot                 two rounded products, one rounded sum
//!         acc -= (m_w * d_x) * sum(x)              the same, for formats with a minimum
//!       bias, then residual or gate, then store
//! ```
//!
//! With one or two columns the work is as fast as memory, if that is asked for early and in order. Whether whole
//! numbers go tile by tile there, or two at a time, is what the CPU's own reading ahead makes faster.
//!
//! Where an ISA gains by it, a tile's next 1,024 weights of each row (512 that become magnitudes and signs) are unpacked first and
//! multiplied with all of these columns, whose sums are kept meanwhile.
//!
//! Columns go in groups so that a weight vector in a register serves several tokens, and tiles in
//! pairs so that a broadcast activation serves two; a token's result does not depend on either.

#[cfg(target_arch = "x86_64")]
pub mod tiles;

use super::padded;
use super::products::{
    Blocks, Floats, Half, Kernel, MOST_STREAMS, Place, Runs, SLAB, SLABS, STREAMED, Single, Slab, Turns,
    block_columns,
};
use super::rows::{Activation, gated};
use super::scales;
use crate::acts::Acts;
use crate::packed::{ActKind, Format, Matrix};
use crate::simd::values::{Bytes, E2m1, Five, Four, Iq4, Item, Six, Three, Two};
use crate::simd::{ActBlock, LANES, QK, Simd, Work};
use crate::view::Shared;
use std::iter::StepBy;
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
fn column_block<S: Simd>(s: S, format: Format, acts: &Acts) -> usize {
    let bytes = if acts.kind.quantised() { acts.k / QK * size_of::<ActBlock>() } else { acts.k * 4 };
    (COLUMN_BYTES / bytes / 12 * 12).max(with_kernel(s, format, LeastColumns))
}

/// See [`Simd::LEAST_COLUMNS`].
struct LeastColumns;

impl<S: Simd> ForKernel<S> for LeastColumns {
    type Output = usize;

    #[inline(always)]
    fn run<K: Kernel>(self, _: S) -> usize {
        if K::slabs::<S>() > 0 { S::LEAST_COLUMNS } else { 12 }
    }
}

/// How many columns are multiplied with R tiles at once. Where registers hold the sums of six with two tiles, they hold those of
/// eight with one.
const fn at_once<S: Simd, K: Kernel, const R: usize>() -> usize {
    match (S::TILES, R) {
        // Many are multiplied with unpacked weights, and modules are smaller for it where some more go two by two.
        _ if own_slabs::<S, K>() => STREAMED,
        (2, 1) => 8,
        (2, _) if !K::PAIRS => STREAMED,
        _ => S::COLUMNS,
    }
}

/// Whether the ISA's own loops multiply unpacked weights.
const fn own_slabs<S: Simd, K: Kernel>() -> bool {
    match K::ITEM.max() {
        None => false,
        Some(max) => max <= S::OWN_SLABS,
    }
}

/// The most columns, up to `most`, that `left` fills.
#[inline(always)]
fn group(left: usize, most: usize) -> usize {
    let fits = |&size: &usize| size <= left && size <= most;
    // Eight are better two halves than six and the rest.
    if left == 8 && most == 6 { 4 } else { [8, 6, 4, 2].into_iter().find(fits).unwrap_or(1) }
}

/// Whether an ISA that can multiply two tiles at once does so with so many columns.
#[inline(always)]
fn in_pairs<S: Simd>(s: S, format: Format, columns: usize) -> bool {
    // Eights are as fast tile by tile, and wait less for memory, which matters as long as they are few.
    let eights = columns <= FEW && columns.is_multiple_of(8) && format.activations().quantised();
    !eights && with_kernel(s, format, Pairs)
}

/// So many columns are few: memory is as slow as their products.
const FEW: usize = 16;

#[inline(always)]
pub fn linear<S: Simd>(s: S, job: &LinearJob) {
    let (weight, acts) = (job.weight, &job.acts);
    let block = column_block(s, weight.format(), acts);
    let mut slabs = None;
    for start in (0..acts.count).step_by(block) {
        let columns = start..(start + block).min(acts.count);
        let streamed = columns.len() <= STREAMED && acts.kind.quantised();
        let pairs = if streamed { s.streams_pairs() } else { in_pairs(s, weight.format(), columns.len()) };
        // Where weights come from memory, two streams of tiles, each in order, are asked for ahead as one is; otherwise
        // two neighbours follow each other.
        let count = if const { S::TILES == 2 } && pairs { job.tiles.len() / 2 } else { 0 };
        let (apart, step) = if streamed { (count, 1) } else { (1, 2) };
        let sink = |tile: usize| Sink::Linear {
            to: Target {
                out: job.out,
                width: job.width,
                row: tile * LANES,
                apart: apart * LANES,
                rows: weight.rows(),
            },
            add: job.add,
            biases: [bias_of(job.bias, tile), bias_of(job.bias, tile + apart)],
        };
        if const { S::STREAMS > 1 } && streamed {
            let apart = job.tiles.len().div_ceil(S::STREAMS);
            for first in job.tiles.start..job.tiles.start + apart {
                let of = (first..job.tiles.end).step_by(apart);
                match columns.len() {
                    2 => linear_turn::<S, 2>(s, job, columns.start, of, sink),
                    _ => linear_turn::<S, 1>(s, job, columns.start, of, sink),
                }
            }
            continue;
        }
        for pair in 0..count {
            let tile = job.tiles.start + pair * step;
            let tiles = [weight.tile(tile), weight.tile(tile + apart)];
            pass(s, weight.format(), tiles, acts, columns.clone(), sink(tile), &mut slabs);
        }
        for tile in job.tiles.start + count * 2..job.tiles.end {
            pass(s, weight.format(), [weight.tile(tile)], acts, columns.clone(), sink(tile), &mut slabs);
        }
    }
}

/// The sums of up to [`Simd::STREAMS`] tiles with C columns.
#[inline(always)]
fn by_turns<S: Simd, const C: usize>(
    s: S,
    format: Format,
    tiles: &[&[u8]],
    acts: &Acts,
    column: usize,
) -> [[S::F; C]; MOST_STREAMS] {
    const { assert!(S::STREAMS <= MOST_STREAMS) };
    let x = block_columns::<C>(acts, column, 0..acts.k / QK);
    let mut all = [[s.splat(0.0); C]; MOST_STREAMS];
    let sums = &mut all[..tiles.len()];
    if !s.streams(format, tiles, x, sums) {
        // It may have begun.
        sums.fill([s.splat(0.0); C]);
        with_kernel(s, format, OfTurns { tiles, x, sums });
    }
    all
}

/// [`Turns`] whose kind of weights is not known yet.
struct OfTurns<'a, S: Simd, const C: usize> {
    tiles: &'a [&'a [u8]],
    x: [&'a [ActBlock]; C],
    sums: &'a mut [[S::F; C]],
}

impl<S: Simd, const C: usize> ForKernel<S> for OfTurns<'_, S, C> {
    type Output = ();

    #[inline(always)]
    fn run<K: Kernel>(self, s: S) {
        let Self { tiles, x, sums } = self;
        s.call(Turns { tiles, x, sums, kernel: PhantomData::<K> });
    }
}

/// Some of a job's tiles by turns.
#[inline(always)]
fn linear_turn<'a, S: Simd, const C: usize>(
    s: S,
    job: &LinearJob<'a>,
    column: usize,
    of: StepBy<Range<usize>>,
    sink: impl Fn(usize) -> Sink<'a>,
) {
    let mut tiles: [&[u8]; MOST_STREAMS] = [&[]; MOST_STREAMS];
    tiles.iter_mut().zip(of.clone()).for_each(|(to, tile)| *to = job.weight.tile(tile));
    let sums = by_turns::<S, C>(s, job.weight.format(), &tiles[..of.len()], &job.acts, column);
    of.zip(sums).for_each(|(tile, sums)| sink(tile).take(s, job.acts.kind, column, [sums]));
}

/// The same for two tiles of the gate and of the up matrix each, or for one, of one format.
#[inline(always)]
fn glu_turn<'a, S: Simd, const C: usize>(
    s: S,
    job: &GluJob<'a>,
    column: usize,
    of: StepBy<Range<usize>>,
    glu: impl Fn(usize) -> Glu<'a>,
) {
    let mut tiles: [&[u8]; MOST_STREAMS] = [&[]; MOST_STREAMS];
    for (to, tile) in tiles.chunks_exact_mut(2).zip(of.clone()) {
        to.copy_from_slice(&[job.gate.tile(tile), job.up.tile(tile)]);
    }
    let sums = by_turns::<S, C>(s, job.gate.format(), &tiles[..of.len() * 2], &job.acts, column);
    for (tile, sums) in of.zip(sums.as_chunks::<2>().0) {
        Sink::Glu(&glu(tile)).take(s, job.acts.kind, column, *sums);
    }
}

/// The gate and the up matrix take the places of two tiles, or follow each other.
#[inline(always)]
pub fn glu<S: Simd>(s: S, job: &GluJob) {
    let (acts, formats) = (&job.acts, [job.gate.format(), job.up.format()]);
    let block = column_block(s, formats[0], acts);
    // Cleared once for all tiles, of which decoding has one column each.
    let mut gates = [[0.0; LANES]; SUMS];
    let mut slabs = None;
    for start in (0..acts.count).step_by(block) {
        let columns = start..(start + block).min(acts.count);
        let alike = formats[0] == formats[1];
        let pairs = alike && (columns.len() <= STREAMED || in_pairs(s, formats[0], columns.len()));
        let glu = |tile: usize| Glu {
            to: Target { out: job.out, width: job.width, row: tile * LANES, apart: 0, rows: job.gate.rows() },
            activation: job.activation,
            biases: job.biases.map(|bias| bias_of(bias, tile)),
        };
        if const { S::STREAMS > 1 } && columns.len() <= STREAMED && acts.kind.quantised() && alike {
            let apart = job.tiles.len().div_ceil(S::STREAMS / 2);
            let turn = |first: usize| {
                let of = (first..job.tiles.end).step_by(apart);
                match columns.len() {
                    2 => glu_turn::<S, 2>(s, job, columns.start, of, glu),
                    _ => glu_turn::<S, 1>(s, job, columns.start, of, glu),
                }
            };
            (job.tiles.start..job.tiles.start + apart).for_each(turn);
            continue;
        }
        for tile in job.tiles.clone() {
            let tiles = [job.gate.tile(tile), job.up.tile(tile)];
            let glu = glu(tile);
            if const { S::TILES == 2 } && pairs {
                pass(s, formats[0], tiles, acts, columns.clone(), Sink::Glu(&glu), &mut slabs);
                continue;
            }
            for start in columns.clone().step_by(SUMS) {
                let columns = start..(start + SUMS).min(columns.end);
                let sink = Sink::Gate { start, gates: &mut gates };
                pass(s, formats[0], [tiles[0]], acts, columns.clone(), sink, &mut slabs);
                let sink = Sink::Up { glu: &glu, start, gates: &gates };
                pass(s, formats[1], [tiles[1]], acts, columns, sink, &mut slabs);
            }
        }
    }
}

/// The biases of a tile's rows, 0 where it lacks rows.
#[inline(always)]
fn bias_of(bias: Option<&[f32]>, tile: usize) -> Option<[f32; LANES]> {
    let bias = bias?.get(tile * LANES..)?;
    Some(padded(&bias[..bias.len().min(LANES)]))
}

/// Where tiles' results belong.
struct Target<'a> {
    /// [tokens, width]
    out: Shared<'a, f32>,
    width: usize,
    /// The first tile's first row, how far after it the second's is, and how many the matrix has.
    row: usize,
    apart: usize,
    rows: usize,
}

impl Target<'_> {
    /// Asks for the places of R tiles' results long before they are known: they are far apart, so no cache has
    /// kept them.
    #[inline(always)]
    fn claim<S: Simd, const R: usize>(&self, s: S, tokens: Range<usize>) {
        for token in tokens {
            for r in 0..R {
                s.prefetch_write(self.out.address(token * self.width + self.row + r * self.apart));
            }
        }
    }

    /// A token's results for the rows of tile `r`, of which the last may lack some.
    #[inline(always)]
    fn put<S: Simd>(&self, s: S, r: usize, token: usize, results: S::F, add: bool) {
        let row = self.row + r * self.apart;
        let at = token * self.width + row;
        if row + LANES <= self.rows {
            // SAFETY: rows of a job's tiles belong to it alone.
            let out = unsafe { self.out.write(at..at + LANES) };
            let out: &mut [f32; LANES] = out.try_into().expect("16 rows");
            s.store(if add { s.add(s.load(out), results) } else { results }, out);
            return;
        }
        let mut values = [0.0; LANES];
        s.store(results, &mut values);
        // SAFETY: as above.
        put_some(&values, unsafe { self.out.write(at..at + (self.rows - row)) }, add);
    }
}

#[cold]
fn put_some(values: &[f32; LANES], out: &mut [f32], add: bool) {
    for (out, value) in out.iter_mut().zip(values) {
        *out = if add { *out + value } else { *value };
    }
}

/// What becomes of a gate's and an up matrix's products.
struct Glu<'a> {
    to: Target<'a>,
    activation: Activation,
    /// Of the gate and of up.
    biases: [Option<[f32; LANES]>; 2],
}

/// What becomes of the products of tiles with columns.
enum Sink<'a> {
    /// They are the results, or added to them.
    Linear { to: Target<'a>, add: bool, biases: [Option<[f32; LANES]>; 2] },
    /// They are of a gate and of an up matrix.
    Glu(&'a Glu<'a>),
    /// They are of a gate, and kept for columns from `start` on.
    Gate { start: usize, gates: &'a mut [[f32; LANES]] },
    /// They are of an up matrix, whose gates were kept.
    Up { glu: &'a Glu<'a>, start: usize, gates: &'a [[f32; LANES]] },
}

impl Sink<'_> {
    #[inline(always)]
    fn claim<S: Simd, const R: usize>(&self, s: S, tokens: Range<usize>) {
        match self {
            Self::Linear { to, .. } => to.claim::<S, R>(s, tokens),
            Self::Glu(glu) | Self::Up { glu, .. } => glu.to.claim::<S, 1>(s, tokens),
            Self::Gate { .. } => {}
        }
    }

    /// `sums` are of C columns from `column` on.
    #[inline(always)]
    fn take<S: Simd, const R: usize, const C: usize>(
        &mut self,
        s: S,
        kind: ActKind,
        column: usize,
        sums: [[S::F; C]; R],
    ) {
        match self {
            Self::Linear { to, add, biases } => {
                for r in 0..R {
                    let bias = biases[r].as_ref();
                    if kind.columns() == 2 {
                        for t in 0..C / 2 {
                            let sum = biased(s, s.add(sums[r][t * 2], sums[r][t * 2 + 1]), bias);
                            to.put(s, r, column / 2 + t, sum, *add);
                        }
                    } else {
                        for c in 0..C {
                            to.put(s, r, column + c, biased(s, sums[r][c], bias), *add);
                        }
                    }
                }
            }
            Self::Glu(glu) => {
                let [gates, ups] = [stored(s, sums[0]), stored(s, sums[R - 1])];
                s.call(Gated { glu, kind, column, gates: &gates, ups: &ups });
            }
            Self::Gate { start, gates } => {
                gates[column - *start..][..C].copy_from_slice(&stored(s, sums[0]));
            }
            Self::Up { glu, start, gates } => {
                let gates = &gates[column - *start..][..C];
                s.call(Gated { glu, kind, column, gates, ups: &stored(s, sums[0]) });
            }
        }
    }
}

#[inline(always)]
fn stored<S: Simd, const C: usize>(s: S, sums: [S::F; C]) -> [[f32; LANES]; C] {
    let mut lanes = [[0.0; LANES]; C];
    for c in 0..C {
        s.store(sums[c], &mut lanes[c]);
    }
    lanes
}

/// Some columns' products with a gate and an up matrix, from column `column` on, to results. A function of its own:
/// it is the same for all formats, and large.
struct Gated<'a> {
    glu: &'a Glu<'a>,
    kind: ActKind,
    column: usize,
    gates: &'a [[f32; LANES]],
    ups: &'a [[f32; LANES]],
}

impl<S: Simd> Work<S> for Gated<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        let Self { glu, column, .. } = self;
        let per_token = self.kind.columns();
        let tokens = self.gates.chunks_exact(per_token).zip(self.ups.chunks_exact(per_token));
        for (token, (gate, up)) in tokens.enumerate() {
            let gate = biased(s, sum_of(s, gate), glu.biases[0].as_ref());
            let up = biased(s, sum_of(s, up), glu.biases[1].as_ref());
            glu.to.put(s, 0, column / per_token + token, gated(s, glu.activation, gate, up), false);
        }
    }
}

/// A token's product: of its one column, or the sum of its two.
#[inline(always)]
fn sum_of<S: Simd>(s: S, columns: &[[f32; LANES]]) -> S::F {
    match columns {
        [first, second] => s.add(s.load(first), s.load(second)),
        _ => s.load(&columns[0]),
    }
}

#[inline(always)]
fn biased<S: Simd>(s: S, sum: S::F, bias: Option<&[f32; LANES]>) -> S::F {
    match bias {
        Some(bias) => s.add(sum, s.load(bias)),
        None => sum,
    }
}

/// R tiles times columns, a group of these after the other.
struct Pass<'a, K, const R: usize> {
    tiles: [&'a [u8]; R],
    acts: &'a Acts<'a>,
    columns: Range<usize>,
    sink: Sink<'a>,
    /// How far after each tile the one lies that comes next.
    next: usize,
    slabs: &'a mut Room,
    kernel: PhantomData<K>,
}

impl<S: Simd, K: Kernel, const R: usize> Work<S> for Pass<'_, K, R> {
    type Output = ();

    #[inline(always)]
    fn run(mut self, s: S) {
        if R == 1
            && const { !own_slabs::<S, K>() }
            && K::slabs::<S>() > 0
            && self.columns.len() >= const { S::UNPACKED_FROM }
        {
            let Self { tiles, acts, columns, sink, slabs, kernel, .. } = self;
            return s.call(Unpacking { tile: tiles[0], acts, columns, sink, slabs, by: OfKernel(kernel) });
        }
        walk(s, self.columns.clone(), &mut self);
    }
}

/// Work on groups of columns.
trait OfColumns<S: Simd> {
    /// The most columns of a group.
    const MOST: usize;
    /// C columns from `column` on.
    fn group<const C: usize>(&mut self, s: S, column: usize);
}

/// Groups of as many columns as there may be, one after the other.
#[inline(always)]
fn walk<S: Simd, W: OfColumns<S>>(s: S, columns: Range<usize>, work: &mut W) {
    let mut column = columns.start;
    while column < columns.end {
        let size = group(columns.end - column, const { W::MOST });
        match size {
            8 if const { W::MOST >= 8 } => work.group::<8>(s, column),
            6 if const { W::MOST >= 6 } => work.group::<6>(s, column),
            4 if const { W::MOST >= 4 } => work.group::<4>(s, column),
            2 => work.group::<2>(s, column),
            _ => work.group::<1>(s, column),
        }
        column += size;
    }
}

impl<S: Simd, K: Kernel, const R: usize> OfColumns<S> for Pass<'_, K, R> {
    const MOST: usize = at_once::<S, K, R>();

    #[inline(always)]
    fn group<const C: usize>(&mut self, s: S, column: usize) {
        if C > STREAMED {
            let per_token = self.acts.kind.columns();
            self.sink.claim::<S, R>(s, column / per_token..(column + C) / per_token);
        }
        let place = Place { column, next: std::mem::take(&mut self.next) };
        let sums = K::multiply::<S, R, C>(s, self.tiles, self.acts, place);
        self.sink.take(s, self.acts.kind, column, sums);
    }
}

/// How many columns' sums are kept, of a gate until those of the up matrix are known, and while a slab after the other is
/// unpacked; a multiple of every group's size.
const SUMS: usize = 144;
/// Unpacked weights, which are cleared once for all of a job's tiles, and only if there will be any.
type Room = Option<[Slab; SLABS]>;

/// How a kind of weights is unpacked, for loops that are compiled once for all kinds.
#[derive(Clone, Copy)]
struct Form<S> {
    item: Item,
    unpack: fn(S, &[u8], usize, usize, &mut Slab),
    /// See [`Kernel::slabs`].
    slabs: usize,
}

/// None of floating-point weights.
struct FormOf;

impl<S: Simd> ForKernel<S> for FormOf {
    type Output = Option<Form<S>>;

    #[inline(always)]
    fn run<K: Kernel>(self, _: S) -> Option<Form<S>> {
        let unpack: fn(S, &[u8], usize, usize, &mut Slab) = |s, tile, first, count, slab| {
            s.call(Unpack::<K> { tile, first, count, slab, kernel: PhantomData })
        };
        (!matches!(K::ITEM, Item::Float)).then_some(Form { item: K::ITEM, unpack, slabs: K::slabs::<S>() })
    }
}

struct Unpack<'a, K> {
    tile: &'a [u8],
    first: usize,
    count: usize,
    slab: &'a mut Slab,
    kernel: PhantomData<K>,
}

impl<S: Simd, K: Kernel> Work<S> for Unpack<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        K::unpack(s, self.tile, self.first, self.count, self.slab);
    }
}

/// What unpacks weights and multiplies them.
trait Slabs<S: Simd>: Copy {
    /// How many columns are multiplied at once.
    const COLUMNS: usize;
    /// See [`Kernel::slabs`].
    fn count(self) -> usize;
    /// See [`Kernel::unpack`].
    fn unpack(self, s: S, tile: &[u8], first: usize, count: usize, slab: &mut Slab);
    /// See [`Kernel::add_products`].
    fn add<const C: usize>(self, s: S, slab: &Slab, x: [&[ActBlock]; C], sums: &mut [S::F; C]);
}

/// A kernel's own loops.
struct OfKernel<K>(PhantomData<K>);

impl<K> Clone for OfKernel<K> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<K> Copy for OfKernel<K> {}

impl<S: Simd, K: Kernel> Slabs<S> for OfKernel<K> {
    const COLUMNS: usize = at_once::<S, K, 1>();

    #[inline(always)]
    fn count(self) -> usize {
        K::slabs::<S>()
    }
    #[inline(always)]
    fn unpack(self, s: S, tile: &[u8], first: usize, count: usize, slab: &mut Slab) {
        K::unpack(s, tile, first, count, slab);
    }
    #[inline(always)]
    fn add<const C: usize>(self, s: S, slab: &Slab, x: [&[ActBlock]; C], sums: &mut [S::F; C]) {
        K::add_products(s, slab, x, sums);
    }
}

/// The ISA's loops, which tell kinds apart as they run.
impl<S: Simd> Slabs<S> for Form<S> {
    const COLUMNS: usize = S::COLUMNS;

    #[inline(always)]
    fn count(self) -> usize {
        self.slabs
    }
    #[inline(always)]
    fn unpack(self, s: S, tile: &[u8], first: usize, count: usize, slab: &mut Slab) {
        (self.unpack)(s, tile, first, count, slab);
    }
    #[inline(always)]
    fn add<const C: usize>(self, s: S, slab: &Slab, x: [&[ActBlock]; C], sums: &mut [S::F; C]) {
        s.add_slab(self.item, slab.parts(), x, sums);
    }
}

/// Some blocks of a tile are unpacked and multiplied with all columns, then the next. A function of its own: few columns do
/// without all that it keeps.
struct Unpacking<'a, B> {
    tile: &'a [u8],
    acts: &'a Acts<'a>,
    columns: Range<usize>,
    sink: Sink<'a>,
    slabs: &'a mut Room,
    by: B,
}

impl<S: Simd, B: Slabs<S>> Work<S> for Unpacking<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run(mut self, s: S) {
        let Self { tile, acts, by, .. } = self;
        let blocks = acts.k / QK;
        let slabs = self.slabs.get_or_insert_with(|| [Slab::EMPTY; SLABS]);
        let at_once = SLAB * by.count();
        for start in self.columns.clone().step_by(SUMS) {
            let columns = start..(start + SUMS).min(self.columns.end);
            let mut sums = [[0.0; LANES]; SUMS];
            for first in (0..blocks).step_by(at_once) {
                let of_slabs = first..(first + at_once).min(blocks);
                let count = of_slabs.len().div_ceil(SLAB);
                for (i, slab) in slabs[..count].iter_mut().enumerate() {
                    let first = first + i * SLAB;
                    by.unpack(s, tile, first, SLAB.min(blocks - first), slab);
                }
                s.call(SlabPass {
                    slabs: &slabs[..count],
                    acts,
                    columns: columns.clone(),
                    blocks: of_slabs,
                    sums: &mut sums,
                    by,
                });
            }
            let (sink, kind, by) = (&mut self.sink, acts.kind, PhantomData::<B>);
            walk(s, columns, &mut Finished { sink, kind, start, sums: &sums, by });
        }
    }
}

/// Sums of columns from `start` on, which are complete.
struct Finished<'a, 'b, B> {
    sink: &'a mut Sink<'b>,
    kind: ActKind,
    start: usize,
    sums: &'a [[f32; LANES]],
    by: PhantomData<B>,
}

impl<S: Simd, B: Slabs<S>> OfColumns<S> for Finished<'_, '_, B> {
    const MOST: usize = B::COLUMNS;

    #[inline(always)]
    fn group<const C: usize>(&mut self, s: S, column: usize) {
        let sums = loaded::<S, C>(s, &self.sums[column - self.start..]);
        self.sink.take(s, self.kind, column, [sums]);
    }
}

/// Unpacked slabs times columns.
struct SlabPass<'a, B> {
    slabs: &'a [Slab],
    acts: &'a Acts<'a>,
    columns: Range<usize>,
    blocks: Range<usize>,
    /// Of `columns`.
    sums: &'a mut [[f32; LANES]],
    by: B,
}

impl<S: Simd, B: Slabs<S>> Work<S> for SlabPass<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run(mut self, s: S) {
        walk(s, self.columns.clone(), &mut self);
    }
}

impl<S: Simd, B: Slabs<S>> OfColumns<S> for SlabPass<'_, B> {
    const MOST: usize = B::COLUMNS;

    #[inline(always)]
    fn group<const C: usize>(&mut self, s: S, column: usize) {
        let kept = &mut self.sums[column - self.columns.start..][..C];
        let mut sums = loaded::<S, C>(s, kept);
        let x = block_columns::<C>(self.acts, column, self.blocks.clone());
        for (i, slab) in self.slabs.iter().enumerate() {
            let mut of_slab = x;
            for c in 0..C {
                of_slab[c] = &x[c][i * SLAB..(i * SLAB + SLAB).min(x[0].len())];
            }
            self.by.add(s, slab, of_slab, &mut sums);
        }
        for c in 0..C {
            s.store(sums[c], &mut kept[c]);
        }
    }
}

/// The sums of C columns.
#[inline(always)]
fn loaded<S: Simd, const C: usize>(s: S, kept: &[[f32; LANES]]) -> [S::F; C] {
    let mut sums = [s.splat(0.0); C];
    for c in 0..C {
        sums[c] = s.load(&kept[c]);
    }
    sums
}

/// Something that is compiled for each kind of weights.
trait ForKernel<S: Simd> {
    type Output;
    fn run<K: Kernel>(self, s: S) -> Self::Output;
}

#[inline(always)]
fn with_kernel<S: Simd, J: ForKernel<S>>(s: S, format: Format, job: J) -> J::Output {
    match format {
        Format::F32 => job.run::<Floats<Single>>(s),
        Format::F16 => job.run::<Floats<Half<false>>>(s),
        Format::BF16 => job.run::<Floats<Half<true>>>(s),
        Format::Q8_0 => job.run::<Blocks<Bytes, scales::Half>>(s),
        Format::Q4_0 => job.run::<Blocks<Four<8>, scales::Half>>(s),
        Format::Q4_1 => job.run::<Blocks<Four<0>, scales::HalfMinimum>>(s),
        Format::Q5_0 => job.run::<Blocks<Five<16>, scales::Half>>(s),
        Format::Q5_1 => job.run::<Blocks<Five<0>, scales::HalfMinimum>>(s),
        Format::IQ4_NL => job.run::<Blocks<Iq4, scales::Half>>(s),
        Format::IQ4_XS => job.run::<Runs<Iq4, scales::SixBitsSigned>>(s),
        Format::MXFP4 => job.run::<Blocks<E2m1, scales::E8m0>>(s),
        Format::Q4_K => job.run::<Runs<Four<0>, scales::SixBits>>(s),
        Format::Q5_K => job.run::<Runs<Five<0>, scales::SixBits>>(s),
        Format::Q6_K => job.run::<Runs<Six, scales::Bytes>>(s),
        Format::Q3_K => job.run::<Runs<Three, scales::SixBitPairs>>(s),
        Format::Q2_K => job.run::<Runs<Two, scales::FourBitPairs>>(s),
    }
}

/// See [`Kernel::PAIRS`].
struct Pairs;

impl<S: Simd> ForKernel<S> for Pairs {
    type Output = bool;

    #[inline(always)]
    fn run<K: Kernel>(self, _: S) -> bool {
        K::PAIRS
    }
}

/// A [`Pass`] whose kind of weights is not known yet.
struct Started<'a, const R: usize> {
    format: Format,
    tiles: [&'a [u8]; R],
    acts: &'a Acts<'a>,
    columns: Range<usize>,
    sink: Sink<'a>,
    slabs: &'a mut Room,
}

impl<S: Simd, const R: usize> ForKernel<S> for Started<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<K: Kernel>(self, s: S) {
        let Self { format, tiles, acts, columns, sink, slabs } = self;
        let tiles_on = if matches!(sink, Sink::Linear { .. }) { R } else { 1 };
        let next = tiles_on * format.tile_bytes(acts.k);
        s.call(Pass { tiles, acts, columns, sink, next, slabs, kernel: PhantomData::<K> })
    }
}

#[inline(always)]
fn pass<S: Simd, const R: usize>(
    s: S,
    format: Format,
    tiles: [&[u8]; R],
    acts: &Acts,
    columns: Range<usize>,
    sink: Sink,
    slabs: &mut Room,
) {
    if const { S::OWN_SLABS > 0 && R == 1 }
        && columns.len() >= const { S::UNPACKED_FROM }
        && let Some(by) = with_kernel(s, format, FormOf)
        && by.slabs > 0
    {
        return s.call(Unpacking { tile: tiles[0], acts, columns, sink, slabs, by });
    }
    with_kernel(s, format, Started { format, tiles, acts, columns, sink, slabs });
}
