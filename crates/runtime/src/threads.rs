//! Threads behind a trait, so that the same executor runs on OS threads and on WASM workers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Runs a job on several threads at once.
pub trait Pool: Send + Sync {
    /// How many threads run a job, the caller's included.
    fn threads(&self) -> usize;
    /// Calls `job(thread)` on the caller (thread 0) and on those workers that are free before the
    /// caller's own call returns; returns when all of these calls have returned. A job must not
    /// rely on any other thread taking part.
    ///
    /// # Panics
    /// If the job does, on whichever thread.
    fn run(&self, job: &(dyn Fn(usize) + Sync));
    /// The same on at most the first `threads` threads.
    fn run_on(&self, threads: usize, job: &(dyn Fn(usize) + Sync)) {
        self.run(&|thread| {
            if thread < threads {
                job(thread);
            }
        });
    }
}

/// How often an idle worker looks for the next job before it gives way, and before it sleeps: for half a millisecond or so, as
/// it takes from one token of a text to the next. A worker that slept would wake on any core, at times on the caller's, and
/// share it until the system notices.
const SPINS: u32 = 2_000;
const YIELDS: u32 = 1_000;

type Job = *const (dyn Fn(usize) + Sync);

struct Posted(Job);
// SAFETY: `run` keeps the job alive until no worker uses it.
unsafe impl Send for Posted {}

#[derive(Default)]
struct State {
    job: Option<Posted>,
    /// How many threads the job is for; the others sleep on.
    threads: usize,
    /// Workers inside the current job.
    active: usize,
    stopping: bool,
    /// A worker's call of the job panicked.
    panicked: bool,
}

#[derive(Default)]
struct Common {
    state: Mutex<State>,
    /// Counts jobs; workers look at it without the lock.
    epoch: AtomicU64,
    /// One per worker.
    posted: Vec<Condvar>,
    left: Condvar,
}

impl Common {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Common {
    fn new(threads: usize) -> Arc<Self> {
        let posted = (1..threads).map(|_| Condvar::new()).collect();
        Arc::new(Self { posted, ..Self::default() })
    }

    /// The job on the caller and on those of the first `threads` threads that are free in time.
    fn run_on(&self, threads: usize, job: &(dyn Fn(usize) + Sync)) {
        if threads <= 1 {
            return job(0);
        }
        {
            let mut state = self.lock();
            // SAFETY: only the lifetime is erased; this function returns (or unwinds) after the job
            // was withdrawn and the last worker has left it.
            let job: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(job) };
            state.job = Some(Posted(job));
            state.threads = threads;
            self.epoch.fetch_add(1, Ordering::Release);
            self.posted[..threads - 1].iter().for_each(Condvar::notify_one);
        }
        let result = catch_unwind(AssertUnwindSafe(|| job(0)));
        let mut state = self.lock();
        state.job = None;
        while state.active > 0 {
            state = self.left.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let panicked = std::mem::take(&mut state.panicked);
        drop(state);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
        assert!(!panicked, "a job panicked on a worker");
    }

    fn stop(&self) {
        self.lock().stopping = true;
        self.epoch.fetch_add(1, Ordering::Release);
        self.posted.iter().for_each(Condvar::notify_one);
    }
}

/// A pool of OS threads; dropping it ends them.
pub struct OsPool {
    common: Arc<Common>,
    workers: Vec<JoinHandle<()>>,
}

impl OsPool {
    /// `threads` counts the caller's. Fewer are used where the system gives no more.
    pub fn new(threads: usize) -> Self {
        let common = Common::new(threads);
        let start = |thread: usize| {
            let common = Arc::clone(&common);
            let name = format!("frugal-{thread}");
            std::thread::Builder::new().name(name).spawn(move || work(&common, thread)).ok()
        };
        let workers = (1..threads).map_while(start).collect();
        Self { common, workers }
    }
}

impl Pool for OsPool {
    fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        self.run_on(self.threads(), job);
    }

    fn run_on(&self, threads: usize, job: &(dyn Fn(usize) + Sync)) {
        self.common.run_on(threads.min(self.threads()), job);
    }
}

impl Drop for OsPool {
    fn drop(&mut self) {
        self.common.stop();
        for worker in self.workers.drain(..) {
            // A worker never panics: its jobs run under catch_unwind.
            let _ = worker.join();
        }
    }
}

/// A pool whose threads someone else starts, at any time, and lends to it through [`Lender::work`]. Where
/// there is no operating system these are workers of JavaScript. Dropping the pool lets them go.
pub struct LentPool {
    common: Arc<Common>,
    threads: usize,
}

impl LentPool {
    /// `threads` counts the one that runs jobs.
    pub fn new(threads: usize) -> Self {
        Self { common: Common::new(threads), threads: threads.max(1) }
    }

    pub fn lender(&self) -> Lender {
        Lender(Arc::clone(&self.common))
    }
}

impl Pool for LentPool {
    fn threads(&self) -> usize {
        self.threads
    }

    fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        self.run_on(self.threads, job);
    }

    fn run_on(&self, threads: usize, job: &(dyn Fn(usize) + Sync)) {
        self.common.run_on(threads.min(self.threads), job);
    }
}

impl Drop for LentPool {
    fn drop(&mut self) {
        self.common.stop();
    }
}

/// The way into a [`LentPool`].
#[derive(Clone)]
pub struct Lender(Arc<Common>);

impl Lender {
    /// Works as thread `thread` of the pool, 1 or more and below its count, each number once; returns
    /// when the pool is gone.
    pub fn work(&self, thread: usize) {
        if (1..=self.0.posted.len()).contains(&thread) {
            work(&self.0, thread);
        }
    }
}

fn work(common: &Common, thread: usize) {
    let mut seen = 0;
    loop {
        for round in 0..SPINS + YIELDS {
            if common.epoch.load(Ordering::Acquire) != seen {
                break;
            }
            if round < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        let mut state = common.lock();
        let job = loop {
            if state.stopping {
                return;
            }
            let epoch = common.epoch.load(Ordering::Acquire);
            if epoch != seen {
                seen = epoch;
                match &state.job {
                    Some(Posted(job)) if thread < state.threads => break *job,
                    _ => {}
                }
            }
            state = common.posted[thread - 1].wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        state.active += 1;
        drop(state);
        // SAFETY: `run` waits until `active` is zero before the job's lifetime ends.
        let job = unsafe { &*job };
        let result = catch_unwind(AssertUnwindSafe(|| job(thread)));
        let mut state = common.lock();
        state.panicked |= result.is_err();
        state.active -= 1;
        if state.active == 0 {
            common.left.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::time::{Duration, Instant};

    #[test]
    fn shares_out_every_item_once() {
        let pool = OsPool::new(3);
        for _ in 0..500 {
            let next = AtomicUsize::new(0);
            let done: Vec<AtomicUsize> = (0..64).map(|_| AtomicUsize::new(0)).collect();
            pool.run(&|_| {
                while let Some(item) = done.get(next.fetch_add(1, Ordering::Relaxed)) {
                    item.fetch_add(1, Ordering::Relaxed);
                }
            });
            assert!(done.iter().all(|item| item.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn uses_more_than_one_thread() {
        let pool = OsPool::new(2);
        let seen = [AtomicUsize::new(0), AtomicUsize::new(0)];
        let deadline = Instant::now() + Duration::from_secs(10);
        pool.run(&|thread| {
            seen[thread].fetch_add(1, Ordering::SeqCst);
            while seen.iter().any(|count| count.load(Ordering::SeqCst) == 0) && Instant::now() < deadline {
                std::thread::yield_now();
            }
        });
        assert!(seen.iter().all(|count| count.load(Ordering::SeqCst) == 1));
    }

    #[test]
    fn leaves_threads_out() {
        let pool = OsPool::new(4);
        for threads in [1, 3, 2, 4, 9] {
            let highest = AtomicUsize::new(0);
            for _ in 0..50 {
                pool.run_on(threads, &|thread| {
                    highest.fetch_max(thread, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_micros(200));
                });
            }
            let highest = highest.into_inner();
            assert!(highest < threads && (threads == 1 || highest > 0), "thread {highest} of {threads}");
        }
    }

    #[test]
    fn lent_threads_take_part_and_are_let_go() {
        let pool = LentPool::new(3);
        let lent: Vec<_> = (1..3)
            .map(|thread| {
                let lender = pool.lender();
                std::thread::spawn(move || lender.work(thread))
            })
            .collect();
        let seen = [const { AtomicUsize::new(0) }; 3];
        let deadline = Instant::now() + Duration::from_secs(10);
        pool.run(&|thread| {
            seen[thread].fetch_add(1, Ordering::SeqCst);
            while seen.iter().any(|count| count.load(Ordering::SeqCst) == 0) && Instant::now() < deadline {
                std::thread::yield_now();
            }
        });
        assert!(seen.iter().all(|count| count.load(Ordering::SeqCst) == 1));
        drop(pool);
        lent.into_iter().for_each(|thread| thread.join().expect("a lent thread"));
    }

    #[test]
    fn survives_a_panic() {
        let pool = OsPool::new(2);
        let result = catch_unwind(AssertUnwindSafe(|| pool.run(&|_| panic!("expected by this test"))));
        assert!(result.is_err());
        let count = AtomicUsize::new(0);
        pool.run(&|_| {
            count.fetch_add(1, Ordering::SeqCst);
        });
        assert!(count.load(Ordering::SeqCst) >= 1);
    }
}
