//! CPU kernels: slices in, slices out; knows neither models nor tensors.
//!
//! Everything is row-major f32 (weights may be bf16). Three rules hold in every kernel:
//! - the order in which an output element is summed is fixed: it depends on neither the number of rows, nor their company, nor
//!   the thread count, so a row has the same bits alone and among a thousand;
//! - threads (rayon's current pool) share out outputs, never a sum;
//! - each instruction-set [`Variant`] answers to a scalar f64 reference within a bound that the module derives.
//!
//! Shapes that do not fit are the caller's bug and panic.

pub mod attention;
pub mod counts;
mod elementwise;
mod gemm;
pub mod head;
pub mod linear;
pub mod lora;
pub mod norm;
pub mod peak;
pub mod quantised;
pub mod rope;
mod scratch;
mod simd;
pub mod swiglu;
#[cfg(test)]
mod testing;

pub use simd::{UnsupportedVariant, Variant, selected, variants};
