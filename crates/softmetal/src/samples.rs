//! `MTLCounterSampleBuffer`: timestamps of the device, taken where an Apple GPU takes them: at the start and the end of
//! an encoder.

use std::cell::RefCell;
use std::sync::{Mutex, MutexGuard, PoisonError};

use objc2::rc::{Allocated, Retained};
use objc2::runtime::AnyObject;
use objc2::{AnyThread, ClassType, DefinedClass, Message, define_class, msg_send};
use objc2_foundation::{NSError, NSObject, NSRange, NSString};
use objc2_metal::{MTLCounterSampleBufferError as Code, MTLStorageMode};

use crate::check::report;
use crate::clock::nanoseconds;
use crate::data::Data;
use crate::device::{SoftDevice, shared};
use crate::faults;
use crate::foundation::{List, list, set_error};
use crate::rules;

const DOMAIN: &str = "MTLCounterErrorDomain";
/// The one set that an Apple GPU has for everybody.
const TIMESTAMP: &str = "timestamp";
/// Bytes of a sample.
pub(crate) const SAMPLE: usize = 8;
/// Samples of a buffer: Apple GPUs take 32 KiB.
const MAX_SAMPLES: usize = 4096;

define_class!(
    /// A number that the device counts.
    #[unsafe(super(NSObject))]
    #[name = "SoftMTLCounter"]
    pub(crate) struct SoftCounter;

    impl SoftCounter {
        #[unsafe(method_id(name))]
        fn name(&self) -> Retained<NSString> {
            NSString::from_str("GPUTimestamp")
        }
    }
);

define_class!(
    /// Counters that are sampled together.
    #[unsafe(super(NSObject))]
    #[name = "SoftMTLCounterSet"]
    pub(crate) struct SoftCounterSet;

    impl SoftCounterSet {
        #[unsafe(method_id(name))]
        fn name(&self) -> Retained<NSString> {
            NSString::from_str(TIMESTAMP)
        }

        #[unsafe(method_id(counters))]
        fn counters(&self) -> Retained<List> {
            // SAFETY: `new` of a class without state.
            list(vec![unsafe { msg_send![SoftCounter::class(), new] }])
        }
    }
);

/// The sets of the device.
pub(crate) fn sets() -> Retained<List> {
    // SAFETY: `new` of a class without state.
    let set: Retained<AnyObject> = unsafe { msg_send![SoftCounterSet::class(), new] };
    list(vec![set])
}

/// What a descriptor asks for.
#[derive(Clone)]
pub(crate) struct Settings {
    set: Option<Retained<SoftCounterSet>>,
    label: String,
    storage: MTLStorageMode,
    count: usize,
}

define_class!(
    /// How a sample buffer is made.
    #[unsafe(super(NSObject))]
    #[name = "MTLCounterSampleBufferDescriptor"]
    #[ivars = RefCell<Settings>]
    pub(crate) struct SamplesDescriptor;

    impl SamplesDescriptor {
        #[unsafe(method_id(init))]
        fn init(this: Allocated<Self>) -> Retained<Self> {
            let settings =
                Settings { set: None, label: String::new(), storage: MTLStorageMode::Shared, count: 0 };
            let this = this.set_ivars(RefCell::new(settings));
            // SAFETY: NSObject's init returns the object.
            unsafe { msg_send![super(this), init] }
        }

        #[unsafe(method_id(copy))]
        fn copy(&self) -> Retained<Self> {
            let copy = Self::alloc().set_ivars(self.ivars().clone());
            // SAFETY: NSObject's init returns the object.
            unsafe { msg_send![super(copy), init] }
        }

        #[unsafe(method_id(counterSet))]
        fn set(&self) -> Option<Retained<SoftCounterSet>> {
            self.ivars().borrow().set.clone()
        }

        #[unsafe(method(setCounterSet:))]
        fn set_set(&self, set: Option<&SoftCounterSet>) {
            self.ivars().borrow_mut().set = set.map(Message::retain);
        }

        #[unsafe(method_id(label))]
        fn label(&self) -> Retained<NSString> {
            NSString::from_str(&self.ivars().borrow().label)
        }

        #[unsafe(method(setLabel:))]
        fn set_label(&self, label: &NSString) {
            self.ivars().borrow_mut().label = label.to_string();
        }

        #[unsafe(method(storageMode))]
        fn storage(&self) -> MTLStorageMode {
            self.ivars().borrow().storage
        }

        #[unsafe(method(setStorageMode:))]
        fn set_storage(&self, storage: MTLStorageMode) {
            self.ivars().borrow_mut().storage = storage;
        }

        #[unsafe(method(sampleCount))]
        fn count(&self) -> usize {
            self.ivars().borrow().count
        }

        #[unsafe(method(setSampleCount:))]
        fn set_count(&self, count: usize) {
            self.ivars().borrow_mut().count = count;
        }
    }
);

pub(crate) struct SamplesState {
    label: String,
    storage: MTLStorageMode,
    values: Mutex<Vec<u64>>,
}

define_class!(
    /// Timestamps by index.
    #[unsafe(super(NSObject))]
    #[name = "SoftMTLCounterSampleBuffer"]
    #[ivars = SamplesState]
    pub(crate) struct SoftSamples;

    impl SoftSamples {
        #[unsafe(method_id(device))]
        fn device(&self) -> Retained<SoftDevice> {
            shared()
        }

        #[unsafe(method_id(label))]
        fn label(&self) -> Retained<NSString> {
            NSString::from_str(&self.ivars().label)
        }

        #[unsafe(method(sampleCount))]
        fn count(&self) -> usize {
            self.values().len()
        }

        #[unsafe(method_id(resolveCounterRange:))]
        fn resolve(&self, range: NSRange) -> Option<Retained<Data>> {
            self.resolved(range).map(Data::of)
        }
    }
);

// SAFETY: the values are behind a lock, the rest never changes.
unsafe impl Send for SoftSamples {}
// SAFETY: as above.
unsafe impl Sync for SoftSamples {}

impl SoftSamples {
    /// A sample buffer as a descriptor asks for it.
    pub(crate) fn create(descriptor: &SamplesDescriptor, error: *mut *mut NSError) -> Option<Retained<Self>> {
        let Settings { set, label, storage, count } = descriptor.ivars().borrow().clone();
        let refuse = |code: Code, message: &str| {
            // SAFETY: the pointer is the caller's place for an error.
            unsafe { set_error(error, DOMAIN, code.0, message) };
        };
        if set.is_none() {
            refuse(Code::Invalid, "the descriptor has no counter set; take one of the device's counterSets");
            return None;
        }
        if !(1..=MAX_SAMPLES).contains(&count) {
            refuse(
                Code::Invalid,
                &format!("{count} samples of {SAMPLE} bytes; 1 to {MAX_SAMPLES} are possible"),
            );
            return None;
        }
        if ![MTLStorageMode::Shared, MTLStorageMode::Private].contains(&storage) {
            refuse(Code::Invalid, "a sample buffer is shared or private");
            return None;
        }
        if faults::allocation_fails() {
            refuse(Code::OutOfMemory, "a fault that was asked for");
            return None;
        }
        let state = SamplesState { label, storage, values: Mutex::new(vec![0; count]) };
        let this = Self::alloc().set_ivars(state);
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }

    fn values(&self) -> MutexGuard<'_, Vec<u64>> {
        self.ivars().values.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is a sample with this index; a wrong one is reported.
    pub(crate) fn has(&self, index: usize) -> bool {
        self.has_all(NSRange { location: index, length: 1 })
    }

    /// Whether there are all of these samples; others are reported.
    pub(crate) fn has_all(&self, range: NSRange) -> bool {
        let count = self.values().len();
        let within = range.location.checked_add(range.length).is_some_and(|end| end <= count);
        if !within {
            let NSRange { location, length } = range;
            report(&rules::COUNTER_INDEX, format!("{length} from {location} of {}", self.describe(count)));
        }
        within
    }

    fn resolved(&self, range: NSRange) -> Option<Vec<u8>> {
        if self.ivars().storage != MTLStorageMode::Shared {
            let count = self.values().len();
            report(&rules::COUNTER_PRIVATE, self.describe(count));
            return None;
        }
        self.has_all(range).then(|| self.bytes(range))
    }

    /// Samples as they lie in memory, once [`Self::has_all`] has said that they are there.
    pub(crate) fn bytes(&self, range: NSRange) -> Vec<u8> {
        let values = self.values();
        values[range.location..range.location + range.length]
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect()
    }

    /// Takes a sample.
    pub(crate) fn take(&self, index: usize) {
        if let Some(value) = self.values().get_mut(index) {
            *value = nanoseconds();
        }
    }

    fn describe(&self, count: usize) -> String {
        format!("sample buffer '{}' of {count}", self.ivars().label)
    }
}

pub(crate) fn load() {
    let _ = (SoftCounter::class(), SoftCounterSet::class());
    let _ = (SamplesDescriptor::class(), SoftSamples::class());
}
