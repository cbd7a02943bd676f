//! What the shared lowering needs from the driver of a GPU.

use std::sync::Arc;

use super::chip::Chip;
use super::kernel::{Kernel, Source};
use super::library::LibraryCall;
use crate::Result;
use crate::backend::select::Choices;
use crate::tensor::Buffer;

/// Position of a buffer in the memory of a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::backend) struct Location {
    /// A number that is equal for buffers cut from one allocation, and different otherwise.
    pub(in crate::backend) allocation: usize,
    /// Size of the allocation in bytes.
    pub(in crate::backend) allocation_bytes: usize,
    /// Byte offset of the buffer in the allocation.
    pub(in crate::backend) offset: usize,
    /// False for memory that kernels may read only.
    pub(in crate::backend) writable: bool,
}

/// The driver of a GPU: compiles kernels, allocates memory, and calls the vendor's library.
pub(in crate::backend) trait Driver: Send + Sync {
    /// Name for messages, such as "metal".
    fn name(&self) -> &'static str;

    /// Throughput and limits of the GPU.
    fn chip(&self) -> Chip;

    /// How implementations are chosen.
    fn choices(&self) -> &Choices;

    /// Compiles a kernel, unless that was done before, and returns the maximum number of threads of its threadgroup.
    ///
    /// # Errors
    /// The compiler rejects the kernel.
    fn max_threads(&self, kernel: &Kernel) -> Result<usize>;

    /// Returns the library of MLX's GEMM kernels, or `None` where the driver does not have it.
    fn mlx_gemm(&self) -> Option<Source>;

    /// Allocates memory filled with zeros; `what` is for messages.
    ///
    /// # Errors
    /// There is not enough memory.
    fn allocate(&self, bytes: usize, what: &'static str) -> Result<Arc<dyn Buffer>>;

    /// Returns the position of a buffer, or `None` if it belongs to another device.
    fn location(&self, buffer: &dyn Buffer) -> Option<Location>;

    /// Checks that the vendor's library may run a call.
    ///
    /// # Errors
    /// The reason why one of our kernels must run it.
    fn accepts(&self, call: &LibraryCall) -> std::result::Result<(), String>;
}
