//! `MPSNDArrayMatrixMultiplication`, for products of bf16 matrices, a type that `MPSMatrixMultiplication` does not support. It
//! encodes into a serial encoder that we open, and exists in this form from macOS 15 on.

use super::call::{MpsCall, array};
use super::ffi::ProductKey;
use super::guard::{self, ProductShape, Refusal};
use super::kernels;
use crate::Result;
use crate::backend::gpu::library::{Matrix, Operand};
use crate::backend::metal::commands::NoEncoder;
use crate::backend::metal::device::Gpu;
use crate::backend::metal::memory::Memory;

/// A product, ready to be encoded.
struct ArrayMatMul {
    key: ProductKey,
    operands: [Operand; 2],
    result: Matrix,
}

impl MpsCall for ArrayMatMul {
    fn encode(&self, target: NoEncoder<'_>, memory: Memory<'_>) -> Result<()> {
        let kernel = kernels::array_product(target.device(), self.key);
        let [left, right] = self.operands.map(|(operand, transposed)| array(&operand, transposed, memory));
        kernel.encode(&target, &left?, &right?, &array(&self.result, false, memory)?)
    }
}

/// Returns the call of a product of bf16 matrices.
pub(super) fn matmul(
    gpu: &Gpu,
    operands: [Operand; 2],
    result: &Matrix,
    shape: &ProductShape,
    factors: (f32, f32),
) -> std::result::Result<Box<dyn MpsCall>, Refusal> {
    let [(left, transpose_left), (right, transpose_right)] = operands;
    let shape = ProductShape { batch: left.batch.max(right.batch).max(result.batch), ..*shape };
    let (transposed, addend) = (transpose_left || transpose_right, factors.1 != 0.0);
    guard::array_product(&shape, transposed, addend, gpu.system)?;
    // Rows with gaps between them would need strides, which the class supports from macOS 15.4 on only.
    if [&left, &right, result].iter().any(|operand| operand.row != operand.columns) {
        return Err(Refusal::Layout);
    }
    let key = ProductKey::new((transpose_left, transpose_right), [shape.m, shape.n, shape.k], factors);
    Ok(Box::new(ArrayMatMul { key, operands, result: *result }))
}
