//! `NSObject`.

use std::ffi::{CStr, c_void};
use std::ptr::null;
use std::sync::Once;

use crate::class::{Class, Imp, Sel, register, selector};
use crate::{Id, count, message, pool};

unsafe extern "C-unwind" fn alloc(class: Id, _: Sel) -> Id {
    count::create(class.cast_const().cast())
}
unsafe extern "C-unwind" fn alloc_with_zone(class: Id, _: Sel, _zone: *const c_void) -> Id {
    count::create(class.cast_const().cast())
}
unsafe extern "C-unwind" fn new(class: Id, _: Sel) -> Id {
    // SAFETY: `init` of every class returns an object.
    unsafe { message::send(count::create(class.cast_const().cast()), selector(c"init")) }
}
unsafe extern "C-unwind" fn itself(object: Id, _: Sel) -> Id {
    object
}
unsafe extern "C-unwind" fn dealloc(object: Id, _: Sel) {
    count::destroy(object);
}
unsafe extern "C-unwind" fn retain(object: Id, _: Sel) -> Id {
    // SAFETY: the receiver of a message is an object.
    unsafe { count::objc_retain(object) }
}
unsafe extern "C-unwind" fn release(object: Id, _: Sel) {
    // SAFETY: as above.
    unsafe { count::objc_release(object) }
}
unsafe extern "C-unwind" fn autorelease(object: Id, _: Sel) -> Id {
    // SAFETY: as above.
    unsafe { pool::objc_autorelease(object) }
}
unsafe extern "C-unwind" fn retain_count(object: Id, _: Sel) -> usize {
    count::references(object)
}
unsafe extern "C-unwind" fn class_of(object: Id, _: Sel) -> *const Class {
    Class::of(object)
}
unsafe extern "C-unwind" fn superclass(object: Id, _: Sel) -> *const Class {
    Class::of(object).superclass()
}
unsafe extern "C-unwind" fn hash(object: Id, _: Sel) -> usize {
    object as usize >> 4
}
unsafe extern "C-unwind" fn is_equal(object: Id, _: Sel, other: Id) -> u8 {
    u8::from(object == other)
}
unsafe extern "C-unwind" fn is_kind_of(object: Id, _: Sel, class: *const Class) -> u8 {
    Class::of(object).inherits(class).into()
}
unsafe extern "C-unwind" fn is_member_of(object: Id, _: Sel, class: *const Class) -> u8 {
    std::ptr::eq(Class::of(object), class).into()
}
unsafe extern "C-unwind" fn responds_to(object: Id, _: Sel, sel: Sel) -> u8 {
    Class::of(object).code(sel).is_some().into()
}
unsafe extern "C-unwind" fn conforms_to(_object: Id, _: Sel, _protocol: *const c_void) -> u8 {
    1
}

/// Makes `NSObject` if it is not there.
pub(crate) fn load() {
    static LOADED: Once = Once::new();
    LOADED.call_once(|| {
        let meta = Class::create(c"NSObject", null(), null(), true);
        let class = Class::create(c"NSObject", null(), meta, false);
        // SAFETY: nobody else knows the metaclass yet. The root metaclass is an instance of itself and inherits from
        // the root class, so that classes answer an instance's messages.
        unsafe { Class::link(meta, meta, class) };
        let on_class: &[(&CStr, Imp, &CStr)] = &[
            (c"alloc", alloc as Imp, c"@@:"),
            (c"allocWithZone:", alloc_with_zone as Imp, c"@@:^{_NSZone=}"),
            (c"new", new as Imp, c"@@:"),
            (c"class", itself as Imp, c"#@:"),
        ];
        let on_instance: &[(&CStr, Imp, &CStr)] = &[
            (c"init", itself as Imp, c"@@:"),
            (c"self", itself as Imp, c"@@:"),
            (c"dealloc", dealloc as Imp, c"v@:"),
            (c"retain", retain as Imp, c"@@:"),
            (c"release", release as Imp, c"v@:"),
            (c"autorelease", autorelease as Imp, c"@@:"),
            (c"retainCount", retain_count as Imp, c"Q@:"),
            (c"class", class_of as Imp, c"#@:"),
            (c"superclass", superclass as Imp, c"#@:"),
            (c"hash", hash as Imp, c"Q@:"),
            (c"isEqual:", is_equal as Imp, c"C@:@"),
            (c"isKindOfClass:", is_kind_of as Imp, c"C@:#"),
            (c"isMemberOfClass:", is_member_of as Imp, c"C@:#"),
            (c"respondsToSelector:", responds_to as Imp, c"C@::"),
            (c"conformsToProtocol:", conforms_to as Imp, c"C@:@"),
        ];
        for (target, methods) in [(meta, on_class), (class, on_instance)] {
            let Some(target) = Class::at(target) else { continue };
            for &(name, code, types) in methods {
                target.add(selector(name), code, types, false);
            }
        }
        register(class);
    });
}
