//! The products of a few tiles of weights with a few columns: what [`super::matmul`] is made of.

use super::scales::{RunScales, Scales};
use crate::acts::Acts;
use crate::packed::{RUN, group_of};
use crate::simd::values::Values;
use crate::simd::{ActBlock, LANES, QK, Simd};
use std::marker::PhantomData;

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
    fn multiply<S: Simd, const R: usize, const C: usize>(
        s: S,
        tiles: [&[u8]; R],
        acts: &Acts,
        place: Place,
    ) -> [[S::F; C]; R];
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
fn columns<const C: usize>(floats: &[f32], k: usize, column: usize) -> [&[f32]; C] {
    std::array::from_fn(|c| &floats[(column + c) * k..(column + c + 1) * k])
}

/// A floating-point type that weights are kept in.
pub(crate) trait Float {
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
pub(crate) const STREAMED: usize = 2;

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
        if R == 1
            && K::HALF
            && let Some(own) = s.tile::<V, C>(tiles[0], x)
        {
            sums[0] = own;
            return sums;
        }
        let mut groups = Groups::new(acts.k / QK, const { [1, V::LAYOUT.bytes(), K::BYTES] });
        while let Some(group) = groups.next() {
            for block in 0..group.runs {
                let scales = range(tiles, group.scales + block * K::BYTES, K::BYTES);
                let values = range(tiles, group.values + block * bytes, bytes);
                ask::<S, _, R, C>(s, values, place);
                ask::<S, _, R, C>(s, scales, place);
                let x = at(x, group.first + block);
                let dots = s.dot::<V, R, C>(values, x);
                let (mut d, mut minimums) = ([s.splat(0.0); R], [s.splat(0.0); R]);
                for r in 0..R {
                    d[r] = K::scale(s, scales[r]);
                    if K::MINIMUM {
                        minimums[r] = K::minimum(s, scales[r]);
                    }
                }
                add_scaled(s, &mut sums, d, x, dots);
                if K::MINIMUM {
                    let mut minus = [[s.pairs(0); C]; R];
                    for c in 0..C {
                        let sum = s.pair_dot(&x[c].minus_halves, s.pairs(1));
                        for r in 0..R {
                            minus[r][c] = sum;
                        }
                    }
                    add_scaled(s, &mut sums, minimums, x, minus);
                }
            }
        }
        sums
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
    #[inline(always)]
    fn multiply<S: Simd, const R: usize, const C: usize>(
        s: S,
        tiles: [&[u8]; R],
        acts: &Acts,
        place: Place,
    ) -> [[S::F; C]; R] {
        let x = block_columns::<C>(acts, place.column);
        let run_bytes = const { V::LAYOUT.bytes() * RUN };
        let mut sums = [[s.splat(0.0); C]; R];
        let mut groups = Groups::new(acts.k / QK, const { [RUN, V::LAYOUT.bytes(), K::BYTES] });
        while let Some(group) = groups.next() {
            for run in 0..group.runs {
                let scales = range(tiles, group.scales + run * K::BYTES, K::BYTES);
                let values = range(tiles, group.values + run * run_bytes, run_bytes);
                let mut of_run = x;
                for c in 0..C {
                    of_run[c] = &x[c][group.first + run * RUN..][..RUN];
                }
                ask::<S, _, R, C>(s, scales, place);
                let dots = run_dots::<S, V, K, R, C>(s, values, scales, of_run, place);
                let (first, mut d) = (at(of_run, 0), [s.splat(0.0); R]);
                for r in 0..R {
                    d[r] = K::scale(s, scales[r]);
                }
                add_scaled(s, &mut sums, d, first, dots);
                if K::MINIMUM {
                    for r in 0..R {
                        d[r] = K::minimum(s, scales[r]);
                    }
                    add_scaled(s, &mut sums, d, first, run_minimums::<S, K, R, C>(s, scales, of_run));
                }
            }
        }
        sums
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
    let bytes = const { V::LAYOUT.bytes() };
    let mut sums = [[s.pairs(0); C]; R];
    for block in 0..RUN {
        let values = range(values, block * bytes, bytes);
        ask::<S, _, R, C>(s, values, place);
        let mut numbers = [s.pairs(0); R];
        for r in 0..R {
            numbers[r] = K::scales(s, scales[r], block);
        }
        if const { K::HALVES } {
            s.add_dot_halves::<V, R, C>(&mut sums, values, numbers, at(x, block));
        } else {
            s.add_dots::<V, R, C>(&mut sums, values, numbers, at(x, block));
        }
    }
    sums
}

/// Minus the sums of a run's activations times their numbers.
#[inline(always)]
fn run_minimums<S: Simd, K: RunScales, const R: usize, const C: usize>(
    s: S,
    scales: [&[u8]; R],
    x: [&[ActBlock]; C],
) -> [[S::I; C]; R] {
    let mut sums = [[s.pairs(0); C]; R];
    for i in 0..if const { K::HALVES } { RUN } else { RUN / 2 } {
        for r in 0..R {
            let numbers = K::minimums(s, scales[r], i);
            for c in 0..C {
                let of_x =
                    if const { K::HALVES } { &x[c][i].minus_halves } else { &x[c][i * 2 + 1].minus_both };
                sums[r][c] = s.add_ints(sums[r][c], s.pair_dot(of_x, numbers));
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
