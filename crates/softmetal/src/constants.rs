//! The strings that Metal and Foundation export as constants: error domains, names of counters, keys of errors.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

use objc2::rc::Retained;
use objc2_foundation::NSString;

macro_rules! strings {
    ($($name:ident = $text:literal),* $(,)?) => {
        $(
            #[doc = concat!("The string `", $text, "`.")]
            #[unsafe(no_mangle)]
            #[allow(non_upper_case_globals)]
            pub static $name: AtomicPtr<c_void> = AtomicPtr::new(null_mut());
        )*

        /// Makes the strings. They live as long as the process.
        pub(crate) fn load() {
            $($name.store(Retained::into_raw(NSString::from_str($text)).cast(), Ordering::Release);)*
        }
    };
}

strings!(
    NSUnderlyingErrorKey = "NSUnderlyingError",
    NSLocalizedDescriptionKey = "NSLocalizedDescription",
    MTLLibraryErrorDomain = "MTLLibraryErrorDomain",
    MTLCommandBufferErrorDomain = "MTLCommandBufferErrorDomain",
    MTLCounterErrorDomain = "MTLCounterErrorDomain",
    MTLCommonCounterTimestamp = "GPUTimestamp",
    MTLCommonCounterSetTimestamp = "timestamp",
    MTLCommonCounterSetStageUtilization = "stageutilization",
    MTLCommonCounterSetStatistic = "statistic",
    MTLCaptureErrorDomain = "MTLCaptureErrorDomain",
    MTLBinaryArchiveDomain = "MTLBinaryArchiveDomain",
);
