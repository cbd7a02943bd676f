//! `MPSMatrixMultiplication`: C = alpha·op(A)·op(B) + beta·C.

use super::call::{MpsCall, matrix};
use super::ffi::ProductKey;
use super::guard::{self, ProductShape, Refusal};
use super::kernels;
use super::ndarray;
use crate::Result;
use crate::backend::gpu::library::{Matrix, Operand};
use crate::backend::metal::commands::NoEncoder;
use crate::backend::metal::device::Gpu;
use crate::backend::metal::memory::Memory;
use crate::tensor::DType;

/// A product, ready to be encoded: one call, or one for each part of a long inner length.
struct MatMul {
    parts: Vec<Part>,
    result: Matrix,
}

struct Part {
    key: ProductKey,
    left: Matrix,
    right: Matrix,
}

impl MpsCall for MatMul {
    fn encode(&self, target: NoEncoder<'_>, memory: Memory<'_>) -> Result<()> {
        let result = matrix(&self.result, memory)?;
        // The buffers are tracked, so that the parts run one after the other.
        for Part { key, left, right } in &self.parts {
            let kernel = kernels::product(target.device(), *key);
            kernel.encode(&target, &matrix(left, memory)?, &matrix(right, memory)?, &result)?;
        }
        Ok(())
    }
}

/// Returns the call of `result = factors.0 · op(left)·op(right) + factors.1 · result`. An operand with one matrix for a larger
/// batch is refused, as the framework does not repeat it. bf16 goes to `MPSNDArrayMatrixMultiplication`.
pub(super) fn matmul(
    gpu: &Gpu,
    operands: [Operand; 2],
    result: &Matrix,
    factors: (f32, f32),
) -> std::result::Result<Box<dyn MpsCall>, Refusal> {
    let [(left, transpose_left), (right, transpose_right)] = operands;
    let shape = ProductShape {
        left: left.dtype,
        right: right.dtype,
        result: result.dtype,
        m: result.rows,
        n: result.columns,
        k: if transpose_left { left.rows } else { left.columns },
        batch: result.batch,
    };
    if result.dtype == DType::BF16 {
        return ndarray::matmul(gpu, operands, result, &shape, factors);
    }
    let part = match guard::product(&shape, gpu.chip.generation) {
        // Rounded once per part, f16 would lose what f32 keeps.
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
    Ok(Box::new(MatMul { parts, result: *result }))
}
