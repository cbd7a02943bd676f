//! `NSData`.

use std::ffi::c_void;

use objc2::rc::{Allocated, Retained};
use objc2::{AnyThread, ClassType, DefinedClass, Message, define_class, msg_send};
use objc2_foundation::NSObject;

define_class!(
    /// Bytes.
    #[unsafe(super(NSObject))]
    #[name = "NSData"]
    #[ivars = Vec<u8>]
    pub(crate) struct Data;

    impl Data {
        #[unsafe(method_id(initWithBytes:length:))]
        fn init_with_bytes(this: Allocated<Self>, bytes: *const c_void, length: usize) -> Retained<Self> {
            // SAFETY: the caller gives `length` bytes.
            Self::over(this, unsafe { copied(bytes, length) })
        }

        #[unsafe(method_id(dataWithBytes:length:))]
        fn with_bytes(bytes: *const c_void, length: usize) -> Retained<Self> {
            // SAFETY: the caller gives `length` bytes.
            Self::over(Self::alloc(), unsafe { copied(bytes, length) })
        }

        #[unsafe(method(length))]
        fn length(&self) -> usize {
            self.ivars().len()
        }

        #[unsafe(method(bytes))]
        fn bytes(&self) -> *const c_void {
            self.ivars().as_ptr().cast()
        }

        #[unsafe(method_id(copy))]
        fn copy(&self) -> Retained<Self> {
            self.retain()
        }
    }
);

/// # Safety
/// The pointer is null or has so many bytes.
unsafe fn copied(bytes: *const c_void, length: usize) -> Vec<u8> {
    if bytes.is_null() {
        return Vec::new();
    }
    // SAFETY: as the caller promises.
    unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), length) }.to_vec()
}

impl Data {
    fn over(this: Allocated<Self>, bytes: Vec<u8>) -> Retained<Self> {
        let this = this.set_ivars(bytes);
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }

    /// Of these bytes.
    pub(crate) fn of(bytes: Vec<u8>) -> Retained<Self> {
        Self::over(Self::alloc(), bytes)
    }
}

pub(crate) fn load() {
    let _ = Data::class();
}
