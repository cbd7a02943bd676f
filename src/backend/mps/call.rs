//! A call of Metal Performance Shaders that is ready to be encoded.

use super::ffi::{Array, Matrix};
use crate::Result;
use crate::backend::gpu::library;
use crate::backend::metal::commands::NoEncoder;
use crate::backend::metal::memory::Memory;

/// A call that opens its own encoders.
pub(in crate::backend) trait MpsCall: Send + Sync {
    /// Encodes the call into a command buffer without an open encoder.
    ///
    /// # Errors
    /// A matrix is not within its buffer, or the system refuses an object.
    fn encode(&self, target: NoEncoder<'_>, memory: Memory<'_>) -> Result<()>;
}

/// Returns the framework's matrix over a matrix of a plan.
pub(super) fn matrix(matrix: &library::Matrix, memory: Memory<'_>) -> Result<Matrix> {
    let (buffer, offset) = memory.resolve(matrix.address);
    Matrix::over(buffer, offset, matrix.layout)
}

/// Returns the framework's array over a matrix of a plan.
pub(super) fn array(matrix: &library::Matrix, transposed: bool, memory: Memory<'_>) -> Result<Array> {
    let (buffer, offset) = memory.resolve(matrix.address);
    Array::over(buffer, offset, matrix.layout, transposed)
}
