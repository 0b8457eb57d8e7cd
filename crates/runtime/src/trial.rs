//! Finds the faster way of reading weights: the first tokens that a process decodes go each way by turns.

use kernels::ways::{WAYS, choose};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Steps of each way that are compared, by their medians.
const ROUNDS: usize = 7;
/// The first steps, in which caches grow and threads wake: as many of each way.
const UNTIMED: usize = WAYS;
/// Weights of which caches hold too little to tell ways apart by.
const LEAST_BYTES: usize = 64 << 20;

struct Trial {
    /// Of the steps that are compared. While numbers of threads are tried by turns, ways are not: each would go with one.
    threads: usize,
    /// Steps so far with these, and the times of those that counted.
    steps: usize,
    times: [[Duration; ROUNDS]; WAYS],
}

static TRIAL: Mutex<Trial> = Mutex::new(Trial::NEW);
static OVER: AtomicBool = AtomicBool::new(false);

/// Runs a step of so many threads that reads so many bytes of weights for one token.
pub fn streamed(bytes: usize, threads: usize, step: impl FnOnce()) {
    if const { WAYS == 1 } || OVER.load(Ordering::Relaxed) || bytes < LEAST_BYTES {
        return step();
    }
    // Steps of several models at once tell nothing.
    let Ok(mut trial) = TRIAL.try_lock() else { return step() };
    trial.with(threads);
    choose(trial.next());
    let start = Instant::now();
    step();
    if let Some(best) = trial.note(start.elapsed()) {
        choose(best);
        OVER.store(true, Ordering::Relaxed);
    }
}

impl Trial {
    const NEW: Self = Self { threads: 0, steps: 0, times: [[Duration::ZERO; ROUNDS]; WAYS] };

    /// Begins anew where the number of threads is another than a step before.
    fn with(&mut self, threads: usize) {
        if self.threads != threads {
            *self = Self { threads, ..Self::NEW };
        }
    }

    /// The way that a step goes.
    fn next(&self) -> usize {
        self.steps % WAYS
    }

    /// Takes a step's time; gives the best way once that is known.
    fn note(&mut self, time: Duration) -> Option<usize> {
        let way = self.next();
        self.steps += 1;
        let timed = self.steps.checked_sub(UNTIMED + 1)?;
        self.times[way][timed / WAYS] = time;
        if timed + 1 < WAYS * ROUNDS {
            return None;
        }
        let median = |way: usize| {
            let mut times = self.times[way];
            times.sort_unstable();
            times[ROUNDS / 2]
        };
        (0..WAYS).min_by_key(|&way| median(way))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The steps until a way is chosen of which the last is the fastest; interruptions are few and long.
    fn steps_to_choose(trial: &mut Trial, threads: impl Fn(usize) -> usize) -> Option<(usize, usize)> {
        (0..100).find_map(|step| {
            trial.with(threads(step));
            let ms = if step % 6 == 5 { 900 } else { 10 + (WAYS - 1 - trial.next()) as u64 };
            trial.note(Duration::from_millis(ms)).map(|best| (best, step + 1))
        })
    }

    #[test]
    fn the_way_with_the_lower_median_is_chosen_after_as_many_steps_of_each() {
        let mut trial = Trial::NEW;
        let chosen = steps_to_choose(&mut trial, |_| 2);
        assert_eq!(chosen, Some((WAYS - 1, UNTIMED + WAYS * ROUNDS)));
    }

    #[test]
    fn ways_wait_until_threads_have_been_chosen() {
        let mut trial = Trial::NEW;
        assert_eq!(steps_to_choose(&mut trial, |step| 1 + step % 2), None);
        assert_eq!(trial.next(), 1 % WAYS);
        trial.with(8);
        assert_eq!(trial.next(), 0);
        assert!(steps_to_choose(&mut trial, |_| 8).is_some());
    }
}
