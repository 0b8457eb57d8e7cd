//! Memory that several threads use at once: cache-line aligned storage and a shared slice.

use crate::route::Route;
use crate::simd::ActBlock;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

/// Element types for which all-zero bytes are a value and every byte pattern is valid.
pub trait Plain: Copy + Send + Sync + 'static {}
impl Plain for u8 {}
impl Plain for i8 {}
impl Plain for u16 {}
impl Plain for u32 {}
impl Plain for f32 {}
impl Plain for Route {}
impl Plain for ActBlock {}

const ALIGN: usize = 64;
/// From this size on memory comes from the system page by page as it is used, and goes back at once.
#[cfg(any(unix, target_family = "wasm"))]
const MAPPED: usize = 1 << 20;
/// Streamed memory of at least this size starts on such a boundary and asks for huge pages.
const HUGE: usize = 2 << 20;

/// Zeroed memory on a 64-byte boundary, never grown. Untouched pages cost nothing.
pub struct Aligned<T: Plain> {
    pointer: NonNull<T>,
    len: usize,
    _block: Arc<Block>,
}

// SAFETY: it owns its memory, and T is plain data.
unsafe impl<T: Plain> Send for Aligned<T> {}
// SAFETY: as above; shared access only reads, or goes through `Shared`.
unsafe impl<T: Plain> Sync for Aligned<T> {}

impl<T: Plain> Aligned<T> {
    /// None where the machine cannot give that much memory.
    pub fn zeroed(len: usize) -> Option<Self> {
        Self::starting_on(len, ALIGN)
    }

    /// The same for memory that is filled once and then read from end to end: in huge pages, where
    /// there are any.
    pub fn streamed(len: usize) -> Option<Self> {
        let large = cfg!(target_os = "linux") && len.checked_mul(size_of::<T>())? >= HUGE;
        Self::starting_on(len, if large { HUGE } else { ALIGN })
    }

    /// Pieces of streamed memory of so many elements each, side by side: those too small for huge pages of their own
    /// lie in those of all.
    pub fn streamed_parts(lens: &[usize]) -> Option<Vec<Self>> {
        let stride = |len: usize| len.checked_next_multiple_of(ALIGN);
        let all = lens.iter().try_fold(0usize, |sum, &len| sum.checked_add(stride(len)?))?;
        let whole = Self::streamed(all)?;
        let mut at = 0;
        let part = |&len: &usize| {
            // SAFETY: within the allocation, or at its end where pieces are empty; no two overlap.
            let pointer = unsafe { whole.pointer.add(at) };
            at += stride(len)?;
            Some(Self { pointer, len, _block: whole._block.clone() })
        };
        lens.iter().map(part).collect()
    }

    fn starting_on(len: usize, align: usize) -> Option<Self> {
        let bytes = len.checked_mul(size_of::<T>())?;
        let block = Block::zeroed(bytes.checked_add(align)?)?;
        let start = block.start.wrapping_add(block.start.align_offset(align));
        if align == HUGE {
            advise_huge(start, bytes);
        }
        Some(Self { pointer: NonNull::new(start.cast())?, len, _block: Arc::new(block) })
    }

    pub fn as_slice(&self) -> &[T] {
        // SAFETY: the memory holds `len` initialised elements for as long as self lives.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.len) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as above, and self is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.len) }
    }

    pub fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// A view that several threads may use at once; see [`Shared`].
    pub fn shared(&mut self) -> Shared<'_, T> {
        Shared::new(self.as_mut_slice())
    }
}

/// Zeroed bytes from the allocator or, where there are many, from the system: an allocator clears
/// memory that it hands out again, all at once.
struct Block {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: it owns its bytes and never touches them.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    fn zeroed(bytes: usize) -> Option<Self> {
        #[cfg(unix)]
        if bytes >= MAPPED {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: a new mapping, at a place of the system's choice.
            let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
            return (start != libc::MAP_FAILED).then_some(Self { start: start.cast(), bytes });
        }
        #[cfg(target_family = "wasm")]
        if bytes >= MAPPED {
            return grown::take(bytes).map(|start| Self { start, bytes });
        }
        let layout = Layout::from_size_align(bytes, 1).ok()?;
        // SAFETY: there is at least one byte, as room for aligning is part of it.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self { start: start.as_ptr(), bytes })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        #[cfg(unix)]
        if self.bytes >= MAPPED {
            // SAFETY: mapped in `zeroed` with this very length.
            unsafe { libc::munmap(self.start.cast(), self.bytes) };
            return;
        }
        #[cfg(target_family = "wasm")]
        if self.bytes >= MAPPED {
            return grown::give_back(self.start, self.bytes);
        }
        if let Ok(layout) = Layout::from_size_align(self.bytes, 1) {
            // SAFETY: allocated in `zeroed` with this very layout.
            unsafe { dealloc(self.start, layout) }
        }
    }
}

/// Large blocks at the end of WebAssembly's memory. New pages are zero and cost nothing until they are used, where the
/// allocator would clear them. None go back to the system, so a block waits for the next of its size: pages of
/// key/value caches come and go, all else stays.
#[cfg(target_family = "wasm")]
mod grown {
    use std::sync::{Mutex, MutexGuard, PoisonError};

    const PAGE: usize = 1 << 16;

    /// Addresses and sizes.
    static IDLE: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());

    fn idle() -> MutexGuard<'static, Vec<(usize, usize)>> {
        IDLE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn take(bytes: usize) -> Option<*mut u8> {
        let mut idle = idle();
        if let Some(found) = idle.iter().position(|&(_, size)| size == bytes) {
            let start = idle.swap_remove(found).0 as *mut u8;
            // SAFETY: so many bytes from there on, which nobody uses.
            unsafe { start.write_bytes(0, bytes) };
            return Some(start);
        }
        drop(idle);
        match crate::simd::wasm_arch::memory_grow(0, bytes.div_ceil(PAGE)) {
            usize::MAX => None,
            page => Some((page * PAGE) as *mut u8),
        }
    }

    pub fn give_back(start: *mut u8, bytes: usize) {
        idle().push((start as usize, bytes));
    }
}

/// Fewer page-table look-ups while weights are streamed; that the system declines does no harm.
#[cfg(target_os = "linux")]
fn advise_huge(start: *mut u8, bytes: usize) {
    // SAFETY: whole huge pages within one allocation; the advice changes no content.
    unsafe { libc::madvise(start.cast(), bytes / HUGE * HUGE, libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn advise_huge(_: *mut u8, _: usize) {}

/// A slice that several threads access at once, each its own part or all of them reading.
/// Bounds are always checked; that parts do not overlap is the caller's promise.
#[derive(Clone, Copy)]
pub struct Shared<'a, T> {
    pointer: NonNull<T>,
    len: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: it is used only through `read` and `write`, whose callers promise freedom from races.
unsafe impl<T: Plain> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Plain> Sync for Shared<'_, T> {}

impl<'a> Shared<'a, u16> {
    /// The same memory byte by byte.
    pub fn bytes(&self) -> Shared<'a, i8> {
        Shared { pointer: self.pointer.cast(), len: self.len * 2, lifetime: PhantomData }
    }
}

impl<'a, T: Plain> Shared<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        let len = slice.len();
        let pointer = NonNull::from(slice).cast();
        Self { pointer, len, lifetime: PhantomData }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many bytes after this slice another begins, modulo the size of memory: for asking for what lies at the same place.
    pub fn distance(&self, other: &Self) -> usize {
        (other.pointer.as_ptr() as usize).wrapping_sub(self.pointer.as_ptr() as usize)
    }

    /// The elements from `start` on.
    pub fn from(&self, start: usize) -> Self {
        assert!(start <= self.len, "{start} of {}", self.len);
        // SAFETY: within bounds, or one past the last element.
        let pointer = unsafe { self.pointer.add(start) };
        Self { pointer, len: self.len - start, lifetime: PhantomData }
    }

    /// Where an element is or would be, which may not be read.
    #[inline(always)]
    pub fn address(&self, index: usize) -> *const T {
        self.pointer.as_ptr().wrapping_add(index)
    }

    /// # Safety
    /// No thread writes any element of the range while the result lives.
    pub unsafe fn read(&self, range: Range<usize>) -> &'a [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: within bounds; the caller excludes writers.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr().add(range.start), range.len()) }
    }

    /// # Safety
    /// No other thread reads or writes any element of the range while the result lives.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn write(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: within bounds; the caller excludes all other access.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr().add(range.start), range.len()) }
    }

    /// Writes `values` from `first` on, `stride` elements apart.
    ///
    /// # Safety
    /// No other thread reads or writes these elements meanwhile.
    #[inline(always)]
    pub unsafe fn scatter(&self, first: usize, stride: usize, values: &[T]) {
        let Some(last) = values.len().checked_sub(1) else { return };
        let end = last.checked_mul(stride).and_then(|last| first.checked_add(last));
        assert!(end.is_some_and(|end| end < self.len), "{first} + {last} * {stride} of {}", self.len);
        for (i, &value) in values.iter().enumerate() {
            // SAFETY: up to the last, which is within bounds; the caller excludes all other access.
            unsafe { self.pointer.as_ptr().add(first + i * stride).write(value) }
        }
    }

    /// # Safety
    /// No other thread reads or writes the element meanwhile.
    #[inline(always)]
    pub unsafe fn set(&self, index: usize, value: T) {
        assert!(index < self.len, "{index} of {}", self.len);
        // SAFETY: within bounds; the caller excludes all other access.
        unsafe { self.pointer.as_ptr().add(index).write(value) }
    }
}
