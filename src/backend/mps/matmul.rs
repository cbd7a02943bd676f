//! `MPSMatrixMultiplication`: C = alpha·op(A)·op(B) + beta·C.

use objc2::AnyThread;
use objc2::rc::Retained;
use objc2_metal_performance_shaders::MPSMatrixMultiplication;

use super::guard::{self, ProductShape, Refusal};
use super::matrix::Operand;
use crate::Result;
use crate::backend::metal::buffer::Raw;
use crate::backend::metal::commands::Idle;
use crate::backend::metal::device::Gpu;
use crate::backend::metal::executor::{Item, Shaders};
use crate::backend::metal::launch::Touches;

/// A product, ready to be encoded.
struct Product {
    /// Made once; it remembers shape, factors and transposes, nothing of the matrices.
    kernel: Retained<MPSMatrixMultiplication>,
    left: Operand,
    right: Operand,
    result: Operand,
}

// SAFETY: the object is used by one thread at a time: calls are encoded under the arena's lock.
unsafe impl Send for Product {}
// SAFETY: as above.
unsafe impl Sync for Product {}

impl Shaders for Product {
    fn encode(&self, idle: Idle<'_>, arena: &Raw) -> Result<()> {
        let [left, right, result] =
            [&self.left, &self.right, &self.result].map(|operand| operand.matrix(arena));
        // SAFETY: no encoder is open, says `Idle`; the guard has agreed to shapes and types; the command buffer retains
        // the buffers.
        unsafe {
            self.kernel.encodeToCommandBuffer_leftMatrix_rightMatrix_resultMatrix(
                idle.commands(),
                &left,
                &right,
                &result,
            );
        }
        Ok(())
    }
}

/// The item of `result = factors.0 · op(left)·op(right) + factors.1 · result`. `left` and `right` are as stored; an
/// operand with one matrix for a larger batch is refused, as the framework does not repeat it.
pub(in crate::backend) fn product(
    gpu: &Gpu,
    op: &'static str,
    (left, transpose_left): (Operand, bool),
    (right, transpose_right): (Operand, bool),
    result: Operand,
    factors: (f32, f32),
) -> std::result::Result<Item, Refusal> {
    let k = if transpose_left { left.rows } else { left.columns };
    let shape = ProductShape {
        left: left.dtype,
        right: right.dtype,
        result: result.dtype,
        m: result.rows,
        n: result.columns,
        k,
        batch: result.batch,
    };
    guard::product(&shape, gpu.chip.generation)?;
    let alike = left.batch == result.batch && right.batch == result.batch;
    if !alike || ![&left, &right, &result].iter().all(|operand| operand.fits()) {
        return Err(Refusal::Layout);
    }
    let mut touches = Touches { reads: vec![left.span(), right.span()], writes: vec![result.span()] };
    if factors.1 != 0.0 {
        touches.reads.push(result.span());
    }
    // SAFETY: the guard has agreed to the sizes.
    let kernel = unsafe {
        MPSMatrixMultiplication::initWithDevice_transposeLeft_transposeRight_resultRows_resultColumns_interiorColumns_alpha_beta(
            MPSMatrixMultiplication::alloc(),
            &gpu.device,
            transpose_left,
            transpose_right,
            shape.m,
            shape.n,
            shape.k,
            f64::from(factors.0),
            f64::from(factors.1),
        )
    };
    Ok(Item::shaders(op, Box::new(Product { kernel, left, right, result }), touches))
}
