//! Kernels of the device: translated, compiled, kept on disk, and loaded, each function once.

use std::collections::HashMap;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{result, sys};

use super::device::changes;
use super::error::{failed, of_driver};
use super::nvrtc::Nvrtc;
use super::translate::{KernelFile, entry_name};
use crate::Result;
use crate::backend::gpu::kernel::{Constant, Kernel, Source};
use crate::content_hash::ContentHash;
use crate::error::DeviceFault;

type Key = (&'static str, String, Vec<Constant>);

/// Maximum number of threads that compile at the same time.
const COMPILERS: usize = 8;

/// A loaded kernel.
#[derive(Clone, Copy)]
pub(super) struct Function(pub(super) sys::CUfunction);

// SAFETY: a function is immutable and may be launched from any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

struct Loaded {
    module: sys::CUmodule,
    function: Function,
}

// SAFETY: a module may be used from any thread; it is unloaded once.
unsafe impl Send for Loaded {}

/// Kernels by name.
pub(super) struct Modules {
    nvrtc: &'static Nvrtc,
    options: Vec<String>,
    folder: Option<PathBuf>,
    files: Mutex<HashMap<&'static str, Arc<KernelFile>>>,
    loaded: Mutex<HashMap<Key, Loaded>>,
}

/// Options of the compiler for an architecture. Divisions and square roots are rounded correctly, subnormal numbers are kept, and
/// a product and a sum are one operation only where the source calls `fma`, so that a kernel and the fused one that computes
/// the same give the same bits.
///
/// # Errors
/// The compiler does not support the architecture.
pub(super) fn options(nvrtc: &Nvrtc, architecture: u32) -> Result<Vec<String>> {
    Ok(vec![
        format!("--gpu-architecture={}", nvrtc.architecture(architecture)?),
        "--std=c++17".to_owned(),
        "--device-as-default-execution-space".to_owned(),
        "--fmad=false".to_owned(),
    ])
}

/// Reads a kernel file.
///
/// # Errors
/// The translator cannot read it.
pub(super) fn read(source: &Source) -> Result<KernelFile> {
    KernelFile::read(source.name, source.text, source.includes_common)
        .map_err(|error| translation(source, &error))
}

/// Returns the error of a file that the translator rejects.
pub(super) fn translation(source: &Source, error: &msl::Error) -> crate::Error {
    failed(format!("the kernel file '{}'", source.name), DeviceFault::Kernel, error.to_string())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn key(kernel: &Kernel) -> Key {
    (kernel.source.name, kernel.function.clone(), kernel.constants.clone())
}

impl Modules {
    /// Returns the kernels for an architecture such as 90; `folder` keeps compiled ones.
    ///
    /// # Errors
    /// The compiler is missing or does not support the architecture.
    pub(super) fn new(architecture: u32, folder: Option<PathBuf>) -> Result<Self> {
        let nvrtc = Nvrtc::get()?;
        let options = options(nvrtc, architecture)?;
        tracing::debug!(path = %nvrtc.path().display(), version = ?nvrtc.version(), "NVRTC");
        Ok(Self { nvrtc, options, folder, files: Mutex::default(), loaded: Mutex::default() })
    }

    fn file(&self, source: &Source) -> Result<Arc<KernelFile>> {
        if let Some(file) = lock(&self.files).get(source.name) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(read(source)?);
        lock(&self.files).insert(source.name, Arc::clone(&file));
        Ok(file)
    }

    /// Maximum number of threads of a threadgroup of a kernel, which its source declares.
    pub(super) fn max_threads(&self, kernel: &Kernel) -> Result<usize> {
        let file = self.file(&kernel.source)?;
        file.max_threads(&kernel.function).map_err(|error| translation(&kernel.source, &error))
    }

    /// Number of buffers that a kernel takes.
    pub(super) fn buffers(&self, kernel: &Kernel) -> Result<usize> {
        let file = self.file(&kernel.source)?;
        file.buffers(&kernel.function).map_err(|error| translation(&kernel.source, &error))
    }

    /// Compiles and loads those of the kernels that are not loaded yet, several at the same time. The calling thread has the
    /// GPU's context.
    ///
    /// # Errors
    /// A kernel does not compile or cannot be loaded.
    pub(super) fn load<'a>(&self, kernels: impl Iterator<Item = &'a Kernel>) -> Result<()> {
        let mut wanted: Vec<&Kernel> = Vec::new();
        for kernel in kernels {
            let known = lock(&self.loaded).contains_key(&key(kernel));
            if !known && !wanted.iter().any(|other| key(other) == key(kernel)) {
                wanted.push(kernel);
            }
        }
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(COMPILERS);
        let next = Mutex::new(wanted.iter());
        let compiled = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            let work = || {
                loop {
                    let Some(kernel) = lock(&next).next() else { break };
                    let result = self.image(kernel);
                    let failed = result.is_err();
                    lock(&compiled).push((*kernel, result));
                    if failed {
                        break;
                    }
                }
            };
            for _ in 1..threads.min(wanted.len()) {
                scope.spawn(work);
            }
            work();
        });
        let _changes = changes();
        for (kernel, result) in compiled.into_inner().unwrap_or_else(PoisonError::into_inner) {
            let (image, stored) = result?;
            let loaded = match load(kernel, &image) {
                // The file is damaged, or of a compiler whose machine code the driver does not take.
                Err(_) if stored => load(kernel, &self.compile_and_store(kernel)?)?,
                loaded => loaded?,
            };
            lock(&self.loaded).insert(key(kernel), loaded);
        }
        Ok(())
    }

    /// Returns a kernel that was loaded.
    pub(super) fn get(&self, kernel: &Kernel) -> Result<Function> {
        let found = lock(&self.loaded).get(&key(kernel)).map(|loaded| loaded.function);
        found.ok_or_else(|| failed(what(kernel), DeviceFault::Kernel, "it is not loaded"))
    }

    fn text(&self, kernel: &Kernel) -> Result<String> {
        let file = self.file(&kernel.source)?;
        file.translate(&[&kernel.function], &kernel.constants)
            .map_err(|error| translation(&kernel.source, &error))
    }

    /// Returns the machine code of a kernel, and whether a file contained it.
    fn image(&self, kernel: &Kernel) -> Result<(Vec<u8>, bool)> {
        let text = self.text(kernel)?;
        let path = self.folder.as_deref().map(|folder| self.path(folder, kernel, &text));
        if let Some(path) = &path
            && let Some(image) = std::fs::read(path).ok().and_then(unsealed)
        {
            return Ok((image, true));
        }
        Ok((self.compile_and_store(kernel)?, false))
    }

    /// Compiles a kernel and writes its file; a file that cannot be written is a warning.
    fn compile_and_store(&self, kernel: &Kernel) -> Result<Vec<u8>> {
        let text = self.text(kernel)?;
        let image = self.nvrtc.compile(&what(kernel), &text, &self.options)?;
        if let Some(folder) = &self.folder {
            let path = self.path(folder, kernel, &text);
            let written = std::fs::create_dir_all(folder).map_err(|error| error.to_string()).and_then(|()| {
                crate::atomic::write(&path, &sealed(&image)).map_err(|error| error.to_string())
            });
            if let Err(error) = written {
                tracing::warn!(path = %path.display(), error, "a compiled kernel is not kept");
            }
        }
        Ok(image)
    }

    /// The file of a kernel: its name contains all that the machine code depends on.
    fn path(&self, folder: &Path, kernel: &Kernel, text: &str) -> PathBuf {
        let mut hash = ContentHash::new();
        hash.add(text.as_bytes());
        hash.add(format!("{:?}{:?}", self.options, self.nvrtc.version()).as_bytes());
        folder.join(format!("cuda-{}-{}.cubin", kernel.function, hash.finish()))
    }

    /// Unloads all modules; the GPU is idle, and its context is that of the calling thread.
    pub(super) fn unload(&self) {
        for (_, loaded) in lock(&self.loaded).drain() {
            // SAFETY: no program is left that launches the module's functions.
            let _ = unsafe { result::module::unload(loaded.module) };
        }
    }
}

fn hash(image: &[u8]) -> String {
    let mut hash = ContentHash::new();
    hash.add(image);
    hash.finish()
}

/// Machine code with its hash before it: the driver reads beyond the end of an image that is cut off.
fn sealed(image: &[u8]) -> Vec<u8> {
    let mut file = hash(image).into_bytes();
    file.push(b'\n');
    file.extend_from_slice(image);
    file
}

/// Returns the machine code of a file, or `None` if the file is damaged.
fn unsealed(mut file: Vec<u8>) -> Option<Vec<u8>> {
    let end = file.iter().position(|&byte| byte == b'\n')?;
    let image = file.split_off(end + 1);
    (file[..end] == *hash(&image).as_bytes()).then_some(image)
}

fn what(kernel: &Kernel) -> String {
    format!("kernel '{}' of '{}'", kernel.function, kernel.source.name)
}

fn load(kernel: &Kernel, image: &[u8]) -> Result<Loaded> {
    let fault = |error| of_driver(what(kernel), error);
    // Intermediate code must end with zero; machine code may be followed by it.
    let mut image = image.to_vec();
    image.push(0);
    // SAFETY: the image is what the compiler made, and is copied.
    let module = unsafe { result::module::load_data(image.as_ptr().cast()) }.map_err(fault)?;
    let name = CString::new(entry_name(&kernel.function)).expect("names of kernels contain no zero");
    // SAFETY: the module was loaded above.
    let function = unsafe { result::module::get_function(module, name) }.map_err(fault)?;
    // The driver loads a function when it is first used, which must not be while a graph is recorded.
    let registers = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS;
    // SAFETY: the function was found above.
    unsafe { result::function::get_function_attribute(function, registers) }.map_err(fault)?;
    Ok(Loaded { module, function: Function(function) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_files_of_machine_code_are_used() {
        let file = sealed(b"code");
        assert_eq!(unsealed(file.clone()).unwrap(), b"code");
        assert_eq!(unsealed(file[..file.len() - 1].to_vec()), None);
        let mut changed = file;
        *changed.last_mut().unwrap() ^= 1;
        assert_eq!(unsealed(changed), None);
        assert_eq!(unsealed(Vec::new()), None);
    }
}
