//! The Metal backend: the driver's services for the shared lowering, and the library's device.

use std::sync::Arc;

use super::buffer::{Arena, MetalBuffer};
use super::device::Gpu;
use super::error::DEVICE;
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

/// MLX's GEMM kernels, which candle-metal-kernels contains.
pub(super) const MLX_GEMM: Source = Source::third_party("mlx_gemm", candle_metal_kernels::source::MLX_GEMM);

/// The Metal backend.
pub(in crate::backend) struct Metal {
    pub(super) gpu: Arc<Gpu>,
    pub(super) arena: Arena,
}

impl Metal {
    /// Opens the system's default GPU.
    pub(in crate::backend) fn new(choices: Choices) -> Result<Self> {
        Ok(Self::on(Arc::new(Gpu::new(choices)?)))
    }

    /// The backend on an open GPU.
    pub(super) fn on(gpu: Arc<Gpu>) -> Self {
        Self { arena: Arena::new(&gpu), gpu }
    }
}

impl Driver for Metal {
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
        Ok(self.gpu.pipelines.get(kernel)?.max_threads())
    }

    fn mlx_gemm(&self) -> Option<Source> {
        Some(MLX_GEMM)
    }

    fn allocate(&self, bytes: usize, what: &'static str) -> Result<Arc<dyn Buffer>> {
        Ok(Arc::new(MetalBuffer::new(&self.gpu, bytes, what, &self.arena)?))
    }

    fn location(&self, buffer: &dyn Buffer) -> Option<Location> {
        Some(buffer.as_any().downcast_ref::<MetalBuffer>()?.location())
    }

    fn accepts(&self, call: &LibraryCall) -> std::result::Result<(), String> {
        #[cfg(mps)]
        return crate::backend::mps::prepare(&self.gpu, call)
            .map(drop)
            .map_err(|refusal| refusal.to_string());
        #[cfg(not(mps))]
        {
            let _ = call;
            Err("this build does not contain Metal Performance Shaders".to_owned())
        }
    }
}

impl Backend for Metal {
    fn name(&self) -> String {
        DEVICE.to_owned()
    }

    fn allocate(&self, bytes: usize) -> Result<Arc<dyn Buffer>> {
        Driver::allocate(self, bytes, "weights and states")
    }

    fn import(&self, tensor: &HostTensor) -> Result<Arc<dyn Buffer>> {
        Ok(Arc::new(MetalBuffer::import(&self.gpu, tensor, &self.arena)?))
    }

    fn peak(&self) -> Option<Peak> {
        let chip = self.gpu.chip;
        let source = format!("the peaks of {}, by others' figures; not measured", chip.name);
        Some(Peak { flops: 1e12 * chip.teraflops, bytes: 1e9 * chip.gigabytes, source })
    }

    fn compile(&self, plan: &Plan) -> Result<Box<dyn Executable>> {
        objc2::rc::autoreleasepool(|_| {
            self.arena.reserve(&self.gpu, plan.arena_bytes)?;
            let executable = replay::compile(self, plan);
            self.gpu.pipelines.store();
            executable
        })
    }
}
