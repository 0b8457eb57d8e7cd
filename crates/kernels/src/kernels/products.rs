//! The products of a few tiles of weights with a few columns: what [`super::matmul`] is made of.

use super::scales::{RunScales, Scales};
use crate::acts::Acts;
use crate::packed::{Layout, RUN, VECTOR, group_of};
use crate::simd::values::{Item, SIGNED_VECTORS, Values};
use crate::simd::{ActBlock, LANES, MINIMUMS, QK, RUN_MINIMUM, RUN_SCALE, Simd, VECTORS, Words, Work};
use std::marker::PhantomData;
use std::ops::Range;

/// Which columns are multiplied with tiles.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// The first of them.
    pub column: usize,
    /// How far after each tile lies the one that comes next, which is asked for meanwhile; 0: it has been.
    pub next: usize,
}

/// How R tiles of a kind of weights are multiplied with C columns.
pub(crate) trait Kernel {
    /// Whether an ISA that multiplies six columns with two tiles at once does so with these, so that each activation is loaded for
    /// both: otherwise eight columns with one.
    const PAIRS: bool;
    /// What the weights are made of.
    const ITEM: Item;

    fn multiply<S: Simd, const R: usize, const C: usize>(
        s: S,
        tiles: [&[u8]; R],
        acts: &Acts,
        place: Place,
    ) -> [[S::F; C]; R];

    /// Adds the products of some tiles with C columns, a block of each tile by turns. Of kernels of quantised weights alone.
    #[inline(always)]
    fn by_turns<S: Simd, const C: usize>(
        _: S,
        _tiles: &[&[u8]],
        _: [&[ActBlock]; C],
        _sums: &mut [[S::F; C]],
    ) {
        unreachable!("floats have no turns")
    }
    /// How many slabs are unpacked at once, half of a first-level cache, where many columns gain by that; otherwise 0.
    #[inline(always)]
    fn slabs<S: Simd>() -> usize {
        0
    }
    /// Unpacks `count` blocks of a tile from `first` on, a multiple of [`SLAB`]. Of kernels that unpack alone.
    fn unpack<S: Simd>(_: S, _: &[u8], _first: usize, _count: usize, _: &mut Slab) {
        unreachable!("nothing is unpacked")
    }
    /// Adds the products of unpacked blocks with as many of each column.
    fn add_products<S: Simd, const C: usize>(_: S, _: &Slab, _: [&[ActBlock]; C], _: &mut [S::F; C]) {
        unreachable!("nothing is unpacked")
    }
}

/// Tiles that an ISA multiplies by turns.
pub(crate) const MOST_STREAMS: usize = 4;

/// See [`Kernel::by_turns`]: a function of its own.
pub(crate) struct Turns<'a, S: Simd, K, const C: usize> {
    pub tiles: &'a [&'a [u8]],
    pub x: [&'a [ActBlock]; C],
    pub sums: &'a mut [[S::F; C]],
    pub kernel: PhantomData<K>,
}

impl<S: Simd, K: Kernel, const C: usize> Work<S> for Turns<'_, S, K, C> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        K::by_turns(s, self.tiles, self.x, self.sums);
    }
}

/// So many blocks of a tile are unpacked at once: a run, or blocks that fill whole groups.
pub(crate) const SLAB: usize = RUN;

/// Vectors of an unpacked block at most.
const MOST_VECTORS: usize = if cfg!(target_arch = "x86_64") { SIGNED_VECTORS } else { VECTORS };

/// Unpacked blocks of a tile: each value in a byte, or in two (see [`Values::SIGNED`]), scales in 32 bits.
#[repr(align(64))]
#[derive(Clone, Copy)]
pub(crate) struct Slab {
    /// Of each block its scale, or the number that is its scale within a run; of each its minimum, or of each or of each
    /// half its number; then a run's scale and minimum.
    pub scales: [[f32; LANES]; RUN_MINIMUM + 1],
    values: [[f32; LANES]; SLAB * MOST_VECTORS],
}

impl Slab {
    pub const EMPTY: Self =
        Self { scales: [[0.0; LANES]; RUN_MINIMUM + 1], values: [[0.0; LANES]; SLAB * MOST_VECTORS] };

    #[inline(always)]
    fn put_values<S: Simd, V: Values>(&mut self, s: S, block: usize, packed: &[u8], halves: bool) {
        if const { signed::<S, V>() } {
            s.split::<V>(packed, &mut self.values.as_chunks_mut().0[block]);
            return;
        }
        s.unpack::<V>(packed, halves, &mut self.values.as_chunks_mut().0[block]);
    }

    /// A group of four of a block's values.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    #[inline(always)]
    pub fn group<S: Simd>(&self, s: S, block: usize, group: usize) -> S::I {
        s.int_bits(s.load(&self.values[block * VECTORS + group]))
    }

    /// Values and scales.
    #[inline(always)]
    pub fn parts(&self) -> [&[[f32; LANES]]; 2] {
        [&self.values, &self.scales]
    }

    /// A block's values, of so many bytes, and the scales from its own on.
    #[inline(always)]
    fn block(&self, block: usize, bytes: usize) -> [&[u8]; 2] {
        [&bytes_of(&self.values)[block * bytes..][..bytes], bytes_of(&self.scales[block..])]
    }
}

/// Whether values are unpacked to magnitudes and signs.
const fn signed<S: Simd, V: Values>() -> bool {
    S::SPLITS && V::MAX > i8::MAX as i32
}

/// The most slabs that are unpacked at once.
pub(crate) const SLABS: usize = 4;

/// As many slabs as half of a first-level cache holds.
const fn slabs_at_once<S: Simd, V: Values>() -> usize {
    if signed::<S, V>() { SLABS / 2 } else { SLABS }
}

/// Vectors as bytes.
#[inline(always)]
fn bytes_of(vectors: &[[f32; LANES]]) -> &[u8] {
    // SAFETY: floats have no padding, and bytes no alignment.
    unsafe { std::slice::from_raw_parts(vectors.as_ptr().cast(), size_of_val(vectors)) }
}

/// Values or scales of a slab.
struct Unpacked<T>(PhantomData<T>);
/// Values of a slab that are kept as magnitudes and signs.
struct Signed;

impl Values for Signed {
    const LAYOUT: Layout = Layout::Bytes;
    const BYTES: usize = VECTOR * SIGNED_VECTORS;
    const SIGNED: bool = true;
    const OFFSET: i32 = 0;
    const MAX: i32 = 128;

    #[inline(always)]
    fn group<W: Words>(w: W, block: &[u8], group: usize) -> W::I {
        w.load_words(block, group)
    }
}

impl<V: Values> Values for Unpacked<V> {
    const LAYOUT: Layout = Layout::Bytes;
    const OFFSET: i32 = V::OFFSET;
    const MAX: i32 = V::MAX;

    #[inline(always)]
    fn group<W: Words>(w: W, block: &[u8], group: usize) -> W::I {
        w.load_words(block, group)
    }
}

impl<K: Scales> Scales for Unpacked<K> {
    const BYTES: usize = VECTOR;
    const MINIMUM: bool = K::MINIMUM;

    #[inline(always)]
    fn scale<S: Simd>(s: S, scales: &[u8]) -> S::F {
        s.float_bits(s.load_words(scales, 0))
    }
    #[inline(always)]
    fn minimum<S: Simd>(s: S, scales: &[u8]) -> S::F {
        s.float_bits(s.load_words(scales, MINIMUMS))
    }
}

impl<K: RunScales> RunScales for Unpacked<K> {
    const BYTES: usize = VECTOR * (RUN_MINIMUM + 1);
    const HALVES: bool = K::HALVES;
    const MINIMUM: bool = K::MINIMUM;

    #[inline(always)]
    fn scale<S: Simd>(s: S, run: &[u8]) -> S::F {
        s.float_bits(s.load_words(run, RUN_SCALE))
    }
    #[inline(always)]
    fn minimum<S: Simd>(s: S, run: &[u8]) -> S::F {
        s.float_bits(s.load_words(run, RUN_MINIMUM))
    }
    #[inline(always)]
    fn scales<S: Simd>(s: S, run: &[u8], block: usize) -> S::I {
        s.load_words(run, block)
    }
    #[inline(always)]
    fn minimums<S: Simd>(s: S, run: &[u8], i: usize) -> S::I {
        s.load_words(run, MINIMUMS + i)
    }
}

/// F32.
pub(crate) struct Single;
/// F16 or BF16.
pub(crate) struct Half<const BF16: bool>;
/// Floating-point weights.
pub(crate) struct Floats<F>(PhantomData<F>);
/// Blocks of 32 with one scale each.
pub(crate) struct Blocks<V, K>(PhantomData<(V, K)>);
/// Runs of eight blocks of 32 with one scale, in which blocks or their halves have whole numbers as scales.
pub(crate) struct Runs<V, K>(PhantomData<(V, K)>);

#[inline(always)]
fn columns<'a, const C: usize>(acts: &Acts<'a>, column: usize) -> [&'a [f32]; C] {
    std::array::from_fn(|c| &acts.floats[(column + c) * acts.stride * acts.k..][..acts.k])
}

/// A floating-point type that weights are kept in.
pub(crate) trait Float {
    type Bits;
    fn rows(tile: &[u8]) -> &[[Self::Bits; LANES]];
    fn load<S: Simd>(s: S, row: &[Self::Bits; LANES]) -> S::F;
    /// sum + w * x, fused only where the product is exact.
    fn accumulate<S: Simd>(s: S, w: S::F, x: &f32, sum: S::F) -> S::F;
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
    fn accumulate<S: Simd>(s: S, w: S::F, x: &f32, sum: S::F) -> S::F {
        s.add(sum, s.mul_each(w, x))
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
    fn accumulate<S: Simd>(s: S, w: S::F, x: &f32, sum: S::F) -> S::F {
        s.mul_each_add_exact(w, x, sum)
    }
}

impl<F: Float> Kernel for Floats<F> {
    // One tile alone has one chain of sums per column.
    const PAIRS: bool = true;
    const ITEM: Item = Item::Float;

    #[inline(always)]
    fn multiply<S: Simd, const R: usize, const C: usize>(
        s: S,
        tiles: [&[u8]; R],
        acts: &Acts,
        place: Place,
    ) -> [[S::F; C]; R] {
        let x = columns::<C>(acts, place.column);
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
                for r in 0..R {
                    sums[r][c] = F::accumulate(s, w[r], &x[c][k], sums[r][c]);
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
pub(crate) const STREAMED: usize = 2;

/// Asks for memory that is not in a cache yet, for all of each tile's item at once and in order, whatever the order and the time
/// of its use. With more than a few columns: where tiles are read for the first time.
#[inline(always)]
fn ask<S: Simd, T: ?Sized, const R: usize, const C: usize>(s: S, items: [&T; R], place: Place) {
    for item in items {
        if C <= STREAMED {
            s.prefetch(item);
        } else if const { S::ASKS_NEXT } && place.next > 0 {
            s.prefetch_few(item, place.next);
        }
    }
}

/// What tiles are made of: blocks, or runs of blocks that share their scales. See [`crate::packed`].
#[derive(Clone, Copy)]
struct Items {
    /// Bytes of one's values and scales.
    values: usize,
    scales: usize,
}

impl Items {
    /// Where in a tile of `all` item `i` has its scales and its values.
    #[inline(always)]
    fn places(self, i: usize, all: usize) -> [usize; 2] {
        let Self { values, scales } = self;
        let group = group_of(scales);
        let (first, within) = (i / group * group, i % group);
        let start = first * (values + scales);
        [start + within * scales, start + group.min(all - first) * scales + within * values]
    }
}

/// Some blocks of C columns.
#[inline(always)]
pub(crate) fn block_columns<'a, const C: usize>(
    acts: &Acts<'a>,
    column: usize,
    blocks: Range<usize>,
) -> [&'a [ActBlock]; C] {
    let per_column = acts.k / QK;
    std::array::from_fn(|c| &acts.blocks[(column + c) * acts.stride * per_column..][blocks.clone()])
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
    // Five bits with six columns of two tiles run out of registers and are less than half as fast.
    const PAIRS: bool = !matches!(V::LAYOUT, Layout::Five);
    const ITEM: Item = Item::Block { offset: V::OFFSET, max: V::MAX, minimum: K::MINIMUM };

    #[inline(always)]
    fn multiply<S: Simd, const R: usize, const C: usize>(
        s: S,
        tiles: [&[u8]; R],
        acts: &Acts,
        place: Place,
    ) -> [[S::F; C]; R] {
        let x = block_columns::<C>(acts, place.column, 0..acts.k / QK);
        let bytes = const { V::BYTES };
        let mut sums = [[s.splat(0.0); C]; R];
        if R == 1
            && K::HALF
            && let Some(own) = s.tile::<V, C>(tiles[0], x)
        {
            sums[0] = own;
            return sums;
        }
        if const { S::STREAMS > 1 && R == 1 && C <= STREAMED } {
            s.call(Turns { tiles: &tiles, x, sums: &mut sums, kernel: PhantomData::<Self> });
            return sums;
        }
        let (blocks, of_group) = (acts.k / QK, const { group_of(K::BYTES) });
        let grouped = if const { S::SHORT } { 0 } else { blocks / of_group * of_group };
        for first in (0..grouped).step_by(of_group) {
            let group = range(tiles, first * (bytes + K::BYTES), of_group * (bytes + K::BYTES));
            ask::<S, _, R, C>(s, group, place);
            let mut of_x = x;
            for c in 0..C {
                of_x[c] = &x[c][first..][..of_group];
            }
            for block in 0..of_group {
                let scales = range(group, block * K::BYTES, K::BYTES);
                let values = range(group, of_group * K::BYTES + block * bytes, bytes);
                add_block::<S, V, K, R, C>(s, values, scales, at(of_x, block), &mut sums);
            }
        }
        for block in grouped..blocks {
            let [scales, values] = Self::ITEMS.places(block, blocks);
            let (scales, values) = (range(tiles, scales, K::BYTES), range(tiles, values, bytes));
            add_block::<S, V, K, R, C>(s, values, scales, at(x, block), &mut sums);
        }
        sums
    }

    #[inline(always)]
    fn by_turns<S: Simd, const C: usize>(s: S, tiles: &[&[u8]], x: [&[ActBlock]; C], sums: &mut [[S::F; C]]) {
        let (blocks, bytes) = (x[0].len(), const { V::BYTES });
        for block in 0..blocks {
            let [scales, values] = Self::ITEMS.places(block, blocks);
            for (tile, sums) in tiles.iter().zip(&mut *sums) {
                let (scales, values) = (range([tile], scales, K::BYTES), range([tile], values, bytes));
                add_block::<S, V, K, 1, C>(s, values, scales, at(x, block), std::array::from_mut(sums));
            }
        }
    }

    #[inline(always)]
    fn slabs<S: Simd>() -> usize {
        if S::unpacks::<V>() { slabs_at_once::<S, V>() } else { 0 }
    }

    #[inline(always)]
    fn unpack<S: Simd>(s: S, tile: &[u8], first: usize, count: usize, slab: &mut Slab) {
        let bytes = const { V::BYTES };
        for to in 0..count {
            let [scales, values] = Self::ITEMS.places(first + to, first + count);
            let scales = &tile[scales..][..K::BYTES];
            slab.put_values::<S, V>(s, to, &tile[values..][..bytes], false);
            s.store(K::scale(s, scales), &mut slab.scales[to]);
            if K::MINIMUM {
                s.store(K::minimum(s, scales), &mut slab.scales[MINIMUMS + to]);
            }
        }
    }

    #[inline(always)]
    fn add_products<S: Simd, const C: usize>(s: S, slab: &Slab, x: [&[ActBlock]; C], sums: &mut [S::F; C]) {
        let sums = std::array::from_mut(sums);
        if const { signed::<S, V>() } {
            add_blocks::<S, Signed, Unpacked<K>, C>(s, slab, x, sums);
        } else {
            add_blocks::<S, Unpacked<V>, Unpacked<K>, C>(s, slab, x, sums);
        }
    }
}

impl<V: Values, K: Scales> Blocks<V, K> {
    const ITEMS: Items = Items { values: V::BYTES, scales: K::BYTES };
}

/// Adds the products of unpacked blocks.
#[inline(always)]
fn add_blocks<S: Simd, V: Values, K: Scales, const C: usize>(
    s: S,
    slab: &Slab,
    x: [&[ActBlock]; C],
    sums: &mut [[S::F; C]; 1],
) {
    for block in 0..x[0].len() {
        let [values, scales] = slab.block(block, V::BYTES);
        add_block::<S, V, K, 1, C>(s, [values], [scales], at(x, block), sums);
    }
}

/// Adds a block's products.
#[inline(always)]
fn add_block<S: Simd, V: Values, K: Scales, const R: usize, const C: usize>(
    s: S,
    values: [&[u8]; R],
    scales: [&[u8]; R],
    x: [&ActBlock; C],
    sums: &mut [[S::F; C]; R],
) {
    let dots = s.dot::<V, R, C>(values, x);
    let (mut d, mut minimums) = ([s.splat(0.0); R], [s.splat(0.0); R]);
    for r in 0..R {
        d[r] = K::scale(s, scales[r]);
        if K::MINIMUM {
            minimums[r] = K::minimum(s, scales[r]);
        }
    }
    add_scaled(s, sums, d, x, dots);
    if K::MINIMUM {
        let mut minus = [[s.pairs(0); C]; R];
        for c in 0..C {
            let sum = s.splat_int(x[c].minus_sum());
            for r in 0..R {
                minus[r][c] = sum;
            }
        }
        add_scaled(s, sums, minimums, x, minus);
    }
}

/// Adds whole numbers times the scales of weights and activations.
#[inline(always)]
fn add_scaled<S: Simd, const R: usize, const C: usize>(
    s: S,
    sums: &mut [[S::F; C]; R],
    d: [S::F; R],
    x: [&ActBlock; C],
    numbers: [[S::I; C]; R],
) {
    for r in 0..R {
        for c in 0..C {
            let t = s.mul(d[r], s.splat(x[c].scale));
            sums[r][c] = s.add(sums[r][c], s.mul(t, s.int_to_float(numbers[r][c])));
        }
    }
}

impl<V: Values, K: RunScales> Kernel for Runs<V, K> {
    // Two scales for each block, or signed ones, take as much unpacking as eight columns should share.
    const PAIRS: bool = K::MINIMUM && !K::HALVES;
    const ITEM: Item = Item::Run { offset: V::OFFSET, max: V::MAX, halves: K::HALVES, minimum: K::MINIMUM };

    #[inline(always)]
    fn multiply<S: Simd, const R: usize, const C: usize>(
        s: S,
        tiles: [&[u8]; R],
        acts: &Acts,
        place: Place,
    ) -> [[S::F; C]; R] {
        let x = block_columns::<C>(acts, place.column, 0..acts.k / QK);
        let run_bytes = const { V::BYTES * RUN };
        let mut sums = [[s.splat(0.0); C]; R];
        if const { S::STREAMS > 1 && R == 1 && C <= STREAMED } {
            s.call(Turns { tiles: &tiles, x, sums: &mut sums, kernel: PhantomData::<Self> });
            return sums;
        }
        let runs = acts.k / QK / RUN;
        for run in 0..runs {
            let [scales, values] = Self::ITEMS.places(run, runs);
            let (scales, values) = (range(tiles, scales, K::BYTES), range(tiles, values, run_bytes));
            let mut of_run = x;
            for c in 0..C {
                of_run[c] = &x[c][run * RUN..][..RUN];
            }
            ask::<S, _, R, C>(s, scales, place);
            add_run::<S, V, K, R, C>(s, values, scales, of_run, place, &mut sums);
        }
        sums
    }

    #[inline(always)]
    fn by_turns<S: Simd, const C: usize>(s: S, tiles: &[&[u8]], x: [&[ActBlock]; C], sums: &mut [[S::F; C]]) {
        let (runs, bytes) = (x[0].len() / RUN, const { V::BYTES });
        for run in 0..runs {
            let [scales, values] = Self::ITEMS.places(run, runs);
            let mut of_run = x;
            for c in 0..C {
                of_run[c] = &x[c][run * RUN..][..RUN];
            }
            let mut all = [[[s.pairs(0); C]; 1]; MOST_STREAMS];
            for block in 0..RUN {
                for (tile, dots) in tiles.iter().zip(&mut all) {
                    let values = range([tile], values + block * bytes, bytes);
                    let scales = range([tile], scales, K::BYTES);
                    add_block_dots::<S, V, K, 1, C>(s, values, scales, at(of_run, block), block, dots);
                }
            }
            for ((tile, sums), dots) in tiles.iter().zip(&mut *sums).zip(all) {
                let scales = range([tile], scales, K::BYTES);
                add_run_dots::<S, K, 1, C>(s, scales, of_run, dots, std::array::from_mut(sums));
            }
        }
    }

    #[inline(always)]
    fn slabs<S: Simd>() -> usize {
        if S::unpacks::<V>() { slabs_at_once::<S, V>() } else { 0 }
    }

    #[inline(always)]
    fn unpack<S: Simd>(s: S, tile: &[u8], first: usize, count: usize, slab: &mut Slab) {
        let bytes = const { V::BYTES };
        let [scales, values] = Self::ITEMS.places(first / RUN, (first + count) / RUN);
        let run = &tile[scales..][..K::BYTES];
        for block in 0..RUN {
            slab.put_values::<S, V>(s, block, &tile[values + block * bytes..][..bytes], K::HALVES);
            s.store(s.float_bits(K::scales(s, run, block)), &mut slab.scales[block]);
        }
        s.store(K::scale(s, run), &mut slab.scales[RUN_SCALE]);
        if K::MINIMUM {
            for i in 0..const { minimum_vectors::<K>() } {
                s.store(s.float_bits(K::minimums(s, run, i)), &mut slab.scales[MINIMUMS + i]);
            }
            s.store(K::minimum(s, run), &mut slab.scales[RUN_MINIMUM]);
        }
    }

    #[inline(always)]
    fn add_products<S: Simd, const C: usize>(s: S, slab: &Slab, x: [&[ActBlock]; C], sums: &mut [S::F; C]) {
        let (values, scales) = ([bytes_of(&slab.values)], [bytes_of(&slab.scales)]);
        let sums = std::array::from_mut(sums);
        const { assert!(!(K::HALVES && signed::<S, V>()), "halves of signed blocks have no scales of their own") };
        let place = Place { column: 0, next: 0 };
        if const { signed::<S, V>() } {
            add_run::<S, Signed, Unpacked<K>, 1, C>(s, values, scales, x, place, sums);
        } else {
            add_run::<S, Unpacked<V>, Unpacked<K>, 1, C>(s, values, scales, x, place, sums);
        }
    }
}

impl<V: Values, K: RunScales> Runs<V, K> {
    const ITEMS: Items = Items { values: RUN * V::BYTES, scales: K::BYTES };
}

/// Vectors of a run's minimums.
const fn minimum_vectors<K: RunScales>() -> usize {
    if K::HALVES { RUN } else { RUN / 2 }
}

/// Adds a run's products.
#[inline(always)]
fn add_run<S: Simd, V: Values, K: RunScales, const R: usize, const C: usize>(
    s: S,
    values: [&[u8]; R],
    scales: [&[u8]; R],
    x: [&[ActBlock]; C],
    place: Place,
    sums: &mut [[S::F; C]; R],
) {
    let dots = run_dots::<S, V, K, R, C>(s, values, scales, x, place);
    add_run_dots::<S, K, R, C>(s, scales, x, dots, sums);
}

/// Adds the dot products of a run times its scale, and what its minimums give.
#[inline(always)]
fn add_run_dots<S: Simd, K: RunScales, const R: usize, const C: usize>(
    s: S,
    scales: [&[u8]; R],
    x: [&[ActBlock]; C],
    dots: [[S::I; C]; R],
    sums: &mut [[S::F; C]; R],
) {
    let (first, mut d) = (at(x, 0), [s.splat(0.0); R]);
    for r in 0..R {
        d[r] = K::scale(s, scales[r]);
    }
    add_scaled(s, sums, d, first, dots);
    if K::MINIMUM {
        for r in 0..R {
            d[r] = K::minimum(s, scales[r]);
        }
        add_scaled(s, sums, d, first, run_minimums::<S, K, R, C>(s, scales, x));
    }
}

/// The dot products of a run's blocks times their numbers.
#[inline(always)]
fn run_dots<S: Simd, V: Values, K: RunScales, const R: usize, const C: usize>(
    s: S,
    values: [&[u8]; R],
    scales: [&[u8]; R],
    x: [&[ActBlock]; C],
    place: Place,
) -> [[S::I; C]; R] {
    let bytes = const { V::BYTES };
    let mut sums = [[s.pairs(0); C]; R];
    for block in 0..RUN {
        let values = range(values, block * bytes, bytes);
        ask::<S, _, R, C>(s, values, place);
        add_block_dots::<S, V, K, R, C>(s, values, scales, at(x, block), block, &mut sums);
    }
    sums
}

/// Adds the dot products of a run's block times its numbers.
#[inline(always)]
fn add_block_dots<S: Simd, V: Values, K: RunScales, const R: usize, const C: usize>(
    s: S,
    values: [&[u8]; R],
    scales: [&[u8]; R],
    x: [&ActBlock; C],
    block: usize,
    sums: &mut [[S::I; C]; R],
) {
    let mut numbers = [s.pairs(0); R];
    for r in 0..R {
        numbers[r] = K::scales(s, scales[r], block);
    }
    if const { K::HALVES } {
        s.add_dot_halves::<V, R, C>(sums, values, numbers, x);
    } else {
        s.add_dots::<V, R, C>(sums, values, numbers, x);
    }
}

/// Minus the sums of a run's activations times their numbers.
#[inline(always)]
fn run_minimums<S: Simd, K: RunScales, const R: usize, const C: usize>(
    s: S,
    scales: [&[u8]; R],
    x: [&[ActBlock]; C],
) -> [[S::I; C]; R] {
    let mut sums = [[s.pairs(0); C]; R];
    for i in 0..const { minimum_vectors::<K>() } {
        for r in 0..R {
            let numbers = K::minimums(s, scales[r], i);
            for c in 0..C {
                let of_x =
                    if const { K::HALVES } { &x[c][i].minus_halves } else { &x[c][i * 2 + 1].minus_both };
                sums[r][c] = s.add_pair_dot(sums[r][c], of_x, numbers);
            }
        }
    }
    sums
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
