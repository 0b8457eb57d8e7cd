//! Runs plans: packed weights, paged key/value caches, a thread pool, and the executor. It knows
//! ops, never the names of models, and does no I/O of its own.

pub mod attention;
pub mod choose;
pub mod compile;
pub mod demand;
pub mod error;
pub mod exec;
mod experts;
pub mod kv;
pub mod model;
pub mod plan;
mod reuse;
pub mod rope;
pub mod routing;
pub mod sparse;
mod stream;
pub mod threads;
mod trial;
pub mod weights;
