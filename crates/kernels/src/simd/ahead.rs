//! How memory is asked for before its use.

use crate::ways;
use std::arch::x86_64::*;
use std::sync::LazyLock;

/// How weights that are streamed from memory are asked for.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    bytes: usize,
    /// Whether into the first-level cache, not the second.
    first: bool,
    /// Whether within what a CPU reads ahead by itself. One or two columns then have two tiles at a time where registers
    /// allow it, each a stream.
    pub near: bool,
}

/// Within a page, mostly: what lies in the next one ends what a CPU reads ahead by itself.
const NEAR: Ahead = Ahead { bytes: 3 << 10, first: true, near: true };

impl Ahead {
    /// The process's choice: see [`ways::choose`].
    pub fn chosen() -> Self {
        if ways::chosen() == 0 { NEAR } else { Self::of_cpu() }
    }

    /// AMD's families 19h (Zen 3 and 4) read on by themselves along what is asked for in order; 1Ah (Zen 5) wants to be
    /// asked long before. Emerald Rapids too, and into the second-level cache: it has three times as many requests under
    /// way for it as for the first.
    fn of_cpu() -> Self {
        static AHEAD: LazyLock<Ahead> = LazyLock::new(|| {
            let (vendor, signature) = (__cpuid(0), __cpuid(1).eax);
            let amd = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == *b"AuthenticAMD";
            let (bytes, first) = match (signature >> 8 & 0xf) + (signature >> 20 & 0xff) {
                0x19 if amd => (0, true),
                0x1a if amd => (8 << 10, true),
                _ => (8 << 10, false),
            };
            Ahead { bytes, first, near: false }
        });
        *AHEAD
    }

    #[inline(always)]
    pub fn ask<T: ?Sized>(self, item: &T) {
        if self.first {
            ask::<_MM_HINT_T0, T>(item, self.bytes);
        } else {
            ask::<_MM_HINT_T1, T>(item, self.bytes);
        }
    }

    /// The same where a few columns are multiplied, which gives memory time: near ahead, or for the same item of the next
    /// tiles, `next` bytes on.
    #[inline(always)]
    pub fn ask_few<T: ?Sized>(self, item: &T, next: usize) {
        if self.near {
            self.ask(item);
        } else {
            ask::<_MM_HINT_T1, T>(item, next);
        }
    }
}

/// Asks for as many lines as an item has, `ahead` bytes after it.
#[inline(always)]
pub(super) fn ask<const HINT: i32, T: ?Sized>(item: &T, ahead: usize) {
    let start = std::ptr::from_ref(item).cast::<i8>().wrapping_add(ahead);
    for line in 0..size_of_val(item).div_ceil(64) {
        // SAFETY: asking for memory reads none, so that any address will do.
        unsafe { _mm_prefetch::<HINT>(start.wrapping_add(line * 64)) }
    }
}
