//! AMX: whole tiles of dot products at once, beside the vectors of AVX-512.

use super::avx512::Avx512;
use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::LazyLock;

/// Proof that this CPU has AMX-TILE and AMX-INT8 and what [`Avx512`] needs, and that the system lets this process use them.
#[derive(Clone, Copy)]
pub struct Amx(pub Avx512);

impl Amx {
    pub fn detect() -> Option<Self> {
        static GRANTED: LazyLock<bool> = LazyLock::new(|| has_tiles() && ask_system());
        let vectors = Avx512::detect()?;
        GRANTED.then_some(Self(vectors))
    }
}

/// Intel SDM, CPUID leaf 7: AMX-TILE and AMX-INT8.
fn has_tiles() -> bool {
    const BOTH: u32 = 1 << 24 | 1 << 25;
    __cpuid_count(7, 0).edx & BOTH == BOTH
}

/// Linux keeps tiles' state for a process that asked for it (Documentation/arch/x86/xstate.rst).
#[cfg(target_os = "linux")]
fn ask_system() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: changes nothing but what later instructions may do.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn ask_system() -> bool {
    false
}

/// Rows of a tile, and bytes of a row, at most.
pub const ROWS: usize = 16;
pub const ROW_BYTES: usize = 64;

/// Palette 1: the sizes of eight tiles, as `ldtilecfg` takes them.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// While it lives, this thread's tiles have sizes: 0 to 3 are sums, 4 and 5 columns, `K` bytes of 16 each, and 6 and 7 `K` weights,
/// four of each of 16 rows in one of theirs.
pub struct Tiles<const K: usize>(());

impl<const K: usize> From<Amx> for Tiles<K> {
    #[inline(always)]
    fn from(_: Amx) -> Self {
        const { assert!(K == 32 || K == ROW_BYTES) };
        let [sums, columns, weights] = [(16, 64), (16, K), (K / 4, 64)];
        let sizes = [sums, sums, sums, sums, columns, columns, weights, weights];
        let mut config =
            Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        for (tile, (rows, bytes)) in sizes.into_iter().enumerate() {
            (config.rows[tile], config.row_bytes[tile]) = (rows as u8, bytes as u16);
        }
        // SAFETY: the token proves the CPU feature; the configuration is valid.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const config, options(readonly, nostack, preserves_flags))
        };
        Self(())
    }
}

impl<const K: usize> Tiles<K> {
    /// 16 columns' bytes, one column after the other, to tile `T`.
    #[inline(always)]
    pub fn load_columns<const T: usize>(&self, from: &[[i8; K]; ROWS]) {
        const { assert!(T == 4 || T == 5) };
        // SAFETY: reads 16 rows of K bytes.
        unsafe { load::<T>(from.as_ptr().cast(), K) }
    }

    /// Weights to tile `T`.
    #[inline(always)]
    pub fn load_weights<const T: usize>(&self, from: &[[i8; K]; ROWS]) {
        const { assert!(T == 6 || T == 7) };
        // SAFETY: reads K / 4 rows of 64 bytes.
        unsafe { load::<T>(from.as_ptr().cast(), ROW_BYTES) }
    }

    #[inline(always)]
    pub fn clear<const SUM: usize>(&self) {
        const { assert!(SUM < 4) };
        // SAFETY: tiles are configured.
        unsafe { asm!("tilezero tmm{}", const SUM, options(nomem, nostack, preserves_flags)) }
    }

    /// Adds the products of signed bytes: of each of the columns with each row's weights.
    #[inline(always)]
    pub fn add_dots<const SUM: usize, const COLUMNS: usize, const WEIGHTS: usize>(&self) {
        const { assert!(SUM < 4 && (COLUMNS == 4 || COLUMNS == 5) && (WEIGHTS == 6 || WEIGHTS == 7)) };
        // SAFETY: tiles are configured, and their sizes fit one another.
        unsafe {
            asm!("tdpbssd tmm{}, tmm{}, tmm{}", const SUM, const COLUMNS, const WEIGHTS,
                options(nomem, nostack, preserves_flags))
        }
    }

    /// Weights that are bytes without a sign to tile `T`.
    #[inline(always)]
    pub fn load_bytes<const T: usize>(&self, from: &[u8; ROWS * ROW_BYTES]) {
        const { assert!(K == ROW_BYTES && (T == 6 || T == 7)) };
        // SAFETY: reads K / 4 = 16 rows of 64 bytes.
        unsafe { load::<T>(from.as_ptr(), ROW_BYTES) }
    }

    /// Adds the products of signed bytes, the columns', with such weights.
    #[inline(always)]
    pub fn add_mixed_dots<const SUM: usize, const COLUMNS: usize, const WEIGHTS: usize>(&self) {
        const { assert!(SUM < 4 && (COLUMNS == 4 || COLUMNS == 5) && (WEIGHTS == 6 || WEIGHTS == 7)) };
        // SAFETY: tiles are configured, and their sizes fit one another.
        unsafe {
            asm!("tdpbsud tmm{}, tmm{}, tmm{}", const SUM, const COLUMNS, const WEIGHTS,
                options(nomem, nostack, preserves_flags))
        }
    }

    /// Sums of each of 16 columns with 16 rows.
    #[inline(always)]
    pub fn store<const SUM: usize>(&self, to: &mut [[i32; 16]; ROWS]) {
        const { assert!(SUM < 4) };
        // SAFETY: writes 16 rows of 64 bytes.
        unsafe {
            asm!("tilestored [{} + {}], tmm{}", in(reg) to.as_mut_ptr(), in(reg) ROW_BYTES, const SUM,
                options(nostack, preserves_flags))
        }
    }
}

impl<const K: usize> Drop for Tiles<K> {
    /// Unused state that was not released keeps cores from sleeping deeply.
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: tiles were configured by this thread.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) }
    }
}

/// # Safety
/// Tile `T` is configured for rows of as many bytes as there are at each of its rows' places, `stride` apart.
#[inline(always)]
unsafe fn load<const T: usize>(from: *const u8, stride: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("tileloadd tmm{}, [{} + {}]", const T, in(reg) from, in(reg) stride,
            options(readonly, nostack, preserves_flags))
    }
}
