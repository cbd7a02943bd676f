//! `MPSMatrixSoftMax`, `MPSMatrixLogSoftMax` and their gradients, along the last axis. Other axes are for a kernel of ours
//! (`backend/metal/softmax.rs`): the framework knows rows only.

use super::ffi::RowsKey;
use super::guard::{self, Refusal};
use super::kernels;
use super::matrix::Operand;
use crate::Result;
use crate::backend::metal::buffer::Raw;
use crate::backend::metal::commands::Idle;
use crate::backend::metal::executor::{Item, Shaders};
use crate::backend::metal::launch::Touches;

/// A call, ready to be encoded.
struct Rows {
    key: RowsKey,
    inputs: Vec<Operand>,
    result: Operand,
}

impl Shaders for Rows {
    fn encode(&self, idle: Idle<'_>, arena: &Raw) -> Result<()> {
        let kernel = kernels::rows(idle.device(), self.key);
        let inputs = self.inputs.iter().map(|operand| operand.matrix(arena)).collect::<Result<Vec<_>>>()?;
        kernel.encode(&idle, &inputs, &self.result.matrix(arena)?)
    }
}

fn item(
    op: &'static str,
    key: RowsKey,
    inputs: Vec<Operand>,
    result: Operand,
) -> std::result::Result<Item, Refusal> {
    guard::softmax(result.dtype, result.rows, result.columns)?;
    if !inputs.iter().chain([&result]).all(|operand| operand.fits() && operand.dtype == result.dtype) {
        return Err(Refusal::Layout);
    }
    // In place is not promised by the framework.
    let reads: Vec<_> = inputs.iter().map(Operand::span).collect();
    if reads.iter().any(|read| read.meets(&result.span())) {
        return Err(Refusal::InPlace);
    }
    let touches = Touches { reads, writes: vec![result.span()] };
    Ok(Item::shaders(op, Box::new(Rows { key, inputs, result }), touches))
}

/// The item of a softmax, or of a log-softmax, of rows.
pub(in crate::backend) fn softmax(
    op: &'static str,
    x: Operand,
    y: Operand,
    logarithm: bool,
) -> std::result::Result<Item, Refusal> {
    item(op, RowsKey { logarithm, gradient: false }, vec![x], y)
}

/// The item of their gradient: dy and y to dx.
pub(in crate::backend) fn softmax_grad(
    op: &'static str,
    dy: Operand,
    y: Operand,
    dx: Operand,
    logarithm: bool,
) -> std::result::Result<Item, Refusal> {
    item(op, RowsKey { logarithm, gradient: true }, vec![dy, y], dx)
}
