//! `MPSNDArrayMatrixMultiplication`, for what `MPSMatrixMultiplication` has no type for: products of bf16 matrices. It
//! encodes into a serial encoder of ours, and exists so from macOS 15 on.

use super::ffi::ProductKey;
use super::guard::{self, ProductShape, Refusal};
use super::kernels;
use super::matmul::{Sides, inner, touches};
use super::matrix::Operand;
use crate::Result;
use crate::backend::metal::buffer::Raw;
use crate::backend::metal::commands::Idle;
use crate::backend::metal::device::Gpu;
use crate::backend::metal::executor::{Item, Shaders};

/// A product, ready to be encoded.
struct Product {
    key: ProductKey,
    left: (Operand, bool),
    right: (Operand, bool),
    result: Operand,
}

impl Shaders for Product {
    fn encode(&self, idle: Idle<'_>, arena: &Raw) -> Result<()> {
        let kernel = kernels::array_product(idle.device(), self.key);
        let [left, right] = [&self.left, &self.right].map(|(operand, turned)| operand.array(*turned, arena));
        kernel.encode(&idle, &left?, &right?, &self.result.array(false, arena)?)
    }
}

/// The item of a product of bf16 matrices.
pub(super) fn product(
    gpu: &Gpu,
    op: &'static str,
    sides: Sides<'_>,
    result: &Operand,
    factors: (f32, f32),
) -> std::result::Result<Item, Refusal> {
    let [(left, transpose_left), (right, transpose_right)] = sides;
    let shape = ProductShape {
        left: left.dtype,
        right: right.dtype,
        result: result.dtype,
        m: result.rows,
        n: result.columns,
        k: inner(sides),
        batch: left.batch.max(right.batch).max(result.batch),
    };
    let (transposed, addend) = (transpose_left || transpose_right, factors.1 != 0.0);
    guard::array_product(&shape, transposed, addend, gpu.system)?;
    // Rows with gaps between them would need strides that the class takes from macOS 15.4 on only.
    if [left, right, result].iter().any(|operand| operand.row != operand.columns) {
        return Err(Refusal::Layout);
    }
    let call = Product {
        key: ProductKey::new((transpose_left, transpose_right), [shape.m, shape.n, shape.k], factors),
        left: (left.clone(), transpose_left),
        right: (right.clone(), transpose_right),
        result: result.clone(),
    };
    Ok(Item::shaders(op, Box::new(call), touches(sides, result, factors.1)))
}
