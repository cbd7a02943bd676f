//! `MTLDevice`.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::{LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};

use block2::Block;
use objc2::rc::Retained;
use objc2::runtime::{AnyObject, Bool};
use objc2::{ClassType, Message, define_class, msg_send};
use objc2_foundation::{NSError, NSObject, NSString};
use objc2_metal::{
    MTLArgumentBuffersTier, MTLCounterSamplingPoint, MTLDeviceLocation, MTLGPUFamily, MTLPipelineOption,
    MTLResourceOptions, MTLSize, MTLSizeAndAlign,
};

use crate::archive::{ArchiveDescriptor, SoftArchive};
use crate::buffer::SoftBuffer;
use crate::clock::nanoseconds;
use crate::compile_options::{CompileOptions, language};
use crate::counters::count;
use crate::descriptors::QueueDescriptor;
use crate::foundation::{List, list};
use crate::heap::{self, SoftHeap};
use crate::heap_descriptor::HeapDescriptor;
use crate::library::{SoftFunction, SoftLibrary, Source};
use crate::memory::allocated;
use crate::ordering::Model;
use crate::pipeline::{PipelineDescriptor, SoftPipeline};
use crate::queue::{SoftQueue, aside};
use crate::residency::SoftResidencySet;
use crate::samples::{self, SamplesDescriptor, SoftSamples};
use crate::sync::{SoftEvent, SoftFence};
use crate::system::{Devices, mac, registry_id};

/// Longest buffer, in bytes.
pub(crate) const MAX_BUFFER_LENGTH: usize = 8 << 30;
/// Threadgroup memory of a threadgroup, in bytes (Metal Feature Set Tables, Apple7 and later).
pub(crate) const MAX_THREADGROUP_MEMORY: usize = 32 << 10;

static MODEL: LazyLock<Mutex<Model>> = LazyLock::new(Mutex::default);

/// The ordering model.
pub(crate) fn model() -> MutexGuard<'static, Model> {
    MODEL.lock().unwrap_or_else(PoisonError::into_inner)
}

define_class!(
    /// The device. What it reports of itself is that of [`crate::system::Gpu`].
    #[unsafe(super(NSObject))]
    #[name = "SoftMTLDevice"]
    pub(crate) struct SoftDevice;

    impl SoftDevice {
        #[unsafe(method(registryID))]
        fn registry_id(&self) -> u64 {
            registry_id()
        }

        #[unsafe(method_id(name))]
        fn name(&self) -> Retained<NSString> {
            NSString::from_str(&mac().gpu.name)
        }

        #[unsafe(method_id(architecture))]
        fn architecture(&self) -> Retained<Architecture> {
            static ONE: OnceLock<Shared<Architecture>> = OnceLock::new();
            // SAFETY: `new` of a class without state.
            ONE.get_or_init(|| Shared(unsafe { msg_send![Architecture::class(), new] })).0.clone()
        }

        #[unsafe(method(recommendedMaxWorkingSetSize))]
        fn recommended_max_working_set(&self) -> u64 {
            16 << 30
        }

        #[unsafe(method(maxBufferLength))]
        fn max_buffer_length(&self) -> usize {
            MAX_BUFFER_LENGTH
        }

        #[unsafe(method(isLowPower))]
        fn is_low_power(&self) -> bool {
            false
        }

        #[unsafe(method(isRemovable))]
        fn is_removable(&self) -> bool {
            false
        }

        #[unsafe(method(isHeadless))]
        fn is_headless(&self) -> bool {
            false
        }

        #[unsafe(method(location))]
        fn location(&self) -> MTLDeviceLocation {
            MTLDeviceLocation::BuiltIn
        }

        #[unsafe(method(argumentBuffersSupport))]
        fn argument_buffers(&self) -> MTLArgumentBuffersTier {
            MTLArgumentBuffersTier::Tier2
        }

        #[unsafe(method(supportsDynamicLibraries))]
        fn supports_dynamic_libraries(&self) -> bool {
            false
        }

        #[unsafe(method(supportsFunctionPointers))]
        fn supports_function_pointers(&self) -> bool {
            false
        }

        #[unsafe(method(supportsRaytracing))]
        fn supports_raytracing(&self) -> bool {
            false
        }

        #[unsafe(method(hasUnifiedMemory))]
        fn has_unified_memory(&self) -> bool {
            mac().gpu.unified_memory
        }

        #[unsafe(method(currentAllocatedSize))]
        fn current_allocated_size(&self) -> usize {
            allocated()
        }

        #[unsafe(method(maxThreadsPerThreadgroup))]
        fn max_threads_per_threadgroup(&self) -> MTLSize {
            MTLSize { width: 1024, height: 1024, depth: 1024 }
        }

        #[unsafe(method(maxThreadgroupMemoryLength))]
        fn max_threadgroup_memory_length(&self) -> usize {
            MAX_THREADGROUP_MEMORY
        }

        #[unsafe(method(supportsFamily:))]
        fn supports_family(&self, family: MTLGPUFamily) -> bool {
            let apple = mac().gpu.family.map_or(0, isize::from);
            (1..=apple).contains(&(family.0 - MTLGPUFamily::Apple1.0 + 1))
                || (MTLGPUFamily::Common1.0..=MTLGPUFamily::Common3.0).contains(&family.0)
                || [MTLGPUFamily::Mac2, MTLGPUFamily::Metal3].contains(&family)
        }

        #[unsafe(method_id(newBufferWithLength:options:))]
        fn new_buffer(&self, length: usize, options: MTLResourceOptions) -> Option<Retained<SoftBuffer>> {
            SoftBuffer::create(length, options)
        }

        #[unsafe(method_id(newBufferWithBytes:length:options:))]
        fn new_buffer_with_bytes(
            &self,
            bytes: NonNull<c_void>,
            length: usize,
            options: MTLResourceOptions,
        ) -> Option<Retained<SoftBuffer>> {
            let buffer = SoftBuffer::create(length, options);
            if let Some(buffer) = &buffer {
                let target = buffer.memory().start();
                // SAFETY: the caller gives `length` bytes, and the buffer has as many.
                unsafe { target.copy_from_nonoverlapping(bytes.as_ptr().cast(), length) };
            }
            buffer
        }

        #[unsafe(method_id(newBufferWithBytesNoCopy:length:options:deallocator:))]
        fn new_buffer_no_copy(
            &self,
            bytes: NonNull<c_void>,
            length: usize,
            options: MTLResourceOptions,
            deallocator: Option<&Block<dyn Fn(NonNull<c_void>, usize)>>,
        ) -> Option<Retained<SoftBuffer>> {
            SoftBuffer::no_copy(bytes, length, options, deallocator.map(Block::copy))
        }

        #[unsafe(method(heapBufferSizeAndAlignWithLength:options:))]
        fn heap_size_and_align(&self, length: usize, _options: MTLResourceOptions) -> MTLSizeAndAlign {
            MTLSizeAndAlign { size: length.next_multiple_of(heap::ALIGNMENT), align: heap::ALIGNMENT }
        }

        #[unsafe(method_id(newHeapWithDescriptor:))]
        fn new_heap(&self, descriptor: &HeapDescriptor) -> Option<Retained<SoftHeap>> {
            SoftHeap::create(descriptor)
        }

        #[unsafe(method_id(newCommandQueue))]
        fn new_queue(&self) -> Option<Retained<SoftQueue>> {
            SoftQueue::create()
        }

        #[unsafe(method_id(newCommandQueueWithMaxCommandBufferCount:))]
        fn new_queue_with_count(&self, _count: usize) -> Option<Retained<SoftQueue>> {
            SoftQueue::create()
        }

        #[unsafe(method_id(newCommandQueueWithDescriptor:))]
        fn new_queue_with_descriptor(&self, _descriptor: &QueueDescriptor) -> Option<Retained<SoftQueue>> {
            SoftQueue::create()
        }

        #[unsafe(method_id(newFence))]
        fn new_fence(&self) -> Option<Retained<SoftFence>> {
            Some(SoftFence::create())
        }

        #[unsafe(method_id(newEvent))]
        fn new_event(&self) -> Option<Retained<SoftEvent>> {
            Some(SoftEvent::create())
        }

        #[unsafe(method_id(newSharedEvent))]
        fn new_shared_event(&self) -> Option<Retained<SoftEvent>> {
            Some(SoftEvent::create())
        }

        #[unsafe(method_id(newResidencySetWithDescriptor:error:))]
        fn new_residency_set(
            &self,
            _descriptor: &NSObject,
            _error: *mut *mut NSError,
        ) -> Option<Retained<SoftResidencySet>> {
            Some(SoftResidencySet::create())
        }

        #[unsafe(method_id(newDefaultLibrary))]
        fn new_default_library(&self) -> Option<Retained<SoftLibrary>> {
            Some(SoftLibrary::create(Source::Native))
        }

        #[unsafe(method_id(newLibraryWithSource:options:error:))]
        fn new_library_with_source(
            &self,
            source: &NSString,
            options: Option<&CompileOptions>,
            error: *mut *mut NSError,
        ) -> Option<Retained<SoftLibrary>> {
            SoftLibrary::compile(source, language(options), error)
        }

        #[unsafe(method(newLibraryWithSource:options:completionHandler:))]
        fn new_library_later(
            &self,
            source: &NSString,
            options: Option<&CompileOptions>,
            handler: &Block<dyn Fn(*mut SoftLibrary, *mut NSError)>,
        ) {
            let (source, language, handler) = (source.retain(), language(options), handler.copy());
            aside(move || {
                let mut error: *mut NSError = std::ptr::null_mut();
                let library = SoftLibrary::compile(&source, language, &mut error);
                let made = library.as_ref().map_or(std::ptr::null(), Retained::as_ptr);
                handler.call((made.cast_mut(), error));
            });
        }

        #[unsafe(method_id(newComputePipelineStateWithFunction:error:))]
        fn new_pipeline(
            &self,
            function: &SoftFunction,
            error: *mut *mut NSError,
        ) -> Option<Retained<SoftPipeline>> {
            SoftPipeline::create(function, error)
        }

        #[unsafe(method_id(newComputePipelineStateWithFunction:options:reflection:error:))]
        fn new_pipeline_with_options(
            &self,
            function: &SoftFunction,
            _options: MTLPipelineOption,
            reflection: *mut *mut AnyObject,
            error: *mut *mut NSError,
        ) -> Option<Retained<SoftPipeline>> {
            // SAFETY: the pointer is the caller's place for a reflection.
            unsafe { no_reflection(reflection) };
            SoftPipeline::create(function, error)
        }

        #[unsafe(method_id(newComputePipelineStateWithDescriptor:options:reflection:error:))]
        fn new_pipeline_with_descriptor(
            &self,
            descriptor: &PipelineDescriptor,
            options: MTLPipelineOption,
            reflection: *mut *mut AnyObject,
            error: *mut *mut NSError,
        ) -> Option<Retained<SoftPipeline>> {
            // SAFETY: the pointer is the caller's place for a reflection.
            unsafe { no_reflection(reflection) };
            SoftPipeline::from_descriptor(descriptor, options, error)
        }

        #[unsafe(method(newComputePipelineStateWithFunction:completionHandler:))]
        fn new_pipeline_later(
            &self,
            function: &SoftFunction,
            handler: &Block<dyn Fn(*mut SoftPipeline, *mut NSError)>,
        ) {
            let (function, handler) = (function.retain(), handler.copy());
            aside(move || {
                let mut error: *mut NSError = std::ptr::null_mut();
                let pipeline = SoftPipeline::create(&function, &mut error);
                let made = pipeline.as_ref().map_or(std::ptr::null(), Retained::as_ptr);
                handler.call((made.cast_mut(), error));
            });
        }

        #[unsafe(method_id(counterSets))]
        fn counter_sets(&self) -> Option<Retained<List>> {
            Some(samples::sets())
        }

        #[unsafe(method(supportsCounterSampling:))]
        fn supports_counter_sampling(&self, point: MTLCounterSamplingPoint) -> bool {
            point == MTLCounterSamplingPoint::AtStageBoundary
        }

        #[unsafe(method_id(newCounterSampleBufferWithDescriptor:error:))]
        fn new_samples(
            &self,
            descriptor: &SamplesDescriptor,
            error: *mut *mut NSError,
        ) -> Option<Retained<SoftSamples>> {
            SoftSamples::create(descriptor, error)
        }

        #[unsafe(method(sampleTimestamps:gpuTimestamp:))]
        fn sample_timestamps(&self, host: NonNull<u64>, device: NonNull<u64>) {
            let now = nanoseconds();
            // SAFETY: the caller gives two places.
            unsafe {
                host.write(now);
                device.write(now);
            }
        }

        #[unsafe(method_id(newBinaryArchiveWithDescriptor:error:))]
        fn new_archive(
            &self,
            descriptor: &ArchiveDescriptor,
            error: *mut *mut NSError,
        ) -> Option<Retained<SoftArchive>> {
            SoftArchive::create(descriptor, error)
        }
    }
);

/// Says that a pipeline has no reflection: what its kernel takes is not told here.
///
/// # Safety
/// The pointer is null or valid for a write.
unsafe fn no_reflection(place: *mut *mut AnyObject) {
    if !place.is_null() {
        // SAFETY: as the caller promises.
        unsafe { place.write(std::ptr::null_mut()) };
    }
}

/// An object without state, which any thread may hold.
pub(crate) struct Shared<T>(pub(crate) Retained<T>);

// SAFETY: used for classes without instance variables only.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

define_class!(
    /// The name of a GPU architecture.
    #[unsafe(super(NSObject))]
    #[name = "MTLArchitecture"]
    pub(crate) struct Architecture;

    impl Architecture {
        #[unsafe(method_id(name))]
        fn name(&self) -> Retained<NSString> {
            NSString::from_str(&mac().gpu.architecture)
        }
    }
);

/// The one device, which lives as long as the process, as on a Mac.
pub(crate) fn shared() -> Retained<SoftDevice> {
    static DEVICE: OnceLock<Shared<SoftDevice>> = OnceLock::new();
    crate::load();
    // SAFETY: `new` of a class without state.
    DEVICE.get_or_init(|| Shared(unsafe { msg_send![SoftDevice::class(), new] })).0.clone()
}

/// The function of the Metal framework.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub extern "C-unwind" fn MTLCreateSystemDefaultDevice() -> *mut c_void {
    if mac().devices != Devices::Default {
        return std::ptr::null_mut();
    }
    Retained::into_raw(shared()).cast()
}

/// The function of the Metal framework.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub extern "C-unwind" fn MTLCopyAllDevices() -> *mut c_void {
    // SAFETY: a device is an object.
    let device: Retained<AnyObject> = unsafe { Retained::cast_unchecked(shared()) };
    let listed = mac().devices != Devices::None;
    Retained::into_raw(list(if listed { vec![device] } else { Vec::new() })).cast()
}

/// The function of the MPS framework.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub extern "C-unwind" fn MPSSupportsMTLDevice(device: *const c_void) -> Bool {
    count(|counters| counters.mps_support_queries += 1);
    Bool::new(!device.is_null() && mac().gpu.mps)
}

pub(crate) fn load() {
    let _ = (SoftDevice::class(), Architecture::class());
}
