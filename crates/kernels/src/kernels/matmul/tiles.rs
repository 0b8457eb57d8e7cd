//! Products of many columns with the tiles of AMX: 16 columns with 16 rows at once.
//!
//! ```text
//! for each few tiles of 16 rows, and as many columns as a second-level cache holds:
//!   for each part along K, ascending:
//!     the weights become signed bytes, those of runs times their blocks' numbers and in two digits of 7 bits
//!     for each 16 columns, where they lie, or 32 of runs, whose values are put side by side before:
//!       for each tile of rows:                     its weights and the columns stay in a first-level cache
//!         exact integer dot products               of a block of 32, or of a whole run
//!         acc += (d_w * d_x) * dot ...             as without tiles, in the same order
//! ```
//!
//! A run's blocks need not be multiplied by their numbers one by one, as 8 + 7 bits hold each value times its number.

use super::{ForKernel, Gated, Glu, GluJob, LinearJob, Target, bias_of, biased, sum_of, with_kernel};
use crate::acts::Acts;
use crate::kernels::products::{Item, Kernel, SLAB, Slab};
use crate::packed::RUN;
use crate::simd::amx::{Amx, ROW_BYTES, ROWS, Tiles};
use crate::simd::avx512::Avx512;
use crate::simd::{ActBlock, LANES, QK, Simd, Work, each_group};
use std::alloc::{Layout, alloc_zeroed};
use std::arch::x86_64::*;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

/// From how many columns on tiles are faster than vectors.
const LEAST: usize = 32;
/// Tiles of rows whose weights are unpacked at once: most of a first-level cache.
const AT_ONCE: usize = 4;
/// Tiles of rows that the same columns in place are multiplied with.
const TILES: usize = 4 * AT_ONCE;
/// Columns whose sums are kept.
const COLUMNS: usize = 256;
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
    for_columns(acts, |columns, room| {
        for first in job.tiles.clone().step_by(TILES) {
            let tiles = first..(first + TILES).min(job.tiles.end);
            let of_rows = tiles.clone().map(|tile| (weight.tile(tile), form));
            multiply(amx, of_rows, acts, columns.clone(), room);
            amx.0.call(Finishing { job, columns: columns.clone(), tiles, sums: &room.sums });
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
    for_columns(acts, |columns, room| {
        for first in job.tiles.clone().step_by(TILES / 2) {
            let tiles = first..(first + TILES / 2).min(job.tiles.end);
            let of_rows = tiles.clone().flat_map(|tile| [(gate.tile(tile), of_gate), (up.tile(tile), of_up)]);
            multiply(amx, of_rows, acts, columns.clone(), room);
            for (tile, [gates, ups]) in tiles.zip(room.sums.as_chunks().0) {
                let glu = Glu {
                    to: Target { out: job.out, width: job.width, row: tile * LANES, rows: gate.rows() },
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
fn for_columns(acts: &Acts, mut work: impl FnMut(Range<usize>, &mut Room)) -> bool {
    thread_local! {
        /// A thread's, as clearing it takes as long as multiplying some columns.
        static ROOM: RefCell<Option<Box<Room>>> = const { RefCell::new(None) };
    }
    ROOM.with_borrow_mut(|room| {
        if room.is_none() {
            *room = Room::zeroed();
        }
        let Some(room) = room else { return false };
        for start in (0..acts.count).step_by(COLUMNS) {
            work(start..(start + COLUMNS).min(acts.count), room);
        }
        true
    })
}

struct Room {
    /// Of so many tiles.
    sums: [Sums; TILES],
    blocks: PartRoom<BlocksPart>,
    runs: PartRoom<RunPart>,
}

/// What columns and weights of a part become.
#[repr(C, align(64))]
struct PartRoom<P: Part> {
    /// Where a column lacks, an earlier one is, whose products nobody takes.
    columns: P::Room,
    weights: [P::Weights; AT_ONCE],
    slab: Slab,
    dots: [[Dots; 2]; 2],
}

impl Room {
    /// None where memory is short.
    fn zeroed() -> Option<Box<Self>> {
        // SAFETY: the layout is the type's, which has a size; zeros are valid numbers and flags, of which alone it is made.
        unsafe {
            let room = alloc_zeroed(Layout::new::<Self>()).cast::<Self>();
            (!room.is_null()).then(|| Box::from_raw(room))
        }
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
        let to = Target { out: job.out, width: job.width, row: first, rows };
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
#[derive(Clone, Copy)]
struct Form {
    item: Item,
    unpack: fn(Avx512, &[u8], usize, usize, &mut Slab),
}

/// None of floating-point weights.
struct FormOf;

impl ForKernel<Avx512> for FormOf {
    type Output = Option<Form>;

    #[inline(always)]
    fn run<K: Kernel>(self, _: Avx512) -> Option<Form> {
        let unpack: fn(Avx512, &[u8], usize, usize, &mut Slab) = |s, tile, first, count, slab| {
            s.call(Unpack::<K> { tile, first, count, slab, kernel: PhantomData })
        };
        (!matches!(K::ITEM, Item::Float)).then_some(Form { item: K::ITEM, unpack })
    }
}

struct Unpack<'a, K> {
    tile: &'a [u8],
    first: usize,
    count: usize,
    slab: &'a mut Slab,
    kernel: PhantomData<K>,
}

impl<K: Kernel> Work<Avx512> for Unpack<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: Avx512) {
        K::unpack(s, self.tile, self.first, self.count, self.slab);
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
    let Room { sums, blocks, runs } = room;
    let mut of_rows = [const { None }; TILES];
    for (to, tile) in of_rows.iter_mut().zip(tiles) {
        *to = Some(tile);
    }
    if of_rows[0].is_some_and(|(_, form)| matches!(form.item, Item::Run { .. })) {
        amx.0.call(Pass { amx, of_rows, acts, columns, sums, room: runs });
    } else {
        amx.0.call(Pass { amx, of_rows, acts, columns, sums, room: blocks });
    }
}

/// A part of K that is unpacked and multiplied at once.
trait Part {
    /// Blocks of 32 of it.
    const BLOCKS: usize;
    /// Columns that are multiplied at once.
    const COLUMNS: usize;
    type Tiles: From<Amx>;
    type Columns;
    /// Room for all columns.
    type Room: AsRef<[Self::Columns]> + AsMut<[Self::Columns]>;
    type Weights;

    /// What some columns' blocks become, with the sums that minimums are multiplied by: of blocks, or of halves.
    fn put_columns(blocks: Columns, minimums: Minimums, to: &mut Self::Columns);
    /// Unpacked blocks of a tile, from block `at` of the part on.
    fn put_weights(s: Avx512, item: Item, slab: &Slab, at: usize, count: usize, to: &mut Self::Weights);
    /// Adds the products of columns with the rows of some tiles, `count` blocks of each. `first`: of the columns that the
    /// sums are of.
    fn add(s: Avx512, by: Products<Self>, sums: &mut [Sums], first: usize);
}

/// Which kinds of minimums some tiles have.
#[derive(Clone, Copy)]
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
    blocks: Columns<'a>,
    columns: &'a P::Columns,
    /// Room for two or four tiles.
    dots: &'a mut [[Dots; 2]; 2],
}

struct Pass<'a, P: Part> {
    amx: Amx,
    of_rows: [Option<(&'a [u8], Form)>; TILES],
    acts: &'a Acts<'a>,
    columns: Range<usize>,
    sums: &'a mut [Sums; TILES],
    room: &'a mut PartRoom<P>,
}

impl<P: Part> Work<Avx512> for Pass<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: Avx512) {
        let Self { of_rows, acts, sums, room, .. } = self;
        let PartRoom { columns: placed, weights, slab, dots } = room;
        let tiles = P::Tiles::from(self.amx);
        for (sums, _) in sums.iter_mut().zip(of_rows.iter().flatten()) {
            sums[..self.columns.len()].fill([0.0; LANES]);
        }
        let minimums = Minimums::of(of_rows.iter().flatten().map(|&(_, form)| form));
        let blocks = acts.k / QK;
        let stride = acts.stride * blocks;
        let groups = self.columns.len().div_ceil(P::COLUMNS);
        for first in (0..blocks).step_by(P::BLOCKS) {
            let part = first..(first + P::BLOCKS).min(blocks);
            let of_group = |group: usize| Columns {
                blocks: &acts.blocks[(self.columns.start + group * P::COLUMNS) * stride + part.start..],
                stride,
                columns: P::COLUMNS.min(self.columns.len() - group * P::COLUMNS),
                count: part.len(),
            };
            // All of them before the first is used: tiles wait long for what was stored just before.
            for (group, to) in placed.as_mut()[..groups].iter_mut().enumerate() {
                P::put_columns(of_group(group), minimums, to);
            }
            for (of_rows, sums) in of_rows.chunks(AT_ONCE).zip(sums.chunks_mut(AT_ONCE)) {
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
                for (group, columns) in placed.as_ref()[..groups].iter().enumerate() {
                    let weights = &weights[..count];
                    let by = Products { tiles: &tiles, weights, blocks: of_group(group), columns, dots };
                    P::add(s, by, &mut sums[..count], group * P::COLUMNS);
                }
            }
        }
    }
}

/// Blocks of 32 with scales of their own.
struct BlocksPart;

/// Room for blocks that are asked for past the last: their products are not used.
const AHEAD: usize = 4;

/// Columns are multiplied where they lie.
#[repr(C, align(64))]
struct BlockColumns {
    /// Where columns lack: what there is of them, and others whose products nobody takes.
    blocks: [[ActBlock; BlocksPart::BLOCKS]; ROWS],
    minus_sums: [[f32; ROWS]; BlocksPart::BLOCKS],
}

#[repr(C, align(64))]
struct BlockWeights {
    values: [[[i8; QK]; ROWS]; BlocksPart::BLOCKS + AHEAD],
    scales: [[f32; LANES]; BlocksPart::BLOCKS],
    minimums: [[f32; LANES]; BlocksPart::BLOCKS],
    minimum: bool,
}

impl Part for BlocksPart {
    const BLOCKS: usize = 2 * SLAB;
    const COLUMNS: usize = ROWS;
    type Tiles = Tiles<QK>;
    type Columns = BlockColumns;
    type Room = [BlockColumns; COLUMNS / ROWS];
    type Weights = BlockWeights;

    #[inline(always)]
    fn put_columns(blocks: Columns, minimums: Minimums, to: &mut BlockColumns) {
        for c in 0..blocks.columns {
            if blocks.columns < ROWS {
                to.blocks[c][..blocks.count].copy_from_slice(blocks.of(c));
            }
            if minimums.blocks {
                for (block, to) in blocks.of(c).iter().zip(&mut to.minus_sums) {
                    to[c] = block.minus_sum() as f32;
                }
            }
        }
    }

    #[inline(always)]
    fn put_weights(s: Avx512, item: Item, slab: &Slab, at: usize, count: usize, to: &mut BlockWeights) {
        let Item::Block { offset, minimum } = item else { unreachable!("runs take other activations") };
        to.minimum = minimum;
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
            to.minimums[at + block] = slab.scales[SLAB + block];
        }
    }

    #[inline(always)]
    fn add(s: Avx512, by: Products<Self>, sums: &mut [Sums], first: usize) {
        let Products { tiles, weights, mut blocks, columns, dots } = by;
        if blocks.columns < ROWS {
            (blocks.blocks, blocks.stride) = (columns.blocks.as_flattened(), Self::BLOCKS);
        }
        for (weights, sums) in weights.iter().zip(sums) {
            let sums: &mut [_; ROWS] = (&mut sums[first..first + ROWS]).try_into().expect("16 columns");
            if weights.minimum {
                add_blocks::<true>(s, tiles, weights, blocks, &columns.minus_sums, &mut dots[0], sums);
            } else {
                add_blocks::<false>(s, tiles, weights, blocks, &columns.minus_sums, &mut dots[0], sums);
            }
        }
    }
}

/// What is loaded for a block is multiplied in the next round and stored in the one after, so that none waits for the other.
#[inline(always)]
fn add_blocks<const MINIMUM: bool>(
    s: Avx512,
    tiles: &Tiles<QK>,
    weights: &BlockWeights,
    blocks: Columns,
    minus_sums: &[[f32; ROWS]; BlocksPart::BLOCKS],
    dots: &mut [Dots; 2],
    sums: &mut [[f32; LANES]; ROWS],
) {
    let mut kept = [s.splat(0.0); ROWS];
    let mut columns = [blocks.of(0); ROWS];
    for c in 0..ROWS {
        kept[c] = s.load(&sums[c]);
        columns[c] = blocks.of(c);
    }
    let Columns { blocks: x, stride, count, .. } = blocks;
    let w = &weights.values;
    // Past the last, for products that are not used.
    let last = &x[count - 1..];
    let x = |block: usize| if block < count { &x[block..] } else { last };
    tiles.load_blocks::<4>(x(0), stride);
    tiles.load_weights::<6>(&w[0]);
    tiles.clear::<0>();
    tiles.add_dots::<0, 4, 6>();
    tiles.load_blocks::<5>(x(1), stride);
    tiles.load_weights::<7>(&w[1]);
    tiles.store::<0>(&mut dots[0]);
    tiles.clear::<1>();
    tiles.add_dots::<1, 5, 7>();
    tiles.load_blocks::<4>(x(2), stride);
    tiles.load_weights::<6>(&w[2]);
    for block in (0..count).step_by(2) {
        tiles.store::<1>(&mut dots[1]);
        tiles.clear::<0>();
        tiles.add_dots::<0, 4, 6>();
        tiles.load_blocks::<5>(x(block + 3), stride);
        tiles.load_weights::<7>(&w[block + 3]);
        add_scaled::<MINIMUM>(s, &mut kept, weights, &columns, minus_sums, block, &dots[0]);
        if block + 1 == count {
            break;
        }
        tiles.store::<0>(&mut dots[0]);
        tiles.clear::<1>();
        tiles.add_dots::<1, 5, 7>();
        tiles.load_blocks::<4>(x(block + 4), stride);
        tiles.load_weights::<6>(&w[block + 4]);
        add_scaled::<MINIMUM>(s, &mut kept, weights, &columns, minus_sums, block + 1, &dots[1]);
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
    columns: &[&[ActBlock]; ROWS],
    minus_sums: &[[f32; ROWS]; BlocksPart::BLOCKS],
    block: usize,
    dots: &Dots,
) {
    let (d, m) = (s.load(&weights.scales[block]), s.load(&weights.minimums[block]));
    each_group!(c in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15] {
        let scale = &columns[c][block].scale;
        let dot = s.int_to_float(ints(&dots[c]));
        sums[c] = s.add(sums[c], s.mul(s.mul_each(d, scale), dot));
        if MINIMUM {
            sums[c] = s.add(sums[c], s.mul_each(s.mul_each(m, scale), &minus_sums[block][c]));
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
/// A run's values in rows of 64.
const STEPS: usize = RUN * QK / ROW_BYTES;

#[repr(C, align(64))]
struct RunColumns {
    /// [16 columns each]
    values: [[[[i8; ROW_BYTES]; ROWS]; STEPS]; 2],
    scales: [f32; 2 * ROWS],
    /// Minus the sums of two halves, or of two blocks.
    minus_sums: [[[[i16; 2]; RUN]; 2 * ROWS]; 2],
}

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
    const BLOCKS: usize = RUN;
    const COLUMNS: usize = 2 * ROWS;
    type Tiles = Tiles<ROW_BYTES>;
    type Columns = RunColumns;
    type Room = [RunColumns; COLUMNS / ROWS / 2];
    type Weights = RunWeights;

    #[inline(always)]
    fn put_columns(blocks: Columns, minimums: Minimums, to: &mut RunColumns) {
        for c in 0..blocks.columns {
            let of_column = blocks.of(c).try_into().expect("a run");
            put_column(of_column, c, minimums, to);
        }
    }

    #[inline(always)]
    fn put_weights(s: Avx512, item: Item, slab: &Slab, _: usize, _: usize, to: &mut RunWeights) {
        let Item::Run { offset, halves, minimum } = item else {
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
        to.scale = slab.scales[SLAB * 2];
        to.minimum = slab.scales[SLAB * 2 + 1];
        to.numbers = *slab.scales[SLAB..].first_chunk().expect("a run's numbers");
    }

    #[inline(always)]
    fn add(s: Avx512, by: Products<Self>, sums: &mut [Sums], first: usize) {
        let Products { tiles, weights, columns, dots, .. } = by;
        multiply_run(tiles, &weights[0], columns);
        store_run(tiles, dots);
        for (i, sums) in sums.iter_mut().enumerate() {
            // The next tile's products, while this one's are added.
            if let Some(next) = weights.get(i + 1) {
                multiply_run(tiles, next, columns);
            }
            let sums: &mut [_; 2 * ROWS] =
                (&mut sums[first..first + 2 * ROWS]).try_into().expect("32 columns");
            match (weights[i].minimums, weights[i].halves) {
                (false, _) => add_run::<0>(s, &weights[i], columns, dots, sums),
                (true, false) => add_run::<{ RUN / 2 }>(s, &weights[i], columns, dots, sums),
                (true, true) => add_run::<RUN>(s, &weights[i], columns, dots, sums),
            }
            if i + 1 < weights.len() {
                store_run(tiles, dots);
            }
        }
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

/// Sums 0 and 1: both digits with the first 16 columns; 2 and 3: with the others.
#[inline(always)]
fn multiply_run(tiles: &Tiles<ROW_BYTES>, weights: &RunWeights, columns: &RunColumns) {
    tiles.clear::<0>();
    tiles.clear::<1>();
    tiles.clear::<2>();
    tiles.clear::<3>();
    for step in 0..STEPS {
        tiles.load_columns::<4>(&columns.values[0][step]);
        tiles.load_weights::<6>(&weights.values[step][0]);
        tiles.add_dots::<0, 4, 6>();
        tiles.load_weights::<7>(&weights.values[step][1]);
        tiles.add_dots::<1, 4, 7>();
        tiles.load_columns::<5>(&columns.values[1][step]);
        tiles.add_dots::<2, 5, 6>();
        tiles.add_dots::<3, 5, 7>();
    }
}

#[inline(always)]
fn store_run(tiles: &Tiles<ROW_BYTES>, [first, second]: &mut [[Dots; 2]; 2]) {
    tiles.store::<0>(&mut first[0]);
    tiles.store::<1>(&mut first[1]);
    tiles.store::<2>(&mut second[0]);
    tiles.store::<3>(&mut second[1]);
}

/// Adds a run's products, with so many vectors of numbers of minimums.
#[inline(always)]
fn add_run<const MINIMUMS: usize>(
    s: Avx512,
    weights: &RunWeights,
    columns: &RunColumns,
    dots: &[[Dots; 2]; 2],
    sums: &mut [[f32; LANES]; 2 * ROWS],
) {
    let (d, m) = (s.load(&weights.scale), s.load(&weights.minimum));
    for (c, sums) in sums.iter_mut().enumerate() {
        let [low, high] = &dots[c / ROWS];
        // SAFETY: the token proves the CPU features.
        let dot = unsafe {
            _mm512_add_epi32(ints(&low[c % ROWS]), _mm512_slli_epi32::<DIGIT>(ints(&high[c % ROWS])))
        };
        let scale = &columns.scales[c];
        let mut sum = s.add(s.load(sums), s.mul(s.mul_each(d, scale), s.int_to_float(dot)));
        if MINIMUMS > 0 {
            let of_x = &columns.minus_sums[(MINIMUMS == RUN) as usize][c];
            let mut minus = s.splat_int(0);
            for i in 0..MINIMUMS {
                let numbers = s.int_bits(s.load(&weights.numbers[i]));
                minus = s.add_ints(minus, s.pair_dot(&of_x[i], numbers));
            }
            sum = s.add(sum, s.mul(s.mul_each(m, scale), s.int_to_float(minus)));
        }
        s.store(sum, sums);
    }
}
