//! Finding the method that a message means.

use std::ffi::c_void;
use std::ptr::null_mut;

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

#[repr(C)]
struct Super {
    receiver: Id,
    class: *const Class,
}

runtime! {
    fn objc_msg_lookup(receiver: Id, sel: Sel) -> Imp {
        if receiver.is_null() || !count::check_alive(receiver, || format!("message '{}'", selector_name(sel))) {
            return nothing as Imp;
        }
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
