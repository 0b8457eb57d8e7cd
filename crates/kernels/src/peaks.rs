//! What a CPU can do at most, to compare kernels with: reading memory, integer dot products and fused
//! multiply-adds from registers. The loops do nothing else; whoever calls them brings clock and threads.

use crate::simd::LANES;

/// The loops of one ISA.
pub struct Peaks {
    /// As in [`crate::table::KernelTable`].
    pub isa: &'static str,
    /// Reads all of `bytes`; the result only keeps the reads from being left out.
    pub read: fn(bytes: &[u8]) -> u64,
    /// Integer dot products of 8-bit values; gives the operations done, a multiplication and an addition each.
    pub int8: fn(rounds: u32) -> u64,
    /// Multiply-adds of 32-bit floats; gives the operations done, two each.
    pub float: fn(rounds: u32) -> u64,
}

static SCALAR: Peaks = Peaks { isa: "scalar", read: scalar::read, int8: scalar::int8, float: scalar::float };
#[cfg(target_arch = "x86_64")]
static AVX2: Peaks = Peaks { isa: "avx2", read: avx2::read, int8: avx2::int8, float: avx2::float };
#[cfg(target_arch = "x86_64")]
static AVX_VNNI: Peaks =
    Peaks { isa: "avx-vnni", read: avx_vnni::read, int8: avx_vnni::int8, float: avx_vnni::float };
#[cfg(target_arch = "x86_64")]
static AVX512: Peaks = Peaks { isa: "avx512", read: avx512::read, int8: avx512::int8, float: avx512::float };
#[cfg(target_arch = "aarch64")]
static NEON: Peaks = Peaks { isa: "neon", read: scalar::read, int8: neon::int8, float: neon::float };

/// The loops for an ISA that [`crate::table::available`] names; for others the scalar ones. Of AMX, too, the peak is that of
/// vectors: tiles can do more, and so shares of it compare between CPUs.
pub fn peaks(isa: &str) -> &'static Peaks {
    let isa = if isa == "amx" { "avx512" } else { isa };
    let known: &[&'static Peaks] = &[
        #[cfg(target_arch = "x86_64")]
        &AVX512,
        #[cfg(target_arch = "x86_64")]
        &AVX_VNNI,
        #[cfg(target_arch = "x86_64")]
        &AVX2,
        #[cfg(target_arch = "aarch64")]
        &NEON,
    ];
    let has = |isa: &str| crate::table::available().iter().any(|table| table.isa == isa);
    known.iter().find(|peaks| peaks.isa == isa && has(isa)).copied().unwrap_or(&SCALAR)
}

/// Sums that do not depend on one another: as many as hide the latency of an instruction on two units.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const CHAINS: usize = 12;
/// Instructions per chain and round.
const REPEATS: usize = 64;
/// Memory is read in so many places at once, which keeps more requests under way than one stream does.
const STREAMS: usize = 4;

/// `bytes` in [`STREAMS`] parts of equal length, what is left over aside.
fn streams(bytes: &[u8], step: usize) -> [&[u8]; STREAMS] {
    let each = bytes.len() / STREAMS / step * step;
    std::array::from_fn(|i| &bytes[i * each..(i + 1) * each])
}

/// What compilers make of plain loops.
mod scalar {
    use super::*;
    use std::hint::black_box;

    pub fn read(bytes: &[u8]) -> u64 {
        let parts = streams(bytes, 64);
        let mut sum = [0u64; 8];
        for at in (0..parts[0].len()).step_by(64) {
            for part in parts {
                let line: &[u8; 64] = part[at..at + 64].try_into().expect("64 bytes");
                for (sum, word) in sum.iter_mut().zip(line.as_chunks::<8>().0) {
                    *sum |= u64::from_ne_bytes(*word);
                }
            }
        }
        sum.iter().fold(0, |a, b| a | b)
    }

    pub fn int8(rounds: u32) -> u64 {
        let (a, b) = (black_box([3i8; 64]), black_box([5i8; 64]));
        let mut sums = [0i32; LANES];
        for _ in 0..rounds as usize * REPEATS {
            for (i, (a, b)) in black_box(&a).iter().zip(&b).enumerate() {
                let sum = &mut sums[i % LANES];
                *sum = sum.wrapping_add(*a as i32 * *b as i32);
            }
        }
        black_box(sums);
        rounds as u64 * (REPEATS * 64 * 2) as u64
    }

    pub fn float(rounds: u32) -> u64 {
        let (a, b) = (black_box([0.5f32; 64]), black_box([1.5f32; 64]));
        let mut sums = [0f32; 64];
        for _ in 0..rounds as usize * REPEATS {
            for ((sum, a), b) in sums.iter_mut().zip(black_box(&a)).zip(&b) {
                *sum += a * b;
            }
        }
        black_box(sums);
        rounds as u64 * (REPEATS * 64 * 2) as u64
    }
}

/// Loops over registers of one ISA: $chains sums, each $repeats times per round.
#[allow(unused_macros)]
macro_rules! register_loops {
    ($features:literal, $read:expr, $zero:expr, $a:expr, $dot:expr, $ops:literal,
     $float_zero:expr, $float_a:expr, $fma:expr, $float_ops:literal) => {
        use super::{CHAINS, REPEATS, STREAMS, streams};
        use std::hint::black_box;

        pub fn read(bytes: &[u8]) -> u64 {
            #[target_feature(enable = $features)]
            fn entry(parts: [&[u8]; STREAMS]) -> u64 {
                let mut sums = [$zero; STREAMS];
                for at in (0..parts[0].len()).step_by(64) {
                    for (sum, part) in sums.iter_mut().zip(parts) {
                        // SAFETY: `streams` gives parts of whole lines of 64 bytes; this CPU has the features.
                        *sum = unsafe { $read(*sum, part.as_ptr().add(at)) };
                    }
                }
                black_box(sums);
                1
            }
            // SAFETY: `peaks` hands the loops out only where the CPU has the features.
            unsafe { entry(streams(bytes, 64)) }
        }

        pub fn int8(rounds: u32) -> u64 {
            #[target_feature(enable = $features)]
            fn entry(rounds: u32) {
                let (mut sums, a, others) = ([$zero; CHAINS], black_box($a), [$a; CHAINS]);
                for _ in 0..rounds as usize * REPEATS {
                    // From memory, or compilers find the parts of a product that do not change.
                    for (sum, other) in sums.iter_mut().zip(black_box(&others)) {
                        *sum = $dot(*sum, a, *other);
                    }
                }
                black_box(sums);
            }
            // SAFETY: as above.
            unsafe { entry(rounds) };
            rounds as u64 * (REPEATS * CHAINS * $ops) as u64
        }

        pub fn float(rounds: u32) -> u64 {
            #[target_feature(enable = $features)]
            fn entry(rounds: u32) {
                let (mut sums, a) = ([$float_zero; CHAINS], black_box($float_a));
                for _ in 0..rounds as usize * REPEATS {
                    for sum in &mut sums {
                        *sum = $fma(a, a, *sum);
                    }
                }
                black_box(sums);
            }
            // SAFETY: as above.
            unsafe { entry(rounds) };
            rounds as u64 * (REPEATS * CHAINS * $float_ops) as u64
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;
    register_loops!(
        "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c",
        |sum, at: *const u8| {
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(2048).cast());
            _mm512_or_si512(sum, _mm512_loadu_si512(at.cast()))
        },
        _mm512_setzero_si512(),
        _mm512_set1_epi8(3),
        |sum, a, _| _mm512_dpbusd_epi32(sum, a, a),
        128,
        _mm512_setzero_ps(),
        _mm512_set1_ps(0.5),
        _mm512_fmadd_ps,
        32
    );
}

/// The same over ymm registers.
#[cfg(target_arch = "x86_64")]
macro_rules! ymm_loops {
    ($features:literal, $dot:expr) => {
        use std::arch::x86_64::*;
        register_loops!(
            $features,
            |sum, at: *const u8| {
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(2048).cast());
                let first = _mm256_loadu_si256(at.cast());
                _mm256_or_si256(sum, _mm256_or_si256(first, _mm256_loadu_si256(at.add(32).cast())))
            },
            _mm256_setzero_si256(),
            _mm256_set1_epi8(3),
            $dot,
            64,
            _mm256_setzero_ps(),
            _mm256_set1_ps(0.5),
            _mm256_fmadd_ps,
            16
        );
    };
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    ymm_loops!("avx2,fma,f16c", |sum, a, other| _mm256_add_epi32(
        sum,
        _mm256_madd_epi16(_mm256_maddubs_epi16(a, other), a)
    ));
}

#[cfg(target_arch = "x86_64")]
mod avx_vnni {
    ymm_loops!("avx2,fma,f16c,avxvnni", |sum, a, _| _mm256_dpbusd_avx_epi32(sum, a, a));
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use super::{CHAINS, REPEATS};
    use std::arch::{aarch64::*, asm, is_aarch64_feature_detected};
    use std::hint::black_box;

    #[target_feature(enable = "neon,dotprod")]
    fn dots(rounds: u32) {
        let (mut sums, a) = ([vdupq_n_s32(0); CHAINS], black_box(vdupq_n_s8(3)));
        for _ in 0..rounds as usize * REPEATS {
            for sum in &mut sums {
                // SAFETY: one instruction on registers, which this CPU has.
                unsafe {
                    asm!("sdot {0:v}.4s, {1:v}.16b, {1:v}.16b", inout(vreg) *sum, in(vreg) a,
                        options(pure, nomem, nostack, preserves_flags));
                }
            }
        }
        black_box(sums);
    }

    /// Without dot product instructions: products of bytes, added in pairs.
    #[target_feature(enable = "neon")]
    fn products(rounds: u32) {
        let (mut sums, a) = ([vdupq_n_s32(0); CHAINS], black_box(vdup_n_s8(3)));
        for _ in 0..rounds as usize * REPEATS {
            for sum in &mut sums {
                let low = vmull_s8(black_box(a), a);
                *sum = vpadalq_s16(*sum, vmlal_s8(low, a, a));
            }
        }
        black_box(sums);
    }

    pub fn int8(rounds: u32) -> u64 {
        // SAFETY: every AArch64 has NEON; dot products are looked for.
        unsafe { if is_aarch64_feature_detected!("dotprod") { dots(rounds) } else { products(rounds) } }
        rounds as u64 * (REPEATS * CHAINS * 32) as u64
    }

    pub fn float(rounds: u32) -> u64 {
        #[target_feature(enable = "neon")]
        fn entry(rounds: u32) {
            let (mut sums, a) = ([vdupq_n_f32(0.0); CHAINS], black_box(vdupq_n_f32(0.5)));
            for _ in 0..rounds as usize * REPEATS {
                for sum in &mut sums {
                    *sum = vfmaq_f32(*sum, a, a);
                }
            }
            black_box(sums);
        }
        // SAFETY: every AArch64 has NEON.
        unsafe { entry(rounds) };
        rounds as u64 * (REPEATS * CHAINS * 8) as u64
    }
}
