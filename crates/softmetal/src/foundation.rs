//! `NSString`, `NSError` and `NSArray`: what objc2 and Metal code touch of them.

use std::ffi::{CString, c_char, c_void};
use std::ptr::NonNull;
use std::sync::atomic::AtomicUsize;
use std::sync::{Mutex, PoisonError};

use objc2::rc::{Allocated, Retained};
use objc2::runtime::AnyObject;
use objc2::{AnyThread, ClassType, DefinedClass, Message, define_class, msg_send};
use objc2_foundation::{NSError, NSFastEnumerationState, NSObject, NSString};

use crate::dictionary::Dictionary;

define_class!(
    /// A text in UTF-8.
    #[unsafe(super(NSObject))]
    #[name = "NSString"]
    #[ivars = CString]
    pub(crate) struct Text;

    impl Text {
        #[unsafe(method_id(initWithBytes:length:encoding:))]
        fn init_with_bytes(
            this: Allocated<Self>,
            bytes: *const c_void,
            length: usize,
            _encoding: i32,
        ) -> Option<Retained<Self>> {
            // SAFETY: the caller gives `length` bytes.
            let bytes = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), length) };
            CString::new(bytes).ok().and_then(|text| {
                let this = this.set_ivars(text);
                // SAFETY: NSObject's init returns the object.
                unsafe { msg_send![super(this), init] }
            })
        }

        #[unsafe(method(UTF8String))]
        fn utf8(&self) -> *const c_char {
            self.ivars().as_ptr()
        }

        #[unsafe(method(lengthOfBytesUsingEncoding:))]
        fn bytes(&self, _encoding: i32) -> usize {
            self.ivars().as_bytes().len()
        }

        #[unsafe(method(length))]
        fn length(&self) -> usize {
            self.ivars().to_string_lossy().encode_utf16().count()
        }

        #[unsafe(method(isEqualToString:))]
        fn is_equal_to(&self, other: &NSString) -> bool {
            other.to_string().as_bytes() == self.ivars().as_bytes()
        }

        #[unsafe(method_id(copy))]
        fn copy(&self) -> Retained<Self> {
            self.retain()
        }

        #[unsafe(method_id(description))]
        fn description(&self) -> Retained<Self> {
            self.retain()
        }
    }
);

/// The name that a program gives an object; none until it does.
#[derive(Default)]
pub(crate) struct Label(Mutex<Option<String>>);

impl Label {
    pub(crate) fn get(&self) -> Option<Retained<NSString>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_deref().map(NSString::from_str)
    }

    pub(crate) fn set(&self, label: Option<&NSString>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = label.map(ToString::to_string);
    }
}

/// What an error says.
pub(crate) struct Failure {
    domain: Retained<NSString>,
    code: isize,
    message: Retained<NSString>,
    underlying: Option<Retained<NSError>>,
}

/// The error that underlies another.
pub(crate) struct Underlying {
    pub(crate) domain: &'static str,
    pub(crate) code: isize,
}

define_class!(
    /// An error with domain, code and text.
    #[unsafe(super(NSObject))]
    #[name = "NSError"]
    #[ivars = Failure]
    pub(crate) struct SoftError;

    impl SoftError {
        #[unsafe(method(code))]
        fn code(&self) -> isize {
            self.ivars().code
        }

        #[unsafe(method_id(domain))]
        fn domain(&self) -> Retained<NSString> {
            self.ivars().domain.clone()
        }

        #[unsafe(method_id(localizedDescription))]
        fn localized_description(&self) -> Retained<NSString> {
            self.ivars().message.clone()
        }

        #[unsafe(method_id(userInfo))]
        fn user_info(&self) -> Retained<Dictionary> {
            let Failure { message, underlying, .. } = self.ivars();
            // SAFETY: strings and errors are objects.
            let object = |of: Retained<NSError>| unsafe { Retained::cast_unchecked::<AnyObject>(of) };
            // SAFETY: as above.
            let message = unsafe { Retained::cast_unchecked::<AnyObject>(message.clone()) };
            let mut entries = vec![(NSString::from_str("NSLocalizedDescription"), message)];
            let underlying = underlying.clone().map(object);
            entries.extend(underlying.map(|error| (NSString::from_str("NSUnderlyingError"), error)));
            Dictionary::of(entries)
        }

        #[unsafe(method_id(underlyingErrors))]
        fn underlying_errors(&self) -> Retained<List> {
            // SAFETY: an error is an object.
            let object = |of: Retained<NSError>| unsafe { Retained::cast_unchecked::<AnyObject>(of) };
            list(self.ivars().underlying.clone().map(object).into_iter().collect())
        }
    }
);

/// A new error.
pub(crate) fn error(domain: &str, code: isize, message: &str) -> Retained<NSError> {
    error_with(domain, code, message, None)
}

/// A new error, with the one that underlies it.
pub(crate) fn error_with(
    domain: &str,
    code: isize,
    message: &str,
    underlying: Option<Underlying>,
) -> Retained<NSError> {
    let underlying = underlying.map(|Underlying { domain, code }| {
        error(domain, code, &format!("The operation couldn’t be completed. ({domain} error {code}.)"))
    });
    let failure = Failure {
        domain: NSString::from_str(domain),
        code,
        message: NSString::from_str(message),
        underlying,
    };
    let this = SoftError::alloc().set_ivars(failure);
    // SAFETY: NSObject's init returns the object; the class is registered as NSError.
    unsafe {
        let error: Retained<SoftError> = msg_send![super(this), init];
        Retained::cast_unchecked(error)
    }
}

/// Writes an error through the pointer that a method was given, autoreleased as the convention asks.
///
/// # Safety
/// The pointer is null or valid for a write.
pub(crate) unsafe fn set_error(place: *mut *mut NSError, domain: &str, code: isize, message: &str) {
    if !place.is_null() {
        // SAFETY: as the caller promises.
        unsafe { place.write(Retained::autorelease_ptr(error(domain, code, message))) };
    }
}

define_class!(
    /// A list of objects.
    #[unsafe(super(NSObject))]
    #[name = "NSArray"]
    #[ivars = Vec<Retained<AnyObject>>]
    pub(crate) struct List;

    impl List {
        #[unsafe(method_id(initWithObjects:count:))]
        fn init_with_objects(
            this: Allocated<Self>,
            objects: *const *mut AnyObject,
            count: usize,
        ) -> Retained<Self> {
            // SAFETY: the caller gives `count` objects.
            let objects = unsafe { (0..count).filter_map(|i| Retained::retain(*objects.add(i))).collect() };
            let this = this.set_ivars(objects);
            // SAFETY: NSObject's init returns the object.
            unsafe { msg_send![super(this), init] }
        }

        #[unsafe(method(count))]
        fn count(&self) -> usize {
            self.ivars().len()
        }

        #[unsafe(method_id(objectAtIndex:))]
        fn object_at(&self, index: usize) -> Retained<AnyObject> {
            self.ivars()[index].clone()
        }

        #[unsafe(method_id(firstObject))]
        fn first(&self) -> Option<Retained<AnyObject>> {
            self.ivars().first().cloned()
        }

        #[unsafe(method_id(copy))]
        fn copy(&self) -> Retained<Self> {
            self.retain()
        }

        #[unsafe(method(countByEnumeratingWithState:objects:count:))]
        fn enumerate(
            &self,
            mut state: NonNull<NSFastEnumerationState>,
            _room: NonNull<*mut AnyObject>,
            _count: usize,
        ) -> usize {
            /// Says that the list has not changed: it never does.
            static UNCHANGED: AtomicUsize = AtomicUsize::new(0);
            // SAFETY: the caller gives a state of its own.
            let state = unsafe { state.as_mut() };
            let first = state.state == 0;
            state.state = 1;
            state.itemsPtr = self.ivars().as_ptr().cast_mut().cast();
            state.mutationsPtr = UNCHANGED.as_ptr().cast();
            if first { self.ivars().len() } else { 0 }
        }

        #[unsafe(method(getObjects:))]
        fn get_objects(&self, into: *mut *mut AnyObject) {
            for (index, object) in self.ivars().iter().enumerate() {
                // SAFETY: the caller has room for all objects.
                unsafe { into.add(index).write(Retained::as_ptr(object).cast_mut()) };
            }
        }
    }
);

impl List {
    /// The objects.
    pub(crate) fn objects(&self) -> &[Retained<AnyObject>] {
        self.ivars()
    }
}

/// A list of these objects.
pub(crate) fn list(objects: Vec<Retained<AnyObject>>) -> Retained<List> {
    let this = List::alloc().set_ivars(objects);
    // SAFETY: NSObject's init returns the object.
    unsafe { msg_send![super(this), init] }
}

pub(crate) fn load() {
    let _ = (Text::class(), SoftError::class(), List::class());
}
