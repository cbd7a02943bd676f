//! `MPSMatrixSoftMax`, `MPSMatrixLogSoftMax` and their gradients, along the last axis.

use objc2::AnyThread;
use objc2::rc::Retained;
use objc2_metal_performance_shaders::{
    MPSMatrixLogSoftMax, MPSMatrixLogSoftMaxGradient, MPSMatrixSoftMax, MPSMatrixSoftMaxGradient,
};

use super::guard::{self, Refusal};
use super::matrix::Operand;
use crate::Result;
use crate::backend::metal::buffer::Raw;
use crate::backend::metal::commands::Idle;
use crate::backend::metal::device::Gpu;
use crate::backend::metal::executor::{Item, Shaders};
use crate::backend::metal::launch::Touches;

enum Kernel {
    Softmax(Retained<MPSMatrixSoftMax>),
    LogSoftmax(Retained<MPSMatrixLogSoftMax>),
    SoftmaxGrad(Retained<MPSMatrixSoftMaxGradient>),
    LogSoftmaxGrad(Retained<MPSMatrixLogSoftMaxGradient>),
}

/// A call, ready to be encoded.
struct Rows {
    kernel: Kernel,
    inputs: Vec<Operand>,
    result: Operand,
}

// SAFETY: the object is used by one thread at a time: calls are encoded under the arena's lock.
unsafe impl Send for Rows {}
// SAFETY: as above.
unsafe impl Sync for Rows {}

impl Shaders for Rows {
    fn encode(&self, idle: Idle<'_>, arena: &Raw) -> Result<()> {
        let inputs: Vec<_> = self.inputs.iter().map(|operand| operand.matrix(arena)).collect();
        let (result, commands) = (self.result.matrix(arena), idle.commands());
        // SAFETY: no encoder is open, says `Idle`; all matrices have one shape and type, to which the guard has agreed.
        unsafe {
            match &self.kernel {
                Kernel::Softmax(kernel) => {
                    kernel.encodeToCommandBuffer_inputMatrix_resultMatrix(commands, &inputs[0], &result);
                }
                Kernel::LogSoftmax(kernel) => {
                    kernel.encodeToCommandBuffer_inputMatrix_resultMatrix(commands, &inputs[0], &result);
                }
                Kernel::SoftmaxGrad(kernel) => kernel
                    .encodeToCommandBuffer_gradientMatrix_forwardOutputMatrix_resultMatrix(
                        commands, &inputs[0], &inputs[1], &result,
                    ),
                Kernel::LogSoftmaxGrad(kernel) => kernel
                    .encodeToCommandBuffer_gradientMatrix_forwardOutputMatrix_resultMatrix(
                        commands, &inputs[0], &inputs[1], &result,
                    ),
            }
        }
        Ok(())
    }
}

fn item(
    op: &'static str,
    kernel: impl FnOnce() -> Kernel,
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
        return Err(Refusal::Addend);
    }
    let touches = Touches { reads, writes: vec![result.span()] };
    Ok(Item::shaders(op, Box::new(Rows { kernel: kernel(), inputs, result }), touches))
}

/// The item of a softmax, or of a log-softmax if `log`, of rows.
pub(in crate::backend) fn softmax(
    gpu: &Gpu,
    op: &'static str,
    x: Operand,
    y: Operand,
    log: bool,
) -> std::result::Result<Item, Refusal> {
    let device = &gpu.device;
    // SAFETY: the initialisers have no demands but a device that the framework supports.
    let kernel = || unsafe {
        if log {
            Kernel::LogSoftmax(MPSMatrixLogSoftMax::initWithDevice(MPSMatrixLogSoftMax::alloc(), device))
        } else {
            Kernel::Softmax(MPSMatrixSoftMax::initWithDevice(MPSMatrixSoftMax::alloc(), device))
        }
    };
    item(op, kernel, vec![x], y)
}

/// The item of their gradient: dy and y to dx.
pub(in crate::backend) fn softmax_grad(
    gpu: &Gpu,
    op: &'static str,
    dy: Operand,
    y: Operand,
    dx: Operand,
    log: bool,
) -> std::result::Result<Item, Refusal> {
    let device = &gpu.device;
    // SAFETY: as above.
    let kernel = || unsafe {
        if log {
            let made =
                MPSMatrixLogSoftMaxGradient::initWithDevice(MPSMatrixLogSoftMaxGradient::alloc(), device);
            Kernel::LogSoftmaxGrad(made)
        } else {
            let made = MPSMatrixSoftMaxGradient::initWithDevice(MPSMatrixSoftMaxGradient::alloc(), device);
            Kernel::SoftmaxGrad(made)
        }
    };
    item(op, kernel, vec![dy, y], dx)
}
