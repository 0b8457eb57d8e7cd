//! Bounds of pages with the tiles of AMX: 16 queries with 16 pages at once.

use super::bytes;
use crate::select::pages::{PageScores, PageVector};
use crate::simd::amx::{Amx, ROW_BYTES, ROWS, Tiles};
use crate::simd::avx512::Avx512;
use crate::simd::values::{Bytes, Values};
use crate::simd::{ActBlock, LANES, QK, Simd, Work};
use std::arch::x86_64::{__m512i, _mm512_loadu_si512};

/// Vectors of pages that are multiplied at once.
const VECTORS: usize = 4;
/// Parts of a query of 64 values each: 8 with heads of 256.
const MOST_PARTS: usize = 8;

type Dots = [[i32; LANES]; ROWS];
/// Of 16 queries 64 values, or of 16 pages.
type Part = [[i8; ROW_BYTES]; ROWS];

/// Gives false where tiles cannot do it: whole ones only.
pub fn page_scores(amx: Amx, job: &PageScores, out: &mut [[f32; LANES]]) -> bool {
    let blocks = job.blocks();
    let whole = (blocks * QK).is_multiple_of(ROW_BYTES) && blocks * QK / ROW_BYTES <= MOST_PARTS;
    let fits = whole && job.queries.len() == ROWS * blocks;
    if fits {
        amx.0.call(Scores { amx, job, out });
    }
    fits
}

struct Scores<'a> {
    amx: Amx,
    job: &'a PageScores<'a>,
    out: &'a mut [[f32; LANES]],
}

impl Work<Avx512> for Scores<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: Avx512) {
        let Self { amx, job, out } = self;
        let (blocks, vectors) = (job.blocks(), job.scales.len());
        let mut room = [[[0i8; ROW_BYTES]; ROWS]; MOST_PARTS];
        let parts = &mut room[..blocks * QK / ROW_BYTES];
        let mut starts = [0; ROWS];
        for (row, query) in job.queries.chunks_exact(blocks).enumerate() {
            starts[row] = query.iter().map(ActBlock::minus_sum).sum::<i32>() * Bytes::OFFSET;
            for (part, blocks) in parts.iter_mut().zip(query.as_chunks().0) {
                let [first, second]: &[ActBlock; ROW_BYTES / QK] = blocks;
                part[row].as_chunks_mut().0.copy_from_slice(&[first.values, second.values]);
            }
        }
        let tiles = Tiles::from(amx);
        let mut dots = [[[0; LANES]; ROWS]; VECTORS];
        let mut first = 0;
        while first < vectors {
            let count = VECTORS.min(vectors - first);
            multiply(&tiles, parts, &job.tiles[first * blocks * QK / 4..], count, &mut dots);
            for (row, &start) in starts.iter().enumerate() {
                let out = &mut out[row * vectors + first..][..count];
                for ((dots, scales), out) in dots.iter().zip(&job.scales[first..]).zip(out) {
                    let sum = s.add_ints(load(&dots[row]), s.splat_int(start));
                    s.store(s.mul(s.int_to_float(sum), s.load(scales)), out);
                }
            }
            first += count;
        }
    }
}

#[inline(always)]
fn load(from: &[i32; LANES]) -> __m512i {
    // SAFETY: AVX-512 is there, as `Amx` says; reads the array.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
}

/// Sums of the queries' products with `count` vectors of pages, without what takes the bytes' offset out.
#[inline(always)]
fn multiply(
    tiles: &Tiles<ROW_BYTES>,
    parts: &[Part],
    pages: &[PageVector],
    count: usize,
    dots: &mut [Dots; VECTORS],
) {
    let (of_pages, _) = bytes(pages).as_chunks::<{ ROWS * ROW_BYTES }>();
    tiles.clear::<0>();
    tiles.clear::<1>();
    tiles.clear::<2>();
    tiles.clear::<3>();
    for (p, part) in parts.iter().enumerate() {
        tiles.load_columns::<4>(part);
        tiles.load_bytes::<6>(&of_pages[p]);
        tiles.add_mixed_dots::<0, 4, 6>();
        if count > 1 {
            tiles.load_bytes::<7>(&of_pages[parts.len() + p]);
            tiles.add_mixed_dots::<1, 4, 7>();
        }
        if count > 2 {
            tiles.load_bytes::<6>(&of_pages[2 * parts.len() + p]);
            tiles.add_mixed_dots::<2, 4, 6>();
        }
        if count > 3 {
            tiles.load_bytes::<7>(&of_pages[3 * parts.len() + p]);
            tiles.add_mixed_dots::<3, 4, 7>();
        }
    }
    let [a, b, c, d] = dots;
    tiles.store::<0>(a);
    tiles.store::<1>(b);
    tiles.store::<2>(c);
    tiles.store::<3>(d);
}
