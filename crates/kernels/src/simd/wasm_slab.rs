//! Unpacked blocks times many columns, two at a time, in loops that are written for what engines make of them: see
//! [`super::wasm_columns`].

use super::values::Item;
use super::wasm::{F32s, F32x16, I32x16, load_quads, splat_pair};
use super::wasm_arch::*;
use super::{ActBlock, MINIMUMS, OFFSET, RUN_MINIMUM, RUN_SCALE};
use crate::packed::{Layout, RUN};
use std::mem::offset_of;

/// Bytes of an unpacked block of 16 rows.
const BLOCK: usize = Layout::Bytes.bytes();

/// Puts the functions of `wasm_slab.s`, whose path it is given, into what is linked. Libraries cannot hold them: as they are
/// archived, the compiler looks for symbols without knowing which features there are.
#[macro_export]
macro_rules! wasm_functions {
    ($path:literal) => {
        #[cfg(target_pointer_width = "32")]
        core::arch::global_asm!(include_str!($path), "functions i32");
        #[cfg(target_pointer_width = "64")]
        core::arch::global_asm!(include_str!($path), "functions i64");
    };
}

/// Of how many blocks, the rows' values and scales, the two columns' blocks, the sums that are added to (of [F32x16; 2]), and two
/// numbers.
type Function = unsafe extern "C" fn(
    u32,
    *const F32s,
    *const F32s,
    *const ActBlock,
    *const ActBlock,
    *mut F32s,
    i32,
    i32,
);

macro_rules! functions {
    ($($name:ident)*) => {
        unsafe extern "C" {
            $(fn $name(
                blocks: u32,
                values: *const F32s,
                scales: *const F32s,
                first: *const ActBlock,
                second: *const ActBlock,
                sums: *mut F32s,
                sixth: i32,
                seventh: i32,
            );)*
        }
    };
}

functions! {
    frugal_whole_blocks frugal_whole_numbers frugal_whole_halves
    frugal_pair_blocks frugal_pair_numbers frugal_pair_wide_blocks frugal_pair_wide_numbers frugal_pair_halves
}

// What the functions take for granted.
const _: () = assert!(
    size_of::<ActBlock>() == 56
        && offset_of!(ActBlock, scale) == 0
        && offset_of!(ActBlock, minus_halves) == 4
        && offset_of!(ActBlock, start) == 12
        && offset_of!(ActBlock, starts) == 16
        && offset_of!(ActBlock, values) == 24
        && BLOCK == 512
        && MINIMUMS * size_of::<F32s>() == 512
        && OFFSET == 1 << 7
);

/// Adds all blocks of two columns.
#[inline(never)]
fn call(
    function: Function,
    told: [i32; 2],
    [values, scales]: [&[F32s]; 2],
    x: [&[ActBlock]; 2],
    sums: &mut [F32x16; 2],
) {
    let blocks = x[0].len();
    assert!(size_of_val(values) >= blocks * BLOCK && scales.len() >= MINIMUMS + blocks);
    assert!(blocks > 0 && x[1].len() == blocks);
    // SAFETY: all functions are those above, which read so many blocks of the slab and of the columns, whose lengths were
    // checked, and add to the sums.
    unsafe {
        let [first, second] = x.map(<[ActBlock]>::as_ptr);
        let sums = sums.as_mut_ptr().cast();
        function(blocks as u32, values.as_ptr(), scales.as_ptr(), first, second, sums, told[0], told[1]);
    }
}

/// Columns two at a time; a last one alone twice, as a loop of its own would have to be downloaded.
#[inline(always)]
fn by_two<const C: usize>(
    x: [&[ActBlock]; C],
    sums: &mut [F32x16; C],
    mut add: impl FnMut([&[ActBlock]; 2], &mut [F32x16; 2]),
) {
    if C == 1 {
        let mut both = [sums[0]; 2];
        add([x[0]; 2], &mut both);
        sums[0] = both[0];
    }
    for (sums, x) in sums.as_chunks_mut().0.iter_mut().zip(x.as_chunks().0) {
        add(*x, sums);
    }
}

/// Adds the products of unpacked blocks, `[values, scales]`, with C columns, where engines multiply whole bytes.
#[inline(always)]
pub fn add_whole<const C: usize>(
    flip: u8,
    item: Item,
    slab: [&[F32s]; 2],
    x: [&[ActBlock]; C],
    sums: &mut [F32x16; C],
) {
    // Nothing is taken out of signed bytes' products.
    let mask = if flip == 0 { -1 } else { 0 };
    by_two(x, sums, |x, sums| match item {
        Item::Float => unreachable!("floats are not unpacked"),
        Item::Block { minimum, .. } => call(frugal_whole_blocks, [mask, minimum as i32], slab, x, sums),
        Item::Run { halves, minimum, .. } => {
            let function = if halves { frugal_whole_halves } else { frugal_whole_numbers };
            add_run(function, [mask, 0], (halves, minimum), slab, x, sums);
        }
    });
}

/// The same where engines add pairs of products in 16 bits, of bytes up to 63. Sums of 16 bits hold 16 products of bytes up to 15 and
/// what takes out an offset of 8 (31,496 at most: see [`super::wasm_columns::Nibbles`]), eight of bytes up to 31 (31,496), four of bytes
/// up to 63 (32,004).
#[inline(always)]
pub fn add_by_pairs<const C: usize>(
    item: Item,
    slab: [&[F32s]; 2],
    x: [&[ActBlock]; C],
    sums: &mut [F32x16; C],
) {
    by_two(x, sums, |x, sums| match item {
        Item::Float => unreachable!("floats are not unpacked"),
        Item::Block { offset, max, minimum } => {
            let function =
                if max <= 15 && offset <= 8 { frugal_pair_blocks } else { frugal_pair_wide_blocks };
            call(function, [offset << 16 | offset, minimum as i32], slab, x, sums);
        }
        Item::Run { offset, halves: true, minimum, .. } => {
            add_run(frugal_pair_halves, [offset, offset << 16], (true, minimum), slab, x, sums);
        }
        Item::Run { offset, max, halves: false, minimum } => {
            let function =
                if max <= 15 && offset <= 8 { frugal_pair_numbers } else { frugal_pair_wide_numbers };
            add_run(function, [offset << 16 | offset, 0], (false, minimum), slab, x, sums);
        }
    });
}

/// Adds whole numbers times the scales of weights and activations.
#[inline(always)]
fn add_scaled(sums: &mut [F32x16; 2], scales: &F32s, d_x: [v128; 2], numbers: [I32x16; 2]) {
    let scales = load_quads(scales);
    for c in 0..2 {
        for quad in 0..4 {
            let t = f32x4_mul(scales[quad], d_x[c]);
            let product = f32x4_mul(t, f32x4_convert_i32x4(numbers[c][quad]));
            sums[c][quad] = f32x4_add(sums[c][quad], product);
        }
    }
}

/// A run of blocks with a number each, or one for each half, and minimums.
#[inline(never)]
fn add_run(
    function: Function,
    told: [i32; 2],
    (halves, minimum): (bool, bool),
    slab: [&[F32s]; 2],
    x: [&[ActBlock]; 2],
    to: &mut [F32x16; 2],
) {
    let scales = slab[1];
    assert!(x[0].len() == RUN);
    let mut sums = [[i32x4_splat(0); 4]; 2];
    call(function, told, slab, x, &mut sums);
    let d_x = x.map(|x| f32x4_splat(x[0].scale));
    add_scaled(to, &scales[RUN_SCALE], d_x, sums);
    if minimum {
        let minimums = &scales[MINIMUMS..][..if halves { RUN } else { RUN / 2 }];
        add_scaled(to, &scales[RUN_MINIMUM], d_x, minimum_sums(halves, minimums, x));
    }
}

/// Minus the sums of a run's activations times the numbers of its minimums.
#[inline(always)]
fn minimum_sums(halves: bool, minimums: &[F32s], x: [&[ActBlock]; 2]) -> [I32x16; 2] {
    let mut sums = [[i32x4_splat(0); 4]; 2];
    for (i, numbers) in minimums.iter().enumerate() {
        for (sums, x) in sums.iter_mut().zip(x) {
            let of_x = if halves { &x[i].minus_halves } else { &x[i * 2 + 1].minus_both };
            for (sum, numbers) in sums.iter_mut().zip(load_quads(numbers)) {
                *sum = i32x4_add(*sum, i32x4_dot_i16x8(splat_pair(of_x), numbers));
            }
        }
    }
    sums
}
