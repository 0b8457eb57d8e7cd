//! A thread of its own for a model's steps. On libuv's threads, which take turns, a step would begin on another core each
//! time, at times on the one where a thread of the model's pool already runs, and share it for milliseconds.

use napi::{Error, Result, Status};
use std::sync::mpsc::{Sender, channel};

type Job = Box<dyn FnOnce() + Send>;

/// Dropped, it ends its thread, once the jobs that it was given are done.
pub struct Steps(Sender<Job>);

impl Steps {
    pub fn start() -> Result<Self> {
        let (sender, jobs) = channel::<Job>();
        let run = move || jobs.into_iter().for_each(|job| job());
        let thread = std::thread::Builder::new().name("frugal-0".into()).spawn(run);
        thread.map_err(|error| Error::new(Status::GenericFailure, error.to_string()))?;
        Ok(Self(sender))
    }

    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        // The thread ends only after this.
        let _ = self.0.send(Box::new(job));
    }
}
