//! Autorelease pools: a stack a thread, and the hand-over of returned objects.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;

use crate::Id;
use crate::check::{Rule, Severity, report};
use crate::class::{Class, runtime};
use crate::count::{objc_release, objc_retain};

pub(crate) const NO_POOL: Rule = Rule {
    id: "objc-no-pool",
    text: "an object is autoreleased only where a pool stands",
    severity: Severity::Documented,
    source: "Advanced Memory Management Programming Guide, Using Autorelease Pool Blocks: without a pool objects leak",
};
pub(crate) const WRONG_POOL: Rule = Rule {
    id: "objc-wrong-pool",
    text: "pools are popped on the thread that pushed them, the innermost first",
    severity: Severity::Documented,
    source: "Advanced Memory Management Programming Guide, Autorelease Pools and Threads",
};

#[derive(Default)]
struct Pools {
    objects: Vec<usize>,
    /// For each open pool how many objects were there before it.
    open: Vec<usize>,
}

impl Drop for Pools {
    fn drop(&mut self) {
        for object in self.objects.drain(..).rev() {
            // SAFETY: the pool owns one reference to each.
            unsafe { objc_release(object as Id) }
        }
    }
}

thread_local! {
    static POOLS: RefCell<Pools> = RefCell::default();
    /// An object on its way from a method to its caller, not yet in a pool.
    static RETURNED: Cell<usize> = const { Cell::new(0) };
}

/// Objects that wait in this thread's pools.
pub fn pending() -> usize {
    settle();
    POOLS.try_with(|pools| pools.borrow().objects.len()).unwrap_or(0)
}

/// Puts a returned object that nobody claimed into the pool.
fn settle() {
    let object = RETURNED.try_with(|returned| returned.replace(0)).unwrap_or(0);
    if object != 0 {
        // SAFETY: its method gave up one reference, which the pool takes over.
        unsafe { objc_autorelease(object as Id) };
    }
}

runtime! {
    fn objc_autoreleasePoolPush() -> *mut c_void {
        settle();
        POOLS.with_borrow_mut(|pools| {
            pools.open.push(pools.objects.len());
            pools.open.len() as *mut c_void
        })
    }
    fn objc_autoreleasePoolPop(pool: *mut c_void) {
        settle();
        let depth = pool as usize;
        let keep = POOLS.with_borrow_mut(|pools| {
            let legal = depth >= 1 && depth <= pools.open.len();
            let keep = legal.then(|| pools.open[depth - 1]);
            if legal {
                pools.open.truncate(depth - 1);
            }
            keep
        });
        let Some(keep) = keep else {
            return report(&WRONG_POOL, format!("pool {depth} is not open on this thread"));
        };
        // Releasing may autorelease more, so the list is looked at anew every time.
        while let Some(object) = POOLS.with_borrow_mut(|pools| {
            if pools.objects.len() > keep { pools.objects.pop() } else { None }
        }) {
            objc_release(object as Id);
        }
    }
    fn objc_autorelease(object: Id) -> Id {
        if object.is_null() {
            return object;
        }
        let has_pool = POOLS.try_with(|pools| {
            let mut pools = pools.borrow_mut();
            pools.objects.push(object as usize);
            !pools.open.is_empty()
        });
        if has_pool != Ok(true) {
            report(&NO_POOL, format!("{} at {object:p}", Class::of(object).name()));
        }
        object
    }

    // Apple's runtime spares the pool when the caller retains a returned object at once. Without this, objects that
    // a Mac frees would wait in a pool and look leaked.
    fn objc_autoreleaseReturnValue(object: Id) -> Id {
        settle();
        if object.is_null() || RETURNED.try_with(|returned| returned.set(object as usize)).is_err() {
            return objc_autorelease(object);
        }
        object
    }
    fn objc_retainAutoreleasedReturnValue(object: Id) -> Id {
        let claimed = !object.is_null()
            && RETURNED.try_with(|returned| returned.get() == object as usize).unwrap_or(false);
        if claimed {
            RETURNED.set(0);
            return object;
        }
        settle();
        objc_retain(object)
    }
}
