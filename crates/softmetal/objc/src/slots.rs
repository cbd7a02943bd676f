//! Link-time places of classes.
//!
//! objc2's `gnustep-*` features refer to a class by the symbol `._OBJC_CLASS_` and its name. Every class that the
//! harness provides needs its place here; one that is missing is an error of the linker in the program under test.

use std::cell::UnsafeCell;
use std::ffi::CStr;
use std::mem::MaybeUninit;

use crate::Class;

/// Zeroed memory for a class, which becomes one when the class is made.
#[repr(transparent)]
pub struct Slot(UnsafeCell<MaybeUninit<Class>>);

// SAFETY: written once, by `Class::create`, before the class is registered; what it holds then is `Sync` by its locks.
unsafe impl Sync for Slot {}

impl Slot {
    const fn empty() -> Self {
        Self(UnsafeCell::new(MaybeUninit::zeroed()))
    }
}

macro_rules! slots {
    ($($name:ident),* $(,)?) => {
        $(
            /// The place of a class.
            #[unsafe(export_name = concat!("._OBJC_CLASS_", stringify!($name)))]
            pub static $name: Slot = Slot::empty();
        )*
        static TABLE: &[(&str, &Slot)] = &[$((stringify!($name), &$name)),*];
    };
}

#[allow(non_upper_case_globals)]
mod places {
    use super::Slot;

    slots!(
        NSObject,
        NSString,
        NSError,
        NSArray,
        NSURL,
        NSData,
        NSDictionary,
        NSNumber,
        NSProcessInfo,
        MTLArchitecture,
        MTLBinaryArchiveDescriptor,
        MTLCaptureDescriptor,
        MTLCaptureManager,
        MTLCommandBufferDescriptor,
        MTLCommandQueueDescriptor,
        MTLCompileOptions,
        MTLComputePassDescriptor,
        MTLComputePassSampleBufferAttachmentDescriptor,
        MTLComputePassSampleBufferAttachmentDescriptorArray,
        MTLComputePipelineDescriptor,
        MTLCounterSampleBufferDescriptor,
        MTLFunctionConstantValues,
        MTLFunctionDescriptor,
        MTLHeapDescriptor,
        MTLResidencySetDescriptor,
        MTLSharedEventListener,
        MPSKernel,
        MPSMatrix,
        MPSMatrixBinaryKernel,
        MPSMatrixCopy,
        MPSMatrixCopyDescriptor,
        MPSMatrixDescriptor,
        MPSMatrixFindTopK,
        MPSMatrixLogSoftMax,
        MPSMatrixLogSoftMaxGradient,
        MPSMatrixMultiplication,
        MPSMatrixNeuron,
        MPSMatrixSoftMax,
        MPSMatrixSoftMaxGradient,
        MPSMatrixSum,
        MPSMatrixUnaryKernel,
        MPSMatrixVectorMultiplication,
        MPSNDArray,
        MPSNDArrayDescriptor,
        MPSNDArrayMatrixMultiplication,
        MPSNDArrayMultiaryBase,
        MPSNDArrayMultiaryKernel,
        MPSVector,
        MPSVectorDescriptor,
    );

    pub(super) fn find(name: &[u8]) -> Option<&'static Slot> {
        TABLE.iter().find(|(known, _)| known.as_bytes() == name).map(|&(_, slot)| slot)
    }
}

/// Where a class of this name must lie, if the linker knows it.
pub(crate) fn place(name: &CStr) -> Option<*mut Class> {
    places::find(name.to_bytes()).map(|slot| slot.0.get().cast())
}
