//! `MTLHeapDescriptor`.

use std::cell::Cell;

use objc2::rc::{Allocated, Retained};
use objc2::{AnyThread, ClassType, DefinedClass, define_class, msg_send};
use objc2_foundation::NSObject;
use objc2_metal::{MTLCPUCacheMode, MTLHazardTrackingMode, MTLHeapType, MTLResourceOptions, MTLStorageMode};

use crate::buffer::{cache_mode, hazard_mode, storage_mode};

/// What a descriptor asks for.
#[derive(Clone, Copy)]
pub(crate) struct HeapSettings {
    pub(crate) size: usize,
    pub(crate) storage: MTLStorageMode,
    pub(crate) cache: MTLCPUCacheMode,
    pub(crate) tracking: MTLHazardTrackingMode,
    pub(crate) kind: MTLHeapType,
}

impl Default for HeapSettings {
    fn default() -> Self {
        Self {
            size: 0,
            storage: MTLStorageMode::Private,
            cache: MTLCPUCacheMode::DefaultCache,
            tracking: MTLHazardTrackingMode::Default,
            kind: MTLHeapType::Automatic,
        }
    }
}

impl HeapSettings {
    pub(crate) fn options(&self) -> MTLResourceOptions {
        MTLResourceOptions(self.cache.0 | self.storage.0 << 4 | self.tracking.0 << 8)
    }

    /// A heap is untracked unless it asks to be tracked.
    pub(crate) fn tracked(&self) -> bool {
        self.tracking == MTLHazardTrackingMode::Tracked
    }
}

define_class!(
    /// How a heap is made.
    #[unsafe(super(NSObject))]
    #[name = "MTLHeapDescriptor"]
    #[ivars = Cell<HeapSettings>]
    pub(crate) struct HeapDescriptor;

    impl HeapDescriptor {
        #[unsafe(method_id(init))]
        fn init(this: Allocated<Self>) -> Retained<Self> {
            let this = this.set_ivars(Cell::default());
            // SAFETY: NSObject's init returns the object.
            unsafe { msg_send![super(this), init] }
        }

        #[unsafe(method_id(copy))]
        fn copy(&self) -> Retained<Self> {
            let copy = Self::alloc().set_ivars(self.ivars().clone());
            // SAFETY: NSObject's init returns the object.
            unsafe { msg_send![super(copy), init] }
        }

        #[unsafe(method(size))]
        fn size(&self) -> usize {
            self.settings().size
        }

        #[unsafe(method(setSize:))]
        fn set_size(&self, size: usize) {
            self.change(|settings| settings.size = size);
        }

        #[unsafe(method(storageMode))]
        fn storage(&self) -> MTLStorageMode {
            self.settings().storage
        }

        #[unsafe(method(setStorageMode:))]
        fn set_storage(&self, storage: MTLStorageMode) {
            self.change(|settings| settings.storage = storage);
        }

        #[unsafe(method(cpuCacheMode))]
        fn cache(&self) -> MTLCPUCacheMode {
            self.settings().cache
        }

        #[unsafe(method(setCpuCacheMode:))]
        fn set_cache(&self, cache: MTLCPUCacheMode) {
            self.change(|settings| settings.cache = cache);
        }

        #[unsafe(method(hazardTrackingMode))]
        fn tracking(&self) -> MTLHazardTrackingMode {
            self.settings().tracking
        }

        #[unsafe(method(setHazardTrackingMode:))]
        fn set_tracking(&self, tracking: MTLHazardTrackingMode) {
            self.change(|settings| settings.tracking = tracking);
        }

        #[unsafe(method(resourceOptions))]
        fn options(&self) -> MTLResourceOptions {
            self.settings().options()
        }

        #[unsafe(method(setResourceOptions:))]
        fn set_options(&self, options: MTLResourceOptions) {
            self.change(|settings| {
                settings.storage = storage_mode(options);
                settings.cache = cache_mode(options);
                settings.tracking = hazard_mode(options);
            });
        }

        #[unsafe(method(type))]
        fn kind(&self) -> MTLHeapType {
            self.settings().kind
        }

        #[unsafe(method(setType:))]
        fn set_kind(&self, kind: MTLHeapType) {
            self.change(|settings| settings.kind = kind);
        }
    }
);

impl HeapDescriptor {
    pub(crate) fn settings(&self) -> HeapSettings {
        self.ivars().get()
    }

    fn change(&self, change: impl FnOnce(&mut HeapSettings)) {
        let mut settings = self.settings();
        change(&mut settings);
        self.ivars().set(settings);
    }
}

pub(crate) fn load() {
    let _ = HeapDescriptor::class();
}
