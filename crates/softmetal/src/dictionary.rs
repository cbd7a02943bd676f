//! `NSDictionary`, with strings for keys.

use objc2::rc::Retained;
use objc2::runtime::AnyObject;
use objc2::{AnyThread, ClassType, DefinedClass, Message, define_class, msg_send};
use objc2_foundation::{NSObject, NSString};

use crate::foundation::{List, list};

type Entry = (Retained<NSString>, Retained<AnyObject>);

define_class!(
    /// A dictionary that never changes.
    #[unsafe(super(NSObject))]
    #[name = "NSDictionary"]
    #[ivars = Vec<Entry>]
    pub(crate) struct Dictionary;

    impl Dictionary {
        #[unsafe(method(count))]
        fn count(&self) -> usize {
            self.ivars().len()
        }

        #[unsafe(method_id(objectForKey:))]
        fn object_for(&self, key: &NSString) -> Option<Retained<AnyObject>> {
            self.find(&key.to_string())
        }

        #[unsafe(method_id(objectForKeyedSubscript:))]
        fn object_for_subscript(&self, key: &NSString) -> Option<Retained<AnyObject>> {
            self.find(&key.to_string())
        }

        #[unsafe(method_id(allKeys))]
        fn keys(&self) -> Retained<List> {
            let key = |(key, _): &Entry| -> Retained<AnyObject> {
                // SAFETY: a string is an object.
                unsafe { Retained::cast_unchecked(key.clone()) }
            };
            list(self.ivars().iter().map(key).collect())
        }

        #[unsafe(method_id(allValues))]
        fn values(&self) -> Retained<List> {
            list(self.ivars().iter().map(|(_, value)| value.clone()).collect())
        }

        #[unsafe(method_id(copy))]
        fn copy(&self) -> Retained<Self> {
            self.retain()
        }
    }
);

impl Dictionary {
    /// A dictionary of these entries.
    pub(crate) fn of(entries: Vec<Entry>) -> Retained<Self> {
        let this = Self::alloc().set_ivars(entries);
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }

    fn find(&self, key: &str) -> Option<Retained<AnyObject>> {
        let found = self.ivars().iter().find(|(known, _)| known.to_string() == key);
        found.map(|(_, object)| object.clone())
    }
}

pub(crate) fn load() {
    let _ = Dictionary::class();
}
