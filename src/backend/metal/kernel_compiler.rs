//! Compiles every kernel file with the system's own compiler, for `tests/kernels.rs`.
//!
//! Compilation needs no GPU that the backend accepts: [`KernelCompiler::new`] takes any Metal device, also the paravirtual
//! one of a hosted CI runner, which `newLibraryWithSource` is enough for.

use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::ProtocolObject;
use objc2_metal::{MTLDevice, MTLGPUFamily, MTLLibrary as _};

use super::backend::MLX_GEMM;
use super::error::failed;
use super::pipeline::Pipelines;
use crate::Result;
use crate::backend::gpu::kernel::{Constant, Kernel, Source};
use crate::backend::gpu::kernel_files::FILES;
use crate::error::DeviceFault;

/// Every kernel file that the backend compiles: ours, and MLX's matrix product.
fn files() -> impl Iterator<Item = Source> {
    FILES.into_iter().chain([MLX_GEMM])
}

/// Function constants of MLX's product, all of them off: no batch axes, no addend, tiles that are not full.
const MLX_GEMM_CONSTANTS: [Constant; 7] = [
    Constant::Bool(10, false),
    Constant::Bool(100, false),
    Constant::Bool(110, false),
    Constant::Bool(200, false),
    Constant::Bool(201, false),
    Constant::Bool(202, false),
    Constant::Bool(300, false),
];

/// The system's Metal compiler, for kernel files by name.
pub struct KernelCompiler {
    device: Retained<ProtocolObject<dyn MTLDevice>>,
    pipelines: Pipelines,
}

impl std::fmt::Debug for KernelCompiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KernelCompiler({})", self.device_name())
    }
}

impl KernelCompiler {
    /// Opens the first Metal device of the system, whatever its GPU family.
    ///
    /// # Errors
    /// The system has no Metal device at all.
    pub fn new() -> Result<Self> {
        autoreleasepool(|_| {
            let device = super::system::device().ok_or_else(|| {
                failed("the Metal compiler", DeviceFault::Unavailable, "the system lists no Metal device")
            })?;
            Ok(Self { pipelines: Pipelines::new(&device, None), device })
        })
    }

    /// Name of the device that compiles.
    pub fn device_name(&self) -> String {
        autoreleasepool(|_| self.device.name().to_string())
    }

    /// Returns true if the device belongs to family Apple7 or later, which pipelines of these kernels need.
    pub fn makes_pipelines(&self) -> bool {
        self.device.supportsFamily(MTLGPUFamily::Apple7)
    }

    /// Names of the kernel files.
    pub fn files() -> impl Iterator<Item = &'static str> {
        files().map(|file| file.name)
    }

    /// Compiles a file and returns the names of its functions, sorted.
    ///
    /// # Errors
    /// There is no such file, or the compiler refuses it: the error carries the compiler's messages.
    pub fn functions(&self, file: &str) -> Result<Vec<String>> {
        autoreleasepool(|_| {
            let library = self.pipelines.library(source(file)?)?;
            let mut names: Vec<String> =
                library.functionNames().iter().map(|name| name.to_string()).collect();
            names.sort();
            Ok(names)
        })
    }

    /// Makes the pipeline of a function and returns how many threads a threadgroup of it may have.
    ///
    /// # Errors
    /// There is no such function, or the compiler's back end refuses it.
    pub fn pipeline(&self, file: &str, function: &str) -> Result<usize> {
        let source = source(file)?;
        let constants: &[Constant] = if source.name == MLX_GEMM.name { &MLX_GEMM_CONSTANTS } else { &[] };
        let kernel = Kernel { source, function: function.to_owned(), constants: constants.to_vec() };
        Ok(self.pipelines.get(&kernel)?.max_threads())
    }
}

fn source(file: &str) -> Result<Source> {
    let found = files().find(|source| source.name == file);
    found.ok_or_else(|| {
        let names: Vec<&str> = KernelCompiler::files().collect();
        crate::Error::invalid(file, format!("not a kernel file; there are {}", names.join(", ")))
    })
}
