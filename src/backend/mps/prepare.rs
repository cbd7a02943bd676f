//! Turns library calls of a lowered plan into calls of Metal Performance Shaders.

use super::call::MpsCall;
use super::guard::{self, Refusal};
use super::{matmul, softmax, top_k};
use crate::backend::gpu::library::LibraryCall;
use crate::backend::metal::device::Gpu;

/// Returns the call, ready to be encoded.
///
/// # Errors
/// The reason why Metal Performance Shaders must not run it.
pub(in crate::backend) fn prepare(
    gpu: &Gpu,
    call: &LibraryCall,
) -> std::result::Result<Box<dyn MpsCall>, Refusal> {
    guard::device(gpu.mps)?;
    match *call {
        LibraryCall::MatMul { left, right, result, alpha, beta } => {
            matmul::matmul(gpu, [left, right], &result, (alpha, beta))
        }
        LibraryCall::Softmax { x, y, logarithm } => softmax::softmax(x, y, logarithm),
        LibraryCall::SoftmaxGrad { dy, y, dx, logarithm } => softmax::softmax_grad(dy, y, dx, logarithm),
        LibraryCall::TopK { x, values, indices } => top_k::top_k(x, values, indices),
    }
}
