//! SIGBUS at addresses of mapped files becomes zeros and a mark.
//!
//! A page of a mapped file that is no longer there (the file was cut off, its disk or server failed) cannot be read; the
//! system sends SIGBUS to the thread that tried, whose default ends the process. The handler here knows the addresses of
//! all maps. For one of them it puts anonymous memory, which is zero, in the place of the map from the faulting page on,
//! and marks the file; the instruction is then repeated and succeeds. Every other SIGBUS goes to the handler that was
//! there before, such as the one by which Rust reports a stack overflow.
//!
//! Within the handler only atomics, `mmap` and `sigaction` are used: the first are lock-free, the others plain system
//! calls on Linux and Apple's systems.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, Once, PoisonError};

/// Addresses of one map. Slots are never freed, since a handler may be reading them; they are used again.
#[derive(Debug)]
struct Slot {
    /// 0 while the slot is free.
    start: AtomicUsize,
    end: AtomicUsize,
    faulted: AtomicBool,
    next: *const Slot,
}

// SAFETY: `next` is set before the slot is published and never changes; it points to a slot that is never freed.
unsafe impl Sync for Slot {}

static SLOTS: AtomicPtr<Slot> = AtomicPtr::new(ptr::null_mut());
/// StorageGuard while a slot is taken.
static TAKING: Mutex<()> = Mutex::new(());
static INSTALLED: Once = Once::new();
/// What SIGBUS did before; leaked, so that a handler may read it at any time.
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());

/// A map whose addresses the handler knows, for as long as this lives. It must be dropped before the map.
#[derive(Debug)]
pub(super) struct Watch(&'static Slot);

impl Watch {
    pub(super) fn new(map: &[u8]) -> Self {
        INSTALLED.call_once(install);
        let start = map.as_ptr() as usize;
        let end = (start + map.len()).next_multiple_of(page_size());
        let _taking = TAKING.lock().unwrap_or_else(PoisonError::into_inner);
        let free = slots().find(|slot| slot.start.load(Ordering::Relaxed) == 0);
        let slot = free.unwrap_or_else(|| {
            let next = SLOTS.load(Ordering::Relaxed).cast_const();
            let [start, end] = [0, 0].map(AtomicUsize::new);
            let slot = Box::leak(Box::new(Slot { start, end, faulted: AtomicBool::new(false), next }));
            SLOTS.store(slot, Ordering::Release);
            slot
        });
        slot.faulted.store(false, Ordering::Relaxed);
        slot.end.store(end, Ordering::Relaxed);
        slot.start.store(start, Ordering::Release);
        Self(slot)
    }

    /// Returns true if a part of the map could not be read.
    pub(super) fn faulted(&self) -> bool {
        self.0.faulted.load(Ordering::Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.start.store(0, Ordering::Release);
    }
}

fn slots() -> impl Iterator<Item = &'static Slot> {
    let mut next = SLOTS.load(Ordering::Acquire).cast_const();
    std::iter::from_fn(move || {
        // SAFETY: slots are never freed, and were complete before they were published.
        let slot: &'static Slot = unsafe { next.as_ref() }?;
        next = slot.next;
        Some(slot)
    })
}

fn page_size() -> usize {
    // SAFETY: a query without side effects.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

fn install() {
    // SAFETY: all fields of a sigaction may be zero: no flags, no handler, an empty mask.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = handle as *const () as usize;
    // On the alternate stack where there is one: a stack overflow is a SIGBUS on Apple's systems.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    let mut previous = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: the handler has the signature that SA_SIGINFO asks for, and uses only what a handler may.
    unsafe {
        // Known before the handler can be called.
        if libc::sigaction(libc::SIGBUS, ptr::null(), previous.as_mut_ptr()) == 0 {
            PREVIOUS.store(Box::into_raw(Box::new(previous.assume_init())), Ordering::Release);
            libc::sigaction(libc::SIGBUS, &action, ptr::null_mut());
        }
    }
}

extern "C" fn handle(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the system passes a valid record to a handler with SA_SIGINFO.
    let address = unsafe { (*info).si_addr() } as usize;
    if !replaced(address) {
        pass_on(signal, info, context);
    }
}

/// Puts zeros in the place of the map that an address belongs to, from its page on; false if it belongs to none.
fn replaced(address: usize) -> bool {
    for slot in slots() {
        let (start, end) = (slot.start.load(Ordering::Acquire), slot.end.load(Ordering::Relaxed));
        if start == 0 || !(start..end).contains(&address) {
            continue;
        }
        let page = address - address % page_size();
        // SAFETY: the pages are those of a live map, which the thread is reading at this moment; they are replaced as a
        // whole by readable memory, and go when the map does.
        let mapped = unsafe {
            libc::mmap(
                page as *mut c_void,
                end - page,
                libc::PROT_READ,
                libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return false;
        }
        slot.faulted.store(true, Ordering::Release);
        return true;
    }
    false
}

/// Leaves the signal to whoever had it before.
fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the record was leaked before the handler was installed, and never changes.
    let previous = unsafe { PREVIOUS.load(Ordering::Acquire).as_ref() };
    let handler = previous.map_or(libc::SIG_DFL, |previous| previous.sa_sigaction);
    match previous {
        Some(previous) if handler != libc::SIG_DFL && handler != libc::SIG_IGN => {
            if previous.sa_flags & libc::SA_SIGINFO != 0 {
                // SAFETY: a handler that was installed with SA_SIGINFO has this signature.
                let call: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                    unsafe { std::mem::transmute(handler) };
                call(signal, info, context);
            } else {
                // SAFETY: a handler that was installed without SA_SIGINFO has this signature.
                let call: extern "C" fn(c_int) = unsafe { std::mem::transmute(handler) };
                call(signal);
            }
        }
        // The default, which ends the process: the instruction is repeated with it.
        _ => {
            // SAFETY: as in `install`; the default is valid for every signal.
            unsafe {
                let action: libc::sigaction = MaybeUninit::zeroed().assume_init();
                libc::sigaction(signal, &action, ptr::null_mut());
            }
        }
    }
}
