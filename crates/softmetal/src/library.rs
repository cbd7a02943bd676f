//! `MTLLibrary`, `MTLFunction` and `MTLComputePipelineState`.

use std::sync::Arc;

use objc2::rc::Retained;
use objc2::runtime::AnyObject;
use objc2::{AnyThread, ClassType, DefinedClass, define_class, msg_send};
use objc2_foundation::{NSError, NSObject, NSString};

use crate::device::{SoftDevice, shared};
use crate::faults;
use crate::foundation::{List, list, set_error};
use crate::metal_program::MetalProgram;
use crate::native;
use crate::program::Program;
use crate::residency::{Constants, SoftConstants};

/// The domain of libraries' errors.
const DOMAIN: &str = "MTLLibraryErrorDomain";
/// MTLLibraryErrorCompileFailure
const COMPILE_FAILURE: isize = 3;
/// MTLLibraryErrorFunctionNotFound
const FUNCTION_NOT_FOUND: isize = 5;

/// Where a library's kernels come from.
pub(crate) enum Source {
    /// Kernels in Rust, see [`native`].
    Native,
    Metal(Arc<softmetal_kernels::Library>),
}

impl Source {
    fn has(&self, name: &str) -> bool {
        match self {
            Self::Native => native::find(name).is_some(),
            Self::Metal(library) => library.signature(name).is_some(),
        }
    }

    fn names(&self) -> Vec<String> {
        match self {
            Self::Native => native::names(),
            Self::Metal(library) => library.function_names(),
        }
    }

    fn program(&self, name: &str, constants: &Constants) -> Result<Arc<dyn Program>, String> {
        match self {
            Self::Native => native::find(name).ok_or_else(|| format!("there is no native kernel '{name}'")),
            Self::Metal(library) => {
                let pipeline = library.pipeline(name, constants).map_err(|error| error.to_string())?;
                Ok(Arc::new(MetalProgram::new(pipeline)))
            }
        }
    }
}

define_class!(
    /// Kernels by name.
    #[unsafe(super(NSObject))]
    #[name = "SoftMTLLibrary"]
    #[ivars = Arc<Source>]
    pub(crate) struct SoftLibrary;

    impl SoftLibrary {
        #[unsafe(method_id(newFunctionWithName:))]
        fn function(&self, name: &NSString) -> Option<Retained<SoftFunction>> {
            SoftFunction::find(self.ivars(), &name.to_string(), Constants::default())
        }

        #[unsafe(method_id(newFunctionWithName:constantValues:error:))]
        fn function_with_constants(
            &self,
            name: &NSString,
            constants: &SoftConstants,
            error: *mut *mut NSError,
        ) -> Option<Retained<SoftFunction>> {
            let found = SoftFunction::find(self.ivars(), &name.to_string(), constants.values());
            if found.is_none() {
                let message = format!("there is no function '{name}' in the library");
                // SAFETY: the pointer is the caller's place for an error.
                unsafe { set_error(error, DOMAIN, FUNCTION_NOT_FOUND, &message) };
            }
            found
        }

        #[unsafe(method_id(functionNames))]
        fn function_names(&self) -> Retained<List> {
            let name = |name: &String| -> Retained<AnyObject> {
                // SAFETY: a string is an object.
                unsafe { Retained::cast_unchecked(NSString::from_str(name)) }
            };
            list(self.ivars().names().iter().map(name).collect())
        }

        #[unsafe(method_id(device))]
        fn device(&self) -> Retained<SoftDevice> {
            shared()
        }

        #[unsafe(method(setLabel:))]
        fn set_label(&self, _label: Option<&NSString>) {}
    }
);

// SAFETY: the source is Sync and never changes.
unsafe impl Send for SoftLibrary {}
// SAFETY: as above.
unsafe impl Sync for SoftLibrary {}

impl SoftLibrary {
    pub(crate) fn create(source: Source) -> Retained<Self> {
        let this = Self::alloc().set_ivars(Arc::new(source));
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }

    /// A library from Metal source; an error names line and construct.
    pub(crate) fn compile(source: &NSString, error: *mut *mut NSError) -> Option<Retained<Self>> {
        let options = softmetal_kernels::CompileOptions::default();
        match softmetal_kernels::Library::from_source(&source.to_string(), &options) {
            Ok(library) => Some(Self::create(Source::Metal(library))),
            Err(failure) => {
                // SAFETY: the pointer is the caller's place for an error.
                unsafe { set_error(error, DOMAIN, COMPILE_FAILURE, &failure.to_string()) };
                None
            }
        }
    }
}

pub(crate) struct FunctionState {
    name: String,
    source: Arc<Source>,
    constants: Constants,
}

define_class!(
    /// A kernel of a library, with values for its function constants.
    #[unsafe(super(NSObject))]
    #[name = "SoftMTLFunction"]
    #[ivars = FunctionState]
    pub(crate) struct SoftFunction;

    impl SoftFunction {
        #[unsafe(method_id(name))]
        fn name(&self) -> Retained<NSString> {
            NSString::from_str(&self.ivars().name)
        }
    }
);

impl SoftFunction {
    fn find(source: &Arc<Source>, name: &str, constants: Constants) -> Option<Retained<Self>> {
        if !source.has(name) {
            return None;
        }
        let state = FunctionState { name: name.to_owned(), source: Arc::clone(source), constants };
        let this = Self::alloc().set_ivars(state);
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }
}

pub(crate) struct PipelineState {
    name: String,
    program: Arc<dyn Program>,
}

/// Threads that a pipeline without other limits allows in a threadgroup.
const MAX_THREADS: usize = 1024;

define_class!(
    /// A kernel that is ready to run.
    #[unsafe(super(NSObject))]
    #[name = "SoftMTLComputePipelineState"]
    #[ivars = PipelineState]
    pub(crate) struct SoftPipeline;

    impl SoftPipeline {
        #[unsafe(method(maxTotalThreadsPerThreadgroup))]
        fn max_total_threads(&self) -> usize {
            self.max_threads()
        }

        #[unsafe(method(threadExecutionWidth))]
        fn thread_execution_width(&self) -> usize {
            32
        }

        #[unsafe(method(staticThreadgroupMemoryLength))]
        fn static_threadgroup_memory_length(&self) -> usize {
            self.program().static_threadgroup_bytes()
        }

        #[unsafe(method_id(label))]
        fn label(&self) -> Option<Retained<NSString>> {
            Some(NSString::from_str(&self.ivars().name))
        }

        #[unsafe(method_id(device))]
        fn device(&self) -> Retained<SoftDevice> {
            shared()
        }
    }
);

// SAFETY: programs are Sync, the name never changes.
unsafe impl Send for SoftPipeline {}
// SAFETY: as above.
unsafe impl Sync for SoftPipeline {}

impl SoftPipeline {
    pub(crate) fn create(function: &SoftFunction, error: *mut *mut NSError) -> Option<Retained<Self>> {
        if faults::pipeline_fails() {
            let message = "a fault that was asked for: the pipeline cannot be made";
            // SAFETY: the pointer is the caller's place for an error.
            unsafe { set_error(error, DOMAIN, COMPILE_FAILURE, message) };
            return None;
        }
        let FunctionState { name, source, constants } = function.ivars();
        let program = match source.program(name, constants) {
            Ok(program) => program,
            Err(message) => {
                // SAFETY: the pointer is the caller's place for an error.
                unsafe { set_error(error, DOMAIN, COMPILE_FAILURE, &message) };
                return None;
            }
        };
        let this = Self::alloc().set_ivars(PipelineState { name: name.clone(), program });
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }

    pub(crate) fn name(&self) -> &str {
        &self.ivars().name
    }

    pub(crate) fn program(&self) -> &Arc<dyn Program> {
        &self.ivars().program
    }

    pub(crate) fn max_threads(&self) -> usize {
        MAX_THREADS
    }
}

pub(crate) fn load() {
    let _ = (SoftLibrary::class(), SoftFunction::class(), SoftPipeline::class());
}
