//! Blocks: the part of the documented block ABI that `block2` needs.
//!
//! Source: Block Implementation Specification, <https://clang.llvm.org/docs/Block-ABI-Apple.html>

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicI32, Ordering};

use crate::check::report;
use crate::class::runtime;
use crate::count::{OVER_RELEASE, ZOMBIE, is_kept, objc_release, objc_retain};
use crate::{Id, ledger};

/// The name of blocks in the ledger.
pub const CLASS: &str = "block";

/// Room for the class that a block's first word names; blocks are sent no messages here.
#[repr(C)]
pub struct Isa([usize; 32]);

/// The class of blocks on the stack.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static _NSConcreteStackBlock: Isa = Isa([0; 32]);
/// The class of blocks without captured values.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static _NSConcreteGlobalBlock: Isa = Isa([0; 32]);
/// The class of copied blocks.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static _NSConcreteMallocBlock: Isa = Isa([0; 32]);

#[repr(C)]
struct Descriptor {
    reserved: usize,
    size: usize,
    copy: Option<unsafe extern "C" fn(*mut c_void, *const c_void)>,
    dispose: Option<unsafe extern "C" fn(*mut c_void)>,
}

#[repr(C)]
struct Layout1 {
    isa: *const Isa,
    flags: AtomicI32,
    reserved: i32,
    invoke: *const c_void,
    descriptor: *const Descriptor,
}

/// The lowest bits of the flags count references, in steps of two.
const REFERENCES: i32 = 0xfffe;
const ONE_REFERENCE: i32 = 2;
const IS_COPY: i32 = 1 << 24;
const HAS_COPY_DISPOSE: i32 = 1 << 25;
const IS_GLOBAL: i32 = 1 << 28;

/// Kinds of captured values.
const FIELD_IS_OBJECT: c_int = 3;
const FIELD_IS_BLOCK: c_int = 7;

/// The class of blocks whose last reference was given up.
static GONE: Isa = Isa([0; 32]);

/// What such a block does when it is called.
unsafe extern "C-unwind" fn call_of_gone(block: *const c_void) -> usize {
    report(&ZOMBIE, format!("call of {} at {block:p}", ledger::obituary(block as usize)));
    0
}

/// Whether this is a block and not an object.
pub(crate) fn is_block(object: Id) -> bool {
    // SAFETY: objects and blocks begin with a pointer.
    let isa = unsafe { *object.cast::<*const Isa>() };
    [&_NSConcreteStackBlock, &_NSConcreteGlobalBlock, &_NSConcreteMallocBlock, &GONE]
        .iter()
        .any(|&known| std::ptr::eq(known, isa))
}

fn memory(size: usize) -> Layout {
    Layout::from_size_align(size, 16).expect("blocks are small")
}

runtime! {
    fn _Block_copy(block: *const c_void) -> *mut c_void {
        let Some(old) = block.cast::<Layout1>().as_ref() else { return block.cast_mut() };
        if std::ptr::eq(old.isa, &GONE) {
            report(&ZOMBIE, format!("copy of {} at {block:p}", ledger::obituary(block as usize)));
            return block.cast_mut();
        }
        let flags = old.flags.load(Ordering::Relaxed);
        if flags & IS_GLOBAL != 0 {
            return block.cast_mut();
        }
        if flags & IS_COPY != 0 {
            old.flags.fetch_add(ONE_REFERENCE, Ordering::Relaxed);
            return block.cast_mut();
        }
        let descriptor = &*old.descriptor;
        let layout = memory(descriptor.size);
        let new = alloc(layout);
        if new.is_null() {
            handle_alloc_error(layout);
        }
        new.copy_from_nonoverlapping(block.cast(), descriptor.size);
        let copy = &mut *new.cast::<Layout1>();
        copy.isa = &raw const _NSConcreteMallocBlock;
        copy.flags = AtomicI32::new((flags & !0xffff) | IS_COPY | ONE_REFERENCE);
        if flags & HAS_COPY_DISPOSE != 0
            && let Some(copy) = descriptor.copy
        {
            copy(new.cast(), block);
        }
        ledger::born(new as usize, CLASS.to_owned());
        new.cast()
    }
    fn _Block_release(block: *const c_void) {
        let Some(known) = block.cast::<Layout1>().as_ref() else { return };
        if std::ptr::eq(known.isa, &GONE) {
            let what = ledger::obituary(block as usize);
            return report(&OVER_RELEASE, format!("release of {what} at {block:p}, to which there is no reference"));
        }
        let flags = known.flags.load(Ordering::Relaxed);
        if flags & IS_GLOBAL != 0 || flags & IS_COPY == 0 {
            return;
        }
        if known.flags.fetch_sub(ONE_REFERENCE, Ordering::AcqRel) & REFERENCES != ONE_REFERENCE {
            return;
        }
        let descriptor = &*known.descriptor;
        if flags & HAS_COPY_DISPOSE != 0
            && let Some(dispose) = descriptor.dispose
        {
            dispose(block.cast_mut());
        }
        let (place, layout) = (block.cast_mut().cast::<Layout1>(), memory(descriptor.size));
        let keep = is_kept(layout.size());
        ledger::died(block as usize, keep);
        if keep {
            (&raw mut (*place).isa).write(&GONE);
            (&raw mut (*place).invoke).write(call_of_gone as *const c_void);
        } else {
            dealloc(place.cast(), layout);
        }
    }
    fn _Block_object_assign(place: *mut c_void, value: *const c_void, kind: c_int) {
        let kept = match kind & 0xf {
            FIELD_IS_BLOCK => _Block_copy(value).cast_const(),
            FIELD_IS_OBJECT => objc_retain(value.cast_mut().cast()).cast(),
            _ => value,
        };
        place.cast::<*const c_void>().write(kept);
    }
    fn _Block_object_dispose(value: *const c_void, kind: c_int) {
        match kind & 0xf {
            FIELD_IS_BLOCK => _Block_release(value),
            FIELD_IS_OBJECT => objc_release(value.cast_mut().cast()),
            _ => {}
        }
    }
}
