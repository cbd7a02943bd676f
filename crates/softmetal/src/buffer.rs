//! `MTLBuffer`.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use block2::RcBlock;
use objc2::rc::Retained;
use objc2::{AnyThread, ClassType, DefinedClass, define_class, msg_send};
use objc2_foundation::{NSObject, NSRange, NSString};
use objc2_metal::{MTLCPUCacheMode, MTLHazardTrackingMode, MTLResourceOptions, MTLStorageMode};

use crate::check::report;
use crate::counters::count;
use crate::device::{MAX_BUFFER_LENGTH, SoftDevice, model, shared};
use crate::memory::Memory;
use crate::ordering::Number;
use crate::rules;

/// Page size of Apple GPUs' hosts, which memory without a copy must respect.
const APPLE_PAGE: usize = 16384;

/// A block that frees memory used without a copy.
pub(crate) type Deallocator = RcBlock<dyn Fn(NonNull<c_void>, usize)>;

pub(crate) struct BufferState {
    memory: Arc<Memory>,
    options: MTLResourceOptions,
    number: Number,
    label: Mutex<String>,
    deallocator: Option<Deallocator>,
}

impl Drop for BufferState {
    fn drop(&mut self) {
        self.memory.released.store(true, Ordering::Release);
        model().forget_buffer(self.number);
        if let (Some(deallocator), Some(start)) = (&self.deallocator, NonNull::new(self.memory.start())) {
            deallocator.call((start.cast(), self.memory.len()));
        }
    }
}

define_class!(
    /// Memory of the device.
    #[unsafe(super(NSObject))]
    #[name = "SoftMTLBuffer"]
    #[ivars = BufferState]
    pub(crate) struct SoftBuffer;

    impl SoftBuffer {
        #[unsafe(method(length))]
        fn length(&self) -> usize {
            self.len()
        }

        #[unsafe(method(contents))]
        fn contents(&self) -> *mut c_void {
            if self.storage() == MTLStorageMode::Private {
                report(&rules::PRIVATE_CONTENTS, self.describe());
            }
            self.ivars().memory.start().cast()
        }

        #[unsafe(method(gpuAddress))]
        fn gpu_address(&self) -> u64 {
            self.ivars().memory.start() as u64
        }

        #[unsafe(method(allocatedSize))]
        fn allocated_size(&self) -> usize {
            self.len().next_multiple_of(APPLE_PAGE)
        }

        #[unsafe(method(resourceOptions))]
        fn resource_options(&self) -> MTLResourceOptions {
            self.ivars().options
        }

        #[unsafe(method(storageMode))]
        fn storage_mode(&self) -> MTLStorageMode {
            self.storage()
        }

        #[unsafe(method(cpuCacheMode))]
        fn cpu_cache_mode(&self) -> MTLCPUCacheMode {
            MTLCPUCacheMode(self.ivars().options.0 & 0xf)
        }

        #[unsafe(method(hazardTrackingMode))]
        fn hazard_tracking_mode(&self) -> MTLHazardTrackingMode {
            if is_tracked(self.ivars().options) {
                MTLHazardTrackingMode::Tracked
            } else {
                MTLHazardTrackingMode::Untracked
            }
        }

        #[unsafe(method(didModifyRange:))]
        fn did_modify_range(&self, range: NSRange) {
            if range.location.checked_add(range.length).is_none_or(|end| end > self.len()) {
                report(&rules::BLIT_RANGE, format!("didModifyRange: {range:?} of {}", self.describe()));
            }
        }

        #[unsafe(method(setLabel:))]
        fn set_label(&self, label: Option<&NSString>) {
            let label = label.map(ToString::to_string).unwrap_or_default();
            model().label_buffer(self.number(), &label);
            *self.name() = label;
        }

        #[unsafe(method_id(label))]
        fn label(&self) -> Option<Retained<NSString>> {
            let label = self.name();
            (!label.is_empty()).then(|| NSString::from_str(&label))
        }

        #[unsafe(method_id(device))]
        fn device(&self) -> Retained<SoftDevice> {
            shared()
        }
    }
);

// SAFETY: the label is behind a lock; the memory is shared as a GPU's is.
unsafe impl Send for SoftBuffer {}
// SAFETY: as above.
unsafe impl Sync for SoftBuffer {}

/// Buffers are tracked unless they ask not to be; those of a heap are not unless they ask.
fn is_tracked(options: MTLResourceOptions) -> bool {
    options.0 & MTLResourceOptions::HazardTrackingModeUntracked.0 == 0
}

impl SoftBuffer {
    pub(crate) fn create(length: usize, options: MTLResourceOptions) -> Option<Retained<Self>> {
        if length == 0 {
            report(&rules::EMPTY_BUFFER, "newBufferWithLength: 0");
        }
        if length > MAX_BUFFER_LENGTH {
            report(&rules::BUFFER_TOO_LONG, format!("{length} bytes, at most {MAX_BUFFER_LENGTH}"));
            return None;
        }
        let memory = Memory::new(length)?;
        count(|counters| counters.bytes_allocated += length as u64);
        Some(Self::over(memory, options, None))
    }

    pub(crate) fn no_copy(
        start: NonNull<c_void>,
        length: usize,
        options: MTLResourceOptions,
        deallocator: Option<Deallocator>,
    ) -> Option<Retained<Self>> {
        if !(start.as_ptr() as usize).is_multiple_of(APPLE_PAGE) || !length.is_multiple_of(APPLE_PAGE) {
            report(&rules::NO_COPY_ALIGNMENT, format!("{length} bytes at {start:p}, pages of {APPLE_PAGE}"));
            return None;
        }
        Some(Self::over(Memory::foreign(start.cast(), length), options, deallocator))
    }

    fn over(memory: Memory, options: MTLResourceOptions, deallocator: Option<Deallocator>) -> Retained<Self> {
        let number = model().buffer(is_tracked(options), "");
        let state =
            BufferState { memory: Arc::new(memory), options, number, label: Mutex::default(), deallocator };
        let this = Self::alloc().set_ivars(state);
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }

    fn name(&self) -> MutexGuard<'_, String> {
        self.ivars().label.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn storage(&self) -> MTLStorageMode {
        MTLStorageMode((self.ivars().options.0 >> 4) & 0xf)
    }

    pub(crate) fn memory(&self) -> &Arc<Memory> {
        &self.ivars().memory
    }

    pub(crate) fn number(&self) -> Number {
        self.ivars().number
    }

    pub(crate) fn len(&self) -> usize {
        self.ivars().memory.len()
    }

    pub(crate) fn describe(&self) -> String {
        let label = self.name();
        let name = if label.is_empty() { format!("buffer {}", self.number()) } else { label.clone() };
        format!("{name} of {} bytes", self.len())
    }
}

pub(crate) fn load() {
    let _ = SoftBuffer::class();
}
