//! The CUDA backend: the driver's services for the shared lowering, and the library's device.

use std::sync::Arc;

use super::device::Gpu;
use super::error::DEVICE;
use super::memory::{Arena, CudaBuffer};
use super::replay;
use crate::Result;
use crate::backend::gpu::chip::Chip;
use crate::backend::gpu::driver::{Driver, Location};
use crate::backend::gpu::kernel::{Kernel, Source};
use crate::backend::gpu::library::LibraryCall;
use crate::backend::profile::Peak;
use crate::backend::select::Choices;
use crate::backend::{Backend, Executable};
use crate::graph::Plan;
use crate::tensor::{Buffer, HostTensor};

/// The CUDA backend.
pub(in crate::backend) struct Cuda {
    pub(super) gpu: Arc<Gpu>,
    pub(super) arena: Arena,
}

impl Cuda {
    /// Opens a GPU by its number.
    ///
    /// # Errors
    /// The driver, the GPU or the kernel compiler is missing.
    pub(in crate::backend) fn new(ordinal: usize, choices: Choices) -> Result<Self> {
        Ok(Self { gpu: Arc::new(Gpu::new(ordinal, choices)?), arena: Arena::default() })
    }
}

impl Driver for Cuda {
    fn name(&self) -> &'static str {
        DEVICE
    }

    fn chip(&self) -> Chip {
        self.gpu.chip
    }

    fn choices(&self) -> &Choices {
        &self.gpu.choices
    }

    fn max_threads(&self, kernel: &Kernel) -> Result<usize> {
        self.gpu.modules.max_threads(kernel)
    }

    fn mlx_gemm(&self) -> Option<Source> {
        None
    }

    fn allocate(&self, bytes: usize, what: &'static str) -> Result<Arc<dyn Buffer>> {
        Ok(Arc::new(CudaBuffer::new(&self.gpu, bytes, what, &self.arena)?))
    }

    fn location(&self, buffer: &dyn Buffer) -> Option<Location> {
        let buffer = buffer.as_any().downcast_ref::<CudaBuffer>()?;
        buffer.is_on(&self.gpu).then(|| buffer.location())
    }

    fn accepts(&self, _: &LibraryCall) -> std::result::Result<(), String> {
        Err("this backend calls no library".to_owned())
    }
}

impl Backend for Cuda {
    fn name(&self) -> String {
        DEVICE.to_owned()
    }

    fn allocate(&self, bytes: usize) -> Result<Arc<dyn Buffer>> {
        Driver::allocate(self, bytes, "weights and states")
    }

    fn import(&self, tensor: &HostTensor) -> Result<Arc<dyn Buffer>> {
        let buffer = CudaBuffer::new(&self.gpu, tensor.bytes().len(), "weights", &self.arena)?;
        buffer.write(0, tensor.bytes())?;
        tensor.release_pages();
        Ok(Arc::new(buffer.frozen()))
    }

    fn peak(&self) -> Option<Peak> {
        let chip = self.gpu.chip;
        let source = format!("the peaks of {}, by NVIDIA's data sheets; not measured", chip.name);
        Some(Peak { flops: 1e12 * chip.teraflops, bytes: 1e9 * chip.gigabytes, source })
    }

    fn compile(&self, plan: &Plan) -> Result<Box<dyn Executable>> {
        self.gpu.activate()?;
        self.arena.reserve(&self.gpu, plan.arena_bytes)?;
        replay::compile(self, plan)
    }
}
