//! Which way streamed weights are read, which only shows in time. What is fastest depends on how a CPU reads ahead by itself, which
//! systems do not tell and virtual ones hide; so whoever takes the time may choose for the process.

use std::sync::atomic::{AtomicUsize, Ordering};

/// How many ways there are: [`choose`].
pub const WAYS: usize = if cfg!(target_arch = "x86_64") { 2 } else { 1 };

static CHOSEN: AtomicUsize = AtomicUsize::new(0);

/// Has weights read in another way from now on. On x86-64, 0 asks for memory near ahead, within what a CPU reads ahead itself,
/// and of two tiles at a time where registers allow it; 1 as was best on CPUs that read ahead less, of one.
///
/// # Panics
/// Where `way` is not below [`WAYS`].
pub fn choose(way: usize) {
    assert!(way < WAYS, "there are {WAYS} ways");
    CHOSEN.store(way, Ordering::Relaxed);
}

pub fn chosen() -> usize {
    CHOSEN.load(Ordering::Relaxed)
}
