//! Finding the method that a message means.

use std::ffi::{CStr, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::check::{Rule, Severity, report};
use crate::class::{Class, Imp, Sel, runtime, selector_name};
use crate::{Id, count};

pub(crate) const UNKNOWN_SELECTOR: Rule = Rule {
    id: "objc-unknown-selector",
    text: "an object is sent only messages that its class understands",
    severity: Severity::Documented,
    source: "Objective-C Runtime Programming Guide, Message Forwarding",
};

/// The answer to every message to nil, and to one that nobody understands when the program goes on.
unsafe extern "C-unwind" fn nothing(_receiver: Id, _selector: Sel) -> *mut c_void {
    null_mut()
}

/// The method of a class for a selector.
fn find(class: &Class, receiver: Id, selector: Sel) -> Imp {
    class.code(selector).unwrap_or_else(|| {
        let kind = if class.is_meta() { '+' } else { '-' };
        let message = format!("{kind}[{} {}], receiver {receiver:p}", class.name(), selector_name(selector));
        report(&UNKNOWN_SELECTOR, message);
        nothing as Imp
    })
}

/// The class whose messages do nothing, and the one selector that it still answers.
static SILENT: AtomicPtr<Class> = AtomicPtr::new(null_mut());
static HEARD: AtomicPtr<std::ffi::c_char> = AtomicPtr::new(null_mut());

/// While `body` runs, messages to instances of this very class return nil at once, all but `heard`. So a caller's own
/// code is timed, without what is done for it.
///
/// # Panics
/// There is no such class.
pub fn silenced<R>(class: &CStr, heard: &CStr, body: impl FnOnce() -> R) -> R {
    struct Guard;
    impl Drop for Guard {
        fn drop(&mut self) {
            SILENT.store(null_mut(), Ordering::SeqCst);
        }
    }
    let class = crate::class::lookup(class);
    assert!(!class.is_null(), "no such class");
    HEARD.store(crate::class::selector(heard).cast_mut(), Ordering::SeqCst);
    SILENT.store(class.cast_mut(), Ordering::SeqCst);
    let _guard = Guard;
    body()
}

fn is_silent(receiver: Id, selector: Sel) -> bool {
    let silent = SILENT.load(Ordering::Relaxed);
    !silent.is_null()
        && !receiver.is_null()
        && std::ptr::eq(Class::of(receiver), silent)
        && selector != HEARD.load(Ordering::Relaxed).cast_const()
}

#[repr(C)]
struct Super {
    receiver: Id,
    class: *const Class,
}

runtime! {
    fn objc_msg_lookup(receiver: Id, sel: Sel) -> Imp {
        if is_silent(receiver, sel) {
            return nothing as Imp;
        }
        if receiver.is_null() || !count::check_alive(receiver, || format!("message '{}'", selector_name(sel))) {
            return nothing as Imp;
        }
        crate::class::check_exists(receiver);
        find(Class::of(receiver), receiver, sel)
    }
    fn objc_msg_lookup_super(target: *const c_void, sel: Sel) -> Imp {
        let target = &*target.cast::<Super>();
        match Class::at(target.class) {
            Some(class) => find(class, target.receiver, sel),
            None => nothing as Imp,
        }
    }
}

/// Sends a message without arguments that returns an object.
///
/// # Safety
/// The object's class understands it and returns an object.
pub(crate) unsafe fn send(receiver: Id, sel: Sel) -> Id {
    // SAFETY: as the caller promises, the code has this signature.
    unsafe {
        let code = objc_msg_lookup(receiver, sel);
        let code: unsafe extern "C-unwind" fn(Id, Sel) -> Id = std::mem::transmute(code);
        code(receiver, sel)
    }
}
