//! `MTLLibrary`, `MTLFunction` and `MTLComputePipelineState`.

use std::sync::Arc;

use objc2::rc::Retained;
use objc2::runtime::AnyObject;
use objc2::{AnyThread, ClassType, DefinedClass, define_class, msg_send};
use objc2_foundation::{NSError, NSObject, NSString};

use crate::device::{SoftDevice, shared};
use crate::faults;
use crate::foundation::{List, list, set_error};
use crate::native;
use crate::program::Program;
use crate::residency::SoftConstants;

/// The domain of libraries' errors.
pub(crate) const DOMAIN: &str = "MTLLibraryErrorDomain";
/// MTLLibraryErrorFunctionNotFound
const FUNCTION_NOT_FOUND: isize = 5;

define_class!(
    /// Kernels by name.
    #[unsafe(super(NSObject))]
    #[name = "SoftMTLLibrary"]
    pub(crate) struct SoftLibrary;

    impl SoftLibrary {
        #[unsafe(method_id(newFunctionWithName:))]
        fn function(&self, name: &NSString) -> Option<Retained<SoftFunction>> {
            SoftFunction::find(&name.to_string())
        }

        #[unsafe(method_id(newFunctionWithName:constantValues:error:))]
        fn function_with_constants(
            &self,
            name: &NSString,
            _constants: &SoftConstants,
            error: *mut *mut NSError,
        ) -> Option<Retained<SoftFunction>> {
            let found = SoftFunction::find(&name.to_string());
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
            list(native::names().iter().map(name).collect())
        }

        #[unsafe(method_id(device))]
        fn device(&self) -> Retained<SoftDevice> {
            shared()
        }

        #[unsafe(method(setLabel:))]
        fn set_label(&self, _label: Option<&NSString>) {}
    }
);

impl SoftLibrary {
    pub(crate) fn create() -> Retained<Self> {
        let this = Self::alloc().set_ivars(());
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }
}

pub(crate) struct FunctionState {
    name: String,
    program: Arc<dyn Program>,
}

define_class!(
    /// A kernel of a library.
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
    fn find(name: &str) -> Option<Retained<Self>> {
        let state = FunctionState { name: name.to_owned(), program: native::find(name)? };
        let this = Self::alloc().set_ivars(state);
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }
}

/// Threads that a pipeline without other limits allows in a threadgroup.
const MAX_THREADS: usize = 1024;

define_class!(
    /// A kernel that is ready to run.
    #[unsafe(super(NSObject))]
    #[name = "SoftMTLComputePipelineState"]
    #[ivars = FunctionState]
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
            unsafe { set_error(error, DOMAIN, 3, message) };
            return None;
        }
        let FunctionState { name, program } = function.ivars();
        let state = FunctionState { name: name.clone(), program: Arc::clone(program) };
        let this = Self::alloc().set_ivars(state);
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
