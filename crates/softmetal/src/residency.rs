//! `MTLResidencySet` and the plain objects that configure others.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard, PoisonError};

use objc2::rc::{Allocated, Retained};
use objc2::runtime::AnyObject;
use objc2::{AnyThread, ClassType, DefinedClass, Message, define_class, msg_send};
use objc2_foundation::{NSObject, NSRange, NSString};
use objc2_metal::MTLDataType;

use crate::buffer::SoftBuffer;
use crate::check::report;
use crate::heap::SoftHeap;
use crate::rules;

type Allocations = HashMap<usize, Retained<AnyObject>>;

define_class!(
    /// Buffers and heaps that the GPU keeps mapped.
    #[unsafe(super(NSObject))]
    #[name = "SoftMTLResidencySet"]
    #[ivars = Mutex<Allocations>]
    pub(crate) struct SoftResidencySet;

    impl SoftResidencySet {
        #[unsafe(method(requestResidency))]
        fn request(&self) {}

        #[unsafe(method(endResidency))]
        fn end(&self) {}

        #[unsafe(method(commit))]
        fn commit(&self) {}

        #[unsafe(method(addAllocation:))]
        fn add(&self, allocation: &AnyObject) {
            self.allocations().insert(std::ptr::from_ref(allocation) as usize, allocation.retain());
        }

        #[unsafe(method(removeAllocation:))]
        fn remove(&self, allocation: &AnyObject) {
            let removed = self.allocations().remove(&(std::ptr::from_ref(allocation) as usize));
            if removed.is_none() {
                report(&rules::NOT_RESIDENT, describe(allocation));
            }
        }

        #[unsafe(method(removeAllAllocations))]
        fn remove_all(&self) {
            self.allocations().clear();
        }

        #[unsafe(method(containsAllocation:))]
        fn contains(&self, allocation: &AnyObject) -> bool {
            self.allocations().contains_key(&(std::ptr::from_ref(allocation) as usize))
        }

        #[unsafe(method(allocationCount))]
        fn count(&self) -> usize {
            self.allocations().len()
        }

        #[unsafe(method(allocatedSize))]
        fn allocated_size(&self) -> u64 {
            self.allocations().values().map(|allocation| size(allocation) as u64).sum()
        }
    }
);

impl SoftResidencySet {
    pub(crate) fn create() -> Retained<Self> {
        let this = Self::alloc().set_ivars(Mutex::default());
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }

    fn allocations(&self) -> MutexGuard<'_, Allocations> {
        self.ivars().lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bytes of a buffer or a heap.
fn size(allocation: &AnyObject) -> usize {
    let heap = allocation.downcast_ref::<SoftHeap>().map(SoftHeap::len);
    heap.or_else(|| allocation.downcast_ref::<SoftBuffer>().map(SoftBuffer::len)).unwrap_or(0)
}

fn describe(allocation: &AnyObject) -> String {
    let heap = allocation.downcast_ref::<SoftHeap>().map(SoftHeap::describe);
    let buffer = || allocation.downcast_ref::<SoftBuffer>().map(SoftBuffer::describe);
    heap.or_else(buffer).unwrap_or_else(|| format!("{allocation:p}"))
}

/// A class of objects whose settings change nothing here.
macro_rules! inert {
    ($(#[$doc:meta])* $type:ident, $name:literal, { $($selector:ident $method:ident: $value:ty),* $(,)? }) => {
        define_class!(
            $(#[$doc])*
            #[unsafe(super(NSObject))]
            #[name = $name]
            pub(crate) struct $type;

            impl $type {
                $(
                    #[unsafe(method($selector:))]
                    fn $method(&self, _value: $value) {}
                )*
            }
        );
    };
}

inert!(
    /// How a residency set is made.
    ResidencySetDescriptor, "MTLResidencySetDescriptor", {
        setInitialCapacity set_capacity: usize,
        setLabel set_label: Option<&NSString>,
    }
);

/// Values of function constants by index.
pub(crate) type Constants = BTreeMap<u32, Vec<u8>>;

/// Values as the host gave them: which index a name has, only a library knows.
#[derive(Default)]
pub(crate) struct Given {
    by_index: Constants,
    by_name: BTreeMap<String, Vec<u8>>,
}

/// Copies `count` values of a type.
///
/// # Safety
/// The values are there.
unsafe fn values(start: *const c_void, of: MTLDataType, count: usize) -> Vec<Vec<u8>> {
    let Some(size) = size_of_constant(of) else { return Vec::new() };
    // SAFETY: as the caller promises.
    let bytes = unsafe { std::slice::from_raw_parts(start.cast::<u8>(), size * count) };
    bytes.chunks(size).map(<[u8]>::to_vec).collect()
}

define_class!(
    /// Values of function constants.
    #[unsafe(super(NSObject))]
    #[name = "MTLFunctionConstantValues"]
    #[ivars = RefCell<Given>]
    pub(crate) struct SoftConstants;

    impl SoftConstants {
        #[unsafe(method_id(init))]
        fn init(this: Allocated<Self>) -> Retained<Self> {
            let this = this.set_ivars(RefCell::default());
            // SAFETY: NSObject's init returns the object.
            unsafe { msg_send![super(this), init] }
        }

        #[unsafe(method(setConstantValue:type:atIndex:))]
        fn set(&self, value: *const c_void, of: MTLDataType, index: usize) {
            // SAFETY: the caller gives a value of this type.
            let values = unsafe { values(value, of, 1) };
            self.ivars().borrow_mut().by_index.extend(values.into_iter().map(|value| (index as u32, value)));
        }

        #[unsafe(method(setConstantValues:type:withRange:))]
        fn set_range(&self, start: *const c_void, of: MTLDataType, range: NSRange) {
            // SAFETY: the caller gives as many values of this type as the range is long.
            let values = unsafe { values(start, of, range.length) };
            self.ivars().borrow_mut().by_index.extend((range.location as u32..).zip(values));
        }

        #[unsafe(method(setConstantValue:type:withName:))]
        fn set_named(&self, value: *const c_void, of: MTLDataType, name: &NSString) {
            // SAFETY: the caller gives a value of this type.
            let values = unsafe { values(value, of, 1) };
            self.ivars().borrow_mut().by_name.extend(values.into_iter().map(|value| (name.to_string(), value)));
        }

        #[unsafe(method(reset))]
        fn reset(&self) {
            self.ivars().take();
        }
    }
);

/// Bytes of a scalar type of function constants.
fn size_of_constant(of: MTLDataType) -> Option<usize> {
    use MTLDataType as T;
    match of {
        T::Bool | T::Char | T::UChar => Some(1),
        T::Short | T::UShort | T::Half | T::BFloat => Some(2),
        T::Float | T::Int | T::UInt => Some(4),
        T::Long | T::ULong | T::Float2 | T::Int2 | T::UInt2 => Some(8),
        T::Float4 | T::Int4 | T::UInt4 => Some(16),
        _ => None,
    }
}

impl SoftConstants {
    /// The values by index; `index` finds that of a name. Names that the library does not have are left out, as indices
    /// are that it does not have.
    pub(crate) fn values(&self, index: impl Fn(&str) -> Option<u32>) -> Constants {
        let given = self.ivars().borrow();
        let named = given.by_name.iter().filter_map(|(name, value)| Some((index(name)?, value.clone())));
        given.by_index.clone().into_iter().chain(named).collect()
    }
}

pub(crate) fn load() {
    let _ = (SoftResidencySet::class(), ResidencySetDescriptor::class(), SoftConstants::class());
}
