//! What this machine can do at most, measured: the limits that kernels are compared with.

use crate::guarded;
use kernels::peaks::{Peaks, peaks};
use kernels::view::Aligned;
use napi::bindgen_prelude::AsyncTask;
use napi::{Env, Task};
use napi_derive::napi;
use runtime::error::{Error, Result};
use std::hint::black_box;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{Builder, scope};
use std::time::{Duration, Instant};

/// One measurement takes at least so long, and the median of so many is taken.
const LEAST: Duration = Duration::from_millis(12);
const PASSES: usize = 7;
/// Registers are worked on for about `LEAST`: rounds are doubled until they take that long.
const FIRST_ROUNDS: u32 = 64;

#[napi(object)]
pub struct MachinePeaks {
    pub read_bytes_per_second: f64,
    /// Multiplications and additions of 8-bit values.
    pub int8_ops_per_second: f64,
    /// Multiplications and additions of 32-bit floats.
    pub float_ops_per_second: f64,
}

/// Measures with `threads` threads at once; memory is read from `bytes` of it, more than the caches hold.
#[napi(ts_return_type = "Promise<MachinePeaks>")]
pub fn measure_peaks(isa: String, threads: u32, bytes: f64) -> AsyncTask<Measure> {
    AsyncTask::new(Measure { isa, threads: threads.clamp(1, 1024) as usize, bytes: bytes as usize })
}

pub struct Measure {
    isa: String,
    threads: usize,
    bytes: usize,
}

impl Task for Measure {
    type Output = MachinePeaks;
    type JsValue = MachinePeaks;

    fn compute(&mut self) -> napi::Result<MachinePeaks> {
        guarded(|| self.run())
    }

    fn resolve(&mut self, _: Env, peaks: MachinePeaks) -> napi::Result<MachinePeaks> {
        Ok(peaks)
    }
}

impl Measure {
    fn run(&self) -> Result<MachinePeaks> {
        let of = peaks(&self.isa);
        let mut memory = Aligned::<u8>::streamed(self.bytes)
            .ok_or_else(|| Error::memory("measuring the memory's speed", Some(self.bytes)))?;
        let share = self.bytes.div_ceil(self.threads).max(1);
        let parts: Vec<Mutex<&mut [u8]>> = memory.as_mut_slice().chunks_mut(share).map(Mutex::new).collect();
        together(self.threads, |thread| {
            let part = parts.get(thread).map(|part| part.lock().unwrap_or_else(PoisonError::into_inner));
            part.into_iter().for_each(|mut part| part.fill(1));
        })?;
        drop(parts);
        let parts: Vec<&[u8]> = memory.as_slice().chunks(share).collect();
        Ok(MachinePeaks {
            read_bytes_per_second: self.rate(|thread| {
                let part = parts.get(thread).copied().unwrap_or_default();
                black_box((of.read)(part));
                part.len() as u64
            })?,
            int8_ops_per_second: self.rate(repeated(of, |of| of.int8))?,
            float_ops_per_second: self.rate(repeated(of, |of| of.float))?,
        })
    }

    /// Median over passes of what all threads do per second.
    fn rate(&self, work: impl Fn(usize) -> u64 + Sync) -> Result<f64> {
        let mut rates = (0..PASSES).map(|_| self.pass(&work)).collect::<Result<Vec<f64>>>()?;
        rates.sort_by(f64::total_cmp);
        Ok(rates[PASSES / 2])
    }

    /// All threads begin together; their rates are added.
    fn pass(&self, work: &(impl Fn(usize) -> u64 + Sync)) -> Result<f64> {
        let timed = |thread| {
            let begun = Instant::now();
            let mut done = work(thread);
            while begun.elapsed() < LEAST {
                done += work(thread);
            }
            done as f64 / begun.elapsed().as_secs_f64()
        };
        Ok(together(self.threads, timed)?.iter().sum())
    }
}

/// What `work` gives on each of so many threads, which begin together.
fn together<T: Send>(threads: usize, work: impl Fn(usize) -> T + Sync) -> Result<Vec<T>> {
    // Whether all are there. None waits for one that never comes.
    let all: OnceLock<bool> = OnceLock::new();
    scope(|scope| {
        let (work, all) = (&work, &all);
        let start = |thread| {
            Builder::new().spawn_scoped(scope, move || all.wait().then(|| work(thread))).map_err(|error| {
                Error {
                    code: "BACKEND_UNAVAILABLE",
                    message: format!("the system starts {thread} threads of {threads}: {error}"),
                    cure: "Measure with fewer threads.",
                }
            })
        };
        let others: Result<Vec<_>> = (1..threads).map(start).collect();
        _ = all.set(others.is_ok());
        let own = work(0);
        let others = others?.into_iter().filter_map(|other| other.join().ok().flatten());
        Ok([own].into_iter().chain(others).collect())
    })
}

/// A register loop with enough rounds that looking at the clock does not count.
fn repeated(
    of: &'static Peaks,
    pick: impl Fn(&'static Peaks) -> fn(u32) -> u64,
) -> impl Fn(usize) -> u64 + Sync {
    let work = pick(of);
    let mut rounds = FIRST_ROUNDS;
    loop {
        let begun = Instant::now();
        black_box(work(rounds));
        if begun.elapsed() * 8 > LEAST || rounds > u32::MAX / 4 {
            break;
        }
        rounds *= 2;
    }
    move |_| work(black_box(rounds))
}
