//! `MPSNDArrayMatrixMultiplication`, for what `MPSMatrixMultiplication` has no type for: products of bf16 matrices. It
//! encodes into a serial encoder of ours, and exists so from macOS 15 on.

use std::ptr::NonNull;

use objc2::rc::Retained;
use objc2::{AnyThread, Message};
use objc2_foundation::NSArray;
use objc2_metal::{MTLCommandBuffer, MTLCommandEncoder, MTLDispatchType};
use objc2_metal_performance_shaders::{
    MPSNDArray, MPSNDArrayDescriptor, MPSNDArrayMatrixMultiplication, MPSNDArrayMultiaryKernel,
};

use super::guard::{self, ProductShape, Refusal};
use super::kernels::ProductKey;
use super::matmul::{Sides, inner, touches};
use super::matrix::{Operand, data_type};
use crate::backend::metal::buffer::Raw;
use crate::backend::metal::commands::Idle;
use crate::backend::metal::device::Gpu;
use crate::backend::metal::executor::{Item, Shaders};
use crate::backend::metal::fault::failed;
use crate::error::DeviceFault;
use crate::{Error, Result};

/// A product, ready to be encoded.
struct Product {
    kernel: Retained<MPSNDArrayMatrixMultiplication>,
    left: (Operand, bool),
    right: (Operand, bool),
    result: Operand,
    /// The result is also what is added.
    adds: bool,
}

// SAFETY: the object is used by one thread at a time: calls are encoded under the arena's lock.
unsafe impl Send for Product {}
// SAFETY: as above.
unsafe impl Sync for Product {}

fn missing(what: &str) -> Error {
    failed("matmul", DeviceFault::Unavailable, format!("the system gives no {what}"))
}

/// The array over a matrix, of two axes with the columns first, as the class counts them.
fn array(operand: &Operand, transposed: bool, arena: &Raw) -> Result<Retained<MPSNDArray>> {
    let (buffer, offset) = operand.address.resolve(arena);
    let mut sizes = [operand.columns, operand.rows];
    // SAFETY: two sizes are given; the guard has agreed to them; rows lie without gaps within the buffer.
    unsafe {
        let descriptor = MPSNDArrayDescriptor::descriptorWithDataType_dimensionCount_dimensionSizes(
            data_type(operand.dtype),
            sizes.len(),
            NonNull::from(&mut sizes).cast(),
        );
        descriptor.setPreferPackedRows(true);
        let array =
            MPSNDArray::initWithBuffer_offset_descriptor(MPSNDArray::alloc(), buffer, offset, &descriptor);
        if !transposed {
            return Ok(array);
        }
        let view = array.descriptor();
        view.transposeDimension_withDimension(0, 1);
        array.arrayViewWithDescriptor(&view).ok_or_else(|| missing("transposed view of a matrix"))
    }
}

impl Shaders for Product {
    fn encode(&self, idle: Idle<'_>, arena: &Raw) -> Result<()> {
        let result = array(&self.result, false, arena)?;
        let mut sources =
            vec![array(&self.left.0, self.left.1, arena)?, array(&self.right.0, self.right.1, arena)?];
        if self.adds {
            sources.push(result.retain());
        }
        let sources = NSArray::from_retained_slice(&sources);
        let encoder = idle
            .commands()
            .computeCommandEncoderWithDispatchType(MTLDispatchType::Serial)
            .ok_or_else(|| missing("encoder"))?;
        let kernel: &MPSNDArrayMultiaryKernel = &self.kernel;
        // SAFETY: the encoder is open and serial, on this command buffer; the guard has agreed to shapes and types.
        unsafe {
            kernel.encodeToCommandEncoder_commandBuffer_sourceArrays_destinationArray(
                Some(&encoder),
                idle.commands(),
                &sources,
                &result,
            );
        }
        encoder.endEncoding();
        Ok(())
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
    guard::array_product(&shape, transpose_left || transpose_right, gpu.system)?;
    // Rows with gaps between them would need strides that the class takes from macOS 15.4 on only.
    if [left, right, result].iter().any(|operand| operand.row != operand.columns) {
        return Err(Refusal::Layout);
    }
    let key = ProductKey::new((transpose_left, transpose_right), [shape.m, shape.n, shape.k], factors);
    let call = Product {
        kernel: gpu.kernels.array_product(gpu, key),
        left: (left.clone(), transpose_left),
        right: (right.clone(), transpose_right),
        result: result.clone(),
        adds: factors.1 != 0.0,
    };
    Ok(Item::shaders(op, Box::new(call), touches(sides, result, factors.1)))
}
