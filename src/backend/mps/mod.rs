//! Metal Performance Shaders inside the Metal backend's command buffers: which calls may go there ([`guard`], on every
//! system), and the calls themselves.
//!
//! Why not everything: every call opens an encoder of its own and costs the host about 30 µs, bf16 ends the process, and
//! some shapes give wrong numbers on some chips. The plan's norm by `MPSNNReduceFeatureChannelsMean` cannot be: that class
//! takes images, reduces to a mean (not a mean of squares), and has 8,192 channels at the most; our fused kernel moves a
//! third of the bytes. The same holds for layer norm.

pub mod guard;

#[cfg(mps)]
mod attention;
#[cfg(mps)]
mod kernels;
#[cfg(mps)]
mod matmul;
#[cfg(mps)]
mod matrix;
#[cfg(mps)]
mod ndarray;
#[cfg(mps)]
mod softmax;
#[cfg(mps)]
mod top_k;

#[cfg(mps)]
pub(super) use attention::{Head, attention};
#[cfg(mps)]
pub(super) use kernels::Kernels;
#[cfg(mps)]
pub(super) use matmul::product;
#[cfg(mps)]
pub(super) use matrix::Operand;
#[cfg(mps)]
pub(super) use softmax::{softmax, softmax_grad};
#[cfg(mps)]
pub(super) use top_k::top_k;
