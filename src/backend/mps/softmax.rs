//! `MPSMatrixSoftMax`, `MPSMatrixLogSoftMax` and their gradients, along the last axis. The framework supports rows only, so
//! other axes are computed by our kernel (`backend/gpu/softmax.rs`).

use super::call::{MpsCall, matrix};
use super::ffi::RowsKey;
use super::guard::{self, Refusal};
use super::kernels;
use crate::Result;
use crate::backend::gpu::library::Matrix;
use crate::backend::metal::commands::NoEncoder;
use crate::backend::metal::memory::Memory;

/// A call, ready to be encoded.
struct Rows {
    key: RowsKey,
    inputs: Vec<Matrix>,
    result: Matrix,
}

impl MpsCall for Rows {
    fn encode(&self, target: NoEncoder<'_>, memory: Memory<'_>) -> Result<()> {
        let kernel = kernels::rows(target.device(), self.key);
        let inputs = self.inputs.iter().map(|input| matrix(input, memory)).collect::<Result<Vec<_>>>()?;
        kernel.encode(&target, &inputs, &matrix(&self.result, memory)?)
    }
}

fn rows(key: RowsKey, inputs: Vec<Matrix>, result: Matrix) -> std::result::Result<Box<dyn MpsCall>, Refusal> {
    guard::softmax(result.dtype, result.rows, result.columns)?;
    if !inputs.iter().chain([&result]).all(|operand| operand.fits() && operand.dtype == result.dtype) {
        return Err(Refusal::Layout);
    }
    // The framework does not promise to work in place.
    if inputs.iter().any(|input| input.range().overlaps(&result.range())) {
        return Err(Refusal::InPlace);
    }
    Ok(Box::new(Rows { key, inputs, result }))
}

/// Returns the call of a softmax, or of a log-softmax, of rows.
pub(super) fn softmax(
    x: Matrix,
    y: Matrix,
    logarithm: bool,
) -> std::result::Result<Box<dyn MpsCall>, Refusal> {
    rows(RowsKey { logarithm, gradient: false }, vec![x], y)
}

/// Returns the call of their gradient: dy and y to dx.
pub(super) fn softmax_grad(
    dy: Matrix,
    y: Matrix,
    dx: Matrix,
    logarithm: bool,
) -> std::result::Result<Box<dyn MpsCall>, Refusal> {
    rows(RowsKey { logarithm, gradient: true }, vec![dy, y], dx)
}
