//! Kernels as pipeline states, compiled from source at run time, each library and pipeline once per device.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use objc2::AnyThread;
use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::ProtocolObject;
use objc2_foundation::NSString;
use objc2_metal::{
    MTLCompileOptions, MTLComputePipelineState, MTLDataType, MTLDevice, MTLFunctionConstantValues,
    MTLLanguageVersion, MTLLibrary,
};

use super::archive::Archive;
use super::error::failed;
use crate::Result;
use crate::backend::gpu::kernel::{COMMON, Constant, Kernel, Source};
use crate::error::DeviceFault;

/// Threads of a SIMD group.
const SIMD_WIDTH: usize = 32;

/// A kernel, ready to be dispatched.
#[derive(Clone)]
pub(super) struct Pipeline(Arc<State>);

struct State {
    raw: Retained<ProtocolObject<dyn MTLComputePipelineState>>,
}

// SAFETY: a pipeline state is immutable and may be used from any thread.
unsafe impl Send for Pipeline {}
// SAFETY: as above.
unsafe impl Sync for Pipeline {}

impl Pipeline {
    pub(super) fn raw(&self) -> &ProtocolObject<dyn MTLComputePipelineState> {
        &self.0.raw
    }

    /// Maximum number of threads of a threadgroup of this kernel.
    pub(super) fn max_threads(&self) -> usize {
        self.0.raw.maxTotalThreadsPerThreadgroup()
    }

    pub(super) fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

type Key = (&'static str, String, Vec<Constant>);

/// Libraries and pipelines of a device.
pub(super) struct Pipelines {
    device: Retained<ProtocolObject<dyn MTLDevice>>,
    made: Mutex<Made>,
}

#[derive(Default)]
struct Made {
    libraries: HashMap<&'static str, Retained<ProtocolObject<dyn MTLLibrary>>>,
    pipelines: HashMap<Key, Pipeline>,
    archive: Option<Archive>,
}

impl Pipelines {
    pub(super) fn new(device: &ProtocolObject<dyn MTLDevice>, archive: Option<Archive>) -> Self {
        let made = Made { archive, ..Made::default() };
        Self { device: objc2::Message::retain(device), made: Mutex::new(made) }
    }

    /// Stores compiled kernels for the next process, if there is an archive.
    pub(super) fn store(&self) {
        if let Some(archive) = &mut self.made().archive {
            archive.store();
        }
    }

    fn made(&self) -> MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the pipeline of a kernel, compiled at first use.
    pub(super) fn get(&self, kernel: &Kernel) -> Result<Pipeline> {
        let Kernel { source, function, constants } = kernel;
        let key = (source.name, function.clone(), constants.clone());
        if let Some(pipeline) = self.made().pipelines.get(&key) {
            return Ok(pipeline.clone());
        }
        let pipeline = autoreleasepool(|_| self.make(*source, function, constants))?;
        self.made().pipelines.insert(key, pipeline.clone());
        Ok(pipeline)
    }

    pub(super) fn library(&self, source: Source) -> Result<Retained<ProtocolObject<dyn MTLLibrary>>> {
        if let Some(library) = self.made().libraries.get(source.name) {
            return Ok(library.clone());
        }
        let text = if source.includes_common {
            format!("{COMMON}\n{}", source.text)
        } else {
            source.text.to_owned()
        };
        let options = MTLCompileOptions::new();
        #[allow(deprecated, reason = "its successor exists from macOS 15 on only")]
        options.setFastMathEnabled(source.fast_math);
        // The default depends on the SDK that the process was linked against; older ones lack bfloat.
        options.setLanguageVersion(MTLLanguageVersion::Version3_1);
        let library = self
            .device
            .newLibraryWithSource_options_error(&NSString::from_str(&text), Some(&options))
            .map_err(|error| {
                let message = error.localizedDescription().to_string();
                failed(format!("the kernel file '{}'", source.name), DeviceFault::Kernel, message)
            })?;
        self.made().libraries.insert(source.name, library.clone());
        Ok(library)
    }

    fn make(&self, source: Source, function: &str, constants: &[Constant]) -> Result<Pipeline> {
        let library = self.library(source)?;
        let what = || format!("kernel '{function}' of '{}'", source.name);
        let name = NSString::from_str(function);
        let function = if constants.is_empty() {
            library
                .newFunctionWithName(&name)
                .ok_or_else(|| failed(what(), DeviceFault::Kernel, "the library has no such function"))?
        } else {
            let values = MTLFunctionConstantValues::init(MTLFunctionConstantValues::alloc());
            for constant in constants {
                let Constant::Bool(index, value) = *constant;
                let pointer = std::ptr::NonNull::from(&value).cast::<std::ffi::c_void>();
                let dtype = MTLDataType::Bool;
                // SAFETY: the pointer is to a value of this type, which is copied.
                unsafe { values.setConstantValue_type_atIndex(pointer, dtype, index) };
            }
            library.newFunctionWithName_constantValues_error(&name, &values).map_err(|error| {
                failed(what(), DeviceFault::Kernel, error.localizedDescription().to_string())
            })?
        };
        let stored =
            self.made().archive.as_mut().and_then(|archive| archive.pipeline(&self.device, &function));
        let raw = match stored {
            Some(raw) => raw,
            None => self.device.newComputePipelineStateWithFunction_error(&function).map_err(|error| {
                failed(what(), DeviceFault::Kernel, error.localizedDescription().to_string())
            })?,
        };
        // Kernels count with this width; families from Apple7 on have no other.
        let width = raw.threadExecutionWidth();
        if width != SIMD_WIDTH {
            let message = format!("SIMD groups have {width} threads instead of {SIMD_WIDTH}");
            return Err(failed(what(), DeviceFault::Kernel, message));
        }
        Ok(Pipeline(Arc::new(State { raw })))
    }
}
