//! `MPSMatrixFindTopK`: up to 16 of the greatest elements of each row, with their indices.

use objc2::AnyThread;
use objc2::rc::Retained;
use objc2_metal_performance_shaders::MPSMatrixFindTopK;

use super::guard::{self, Refusal};
use super::matrix::Operand;
use crate::Result;
use crate::backend::metal::buffer::Raw;
use crate::backend::metal::commands::Idle;
use crate::backend::metal::device::Gpu;
use crate::backend::metal::executor::{Item, Shaders};
use crate::backend::metal::launch::Touches;
use crate::tensor::DType;

/// A call, ready to be encoded.
struct TopK {
    kernel: Retained<MPSMatrixFindTopK>,
    x: Operand,
    indices: Operand,
    values: Operand,
}

// SAFETY: the object is used by one thread at a time: calls are encoded under the arena's lock.
unsafe impl Send for TopK {}
// SAFETY: as above.
unsafe impl Sync for TopK {}

impl Shaders for TopK {
    fn encode(&self, idle: Idle<'_>, arena: &Raw) -> Result<()> {
        let [x, indices, values] =
            [&self.x, &self.indices, &self.values].map(|operand| operand.matrix(arena));
        // SAFETY: no encoder is open, says `Idle`; the guard has agreed to k, shapes and types.
        unsafe {
            self.kernel.encodeToCommandBuffer_inputMatrix_resultIndexMatrix_resultValueMatrix(
                idle.commands(),
                &x,
                &indices,
                &values,
            );
        }
        Ok(())
    }
}

/// The item of the search.
pub(in crate::backend) fn top_k(
    gpu: &Gpu,
    op: &'static str,
    x: Operand,
    values: Operand,
    indices: Operand,
) -> std::result::Result<Item, Refusal> {
    guard::top_k(x.dtype, x.rows, x.columns, values.columns)?;
    if ![&x, &values, &indices].iter().all(|operand| operand.fits())
        || values.dtype != x.dtype
        || indices.dtype != DType::U32
    {
        return Err(Refusal::Layout);
    }
    let touches = Touches { reads: vec![x.span()], writes: vec![values.span(), indices.span()] };
    // SAFETY: the guard has agreed to k.
    let kernel = unsafe {
        MPSMatrixFindTopK::initWithDevice_numberOfTopKValues(
            MPSMatrixFindTopK::alloc(),
            &gpu.device,
            values.columns,
        )
    };
    Ok(Item::shaders(op, Box::new(TopK { kernel, x, indices, values }), touches))
}
