//! The arithmetic of frugal: slices in, slices out; no I/O, no threads, no knowledge of models.
//!
//! The numerics contract (ARCHITECTURE.md) makes every ISA give the same bits. [`mod@reference`] is
//! the readable definition; [`kernels`] holds the fast twins, generic over [`simd::Simd`];
//! [`table`] binds them to the CPU at run time.

// The compiler offers intrinsics for 64-bit memory as a feature that may still change.
#![cfg_attr(target_arch = "wasm64", feature(simd_wasm64))]

pub mod acts;
pub mod exp;
pub mod float16;
pub mod kernels;
pub mod packed;
pub mod peaks;
pub mod quantize;
pub mod reference;
pub mod route;
pub mod sampling;
pub mod select;
pub mod simd;
pub mod table;
pub mod view;
pub mod ways;
