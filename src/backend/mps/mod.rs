//! Metal Performance Shaders inside the Metal backend's command buffers: which calls may go there ([`guard`], on every
//! system), and the calls themselves.
//!
//! Why not everything: every call opens an encoder of its own and costs the host about 30 µs, bf16 ends the process, and
//! some shapes give wrong numbers on some chips. `rms_norm.rs` and `layer_norm.rs` explain why there are no norms.
//!
//! `ffi.rs` is the safe layer over the framework and contains all its `unsafe`. The other files turn library calls of a lowered
//! plan into calls of the framework.

mod attention;
pub mod guard;
mod layer_norm;
mod rms_norm;

#[cfg(mps)]
mod call;
#[cfg(mps)]
mod ffi;
#[cfg(mps)]
mod kernels;
#[cfg(mps)]
mod matmul;
#[cfg(mps)]
mod ndarray;
#[cfg(mps)]
mod prepare;
#[cfg(mps)]
mod softmax;
#[cfg(mps)]
pub(super) mod support;
#[cfg(mps)]
mod top_k;

pub(super) use attention::{Head, attention};
#[cfg(mps)]
pub(super) use call::MpsCall;
#[cfg(mps)]
pub(super) use prepare::prepare;
