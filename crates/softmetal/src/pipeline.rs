//! `MTLComputePipelineDescriptor` and `MTLComputePipelineState`.

use std::cell::RefCell;
use std::sync::Arc;

use objc2::rc::{Allocated, Retained};
use objc2::runtime::AnyObject;
use objc2::{AnyThread, ClassType, DefinedClass, Message, define_class, msg_send};
use objc2_foundation::{NSError, NSObject, NSString};
use objc2_metal::MTLPipelineOption;

use crate::archive::SoftArchive;
use crate::check::report;
use crate::counters::count;
use crate::device::{SoftDevice, shared};
use crate::faults;
use crate::foundation::{List, list, set_error};
use crate::library::{COMPILE_FAILURE, DOMAIN, SoftFunction};
use crate::program::Program;
use crate::rules;
use crate::system::mac;

/// Threads that a pipeline without other limits allows in a threadgroup.
const MAX_THREADS: usize = 1024;
/// Threads of a SIMD group, as kernels run here.
pub(crate) const SIMD_WIDTH: usize = 32;

/// What a descriptor asks for.
#[derive(Clone, Default)]
pub(crate) struct Settings {
    function: Option<Retained<SoftFunction>>,
    label: Option<String>,
    archives: Option<Retained<List>>,
    /// The most threads of a threadgroup; 0: what the device allows.
    max_threads: usize,
    /// Whether threadgroups are promised to be whole SIMD groups.
    whole_simd_groups: bool,
    indirect: bool,
}

define_class!(
    /// How a pipeline is made.
    #[unsafe(super(NSObject))]
    #[name = "MTLComputePipelineDescriptor"]
    #[ivars = RefCell<Settings>]
    pub(crate) struct PipelineDescriptor;

    impl PipelineDescriptor {
        #[unsafe(method_id(init))]
        fn init(this: Allocated<Self>) -> Retained<Self> {
            let this = this.set_ivars(RefCell::default());
            // SAFETY: NSObject's init returns the object.
            unsafe { msg_send![super(this), init] }
        }

        #[unsafe(method_id(copy))]
        fn copy(&self) -> Retained<Self> {
            let copy = Self::alloc().set_ivars(self.ivars().clone());
            // SAFETY: NSObject's init returns the object.
            unsafe { msg_send![super(copy), init] }
        }

        #[unsafe(method(reset))]
        fn reset(&self) {
            self.ivars().take();
        }

        #[unsafe(method_id(label))]
        fn label(&self) -> Option<Retained<NSString>> {
            self.ivars().borrow().label.as_deref().map(NSString::from_str)
        }

        #[unsafe(method(setLabel:))]
        fn set_label(&self, label: Option<&NSString>) {
            self.ivars().borrow_mut().label = label.map(ToString::to_string);
        }

        #[unsafe(method_id(computeFunction))]
        fn function(&self) -> Option<Retained<SoftFunction>> {
            self.ivars().borrow().function.clone()
        }

        #[unsafe(method(setComputeFunction:))]
        fn set_function(&self, function: Option<&SoftFunction>) {
            self.ivars().borrow_mut().function = function.map(Message::retain);
        }

        #[unsafe(method_id(binaryArchives))]
        fn archives(&self) -> Option<Retained<List>> {
            self.ivars().borrow().archives.clone()
        }

        #[unsafe(method(setBinaryArchives:))]
        fn set_archives(&self, archives: Option<&List>) {
            // A copy, as of every list that a property takes.
            self.ivars().borrow_mut().archives = archives.map(|archives| list(archives.objects().to_vec()));
        }

        #[unsafe(method(maxTotalThreadsPerThreadgroup))]
        fn max_threads(&self) -> usize {
            self.ivars().borrow().max_threads
        }

        #[unsafe(method(setMaxTotalThreadsPerThreadgroup:))]
        fn set_max_threads(&self, threads: usize) {
            self.ivars().borrow_mut().max_threads = threads;
        }

        #[unsafe(method(threadGroupSizeIsMultipleOfThreadExecutionWidth))]
        fn whole_simd_groups(&self) -> bool {
            self.ivars().borrow().whole_simd_groups
        }

        #[unsafe(method(setThreadGroupSizeIsMultipleOfThreadExecutionWidth:))]
        fn set_whole_simd_groups(&self, whole: bool) {
            self.ivars().borrow_mut().whole_simd_groups = whole;
        }

        #[unsafe(method(supportIndirectCommandBuffers))]
        fn indirect(&self) -> bool {
            self.ivars().borrow().indirect
        }

        #[unsafe(method(setSupportIndirectCommandBuffers:))]
        fn set_indirect(&self, indirect: bool) {
            self.ivars().borrow_mut().indirect = indirect;
        }
    }
);

impl PipelineDescriptor {
    /// The function; its absence is reported.
    pub(crate) fn kernel(&self, what: &str) -> Option<Retained<SoftFunction>> {
        let function = self.ivars().borrow().function.clone();
        if function.is_none() {
            report(&rules::PIPELINE_WITHOUT_FUNCTION, what);
        }
        function
    }
}

pub(crate) struct PipelineState {
    name: String,
    label: Option<String>,
    program: Arc<dyn Program>,
    max_threads: usize,
    whole_simd_groups: bool,
    indirect: bool,
}

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
            mac().gpu.simd_width
        }

        #[unsafe(method(staticThreadgroupMemoryLength))]
        fn static_threadgroup_memory_length(&self) -> usize {
            self.program().static_threadgroup_bytes()
        }

        #[unsafe(method(supportIndirectCommandBuffers))]
        fn indirect(&self) -> bool {
            self.ivars().indirect
        }

        #[unsafe(method_id(label))]
        fn label(&self) -> Option<Retained<NSString>> {
            let state = self.ivars();
            Some(NSString::from_str(state.label.as_deref().unwrap_or(&state.name)))
        }

        #[unsafe(method_id(device))]
        fn device(&self) -> Retained<SoftDevice> {
            shared()
        }
    }
);

// SAFETY: programs are Sync, the rest never changes.
unsafe impl Send for SoftPipeline {}
// SAFETY: as above.
unsafe impl Sync for SoftPipeline {}

impl SoftPipeline {
    /// A pipeline of a function, with nothing else asked for.
    pub(crate) fn create(function: &SoftFunction, error: *mut *mut NSError) -> Option<Retained<Self>> {
        let settings = Settings { function: Some(function.retain()), ..Settings::default() };
        Self::made(&settings, function, MTLPipelineOption::empty(), error)
    }

    /// A pipeline as a descriptor asks for it.
    pub(crate) fn from_descriptor(
        descriptor: &PipelineDescriptor,
        options: MTLPipelineOption,
        error: *mut *mut NSError,
    ) -> Option<Retained<Self>> {
        let Some(function) = descriptor.kernel("newComputePipelineStateWithDescriptor:") else {
            refuse(error, "the descriptor has no compute function; set computeFunction");
            return None;
        };
        let settings = descriptor.ivars().borrow().clone();
        Self::made(&settings, &function, options, error)
    }

    fn made(
        settings: &Settings,
        function: &SoftFunction,
        options: MTLPipelineOption,
        error: *mut *mut NSError,
    ) -> Option<Retained<Self>> {
        if faults::pipeline_fails() {
            refuse(error, "a fault that was asked for: the pipeline cannot be made");
            return None;
        }
        let name = function.kernel();
        let fail_on_miss = options.contains(MTLPipelineOption::FailOnBinaryArchiveMiss);
        let looked = fail_on_miss || settings.archives.is_some();
        let missed = looked && !found(settings, function);
        if missed && fail_on_miss {
            refuse(error, &format!("kernel '{name}' is in none of the binary archives of the descriptor"));
            return None;
        }
        if settings.max_threads > MAX_THREADS {
            let asked = settings.max_threads;
            refuse(error, &format!("kernel '{name}': {asked} threads, at most {MAX_THREADS}"));
            return None;
        }
        let program = function.program().map_err(|message| refuse(error, &message)).ok()?;
        count(|counters| counters.pipelines += 1);
        let asked = if settings.max_threads == 0 { MAX_THREADS } else { settings.max_threads };
        let own = program.max_threads();
        let declared = own.is_some() || settings.max_threads > 0;
        let limit = mac().limit(name, own.map_or(asked, |limit| asked.min(limit)), declared);
        let state = PipelineState {
            name: name.to_owned(),
            label: settings.label.clone(),
            max_threads: limit,
            program,
            whole_simd_groups: settings.whole_simd_groups,
            indirect: settings.indirect,
        };
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
        self.ivars().max_threads
    }

    /// Whether a threadgroup of so many threads keeps what the descriptor promised.
    pub(crate) fn takes_width(&self, threads: usize) -> bool {
        !self.ivars().whole_simd_groups || threads.is_multiple_of(mac().gpu.simd_width)
    }
}

/// Whether an archive of the descriptor has the function; counted.
fn found(settings: &Settings, function: &SoftFunction) -> bool {
    let fingerprint = function.fingerprint();
    let archives = settings.archives.iter().flat_map(|archives| archives.objects());
    let hit = archives
        .filter_map(|archive: &Retained<AnyObject>| archive.downcast_ref::<SoftArchive>())
        .any(|archive| archive.has(fingerprint));
    count(|counters| if hit { counters.archive_hits += 1 } else { counters.archive_misses += 1 });
    hit
}

/// Says why there is no pipeline.
fn refuse(error: *mut *mut NSError, message: &str) {
    // SAFETY: the pointer is the caller's place for an error.
    unsafe { set_error(error, DOMAIN, COMPILE_FAILURE, message) };
}

pub(crate) fn load() {
    let _ = (PipelineDescriptor::class(), SoftPipeline::class());
}
