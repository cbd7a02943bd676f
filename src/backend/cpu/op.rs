//! The context in which an operation is compiled to a kernel call of the CPU.

use std::ops::Deref;

use super::element::SimdElement;
use super::pool::Pool;
use crate::Result;
use crate::backend::lowering::{self, StepContext};
use crate::graph::Operand;
use crate::tensor::DType;

/// Evaluates an expression for the Rust type of a float dtype.
macro_rules! real {
    ($dtype:expr, |$T:ident| $body:expr) => {
        match $dtype {
            $crate::tensor::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::tensor::DType::F16 => {
                type $T = half::f16;
                $body
            }
            $crate::tensor::DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            $crate::tensor::DType::U32 => unreachable!("shape rules refuse integers here"),
        }
    };
}
pub(super) use real;

/// What a kernel call needs when it runs.
pub(super) struct Run<'a> {
    pub(super) pool: &'a Pool,
    pub(super) arena: *mut u8,
    /// The first bytes of the plan's inputs, then of its outputs.
    pub(super) given: &'a [*mut u8],
}

/// One step, ready to run.
pub(super) type Call = Box<dyn Fn(&Run<'_>) -> Result<()> + Send + Sync>;

/// Address of a tensor's buffer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Address {
    /// At a byte of the arena.
    Arena(usize),
    /// In a parameter's buffer, which the executable keeps alive.
    Fixed(*mut u8),
    /// In memory of the caller: the number of an input of the plan or, counted on after the inputs, of an output.
    Given(usize),
}

// SAFETY: an address is used only by the calls of the executable that owns what it points to, under the arena's lock.
unsafe impl Send for Address {}
// SAFETY: as above.
unsafe impl Sync for Address {}

impl Run<'_> {
    /// # Safety
    /// The address belongs to the plan that runs.
    pub(super) unsafe fn at<T>(&self, address: Address) -> *mut T {
        match address {
            // SAFETY: the planner's offsets lie within the arena.
            Address::Arena(offset) => unsafe { self.arena.add(offset).cast() },
            Address::Fixed(pointer) => pointer.cast(),
            Address::Given(index) => self.given[index].cast(),
        }
    }
}

/// A tensor in the memory of the host.
pub(super) type Tensor = lowering::Tensor<Address>;

impl Tensor {
    /// Returns the pointer to the first element.
    ///
    /// # Safety
    /// The tensor belongs to the plan that runs, and T is its dtype or bytes.
    pub(super) unsafe fn at<T>(&self, run: &Run<'_>) -> *mut T {
        // SAFETY: the layout's first element is within its buffer.
        unsafe { run.at::<u8>(self.address).add(self.layout.offset * self.dtype.size()).cast() }
    }
}

/// Bytes of scratch for [`vector_f32`].
pub(super) fn vector_scratch(operand: &Operand) -> usize {
    if operand.dtype == DType::F32 { 0 } else { (4 * operand.layout.shape.elements()).next_multiple_of(64) }
}

/// A contiguous vector in f32: where it is, or converted into the scratch.
///
/// # Safety
/// The tensor belongs to the plan that runs; `scratch` is valid for [`vector_scratch`] bytes.
pub(super) unsafe fn vector_f32(vector: &Tensor, cx: &Run<'_>, scratch: *mut f32) -> *const f32 {
    if vector.dtype == DType::F32 {
        // SAFETY: as the caller promises.
        return unsafe { vector.at(cx) };
    }
    real!(vector.dtype, |T| {
        for i in 0..vector.elements() {
            // SAFETY: as the caller promises.
            unsafe { scratch.add(i).write(vector.at::<T>(cx).add(i).read().get()) };
        }
    });
    scratch
}

/// The context in which an operation is compiled.
pub(super) struct OpContext<'a> {
    pub(super) base: StepContext<'a, Address>,
    /// SimdElement of threads that run the call.
    pub(super) threads: usize,
}

impl<'a> Deref for OpContext<'a> {
    type Target = StepContext<'a, Address>;

    fn deref(&self) -> &Self::Target {
        &self.base
    }
}
