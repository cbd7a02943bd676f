//! The GPU: its context, its stream, and its properties.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::driver::{result, sys};

use super::device_info::GpuInfo;
use super::error::{DEVICE, failed, of_driver};
use super::module::Modules;
use crate::backend::gpu::chip::Chip;
use crate::backend::select::{Choices, Preference};
use crate::error::DeviceFault;
use crate::{Error, Result};

/// Oldest architecture that the kernels support, which is the first with bfloat16 (Ampere).
const OLDEST: u32 = 80;

/// Held while modules are loaded and unloaded and while graphs are recorded, made and destroyed: work of one device must not
/// meet another one's changes of the context that they share.
static CHANGES: Mutex<()> = Mutex::new(());

/// Returns the guard of changes of a context.
pub(super) fn changes() -> MutexGuard<'static, ()> {
    CHANGES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A GPU with one stream.
pub(super) struct Gpu {
    context: sys::CUcontext,
    pub(super) stream: sys::CUstream,
    pub(super) modules: Modules,
    pub(super) chip: Chip,
    pub(super) choices: Choices,
}

// SAFETY: contexts and streams may be used from any thread; work is submitted under the arena's lock.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

/// Loads the driver's library once for the process.
fn load_driver() -> Result<()> {
    static LOADED: OnceLock<bool> = OnceLock::new();
    let loaded = *LOADED.get_or_init(|| {
        let names = ["cuda", "nvcuda"].into_iter().flat_map(cudarc::get_lib_name_candidates);
        for name in names {
            // SAFETY: the library's initializers only set up the driver.
            if let Ok(library) = unsafe { libloading::Library::new(name) } {
                // The library stays loaded, whatever becomes of this handle.
                std::mem::forget(library);
                return true;
            }
        }
        false
    });
    if !loaded {
        let message = "the NVIDIA driver (libcuda) was not found; install it, or use the cpu";
        return Err(failed("a GPU", DeviceFault::Unavailable, message));
    }
    result::init().map_err(|error| of_driver("the NVIDIA driver", error))
}

/// Returns true if the driver is present and lists a GPU.
pub(in crate::backend) fn has_gpu() -> bool {
    load_driver().is_ok() && result::device::get_count().is_ok_and(|count| count > 0)
}

/// Returns the version of CUDA that the driver supports, and its GPUs, or what is missing.
pub(super) fn describe() -> std::result::Result<((u32, u32), Vec<GpuInfo>), String> {
    let read = || -> Result<_> {
        load_driver()?;
        let fault = |error| of_driver("the NVIDIA driver", error);
        let mut version = 0;
        // SAFETY: the place is valid for a write.
        unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(fault)?;
        let mut gpus = Vec::new();
        for ordinal in 0..result::device::get_count().map_err(fault)? {
            let device = result::device::get(ordinal).map_err(fault)?;
            let attribute = |attribute| {
                // SAFETY: the device was returned by the driver.
                unsafe { result::device::get_attribute(device, attribute) }.map_err(fault)
            };
            let major = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
            let minor = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
            gpus.push(GpuInfo {
                name: result::device::get_name(device).map_err(fault)?,
                capability: (major as u32, minor as u32),
                // SAFETY: the device was returned by the driver.
                memory: unsafe { result::device::total_mem(device) }.map_err(fault)?,
            });
        }
        Ok(((version as u32 / 1000, version as u32 % 1000 / 10), gpus))
    };
    read().map_err(|error| error.to_string())
}

impl Gpu {
    /// Opens a GPU by its number.
    ///
    /// # Errors
    /// There is no driver, no such GPU, the GPU is too old, or the kernel compiler is missing.
    pub(super) fn new(ordinal: usize, choices: Choices) -> Result<Self> {
        load_driver()?;
        let count = result::device::get_count().map_err(|error| of_driver("the list of GPUs", error))?;
        if ordinal >= usize::try_from(count).unwrap_or(0) {
            let message = format!("the driver lists {count} GPUs, counted from 0");
            return Err(failed(format!("GPU {ordinal}"), DeviceFault::Unavailable, message));
        }
        let what = || format!("GPU {ordinal}");
        let device = result::device::get(ordinal as i32).map_err(|error| of_driver(what(), error))?;
        let name = result::device::get_name(device).map_err(|error| of_driver(what(), error))?;
        let attribute = |attribute| {
            // SAFETY: the device was returned by the driver.
            let value = unsafe { result::device::get_attribute(device, attribute) };
            value.map_err(|error| of_driver(what(), error))
        };
        let major = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let architecture = (10 * major + minor) as u32;
        if architecture < OLDEST {
            let message = format!(
                "{name} has compute capability {major}.{minor}; the kernels need 8.0 (Ampere) or later"
            );
            return Err(failed(what(), DeviceFault::Unavailable, message));
        }
        let modules = Modules::new(architecture, choices.kernels.clone())?;
        // The primary context is that of the process, and lives as long: other libraries may use it too.
        // SAFETY: the device was returned by the driver.
        let context = unsafe { result::primary_ctx::retain(device) };
        let context = context.map_err(|error| of_driver(format!("the context of {name}"), error))?;
        let mut gpu = Self {
            context,
            stream: std::ptr::null_mut(),
            modules,
            chip: Chip::of_nvidia(&name),
            choices: Choices { preference: Preference::Metal, ..choices.on(&name) },
        };
        gpu.activate()?;
        let kind = result::stream::StreamKind::NonBlocking;
        gpu.stream = result::stream::create(kind).map_err(|error| of_driver("a stream", error))?;
        Ok(gpu)
    }

    /// Makes the GPU's context that of the calling thread.
    pub(super) fn activate(&self) -> Result<()> {
        // SAFETY: the context is retained for as long as the GPU lives.
        self.checked("the context", unsafe { result::ctx::set_current(self.context) })
    }

    /// Waits for all work of the stream; `what` names it for an error.
    pub(super) fn wait<W: Into<String>>(&self, what: impl FnOnce() -> W) -> Result<()> {
        // SAFETY: the stream lives as long as the GPU.
        match unsafe { result::stream::synchronize(self.stream) } {
            Ok(()) => Ok(()),
            failed => self.checked(&what().into(), failed),
        }
    }

    /// Converts the result of a call.
    pub(super) fn checked<T>(
        &self,
        what: &str,
        result: std::result::Result<T, cudarc::driver::DriverError>,
    ) -> Result<T> {
        result.map_err(|error| of_driver(what, error))
    }

    /// Returns the error for memory that the GPU does not have, with what is free of it.
    pub(super) fn out_of_memory(&self, bytes: usize, what: &str) -> Error {
        let what = match result::mem_get_info() {
            Ok((free, total)) => format!("{what} ({free} of {total} bytes are free)"),
            Err(_) => what.to_owned(),
        };
        Error::OutOfMemory { device: DEVICE.to_owned(), bytes, what }
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if self.activate().is_err() {
            return;
        }
        let _changes = changes();
        self.modules.unload();
        if self.stream.is_null() {
            return;
        }
        // SAFETY: no buffer or program refers to the GPU any more, so nothing uses the stream.
        if let Err(error) = unsafe { result::stream::destroy(self.stream) } {
            tracing::debug!(?error, "the stream of the GPU is not destroyed");
        }
    }
}
