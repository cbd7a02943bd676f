//! Metal Performance Shaders inside the Metal backend's command buffers: which calls may go there ([`guard`], on every
//! system), and the calls themselves.
//!
//! Why not everything: every call opens an encoder of its own and costs the host about 30 µs, bf16 ends the process, and
//! some shapes give wrong numbers on some chips. The plan's norms cannot be: `rms_norm.rs` and `layer_norm.rs` say why.
//!
//! `ffi.rs` is the safe layer over the framework: all `unsafe` is there. The other files turn a step's tensors into calls.

pub mod guard;

#[cfg(mps)]
mod attention;
#[cfg(mps)]
mod ffi;
#[cfg(mps)]
mod kernels;
#[cfg(mps)]
mod layer_norm;
#[cfg(mps)]
mod matmul;
#[cfg(mps)]
mod matrix;
#[cfg(mps)]
mod ndarray;
#[cfg(mps)]
mod rms_norm;
#[cfg(mps)]
mod softmax;
#[cfg(mps)]
mod top_k;

#[cfg(mps)]
pub(super) use attention::{Head, attention};
#[cfg(mps)]
pub(super) use ffi::{MatrixLayout, supports};
#[cfg(mps)]
pub(super) use layer_norm::layer_norm;
#[cfg(mps)]
pub(super) use matmul::product;
#[cfg(mps)]
pub(super) use matrix::Operand;
#[cfg(mps)]
pub(super) use rms_norm::rms_norm;
#[cfg(mps)]
pub(super) use softmax::{softmax, softmax_grad};
#[cfg(mps)]
pub(super) use top_k::top_k;
