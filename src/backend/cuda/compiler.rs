//! Compiles kernel files without a GPU, for tests.

use super::module::{options, read, translation};
use super::nvrtc::Nvrtc;
use crate::backend::gpu::kernel::Source;
use crate::backend::gpu::kernel_files::FILES;
use crate::{Error, Result};

/// Translates our kernel files to CUDA C++ and compiles them with NVRTC, which needs no GPU.
#[derive(Debug, Clone, Copy)]
pub struct CudaCompiler;

impl CudaCompiler {
    /// Returns the version of the compiler.
    ///
    /// # Errors
    /// NVRTC is not found; the message says what to install.
    pub fn version() -> Result<(u32, u32)> {
        Ok(Nvrtc::get()?.version())
    }

    /// Names of the kernel files.
    pub fn files() -> impl Iterator<Item = &'static str> {
        FILES.iter().map(|file| file.name)
    }

    /// Names of the kernels of a file.
    ///
    /// # Errors
    /// There is no such file, or the translator rejects it.
    pub fn functions(file: &str) -> Result<Vec<String>> {
        Ok(read(&source(file)?)?.functions().map(str::to_owned).collect())
    }

    /// Number of buffers that a kernel of a file takes.
    ///
    /// # Errors
    /// There is no such file or kernel, or the translator rejects the file.
    pub fn buffers(file: &str, function: &str) -> Result<usize> {
        let source = source(file)?;
        read(&source)?.buffers(function).map_err(|error| translation(&source, &error))
    }

    /// Translates a file, with entry points for these kernels.
    ///
    /// # Errors
    /// There is no such file, or the translator rejects it.
    pub fn translate(file: &str, functions: &[&str]) -> Result<String> {
        let source = source(file)?;
        read(&source)?.translate(functions, &[]).map_err(|error| translation(&source, &error))
    }

    /// Compiles all kernels of a file for an architecture such as 90, and returns the size of the machine code in bytes.
    ///
    /// # Errors
    /// The file, the compiler's messages, or what to install where NVRTC is missing.
    pub fn compile(file: &str, architecture: u32) -> Result<usize> {
        let functions = Self::functions(file)?;
        let names: Vec<&str> = functions.iter().map(String::as_str).collect();
        let text = Self::translate(file, &names)?;
        let nvrtc = Nvrtc::get()?;
        Ok(nvrtc.compile(file, &text, &options(nvrtc, architecture)?)?.len())
    }
}

fn source(file: &str) -> Result<Source> {
    let found = FILES.into_iter().find(|source| source.name == file);
    found.ok_or_else(|| {
        let names: Vec<&str> = CudaCompiler::files().collect();
        Error::invalid(file, format!("not a kernel file; there are {}", names.join(", ")))
    })
}
