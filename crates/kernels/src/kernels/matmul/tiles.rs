//! Products of many columns with the tiles of AMX: 16 columns with 16 rows at once.
//!
//! ```text
//! for each few tiles of 16 rows, and as many columns as a second-level cache holds:
//!   for each part along K, ascending:
//!     the columns' values are put side by side, unless a job before had the same columns
//!     for one tile of rows, or two of runs:        their weights and some columns stay in a first-level cache
//!       the weights become signed bytes, those of runs times their blocks' numbers and in two digits of 7 bits
//!       for each 16 columns, or 32 of runs:
//!         exact integer dot products               of a block of 32, or of a whole run
//!         acc += (d_w * d_x) * dot ...             as without tiles, in the same order, while the next are multiplied
//! ```
//!
//! A run's blocks need not be multiplied by their numbers one by one, as 8 + 7 bits hold each value times its number.

use super::{FormOf, Gated, Glu, GluJob, LinearJob, Target, bias_of, biased, sum_of, with_kernel};
use crate::acts::Acts;
use crate::kernels::products::{SLAB, Slab};
use crate::packed::RUN;
use crate::simd::amx::{Amx, ROW_BYTES, ROWS, Tiles};
use crate::simd::avx512::Avx512;
use crate::simd::values::Item;
use crate::simd::{ActBlock, LANES, MINIMUMS, QK, RUN_MINIMUM, RUN_SCALE, Simd, Work, each_group};
use crate::view::{Aligned, Plain};
use std::alloc::{Layout, alloc_zeroed};
use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

/// From how many columns on tiles are faster than vectors.
const LEAST: usize = 32;
/// Tiles of rows and columns whose sums are kept: part of a second-level cache.
const TILES: usize = 16;
const COLUMNS: usize = 256;
/// Bytes of columns in place that a thread keeps for its next job, at most.
const KEPT: usize = 8 << 20;
/// Results are written so many columns after their places were asked for.
const CLAIMED: usize = 8;

/// Of each column with 16 rows.
type Sums = [[f32; LANES]; COLUMNS];
/// Of 16 columns with 16 rows: what a tile is stored to.
type Dots = [[i32; LANES]; ROWS];

/// Gives false where vectors do it better, or tiles cannot.
pub fn linear(amx: Amx, job: &LinearJob) -> bool {
    let (weight, acts) = (job.weight, &job.acts);
    if acts.count < LEAST {
        return false;
    }
    let Some(form) = with_kernel(amx.0, weight.format(), FormOf) else { return false };
    for_columns(acts, form, |columns, room| {
        for first in job.tiles.clone().step_by(TILES) {
            let tiles = first..(first + TILES).min(job.tiles.end);
            let of_rows = tiles.clone().map(|tile| (weight.tile(tile), form));
            multiply(amx, of_rows, acts, columns.clone(), room);
            amx.0.call(Finishing { job, columns: columns.clone(), tiles, sums: &room.fixed.sums });
        }
    })
}

/// Gives false like [`linear`].
pub fn glu(amx: Amx, job: &GluJob) -> bool {
    let acts = &job.acts;
    if acts.count < LEAST {
        return false;
    }
    let [gate, up] = [job.gate, job.up];
    let forms = [gate, up].map(|of| with_kernel(amx.0, of.format(), FormOf));
    let [Some(of_gate), Some(of_up)] = forms else { return false };
    for_columns(acts, of_gate, |columns, room| {
        for first in job.tiles.clone().step_by(TILES / 2) {
            let tiles = first..(first + TILES / 2).min(job.tiles.end);
            let of_rows = tiles.clone().flat_map(|tile| [(gate.tile(tile), of_gate), (up.tile(tile), of_up)]);
            multiply(amx, of_rows, acts, columns.clone(), room);
            for (tile, [gates, ups]) in tiles.zip(room.fixed.sums.as_chunks().0) {
                let glu = Glu {
                    to: Target {
                        out: job.out,
                        width: job.width,
                        row: tile * LANES,
                        apart: LANES,
                        rows: gate.rows(),
                    },
                    activation: job.activation,
                    biases: job.biases.map(|bias| bias_of(bias, tile)),
                };
                let [gates, ups] = [gates, ups].map(|of| &of[..columns.len()]);
                amx.0.call(Gated { glu: &glu, kind: acts.kind, column: columns.start, gates, ups });
            }
        }
    })
}

/// Calls `work` with columns that are multiplied at once and room for it. Gives false where there is no memory for it.
fn for_columns(acts: &Acts, form: Form, mut work: impl FnMut(Range<usize>, &mut Room)) -> bool {
    thread_local! {
        /// A thread's, as clearing it takes as long as multiplying some columns, and its next job often has the same columns.
        static ROOM: RefCell<Option<Room>> = const { RefCell::new(None) };
    }
    ROOM.with_borrow_mut(|room| {
        if room.is_none() {
            *room = Room::zeroed();
        }
        let Some(room) = room else { return false };
        let fits = if form.is_run() { room.runs.fit(acts) } else { room.blocks.fit(acts) };
        if fits {
            for start in (0..acts.count).step_by(COLUMNS) {
                work(start..(start + COLUMNS).min(acts.count), room);
            }
        }
        fits
    })
}

struct Room {
    fixed: Box<FixedRoom>,
    blocks: Placed<BlocksPart>,
    runs: Placed<RunPart>,
}

impl Room {
    /// None where memory is short.
    fn zeroed() -> Option<Self> {
        // SAFETY: the layout is the type's, which has a size; zeros are valid numbers and flags, of which alone it is made.
        let fixed = unsafe {
            let room = alloc_zeroed(Layout::new::<FixedRoom>()).cast::<FixedRoom>();
            (!room.is_null()).then(|| Box::from_raw(room))?
        };
        Some(Self { fixed, blocks: Placed::new()?, runs: Placed::new()? })
    }
}

struct FixedRoom {
    /// Of so many tiles.
    sums: [Sums; TILES],
    blocks: PartRoom<BlocksPart>,
    runs: PartRoom<RunPart>,
}

/// What weights of a part become.
#[repr(C, align(64))]
struct PartRoom<P: Part> {
    weights: [P::Weights; MOST_AT_ONCE],
    slab: Slab,
    dots: P::Dots,
}

/// Columns put in place, for all jobs of a thread that have the same.
struct Placed<P: Part> {
    of: Option<Source>,
    minimums: Minimums,
    /// Of all columns.
    groups: usize,
    /// `[part][group]`; where there are more parts than room for them, the last place is for all others. Where a group
    /// lacks columns, earlier ones are, whose products nobody takes.
    columns: Aligned<P::Columns>,
    /// [part][each `COLUMNS`]: which part is there.
    there: Vec<Option<usize>>,
}

/// What tells columns from others.
#[derive(PartialEq)]
struct Source {
    version: u64,
    first: *const ActBlock,
    count: usize,
    stride: usize,
    k: usize,
}

impl<P: Part> Placed<P> {
    fn new() -> Option<Self> {
        let minimums = Minimums { blocks: false, halves: false };
        Some(Self { of: None, minimums, groups: 0, columns: Aligned::zeroed(0)?, there: Vec::new() })
    }

    /// Makes room for these columns, unless it has them. Gives false where memory is short.
    fn fit(&mut self, acts: &Acts) -> bool {
        let &Acts { version, count, stride, k, blocks, .. } = acts;
        let of = Some(Source { version, first: blocks.as_ptr(), count, stride, k });
        if self.of == of {
            return true;
        }
        self.of = None;
        self.groups = count.div_ceil(P::COLUMNS);
        let most = KEPT / (self.groups * size_of::<P::Columns>());
        let parts = (k / QK).div_ceil(P::BLOCKS).min(most.max(1));
        if self.columns.as_slice().len() < parts * self.groups {
            let Some(columns) = Aligned::zeroed(parts * self.groups) else { return false };
            self.columns = columns;
        }
        self.there.clear();
        self.there.resize(parts * count.div_ceil(COLUMNS), None);
        self.of = of;
        true
    }

    /// From now on sums of these kinds are put in place, too: all columns again, if some are there without.
    fn want(&mut self, minimums: Minimums) {
        let wanted = self.minimums.or(minimums);
        if self.minimums != wanted {
            self.minimums = wanted;
            self.there.fill(None);
        }
    }

    /// The groups of some columns' part, from block `part.start` on.
    #[inline(always)]
    fn part(&mut self, acts: &Acts, columns: &Range<usize>, part: &Range<usize>) -> &[P::Columns] {
        let index = part.start / P::BLOCKS;
        let places = acts.count.div_ceil(COLUMNS);
        let place = index.min(self.there.len() / places - 1);
        let first = place * self.groups + columns.start / P::COLUMNS;
        let groups = &mut self.columns.as_mut_slice()[first..][..columns.len().div_ceil(P::COLUMNS)];
        let there = &mut self.there[place * places + columns.start / COLUMNS];
        if *there != Some(index) {
            let blocks = acts.k / QK;
            let stride = acts.stride * blocks;
            for (group, to) in groups.iter_mut().enumerate() {
                let first = columns.start + group * P::COLUMNS;
                let of_group = Columns {
                    blocks: &acts.blocks[first * stride + part.start..],
                    stride,
                    columns: P::COLUMNS.min(columns.end - first),
                    count: part.len(),
                };
                P::put_columns(of_group, self.minimums, to);
            }
            *there = Some(index);
        }
        groups
    }
}

/// Hands over tiles' sums, which are complete.
struct Finishing<'a> {
    job: &'a LinearJob<'a>,
    columns: Range<usize>,
    tiles: Range<usize>,
    sums: &'a [Sums; TILES],
}

impl Work<Avx512> for Finishing<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: Avx512) {
        let Self { job, columns, tiles, sums } = self;
        let (first, rows) = (tiles.start * LANES, job.weight.rows());
        let to = Target { out: job.out, width: job.width, row: first, apart: LANES, rows };
        let per_token = job.acts.kind.columns();
        let tokens = columns.start / per_token..columns.end / per_token;
        let mut biases = [None; TILES];
        for (bias, tile) in biases.iter_mut().zip(tiles.clone()) {
            *bias = bias_of(job.bias, tile);
        }
        for token in tokens.clone() {
            let claimed = token + CLAIMED;
            if claimed < tokens.end {
                for r in 0..tiles.len() {
                    s.prefetch_write(job.out.address(claimed * job.width + first + r * LANES));
                }
            }
            let column = (token - tokens.start) * per_token;
            for r in 0..tiles.len() {
                let sum = sum_of(s, &sums[r][column..][..per_token]);
                to.put(s, r, token, biased(s, sum, biases[r].as_ref()), job.add);
            }
        }
    }
}

/// What a format's weights become.
type Form = super::Form<Avx512>;

impl Form {
    fn is_run(self) -> bool {
        matches!(self.item, Item::Run { .. })
    }
}

/// The products of columns with the rows of some tiles, all of them of runs or none.
fn multiply<'a>(
    amx: Amx,
    tiles: impl Iterator<Item = (&'a [u8], Form)>,
    acts: &Acts,
    columns: Range<usize>,
    room: &mut Room,
) {
    let Room { fixed, blocks: placed_blocks, runs: placed_runs } = room;
    let FixedRoom { sums, blocks, runs } = &mut **fixed;
    let mut of_rows = [const { None }; TILES];
    for (to, tile) in of_rows.iter_mut().zip(tiles) {
        *to = Some(tile);
    }
    if of_rows[0].is_some_and(|(_, form)| form.is_run()) {
        amx.0.call(Pass { amx, of_rows, acts, columns, sums, placed: placed_runs, room: runs });
    } else {
        amx.0.call(Pass { amx, of_rows, acts, columns, sums, placed: placed_blocks, room: blocks });
    }
}

/// As many tiles of rows as any part has weights unpacked of at once.
const MOST_AT_ONCE: usize = 2;

/// A part of K that is unpacked and multiplied at once.
trait Part {
    /// Tiles of rows whose weights are unpacked at once: less than half of a first-level cache, which columns and sums share.
    const AT_ONCE: usize;
    /// Blocks of 32 of it.
    const BLOCKS: usize;
    /// Columns that are multiplied at once.
    const COLUMNS: usize;
    type Tiles: From<Amx>;
    type Columns: Plain;
    type Weights;
    /// Room for what tiles are stored to.
    type Dots;

    /// What some columns' blocks become, with the sums that minimums are multiplied by: of blocks, or of halves.
    fn put_columns(blocks: Columns, minimums: Minimums, to: &mut Self::Columns);
    /// Unpacked blocks of a tile, from block `at` of the part on.
    fn put_weights(s: Avx512, item: Item, slab: &Slab, at: usize, count: usize, to: &mut Self::Weights);
    /// Adds the products of all columns with the rows of some tiles.
    fn add(s: Avx512, by: Products<Self>, sums: &mut [Sums]);
}

/// Which kinds of minimums some tiles have.
#[derive(Clone, Copy, PartialEq)]
struct Minimums {
    blocks: bool,
    halves: bool,
}

impl Minimums {
    fn of(forms: impl Iterator<Item = Form>) -> Self {
        let mut of = Self { blocks: false, halves: false };
        for form in forms {
            match form.item {
                Item::Block { minimum: true, .. } | Item::Run { minimum: true, halves: false, .. } => {
                    of.blocks = true;
                }
                Item::Run { minimum: true, halves: true, .. } => of.halves = true,
                _ => {}
            }
        }
        of
    }

    fn or(self, other: Self) -> Self {
        Self { blocks: self.blocks | other.blocks, halves: self.halves | other.halves }
    }
}

/// Blocks of some columns.
#[derive(Clone, Copy)]
struct Columns<'a> {
    /// The first column's, from a part's first block on.
    blocks: &'a [ActBlock],
    /// How far from one column to the next.
    stride: usize,
    columns: usize,
    /// Of each column.
    count: usize,
}

impl<'a> Columns<'a> {
    #[inline(always)]
    fn of(self, column: usize) -> &'a [ActBlock] {
        &self.blocks[column * self.stride..][..self.count]
    }
}

struct Products<'a, P: Part + ?Sized> {
    tiles: &'a P::Tiles,
    weights: &'a [P::Weights],
    columns: &'a [P::Columns],
    dots: &'a mut P::Dots,
    /// Whether sums begin, from zero.
    first: bool,
}

struct Pass<'a, P: Part> {
    amx: Amx,
    of_rows: [Option<(&'a [u8], Form)>; TILES],
    acts: &'a Acts<'a>,
    columns: Range<usize>,
    sums: &'a mut [Sums; TILES],
    placed: &'a mut Placed<P>,
    room: &'a mut PartRoom<P>,
}

impl<P: Part> Work<Avx512> for Pass<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: Avx512) {
        let Self { of_rows, acts, columns: of, sums, placed, room, .. } = self;
        let PartRoom { weights, slab, dots } = room;
        let tiles = P::Tiles::from(self.amx);
        placed.want(Minimums::of(of_rows.iter().flatten().map(|&(_, form)| form)));
        let blocks = acts.k / QK;
        for first in (0..blocks).step_by(P::BLOCKS) {
            let part = first..(first + P::BLOCKS).min(blocks);
            // All of them before the first is used: tiles wait long for what was stored just before.
            let columns = placed.part(acts, &of, &part);
            let (of_rows, sums) = (of_rows.chunks(P::AT_ONCE), sums.chunks_mut(P::AT_ONCE));
            for (of_rows, sums) in of_rows.zip(sums) {
                let count = of_rows.iter().flatten().count();
                if count == 0 {
                    break;
                }
                for (to, (tile, form)) in weights.iter_mut().zip(of_rows.iter().flatten()) {
                    for first in part.clone().step_by(SLAB) {
                        let count = SLAB.min(part.end - first);
                        (form.unpack)(s, tile, first, count, slab);
                        P::put_weights(s, form.item, slab, first - part.start, count, to);
                    }
                }
                let by = Products {
                    tiles: &tiles,
                    weights: &weights[..count],
                    columns,
                    dots: &mut *dots,
                    first: first == 0,
                };
                P::add(s, by, &mut sums[..count]);
            }
        }
    }
}

/// Sums so far, which are zero at first.
#[inline(always)]
fn load_sums(first: bool, sums: &[f32; LANES]) -> __m512 {
    let kept = if first { 0 } else { u16::MAX };
    // SAFETY: 64 bytes may be read, by a CPU that has AVX-512.
    unsafe { _mm512_maskz_loadu_ps(kept, sums.as_ptr()) }
}

/// Blocks of 32 with scales of their own.
struct BlocksPart;

/// Room for blocks that are loaded past the last: their products are not used.
const AHEAD: usize = 2;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct BlockColumns {
    values: [[[i8; QK]; ROWS]; BlocksPart::BLOCKS + AHEAD],
    scales: [[f32; ROWS]; BlocksPart::BLOCKS],
    minus_sums: [[f32; ROWS]; BlocksPart::BLOCKS],
}

impl Plain for BlockColumns {}

#[repr(C, align(64))]
struct BlockWeights {
    values: [[[i8; QK]; ROWS]; BlocksPart::BLOCKS + AHEAD],
    scales: [[f32; LANES]; BlocksPart::BLOCKS],
    minimums: [[f32; LANES]; BlocksPart::BLOCKS],
    minimum: bool,
    count: usize,
}

impl Part for BlocksPart {
    const AT_ONCE: usize = 1;
    const BLOCKS: usize = 4 * SLAB;
    const COLUMNS: usize = ROWS;
    type Tiles = Tiles<QK>;
    type Columns = BlockColumns;
    type Weights = BlockWeights;
    type Dots = [Dots; 2];

    #[inline(always)]
    fn put_columns(blocks: Columns, minimums: Minimums, to: &mut BlockColumns) {
        for b in 0..blocks.count {
            for c in 0..blocks.columns {
                let block = &blocks.blocks[c * blocks.stride + b];
                to.values[b][c] = block.values;
                to.scales[b][c] = block.scale;
                if minimums.blocks {
                    to.minus_sums[b][c] = block.minus_sum() as f32;
                }
            }
        }
    }

    #[inline(always)]
    fn put_weights(s: Avx512, item: Item, slab: &Slab, at: usize, count: usize, to: &mut BlockWeights) {
        let Item::Block { offset, minimum, .. } = item else { unreachable!("runs take other activations") };
        (to.minimum, to.count) = (minimum, at + count);
        for block in 0..count {
            let values = to.values[at + block].as_flattened_mut().as_chunks_mut::<ROW_BYTES>().0;
            for (group, to) in values.iter_mut().enumerate() {
                // SAFETY: the token proves the CPU features; 64 bytes are written.
                unsafe {
                    let signed = _mm512_sub_epi8(slab.group(s, block, group), _mm512_set1_epi8(offset as i8));
                    _mm512_storeu_si512(to.as_mut_ptr().cast(), signed);
                }
            }
            to.scales[at + block] = slab.scales[block];
            to.minimums[at + block] = slab.scales[MINIMUMS + block];
        }
    }

    #[inline(always)]
    fn add(s: Avx512, by: Products<Self>, sums: &mut [Sums]) {
        let Products { tiles, weights, columns, dots, first } = by;
        for (group, columns) in columns.iter().enumerate() {
            for (weights, sums) in weights.iter().zip(&mut *sums) {
                let sums = &mut sums.as_chunks_mut().0[group];
                if weights.minimum {
                    add_blocks::<true>(s, tiles, weights, columns, dots, first, sums);
                } else {
                    add_blocks::<false>(s, tiles, weights, columns, dots, first, sums);
                }
            }
        }
    }
}

/// A block is multiplied, stored in the next round and added in the one after, so that none waits for the other.
#[inline(always)]
fn add_blocks<const MINIMUM: bool>(
    s: Avx512,
    tiles: &Tiles<QK>,
    weights: &BlockWeights,
    columns: &BlockColumns,
    dots: &mut [Dots; 2],
    first: bool,
    sums: &mut [[f32; LANES]; ROWS],
) {
    let mut kept = [s.splat(0.0); ROWS];
    for c in 0..ROWS {
        kept[c] = load_sums(first, &sums[c]);
    }
    let (x, w) = (&columns.values, &weights.values);
    tiles.load_columns::<4>(&x[0]);
    tiles.load_weights::<6>(&w[0]);
    tiles.clear::<0>();
    tiles.add_dots::<0, 4, 6>();
    let count = weights.count;
    for block in (0..count).step_by(2) {
        tiles.load_columns::<5>(&x[block + 1]);
        tiles.load_weights::<7>(&w[block + 1]);
        tiles.clear::<1>();
        tiles.add_dots::<1, 5, 7>();
        tiles.store::<0>(&mut dots[0]);
        if block > 0 {
            add_scaled::<MINIMUM>(s, &mut kept, weights, columns, block - 1, &dots[1]);
        }
        tiles.load_columns::<4>(&x[block + 2]);
        tiles.load_weights::<6>(&w[block + 2]);
        tiles.clear::<0>();
        tiles.add_dots::<0, 4, 6>();
        tiles.store::<1>(&mut dots[1]);
        add_scaled::<MINIMUM>(s, &mut kept, weights, columns, block, &dots[0]);
    }
    if count.is_multiple_of(2) {
        add_scaled::<MINIMUM>(s, &mut kept, weights, columns, count - 1, &dots[1]);
    }
    for c in 0..ROWS {
        s.store(kept[c], &mut sums[c]);
    }
}

/// Adds one block's dot products times the scales.
#[inline(always)]
fn add_scaled<const MINIMUM: bool>(
    s: Avx512,
    sums: &mut [__m512; ROWS],
    weights: &BlockWeights,
    columns: &BlockColumns,
    block: usize,
    dots: &Dots,
) {
    let (d, m) = (s.load(&weights.scales[block]), s.load(&weights.minimums[block]));
    let scales = &columns.scales[block];
    let minus_sums = &columns.minus_sums[block];
    each_group!(c in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15] {
        let dot = s.int_to_float(ints(&dots[c]));
        let scale = s.splat(scales[c]);
        sums[c] = s.add(sums[c], s.mul(s.mul(d, scale), dot));
        if MINIMUM {
            sums[c] = s.add(sums[c], s.mul(s.mul(m, scale), s.splat(minus_sums[c])));
        }
    });
}

#[inline(always)]
fn ints(numbers: &[i32; LANES]) -> __m512i {
    // SAFETY: 64 bytes are read, by a CPU that has AVX-512.
    unsafe { _mm512_loadu_si512(numbers.as_ptr().cast()) }
}

/// A run of eight blocks with numbers as scales.
struct RunPart;

/// Bits of the lower digit of a weight times its number.
const DIGIT: u32 = 7;
/// Columns whose sums are added between two tiles' products.
const PER_STEP: usize = ROWS / STEPS;
/// Of two times 16 columns, the products with both digits.
type RunDots = [[Dots; 2]; 2];
/// A run's values in rows of 64.
const STEPS: usize = RUN * QK / ROW_BYTES;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct RunColumns {
    /// [16 columns each]
    values: [[[[i8; ROW_BYTES]; ROWS]; STEPS]; 2],
    scales: [f32; 2 * ROWS],
    /// Minus the sums of two halves, or of two blocks.
    minus_sums: [[[[i16; 2]; RUN]; 2 * ROWS]; 2],
}

impl Plain for RunColumns {}

#[repr(C, align(64))]
struct RunWeights {
    /// The lower and the upper digit.
    values: [[[[i8; ROW_BYTES]; ROWS]; 2]; STEPS],
    scale: [f32; LANES],
    minimum: [f32; LANES],
    /// What the minus sums are multiplied with.
    numbers: [[f32; LANES]; RUN],
    minimums: bool,
    halves: bool,
}

impl Part for RunPart {
    const AT_ONCE: usize = MOST_AT_ONCE;
    const BLOCKS: usize = RUN;
    const COLUMNS: usize = 2 * ROWS;
    type Tiles = Tiles<ROW_BYTES>;
    type Columns = RunColumns;
    type Weights = RunWeights;
    /// Of two tiles of rows, one of which is added while the other is multiplied.
    type Dots = [RunDots; 2];

    #[inline(always)]
    fn put_columns(blocks: Columns, minimums: Minimums, to: &mut RunColumns) {
        for c in 0..blocks.columns {
            let of_column = blocks.of(c).try_into().expect("a run");
            put_column(of_column, c, minimums, to);
        }
    }

    #[inline(always)]
    fn put_weights(s: Avx512, item: Item, slab: &Slab, _: usize, _: usize, to: &mut RunWeights) {
        let Item::Run { offset, halves, minimum, .. } = item else {
            unreachable!("blocks take other activations")
        };
        (to.halves, to.minimums) = (halves, minimum);
        for block in 0..RUN {
            let numbers = s.int_bits(s.load(&slab.scales[block]));
            for half in 0..2 {
                // SAFETY: the token proves the CPU features; 64 bytes are written at a time.
                unsafe {
                    let number = if halves && half == 1 { _mm512_srai_epi32::<16>(numbers) } else { numbers };
                    let number =
                        _mm512_mask_blend_epi16(0xaaaa_aaaa, number, _mm512_slli_epi32::<16>(number));
                    for group in half * 4..half * 4 + 4 {
                        let digits = digits(slab.group(s, block, group), number, offset);
                        for (digit, values) in digits.into_iter().zip(&mut to.values[block / 2]) {
                            let to = values[block % 2 * 8 + group].as_mut_ptr();
                            _mm512_storeu_si512(to.cast(), digit);
                        }
                    }
                }
            }
        }
        to.scale = slab.scales[RUN_SCALE];
        to.minimum = slab.scales[RUN_MINIMUM];
        to.numbers = *slab.scales[MINIMUMS..].first_chunk().expect("a run's numbers");
    }

    /// Between the products of one tile are the sums of the tile before, as units of both are busy then.
    #[inline(always)]
    fn add(s: Avx512, by: Products<Self>, sums: &mut [Sums]) {
        let Products { tiles, weights, columns: groups, dots: [now, before], first } = by;
        let (mut now, mut before) = (now, before);
        let mut last = None::<Multiplied>;
        for (group, columns) in groups.iter().enumerate() {
            for (tile, of_tile) in weights.iter().enumerate() {
                tiles.clear::<0>();
                tiles.clear::<1>();
                for step in 0..STEPS {
                    let [low, high] = &of_tile.values[step];
                    tiles.load_columns::<4>(&columns.values[0][step]);
                    tiles.load_weights::<6>(low);
                    tiles.add_dots::<0, 4, 6>();
                    tiles.load_weights::<7>(high);
                    tiles.add_dots::<1, 4, 7>();
                    if step == 0 {
                        store_second(tiles, before);
                        tiles.clear::<2>();
                        tiles.clear::<3>();
                    }
                    add_last(s, last, before, first, sums, step * 2);
                    tiles.load_columns::<5>(&columns.values[1][step]);
                    tiles.add_dots::<2, 5, 6>();
                    tiles.add_dots::<3, 5, 7>();
                    add_last(s, last, before, first, sums, step * 2 + 1);
                }
                tiles.store::<0>(&mut now[0][0]);
                tiles.store::<1>(&mut now[0][1]);
                (now, before) = (before, now);
                last = Some(Multiplied { weights: of_tile, columns, tile, group });
            }
        }
        store_second(tiles, before);
        for step in 0..2 * STEPS {
            add_last(s, last, before, first, sums, step);
        }
    }
}

/// The products with the second 16 columns.
#[inline(always)]
fn store_second(tiles: &Tiles<ROW_BYTES>, dots: &mut RunDots) {
    tiles.store::<2>(&mut dots[1][0]);
    tiles.store::<3>(&mut dots[1][1]);
}

/// A tile of rows and a group of columns whose products are to be added.
#[derive(Clone, Copy)]
struct Multiplied<'a> {
    weights: &'a RunWeights,
    columns: &'a RunColumns,
    tile: usize,
    group: usize,
}

/// Adds products, if there are any, with the columns of one step.
#[inline(always)]
fn add_last(
    s: Avx512,
    last: Option<Multiplied>,
    dots: &RunDots,
    begins: bool,
    sums: &mut [Sums],
    step: usize,
) {
    let Some(of) = last else { return };
    let sums = &mut sums[of.tile].as_chunks_mut().0[of.group];
    match (of.weights.minimums, of.weights.halves) {
        (false, _) => add_columns::<0>(s, of, dots, begins, sums, step),
        (true, false) => add_columns::<{ RUN / 2 }>(s, of, dots, begins, sums, step),
        (true, true) => add_columns::<RUN>(s, of, dots, begins, sums, step),
    }
}

/// One column's run to its place.
#[inline(always)]
fn put_column(blocks: &[ActBlock; RUN], at: usize, minimums: Minimums, to: &mut RunColumns) {
    let values = &mut to.values[at / ROWS];
    each_group!(b in [0 1 2 3 4 5 6 7] {
        values[b / 2][at % ROWS].as_chunks_mut().0[b % 2] = blocks[b].values;
    });
    to.scales[at] = blocks[0].scale;
    if minimums.blocks {
        each_group!(i in [0 1 2 3] {
            to.minus_sums[0][at][i] = blocks[i * 2 + 1].minus_both;
        });
    }
    if minimums.halves {
        each_group!(b in [0 1 2 3 4 5 6 7] {
            to.minus_sums[1][at][b] = blocks[b].minus_halves;
        });
    }
}

/// Bytes less `offset` times numbers of 16 bits, as lower digits of 0..128 and signed upper digits.
///
/// # Safety
/// The CPU has AVX-512 BW.
#[inline(always)]
unsafe fn digits(bytes: __m512i, numbers: __m512i, offset: i32) -> [__m512i; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let offset = _mm512_set1_epi16(offset as i16);
        let even = _mm512_and_si512(bytes, _mm512_set1_epi16(0xff));
        let odd = _mm512_srli_epi16::<8>(bytes);
        let even = _mm512_mullo_epi16(_mm512_sub_epi16(even, offset), numbers);
        let odd = _mm512_mullo_epi16(_mm512_sub_epi16(odd, offset), numbers);
        const ODD: u64 = 0xaaaa_aaaa_aaaa_aaaa;
        let low = _mm512_mask_blend_epi8(ODD, even, _mm512_slli_epi16::<8>(odd));
        let low = _mm512_and_si512(low, _mm512_set1_epi8(i8::MAX));
        let high = _mm512_mask_blend_epi8(
            ODD,
            _mm512_srai_epi16::<DIGIT>(even),
            _mm512_slli_epi16::<8>(_mm512_srai_epi16::<DIGIT>(odd)),
        );
        [low, high]
    }
}

/// The same with so many vectors of numbers of minimums.
#[inline(always)]
fn add_columns<const MINIMUMS: usize>(
    s: Avx512,
    Multiplied { weights, columns, .. }: Multiplied,
    dots: &RunDots,
    begins: bool,
    sums: &mut [[f32; LANES]; 2 * ROWS],
    step: usize,
) {
    const { assert!(PER_STEP == 4) };
    let first = step * PER_STEP;
    let (d, m) = (s.load(&weights.scale), s.load(&weights.minimum));
    let mut numbers = [s.splat_int(0); MINIMUMS];
    for i in 0..MINIMUMS {
        numbers[i] = s.int_bits(s.load(&weights.numbers[i]));
    }
    let [low, high] = &dots[first / ROWS];
    let [low, high] = [low, high].map(|of| of[first % ROWS..].first_chunk::<PER_STEP>().expect("columns"));
    let scales = columns.scales[first..].first_chunk::<PER_STEP>().expect("columns");
    let of_halves = (MINIMUMS == RUN) as usize;
    let minus_sums = columns.minus_sums[of_halves][first..].first_chunk::<PER_STEP>().expect("columns");
    let sums = sums[first..].first_chunk_mut::<PER_STEP>().expect("columns");
    each_group!(c in [0 1 2 3] {
        // SAFETY: the token proves the CPU features.
        let dot = unsafe { _mm512_add_epi32(ints(&low[c]), _mm512_slli_epi32::<DIGIT>(ints(&high[c]))) };
        let scale = s.splat(scales[c]);
        let mut sum = s.add(load_sums(begins, &sums[c]), s.mul(s.mul(d, scale), s.int_to_float(dot)));
        if MINIMUMS > 0 {
            let mut minus = s.splat_int(0);
            for i in 0..MINIMUMS {
                minus = s.add_pair_dot(minus, &minus_sums[c][i], numbers[i]);
            }
            sum = s.add(sum, s.mul(s.mul(m, scale), s.int_to_float(minus)));
        }
        s.store(sum, &mut sums[c]);
    });
}
