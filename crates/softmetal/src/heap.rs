//! `MTLHeap`: one piece of memory for many buffers.
//!
//! The ordering model knows a heap by one number, and a buffer of it by that number and the byte where it begins: two
//! buffers that lie on each other conflict by the bytes that they share.
//!
//! Between the buffers of a heap there are no guard pages. A kernel that leaves its buffer is still caught, unless it
//! lands in another buffer that is bound to the same dispatch.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use objc2::rc::Retained;
use objc2::{AnyThread, ClassType, DefinedClass, Message, define_class, msg_send};
use objc2_foundation::{NSObject, NSString};
use objc2_metal::{
    MTLCPUCacheMode, MTLHazardTrackingMode, MTLHeapType, MTLPurgeableState, MTLResourceOptions,
    MTLStorageMode,
};

use crate::buffer::{APPLE_PAGE, SoftBuffer, cache_mode, hazard_mode, storage_mode};
use crate::check::report;
use crate::counters::count;
use crate::device::{MAX_BUFFER_LENGTH, SoftDevice, model, shared};
use crate::faults;
use crate::heap_descriptor::{HeapDescriptor, HeapSettings};
use crate::memory::Memory;
use crate::ordering::Number;
use crate::rules;

/// What offsets and sizes of buffers in a heap are multiples of: this device's figure.
pub(crate) const ALIGNMENT: usize = 256;

/// The bytes of a buffer, and whether others may be put on them.
struct Taken {
    /// Tells buffers apart that lie on the same bytes.
    id: u64,
    bytes: Range<usize>,
    aliasable: bool,
}

pub(crate) struct HeapState {
    memory: Arc<Memory>,
    number: Number,
    settings: HeapSettings,
    taken: Mutex<Vec<Taken>>,
    label: Mutex<String>,
}

impl Drop for HeapState {
    fn drop(&mut self) {
        model().forget_buffer(self.number);
    }
}

define_class!(
    /// Memory for buffers.
    #[unsafe(super(NSObject))]
    #[name = "SoftMTLHeap"]
    #[ivars = HeapState]
    pub(crate) struct SoftHeap;

    impl SoftHeap {
        #[unsafe(method_id(newBufferWithLength:options:))]
        fn new_buffer(&self, length: usize, options: MTLResourceOptions) -> Option<Retained<SoftBuffer>> {
            self.take(length, options, None)
        }

        #[unsafe(method_id(newBufferWithLength:options:offset:))]
        fn new_buffer_at(
            &self,
            length: usize,
            options: MTLResourceOptions,
            offset: usize,
        ) -> Option<Retained<SoftBuffer>> {
            self.take(length, options, Some(offset))
        }

        #[unsafe(method(size))]
        fn size(&self) -> usize {
            self.len()
        }

        #[unsafe(method(allocatedSize))]
        fn allocated_size(&self) -> usize {
            self.len()
        }

        #[unsafe(method(currentAllocatedSize))]
        fn current_allocated_size(&self) -> usize {
            self.len()
        }

        #[unsafe(method(usedSize))]
        fn used_size(&self) -> usize {
            self.len() - self.gaps().iter().map(ExactSizeIterator::len).sum::<usize>()
        }

        #[unsafe(method(maxAvailableSizeWithAlignment:))]
        fn max_available(&self, alignment: usize) -> usize {
            let size = |gap: &Range<usize>| gap.end.saturating_sub(gap.start.next_multiple_of(alignment.max(1)));
            self.gaps().iter().map(size).max().unwrap_or(0)
        }

        #[unsafe(method(type))]
        fn kind(&self) -> MTLHeapType {
            self.ivars().settings.kind
        }

        #[unsafe(method(storageMode))]
        fn storage(&self) -> MTLStorageMode {
            self.ivars().settings.storage
        }

        #[unsafe(method(cpuCacheMode))]
        fn cache(&self) -> MTLCPUCacheMode {
            self.ivars().settings.cache
        }

        #[unsafe(method(hazardTrackingMode))]
        fn tracking(&self) -> MTLHazardTrackingMode {
            if self.tracked() { MTLHazardTrackingMode::Tracked } else { MTLHazardTrackingMode::Untracked }
        }

        #[unsafe(method(resourceOptions))]
        fn options(&self) -> MTLResourceOptions {
            self.ivars().settings.options()
        }

        #[unsafe(method(setPurgeableState:))]
        fn set_purgeable(&self, _state: MTLPurgeableState) -> MTLPurgeableState {
            // Nothing is ever purged here.
            MTLPurgeableState::NonVolatile
        }

        #[unsafe(method_id(label))]
        fn label(&self) -> Option<Retained<NSString>> {
            let label = self.name();
            (!label.is_empty()).then(|| NSString::from_str(&label))
        }

        #[unsafe(method(setLabel:))]
        fn set_label(&self, label: Option<&NSString>) {
            let label = label.map(ToString::to_string).unwrap_or_default();
            model().label_buffer(self.number(), &format!("heap {label}"));
            *self.name() = label;
        }

        #[unsafe(method_id(device))]
        fn device(&self) -> Retained<SoftDevice> {
            shared()
        }
    }
);

// SAFETY: what changes is behind locks; the memory is shared as a GPU's is.
unsafe impl Send for SoftHeap {}
// SAFETY: as above.
unsafe impl Sync for SoftHeap {}

impl SoftHeap {
    /// A heap as a descriptor asks for it. Sparse heaps are not made.
    pub(crate) fn create(descriptor: &HeapDescriptor) -> Option<Retained<Self>> {
        let settings = descriptor.settings();
        if settings.size == 0 {
            report(&rules::HEAP_EMPTY, "newHeapWithDescriptor: with size 0");
            return None;
        }
        if ![MTLStorageMode::Shared, MTLStorageMode::Private].contains(&settings.storage) {
            report(&rules::HEAP_STORAGE, format!("{:?}", settings.storage));
            return None;
        }
        if settings.kind == MTLHeapType::Sparse || settings.size > MAX_BUFFER_LENGTH {
            return None;
        }
        let size = settings.size.next_multiple_of(APPLE_PAGE);
        let memory = Arc::new(Memory::new(size)?);
        count(|counters| counters.bytes_allocated += size as u64);
        let number = model().buffer(settings.tracked(), "");
        model().label_buffer(number, &format!("heap {number}"));
        let state = HeapState { memory, number, settings, taken: Mutex::default(), label: Mutex::default() };
        let this = Self::alloc().set_ivars(state);
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }

    /// A buffer at an offset of the program's choice, or where there is room.
    fn take(
        &self,
        length: usize,
        options: MTLResourceOptions,
        offset: Option<usize>,
    ) -> Option<Retained<SoftBuffer>> {
        let settings = self.ivars().settings;
        let what = format!("{length} bytes, {options:?}, offset {offset:?}, in {}", self.describe());
        if length == 0 {
            report(&rules::EMPTY_BUFFER, what.clone());
        }
        if offset.is_some() != (settings.kind == MTLHeapType::Placement) {
            report(&rules::HEAP_TYPE, what);
            return None;
        }
        let cached = settings.storage == MTLStorageMode::Private || cache_mode(options) == settings.cache;
        if storage_mode(options) != settings.storage || !cached {
            report(&rules::HEAP_BUFFER_OPTIONS, what);
            return None;
        }
        if hazard_mode(options) == MTLHazardTrackingMode::Tracked && !settings.tracked() {
            report(&rules::HEAP_BUFFER_TRACKING, what.clone());
        }
        if offset.is_some_and(|offset| !offset.is_multiple_of(ALIGNMENT)) {
            report(&rules::HEAP_ALIGNMENT, what);
            return None;
        }
        let size = length.max(1).checked_next_multiple_of(ALIGNMENT)?;
        let within = |offset: usize| offset.checked_add(size).is_some_and(|end| end <= self.len());
        if offset.is_some_and(|offset| !within(offset)) {
            report(&rules::HEAP_RANGE, what);
            return None;
        }
        if faults::allocation_fails() {
            return None;
        }
        // The lock is held from the look for room to its use.
        let mut taken = self.taken();
        let start = match offset {
            Some(offset) => offset,
            None => gaps(&taken, self.len()).into_iter().find(|gap| gap.len() >= size)?.start,
        };
        let id = taken.iter().map(|taken| taken.id + 1).max().unwrap_or(0);
        taken.push(Taken { id, bytes: start..start + size, aliasable: false });
        drop(taken);
        Some(SoftBuffer::of_heap(Home::new(self.retain(), start, id), length, options))
    }

    /// A buffer is gone.
    fn give_back(&self, id: u64) {
        let mut taken = self.taken();
        let Some(at) = taken.iter().position(|taken| taken.id == id) else { return };
        let gone = taken.swap_remove(at);
        drop(taken);
        // The heap itself gives these bytes to others only when the device is done with them. Bytes that may be shared
        // while they are in use, and those of a placement heap, are the program's to keep in order.
        if !gone.aliasable && !self.places() {
            model().forget_bytes(self.number(), &gone.bytes);
        }
    }

    /// Lets others be put on a buffer's bytes.
    fn alias(&self, id: u64) {
        self.taken().iter_mut().filter(|taken| taken.id == id).for_each(|taken| taken.aliasable = true);
    }

    pub(crate) fn part(&self, start: usize, length: usize) -> Memory {
        Memory::part(&self.ivars().memory, start, length)
    }

    pub(crate) fn number(&self) -> Number {
        self.ivars().number
    }

    /// Whether the program says where buffers lie.
    pub(crate) fn places(&self) -> bool {
        self.ivars().settings.kind == MTLHeapType::Placement
    }

    pub(crate) fn tracked(&self) -> bool {
        self.ivars().settings.tracked()
    }

    pub(crate) fn len(&self) -> usize {
        self.ivars().memory.len()
    }

    fn gaps(&self) -> Vec<Range<usize>> {
        gaps(&self.taken(), self.len())
    }

    fn taken(&self) -> MutexGuard<'_, Vec<Taken>> {
        self.ivars().taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self) -> MutexGuard<'_, String> {
        self.ivars().label.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn describe(&self) -> String {
        let label = self.name();
        let name = if label.is_empty() { self.number().to_string() } else { label.clone() };
        format!("heap {name} of {} bytes", self.len())
    }
}

/// Where a buffer lies in a heap, which it keeps alive.
pub(crate) struct Home {
    pub(crate) heap: Retained<SoftHeap>,
    pub(crate) start: usize,
    id: u64,
    aliasable: AtomicBool,
}

impl Home {
    fn new(heap: Retained<SoftHeap>, start: usize, id: u64) -> Self {
        Self { heap, start, id, aliasable: AtomicBool::new(false) }
    }

    /// Lets others be put on these bytes.
    pub(crate) fn make_aliasable(&self) {
        self.aliasable.store(true, Ordering::Release);
        self.heap.alias(self.id);
    }

    pub(crate) fn is_aliasable(&self) -> bool {
        self.aliasable.load(Ordering::Acquire)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.heap.give_back(self.id);
    }
}

/// The bytes that a new buffer may take: those of no buffer, and those of buffers that may be aliased.
fn gaps(taken: &[Taken], len: usize) -> Vec<Range<usize>> {
    let mut held: Vec<&Range<usize>> = taken.iter().filter(|t| !t.aliasable).map(|t| &t.bytes).collect();
    held.sort_by_key(|bytes| bytes.start);
    let mut gaps = Vec::new();
    let mut at = 0;
    for bytes in held {
        gaps.push(at..bytes.start.max(at));
        at = at.max(bytes.end);
    }
    gaps.push(at..len);
    gaps.retain(|gap| !gap.is_empty());
    gaps
}

pub(crate) fn load() {
    let _ = SoftHeap::class();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_lie_between_what_is_held() {
        let taken = |bytes, aliasable| Taken { id: 0, bytes, aliasable };
        let all =
            [taken(512..768, false), taken(0..256, false), taken(600..1024, false), taken(2048..4096, true)];
        assert_eq!(gaps(&all, 4096), [256..512, 1024..4096]);
        assert_eq!(gaps(&[], 64), [0..64]);
        assert!(gaps(&[taken(0..64, false)], 64).is_empty());
    }
}
