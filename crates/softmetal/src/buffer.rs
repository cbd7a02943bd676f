//! `MTLBuffer`.

use std::ffi::c_void;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use block2::RcBlock;
use objc2::rc::Retained;
use objc2::{AnyThread, ClassType, DefinedClass, define_class, msg_send};
use objc2_foundation::{NSObject, NSRange, NSString};
use objc2_metal::{
    MTLCPUCacheMode, MTLHazardTrackingMode, MTLPurgeableState, MTLResourceOptions, MTLStorageMode,
};

use crate::check::report;
use crate::counters::count;
use crate::device::{MAX_BUFFER_LENGTH, SoftDevice, model, shared};
use crate::heap::{Home, SoftHeap};
use crate::memory::Memory;
use crate::ordering::{Number, Touched};
use crate::ranges::Ranges;
use crate::rules;

/// Page size of Apple GPUs' hosts, which memory without a copy must respect.
pub(crate) const APPLE_PAGE: usize = 16384;

/// A block that frees memory used without a copy.
pub(crate) type Deallocator = RcBlock<dyn Fn(NonNull<c_void>, usize)>;

pub(crate) struct BufferState {
    memory: Arc<Memory>,
    options: MTLResourceOptions,
    number: Number,
    label: Mutex<String>,
    deallocator: Option<Deallocator>,
    home: Option<Home>,
}

/// A buffer as the ordering model knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Spot {
    /// Of the buffer, or of its heap.
    pub(crate) number: Number,
    /// Where the buffer begins in what has the number.
    base: usize,
    /// Whether the buffer opted out of its heap's tracking.
    opted_out: bool,
}

impl Spot {
    /// What was read and written, counted from the start of the buffer.
    pub(crate) fn touched(&self, reads: &Ranges, writes: &Ranges) -> (Number, Touched) {
        let (reads, writes) = (reads.shifted(self.base), writes.shifted(self.base));
        (self.number, Touched { reads, writes, opted_out: self.opted_out })
    }

    /// These bytes of the buffer in what has the number.
    pub(crate) fn bytes(&self, bytes: Range<usize>) -> Range<usize> {
        self.base + bytes.start..self.base + bytes.end
    }
}

impl Drop for BufferState {
    fn drop(&mut self) {
        self.memory.released.store(true, Ordering::Release);
        // What was done to the bytes of a heap concerns whoever lies there next, too.
        if self.home.is_none() {
            model().forget_buffer(self.number);
        }
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
            cache_mode(self.ivars().options)
        }

        #[unsafe(method(hazardTrackingMode))]
        fn hazard_tracking_mode(&self) -> MTLHazardTrackingMode {
            let tracked = match &self.ivars().home {
                Some(home) => home.heap.tracked() && is_tracked(self.ivars().options),
                None => is_tracked(self.ivars().options),
            };
            if tracked { MTLHazardTrackingMode::Tracked } else { MTLHazardTrackingMode::Untracked }
        }

        #[unsafe(method(didModifyRange:))]
        fn did_modify_range(&self, range: NSRange) {
            if range.location.checked_add(range.length).is_none_or(|end| end > self.len()) {
                report(&rules::BLIT_RANGE, format!("didModifyRange: {range:?} of {}", self.describe()));
            }
        }

        #[unsafe(method_id(heap))]
        fn heap(&self) -> Option<Retained<SoftHeap>> {
            self.ivars().home.as_ref().map(|home| home.heap.clone())
        }

        #[unsafe(method(heapOffset))]
        fn heap_offset(&self) -> usize {
            let home = self.ivars().home.as_ref();
            home.filter(|home| home.heap.places()).map_or(0, |home| home.start)
        }

        #[unsafe(method(makeAliasable))]
        fn make_aliasable(&self) {
            let Some(home) = &self.ivars().home else {
                return report(&rules::NOT_OF_HEAP, self.describe());
            };
            home.make_aliasable();
        }

        #[unsafe(method(isAliasable))]
        fn is_aliasable(&self) -> bool {
            self.ivars().home.as_ref().is_some_and(Home::is_aliasable)
        }

        #[unsafe(method(setPurgeableState:))]
        fn set_purgeable(&self, _state: MTLPurgeableState) -> MTLPurgeableState {
            // Nothing is ever purged here.
            MTLPurgeableState::NonVolatile
        }

        #[unsafe(method(setLabel:))]
        fn set_label(&self, label: Option<&NSString>) {
            let label = label.map(ToString::to_string).unwrap_or_default();
            if self.ivars().home.is_none() {
                model().label_buffer(self.ivars().number, &label);
            }
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

/// A buffer is tracked unless it asks not to be; one of a heap, if the heap is tracked, too.
fn is_tracked(options: MTLResourceOptions) -> bool {
    hazard_mode(options) != MTLHazardTrackingMode::Untracked
}

pub(crate) fn storage_mode(options: MTLResourceOptions) -> MTLStorageMode {
    MTLStorageMode((options.0 >> 4) & 0xf)
}

pub(crate) fn cache_mode(options: MTLResourceOptions) -> MTLCPUCacheMode {
    MTLCPUCacheMode(options.0 & 0xf)
}

pub(crate) fn hazard_mode(options: MTLResourceOptions) -> MTLHazardTrackingMode {
    MTLHazardTrackingMode((options.0 >> 8) & 0x3)
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

    /// A buffer in a heap, which has room for it there.
    pub(crate) fn of_heap(home: Home, length: usize, options: MTLResourceOptions) -> Retained<Self> {
        let (memory, number) = (home.heap.part(home.start, length), home.heap.number());
        Self::made(memory, options, number, None, Some(home))
    }

    fn over(memory: Memory, options: MTLResourceOptions, deallocator: Option<Deallocator>) -> Retained<Self> {
        let number = model().buffer(is_tracked(options), "");
        Self::made(memory, options, number, deallocator, None)
    }

    fn made(
        memory: Memory,
        options: MTLResourceOptions,
        number: Number,
        deallocator: Option<Deallocator>,
        home: Option<Home>,
    ) -> Retained<Self> {
        let label = Mutex::default();
        let state = BufferState { memory: Arc::new(memory), options, number, label, deallocator, home };
        let this = Self::alloc().set_ivars(state);
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }

    fn name(&self) -> MutexGuard<'_, String> {
        self.ivars().label.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn storage(&self) -> MTLStorageMode {
        storage_mode(self.ivars().options)
    }

    pub(crate) fn memory(&self) -> &Arc<Memory> {
        &self.ivars().memory
    }

    pub(crate) fn spot(&self) -> Spot {
        let BufferState { number, options, home, .. } = self.ivars();
        let opted_out = home.is_some() && !is_tracked(*options);
        Spot { number: *number, base: home.as_ref().map_or(0, |home| home.start), opted_out }
    }

    pub(crate) fn len(&self) -> usize {
        self.ivars().memory.len()
    }

    pub(crate) fn describe(&self) -> String {
        let label = self.name();
        let name = if label.is_empty() { format!("buffer {}", self.ivars().number) } else { label.clone() };
        let of = match &self.ivars().home {
            Some(home) => format!(" at {} of {}", home.start, home.heap.describe()),
            None => String::new(),
        };
        format!("{name} of {} bytes{of}", self.len())
    }
}

pub(crate) fn load() {
    let _ = SoftBuffer::class();
}
