//! What planning depends on: scratch memory, in-place inputs and outputs, and the fusions that a device has kernels for.

use super::Operand;
use crate::ops::Op;
use crate::tensor::TensorSpec;

/// The device that a computation is planned for.
pub trait Target {
    /// Returns the bytes of scratch memory that an operation needs for these inputs and outputs.
    fn scratch(&self, op: &Op, inputs: &[Operand], outputs: &[TensorSpec]) -> usize;

    /// Returns true if inputs are read, and outputs written, in memory of the caller; otherwise both are in the arena.
    fn in_place_io(&self) -> bool {
        false
    }

    /// Returns true if the device's kernel for this product of `[m, k]` and `[n, k]`, with or without adapters, also computes
    /// an [`Epilogue`](crate::ops::Epilogue). `inputs` are the product's.
    fn supports_epilogue(&self, _product: &Op, _inputs: &[TensorSpec]) -> bool {
        false
    }

    /// Returns true if the device has a kernel for [`RopeKvWrite`](crate::ops::RopeKvWrite).
    fn supports_rope_kv_write(&self) -> bool {
        false
    }

    /// Returns true if the device supports any fusion; otherwise a graph is planned as recorded.
    fn fuses(&self) -> bool {
        false
    }
}
