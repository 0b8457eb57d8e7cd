//! Writing weights in the block formats: bytes in, bytes out, on libuv's threads and our own.

use crate::guarded;
use kernels::quantize::{Deviation, Fault, GROUP, Source, Target, quantize};
use napi::bindgen_prelude::{AsyncTask, Uint8Array};
use napi::{Env, Task};
use napi_derive::napi;
use runtime::error::{Error, Result};
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, scope};

/// Elements that are summed as one, whatever the number of threads, so that sums do not depend on it.
const SEGMENT: usize = 64 * GROUP;

#[napi(object)]
pub struct Quantized {
    pub bytes: Uint8Array,
    /// Sum of the squares of the values.
    pub squares: f64,
    /// Sum of the squares of the differences.
    pub errors: f64,
    /// The first element that cannot be held, where there is one: the other fields mean nothing then.
    pub bad_element: Option<f64>,
    /// Its value, where it is a number.
    pub bad_value: Option<f64>,
}

/// Converts `values`, of type `source`, to whole blocks of type `target`.
#[napi(ts_return_type = "Promise<Quantized>")]
pub fn quantize_values(
    source: String,
    target: String,
    values: Uint8Array,
    threads: u32,
) -> napi::Result<AsyncTask<Quantize>> {
    guarded(|| {
        let wrong = |name: &str| Error::internal(format!("no conversion from {source} to {target}: {name}"));
        let from = Source::parse(&source).ok_or_else(|| wrong(&source))?;
        let to = Target::parse(&target).ok_or_else(|| wrong(&target))?;
        if !values.len().is_multiple_of(from.bytes() * to.block().0) {
            return Err(wrong("not whole blocks"));
        }
        Ok(AsyncTask::new(Quantize { source: from, target: to, values, threads: threads.max(1) as usize }))
    })
}

pub struct Quantize {
    source: Source,
    target: Target,
    values: Uint8Array,
    threads: usize,
}

/// One segment: its input, its output, what came of it.
type Segment<'a> = (&'a [u8], &'a mut [u8], std::result::Result<Deviation, Fault>);

impl Task for Quantize {
    type Output = (Vec<u8>, std::result::Result<Deviation, Fault>);
    type JsValue = Quantized;

    fn compute(&mut self) -> napi::Result<Self::Output> {
        guarded(|| self.run())
    }

    fn resolve(&mut self, _: Env, (bytes, result): Self::Output) -> napi::Result<Quantized> {
        let (sums, bad_element, bad_value) = match result {
            Ok(sums) => (sums, None, None),
            Err(Fault::NonFinite { element }) => (Deviation::default(), Some(element as f64), None),
            Err(Fault::TooLarge { element, value }) => {
                (Deviation::default(), Some(element as f64), Some(value as f64))
            }
        };
        let Deviation { squares, errors } = sums;
        Ok(Quantized { bytes: bytes.into(), squares, errors, bad_element, bad_value })
    }
}

impl Quantize {
    fn run(&self) -> Result<(Vec<u8>, std::result::Result<Deviation, Fault>)> {
        let length = self.target.bytes(self.values.len() / self.source.bytes());
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length).map_err(|_| Error::memory("a piece of a tensor", Some(length)))?;
        bytes.resize(length, 0);
        let inputs = self.values.chunks(SEGMENT * self.source.bytes());
        let outputs = bytes.chunks_mut(self.target.bytes(SEGMENT));
        let mut segments: Vec<Segment> =
            inputs.zip(outputs).map(|(from, to)| (from, to, Ok(Deviation::default()))).collect();
        let share = segments.len().div_ceil(self.threads).max(1);
        let shares = Mutex::new(segments.chunks_mut(share));
        let next = || shares.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || std::iter::from_fn(next).for_each(|share| self.convert(share));
        scope(|scope| {
            // Fewer where the system gives no more.
            let started = (1..self.threads).map_while(|_| Builder::new().spawn_scoped(scope, work).ok());
            started.for_each(drop);
            work();
        });
        let result = total(&segments);
        Ok((bytes, result))
    }

    fn convert(&self, share: &mut [Segment]) {
        for (from, to, result) in share {
            *result = quantize(self.source, self.target, from, to);
        }
    }
}

/// The sums in the order of the segments, or the first fault.
fn total(segments: &[Segment]) -> std::result::Result<Deviation, Fault> {
    let mut sums = Deviation::default();
    for (i, (_, _, result)) in segments.iter().enumerate() {
        match *result {
            Ok(deviation) => sums.add(deviation),
            Err(Fault::NonFinite { element }) => {
                return Err(Fault::NonFinite { element: i * SEGMENT + element });
            }
            Err(Fault::TooLarge { element, value }) => {
                return Err(Fault::TooLarge { element: i * SEGMENT + element, value });
            }
        }
    }
    Ok(sums)
}
