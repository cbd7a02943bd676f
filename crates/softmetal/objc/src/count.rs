//! Making objects, reference counts, and weak references.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::HashMap;
use std::ffi::c_int;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use crate::check::{Rule, Severity, report};
use crate::class::{Class, runtime, selector};
use crate::{Id, blocks, ledger, message, pool};

pub(crate) const OVER_RELEASE: Rule = Rule {
    id: "objc-over-release",
    text: "an object is released as often as it is owned",
    severity: Severity::Documented,
    source: "Advanced Memory Management Programming Guide, Basic Memory Management Rules",
};
pub(crate) const ZOMBIE: Rule = Rule {
    id: "objc-use-after-free",
    text: "an object is not used after it was deallocated",
    severity: Severity::Documented,
    source: "Advanced Memory Management Programming Guide, Basic Memory Management Rules",
};

/// What lies before an object: its reference count.
const HEADER: usize = 16;
/// The count of a deallocated object.
const DEAD: isize = isize::MIN / 2;
/// Zombies beyond so many bytes are not kept; an endless test must not eat the memory.
const ZOMBIE_BYTES: usize = 256 << 20;

static ZOMBIES: AtomicUsize = AtomicUsize::new(0);

fn counter(object: Id) -> &'static AtomicIsize {
    // SAFETY: every object was made by `create`, which puts the count there; zombies keep it.
    unsafe { &*object.byte_sub(HEADER).cast::<AtomicIsize>() }
}

fn is_counted(object: Id) -> bool {
    !object.is_null() && !blocks::is_block(object) && !Class::of(object).is_meta()
}

/// References to an object.
pub(crate) fn references(object: Id) -> usize {
    counter(object).load(Ordering::Relaxed).max(0) as usize
}

fn layout(class: &Class) -> Layout {
    Layout::from_size_align(HEADER + class.instance_size(), 16).expect("classes are small")
}

/// A new object with one reference.
pub(crate) fn create(class: *const Class) -> Id {
    let Some(known) = Class::at(class) else { return null_mut() };
    let layout = layout(known);
    // SAFETY: the size is not zero; the first word after the header is the class pointer.
    let object = unsafe {
        let start = alloc_zeroed(layout);
        if start.is_null() {
            handle_alloc_error(layout);
        }
        let object: Id = start.add(HEADER).cast();
        object.cast::<*const Class>().write(class);
        object
    };
    counter(object).store(1, Ordering::Relaxed);
    ledger::born(object as usize, known.name());
    object
}

/// Whether the memory of something of this size is kept after its end, so that a later use is known for what it is.
pub(crate) fn is_kept(size: usize) -> bool {
    ZOMBIES.fetch_add(size, Ordering::Relaxed) + size <= ZOMBIE_BYTES
}

/// Ends an object: `dealloc` of the root class.
pub(crate) fn destroy(object: Id) {
    counter(object).store(DEAD, Ordering::Relaxed);
    let layout = layout(Class::of(object));
    let keep = is_kept(layout.size());
    ledger::died(object as usize, keep);
    for place in weak().remove(&(object as usize)).into_iter().flatten() {
        // SAFETY: the place was given to `objc_initWeak` and not taken back since.
        unsafe { *(place as *mut Id) = null_mut() };
    }
    if !keep {
        // SAFETY: made by `create` with this layout, and nobody owns it any more.
        unsafe { dealloc(object.byte_sub(HEADER).cast(), layout) };
    }
}

/// Reports the use of an object that is gone; `true` if it is alive.
pub(crate) fn check_alive(object: Id, use_of_it: impl FnOnce() -> String) -> bool {
    if !is_counted(object) || counter(object).load(Ordering::Relaxed) >= 0 {
        return true;
    }
    report(&ZOMBIE, format!("{} to {} at {object:p}", use_of_it(), ledger::obituary(object as usize)));
    false
}

static WEAK: LazyLock<Mutex<HashMap<usize, Vec<usize>>>> = LazyLock::new(Mutex::default);

fn weak() -> MutexGuard<'static, HashMap<usize, Vec<usize>>> {
    WEAK.lock().unwrap_or_else(PoisonError::into_inner)
}

runtime! {
    fn objc_retain(object: Id) -> Id {
        if !object.is_null() && blocks::is_block(object) {
            return blocks::_Block_copy(object.cast()).cast();
        }
        if is_counted(object) && check_alive(object, || "retain".to_owned()) {
            ledger::RETAINS.fetch_add(1, Ordering::Relaxed);
            counter(object).fetch_add(1, Ordering::Relaxed);
        }
        object
    }
    fn objc_release(object: Id) {
        if !object.is_null() && blocks::is_block(object) {
            return blocks::_Block_release(object.cast());
        }
        if !is_counted(object) {
            return;
        }
        if counter(object).load(Ordering::Relaxed) <= 0 {
            let what = if counter(object).load(Ordering::Relaxed) == 0 {
                Class::of(object).name()
            } else {
                ledger::obituary(object as usize)
            };
            report(&OVER_RELEASE, format!("release of {what} at {object:p}, to which there is no reference"));
            return;
        }
        ledger::RELEASES.fetch_add(1, Ordering::Relaxed);
        if counter(object).fetch_sub(1, Ordering::AcqRel) == 1 {
            message::send(object, selector(c"dealloc"));
        }
    }
    fn class_createInstance(class: *const Class, _extra: usize) -> Id { create(class) }
    fn object_dispose(object: Id) -> Id { destroy(object); null_mut() }
    fn objc_retainBlock(block: Id) -> Id { blocks::_Block_copy(block.cast()).cast() }
    fn objc_retainAutorelease(object: Id) -> Id { pool::objc_autorelease(objc_retain(object)) }
    fn objc_retainAutoreleaseReturnValue(object: Id) -> Id { objc_retainAutorelease(object) }
    fn objc_storeStrong(place: *mut Id, object: Id) {
        objc_retain(object);
        objc_release(place.replace(object));
    }
    fn objc_sync_enter(_object: Id) -> c_int { 0 }
    fn objc_sync_exit(_object: Id) -> c_int { 0 }

    fn objc_initWeak(place: *mut Id, object: Id) -> Id {
        place.write(object);
        if !object.is_null() {
            weak().entry(object as usize).or_default().push(place as usize);
        }
        object
    }
    fn objc_destroyWeak(place: *mut Id) {
        let object = place.replace(null_mut());
        if let Some(places) = weak().get_mut(&(object as usize)) {
            places.retain(|&known| known != place as usize);
        }
    }
    fn objc_storeWeak(place: *mut Id, object: Id) -> Id {
        objc_destroyWeak(place);
        objc_initWeak(place, object)
    }
    fn objc_loadWeakRetained(place: *mut Id) -> Id {
        // With the table locked the object cannot be destroyed in between.
        let _table = weak();
        let object = place.read();
        if object.is_null() {
            return object;
        }
        let raised = counter(object).fetch_update(Ordering::AcqRel, Ordering::Relaxed, |count| {
            (count > 0).then_some(count + 1)
        });
        if raised.is_ok() { object } else { null_mut() }
    }
    fn objc_copyWeak(to: *mut Id, from: *mut Id) {
        let object = objc_loadWeakRetained(from);
        objc_initWeak(to, object);
        objc_release(object);
    }
    fn objc_moveWeak(to: *mut Id, from: *mut Id) {
        objc_copyWeak(to, from);
        objc_destroyWeak(from);
    }
}
