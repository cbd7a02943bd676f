//! `MPSMatrixMultiplication`: C = alpha·op(A)·op(B) + beta·C.

use super::ffi::ProductKey;
use super::guard::{self, ProductShape, Refusal};
use super::kernels;
use super::matrix::Operand;
use super::ndarray;
use crate::Result;
use crate::backend::metal::buffer::Raw;
use crate::backend::metal::commands::Idle;
use crate::backend::metal::device::Gpu;
use crate::backend::metal::executor::{Item, Shaders};
use crate::backend::metal::launch::Touches;
use crate::tensor::DType;

/// A product, ready to be encoded: one call, or one for each part of a long inner length.
struct Product {
    parts: Vec<Part>,
    result: Operand,
}

struct Part {
    key: ProductKey,
    left: Operand,
    right: Operand,
}

impl Shaders for Product {
    fn encode(&self, idle: Idle<'_>, arena: &Raw) -> Result<()> {
        let result = self.result.matrix(arena)?;
        // The buffers are tracked, so that the parts run one after the other.
        for Part { key, left, right } in &self.parts {
            let kernel = kernels::product(idle.device(), *key);
            kernel.encode(&idle, &left.matrix(arena)?, &right.matrix(arena)?, &result)?;
        }
        Ok(())
    }
}

/// A product's left and right matrices as they are stored, each with whether it is used transposed.
pub(in crate::backend) type Sides<'a> = [(&'a Operand, bool); 2];

/// The inner length of two sides.
pub(super) fn inner([(left, transposed), _]: Sides<'_>) -> usize {
    if transposed { left.rows } else { left.columns }
}

/// What a product reads and writes.
pub(super) fn touches([(left, _), (right, _)]: Sides<'_>, result: &Operand, beta: f32) -> Touches {
    let mut touches = Touches { reads: vec![left.span(), right.span()], writes: vec![result.span()] };
    if beta != 0.0 {
        touches.reads.push(result.span());
    }
    touches
}

/// The item of `result = factors.0 · op(left)·op(right) + factors.1 · result`. An operand with one matrix for a larger
/// batch is refused, as the framework does not repeat it. bf16 goes to `MPSNDArrayMatrixMultiplication`.
pub(in crate::backend) fn product(
    gpu: &Gpu,
    op: &'static str,
    (left, transpose_left): (Operand, bool),
    (right, transpose_right): (Operand, bool),
    result: &Operand,
    factors: (f32, f32),
) -> std::result::Result<Item, Refusal> {
    guard::device(gpu.mps)?;
    let sides = [(&left, transpose_left), (&right, transpose_right)];
    if result.dtype == DType::BF16 {
        return ndarray::product(gpu, op, sides, result, factors);
    }
    let shape = ProductShape {
        left: left.dtype,
        right: right.dtype,
        result: result.dtype,
        m: result.rows,
        n: result.columns,
        k: inner(sides),
        batch: result.batch,
    };
    let part = match guard::product(&shape, gpu.chip.generation) {
        // Rounded once a part, f16 would lose what f32 keeps.
        Err(Refusal::Interior) if result.dtype == DType::F32 => guard::INTERIOR,
        other => other.map(|()| shape.k)?,
    };
    let alike = left.batch == result.batch && right.batch == result.batch;
    if !alike || ![&left, &right, result].iter().all(|operand| operand.fits()) {
        return Err(Refusal::Layout);
    }
    let parts: Vec<Part> = (0..shape.k)
        .step_by(part)
        .map(|first| {
            let length = part.min(shape.k - first);
            let beta = if first == 0 { factors.1 } else { 1.0 };
            let sizes = [shape.m, shape.n, length];
            Part {
                key: ProductKey::new((transpose_left, transpose_right), sizes, (factors.0, beta)),
                left: left.part(transpose_left, first, length),
                right: right.part(!transpose_right, first, length),
            }
        })
        .collect();
    if !parts.iter().all(|part| part.left.fits() && part.right.fits()) {
        return Err(Refusal::Layout);
    }
    let touches = touches(sides, result, factors.1);
    Ok(Item::shaders(op, Box::new(Product { parts, result: result.clone() }), touches))
}
