//! Tests of the parts that need no kernel's twin. Apart from the library, so that the kernels are compiled once.

mod exp;
mod float16;
#[cfg(target_arch = "aarch64")]
mod neon;
mod peaks;
mod quantize;
mod route;
mod sampling;
mod view;
#[cfg(target_family = "wasm")]
mod wasm;
