//! Classes, their methods and instance variables, and selectors.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError, RwLock};

use crate::{Id, Object, root, slots};

/// A selector: an interned name, so that equal selectors have equal addresses.
pub type Sel = *const c_char;
/// The code of a method.
pub(crate) type Imp = *const c_void;

/// A method of a class.
pub(crate) struct Method {
    pub(crate) selector: Sel,
    pub(crate) code: Imp,
    pub(crate) types: CString,
}

/// An instance variable.
pub(crate) struct Ivar {
    name: CString,
    types: CString,
    offset: isize,
}

/// A class or a metaclass. It begins like an object, whose class is the metaclass.
#[repr(C)]
pub struct Class {
    isa: *const Class,
    superclass: *const Class,
    name: CString,
    is_meta: bool,
    instance_size: AtomicUsize,
    methods: RwLock<HashMap<usize, &'static Method>>,
    /// Methods found so far, those of superclasses among them.
    found: RwLock<HashMap<usize, usize>>,
    ivars: Mutex<Vec<&'static Ivar>>,
}

/// Registered classes by name. Classes live as long as the process.
static CLASSES: LazyLock<RwLock<HashMap<CString, usize>>> = LazyLock::new(RwLock::default);
static SELECTORS: LazyLock<RwLock<HashMap<CString, usize>>> = LazyLock::new(RwLock::default);

/// The selector of a name.
pub(crate) fn selector(name: &CStr) -> Sel {
    let known = |table: &HashMap<CString, usize>| table.get(name).map(|&address| address as Sel);
    if let Some(selector) = known(&SELECTORS.read().unwrap_or_else(PoisonError::into_inner)) {
        return selector;
    }
    let mut table = SELECTORS.write().unwrap_or_else(PoisonError::into_inner);
    if let Some(selector) = known(&table) {
        return selector;
    }
    let selector = CString::from(name).into_raw();
    table.insert(CString::from(name), selector as usize);
    selector
}

/// A selector's name.
pub(crate) fn selector_name(selector: Sel) -> String {
    // SAFETY: selectors are interned, NUL-terminated names that are never freed.
    unsafe { CStr::from_ptr(selector) }.to_string_lossy().into_owned()
}

impl Class {
    /// A new class, at its link-time place if it has one.
    pub(crate) fn create(name: &CStr, superclass: *const Self, isa: *const Self, is_meta: bool) -> *mut Self {
        let instance_size = match Self::at(superclass) {
            Some(superclass) if !is_meta => superclass.instance_size.load(Ordering::Relaxed),
            _ => size_of::<Object>(),
        };
        let class = Self {
            isa,
            superclass,
            name: name.to_owned(),
            is_meta,
            instance_size: AtomicUsize::new(instance_size),
            methods: RwLock::default(),
            found: RwLock::default(),
            ivars: Mutex::default(),
        };
        match slots::place(name) {
            Some(place) if !is_meta => {
                // SAFETY: the place is static memory of the size and alignment of a class, written once: a name is
                // registered once.
                unsafe { place.write(class) };
                place
            }
            _ => Box::into_raw(Box::new(class)),
        }
    }

    /// The class at an address that objc2 holds, which is never freed.
    pub(crate) fn at(class: *const Self) -> Option<&'static Self> {
        // SAFETY: class pointers come from `create` and stay valid for the process.
        unsafe { class.as_ref() }
    }

    /// The class of an object or a class.
    pub(crate) fn of(object: Id) -> &'static Self {
        // SAFETY: objects begin with a valid class pointer, also when they are zombies.
        unsafe { &*(*object).isa }
    }

    /// The name.
    pub fn name(&self) -> String {
        self.name.to_string_lossy().into_owned()
    }

    pub(crate) fn is_meta(&self) -> bool {
        self.is_meta
    }

    pub(crate) fn superclass(&self) -> *const Self {
        self.superclass
    }

    pub(crate) fn instance_size(&self) -> usize {
        self.instance_size.load(Ordering::Relaxed)
    }

    pub(crate) fn metaclass(&self) -> Option<&'static Self> {
        Self::at(self.isa)
    }

    /// Points a new root class or metaclass at what could not be known when it was created.
    ///
    /// # Safety
    /// Nobody else knows the class yet.
    pub(crate) unsafe fn link(class: *mut Self, isa: *const Self, superclass: *const Self) {
        // SAFETY: as the caller promises.
        unsafe {
            (*class).isa = isa;
            (*class).superclass = superclass;
        }
    }

    /// A method of the class or of a superclass.
    pub(crate) fn method(&self, selector: Sel) -> Option<&'static Method> {
        let mut class = Some(self);
        while let Some(here) = class {
            let methods = here.methods.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(method) = methods.get(&(selector as usize)) {
                return Some(method);
            }
            class = Self::at(here.superclass);
        }
        None
    }

    /// The code of a method.
    pub(crate) fn code(&self, selector: Sel) -> Option<Imp> {
        let key = selector as usize;
        if let Some(&code) = self.found.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Some(code as Imp);
        }
        let code = self.method(selector)?.code;
        self.found.write().unwrap_or_else(PoisonError::into_inner).insert(key, code as usize);
        Some(code)
    }

    /// Adds a method; `false` if the class itself has it and it is not to be replaced.
    pub(crate) fn add(&self, selector: Sel, code: Imp, types: &CStr, replace: bool) -> bool {
        let mut methods = self.methods.write().unwrap_or_else(PoisonError::into_inner);
        if methods.contains_key(&(selector as usize)) && !replace {
            return false;
        }
        let method = Box::leak(Box::new(Method { selector, code, types: types.to_owned() }));
        methods.insert(selector as usize, method);
        drop(methods);
        // Subclasses may have found a superclass's method under this selector.
        for &address in CLASSES.read().unwrap_or_else(PoisonError::into_inner).values() {
            let class = Self::at(address as *const Self);
            for class in class.into_iter().chain(class.and_then(Self::metaclass)) {
                class.found.write().unwrap_or_else(PoisonError::into_inner).clear();
            }
        }
        self.found.write().unwrap_or_else(PoisonError::into_inner).clear();
        true
    }

    /// Whether this is `other` or inherits from it.
    pub(crate) fn inherits(&self, other: *const Self) -> bool {
        let mut class: *const Self = self;
        while let Some(here) = Self::at(class) {
            if std::ptr::eq(here, other) {
                return true;
            }
            class = here.superclass;
        }
        false
    }

    fn ivar(&self, name: &CStr) -> Option<&'static Ivar> {
        let mut class = Some(self);
        while let Some(here) = class {
            let ivars = here.ivars.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(ivar) = ivars.iter().find(|ivar| ivar.name.as_c_str() == name) {
                return Some(ivar);
            }
            class = Self::at(here.superclass);
        }
        None
    }
}

pub(crate) fn register(class: *mut Class) {
    let Some(known) = Class::at(class) else { return };
    CLASSES.write().unwrap_or_else(PoisonError::into_inner).insert(known.name.clone(), class as usize);
}

/// The class that the system does not have.
static HIDDEN: AtomicPtr<Class> = AtomicPtr::new(null_mut());

/// Makes the system lack a class, or none. A lookup by name does not find it, and a message to it panics with the words
/// of objc2, which on a Mac looks each class up by name when it is first used.
pub fn hide(name: Option<&CStr>) {
    HIDDEN.store(null_mut(), Ordering::SeqCst);
    let class = name.map_or(null(), lookup);
    HIDDEN.store(class.cast_mut(), Ordering::SeqCst);
}

/// Panics if the receiver is the class that the system does not have.
pub(crate) fn check_exists(receiver: Id) {
    let hidden = HIDDEN.load(Ordering::Relaxed);
    if !hidden.is_null() && std::ptr::eq(receiver.cast(), hidden) {
        let name = Class::at(hidden).map(Class::name).unwrap_or_default();
        panic!("class {name} could not be found");
    }
}

pub(crate) fn lookup(name: &CStr) -> *const Class {
    root::load();
    let classes = CLASSES.read().unwrap_or_else(PoisonError::into_inner);
    let found = classes.get(name).map_or(null(), |&address| address as *const Class);
    if std::ptr::eq(found, HIDDEN.load(Ordering::Relaxed)) { null() } else { found }
}

/// # Safety
/// `text` is a NUL-terminated string that lives for the call.
unsafe fn text<'a>(text: *const c_char) -> &'a CStr {
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(text) }
}

/// Defines runtime functions under their C names. The names, arguments and meanings are those of the GNUstep runtime
/// (libobjc2), which objc2 is compiled for; pointers are valid or null as that runtime's documents ask.
macro_rules! runtime {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block)*) => {
        $(
            $(#[$doc])*
            /// A function of the Objective-C runtime.
            ///
            /// # Safety
            /// As that runtime's documents ask of its arguments.
            #[unsafe(no_mangle)]
            #[allow(non_snake_case)]
            pub unsafe extern "C-unwind" fn $name($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: as the caller promises.
                #[allow(unused_unsafe)]
                unsafe { $body }
            }
        )*
    };
}
pub(crate) use runtime;

runtime! {
    fn sel_registerName(name: *const c_char) -> Sel { selector(text(name)) }
    fn sel_getUid(name: *const c_char) -> Sel { selector(text(name)) }
    fn sel_getName(sel: Sel) -> *const c_char { sel }
    fn sel_isEqual(a: Sel, b: Sel) -> u8 { u8::from(a == b) }

    fn objc_getClass(name: *const c_char) -> *const Class { lookup(text(name)) }
    fn objc_lookUpClass(name: *const c_char) -> *const Class { lookup(text(name)) }
    fn objc_getProtocol(_name: *const c_char) -> *const c_void { null() }
    fn protocol_getName(_protocol: *const c_void) -> *const c_char { c"".as_ptr() }
    fn protocol_isEqual(a: *const c_void, b: *const c_void) -> u8 { u8::from(a == b) }
    fn class_conformsToProtocol(_class: *const Class, _protocol: *const c_void) -> u8 { 1 }
    fn class_addProtocol(_class: *mut Class, _protocol: *const c_void) -> u8 { 1 }

    fn object_getClass(object: *const Object) -> *const Class {
        if object.is_null() { null() } else { (*object).isa }
    }
    fn object_getClassName(object: *const Object) -> *const c_char {
        if object.is_null() { c"nil".as_ptr() } else { (*(*object).isa).name.as_ptr() }
    }
    fn class_getName(class: *const Class) -> *const c_char {
        Class::at(class).map_or(c"nil".as_ptr(), |class| class.name.as_ptr())
    }
    fn class_getSuperclass(class: *const Class) -> *const Class {
        Class::at(class).map_or(null(), Class::superclass)
    }
    fn class_isMetaClass(class: *const Class) -> u8 { Class::at(class).is_some_and(Class::is_meta).into() }
    fn class_getInstanceSize(class: *const Class) -> usize { Class::at(class).map_or(0, Class::instance_size) }
    fn class_respondsToSelector(class: *const Class, sel: Sel) -> u8 {
        Class::at(class).is_some_and(|class| class.code(sel).is_some()).into()
    }
    fn class_getInstanceMethod(class: *const Class, sel: Sel) -> *const c_void {
        Class::at(class).and_then(|class| class.method(sel)).map_or(null(), |m| std::ptr::from_ref(m).cast())
    }
    fn class_getClassMethod(class: *const Class, sel: Sel) -> *const c_void {
        let meta = Class::at(class).and_then(Class::metaclass);
        meta.and_then(|class| class.method(sel)).map_or(null(), |m| std::ptr::from_ref(m).cast())
    }

    fn objc_allocateClassPair(superclass: *const Class, name: *const c_char, _extra: usize) -> *mut Class {
        let name = text(name);
        if !lookup(name).is_null() {
            return null_mut();
        }
        let parent = Class::at(superclass);
        let parent_meta = parent.map_or(null(), |class| class.isa);
        let root_meta = Class::at(parent_meta).map_or(null(), |class| class.isa);
        let meta = Class::create(name, parent_meta, root_meta, true);
        if parent.is_none() {
            Class::link(meta, meta, null());
        }
        Class::create(name, superclass, meta, false)
    }
    fn objc_registerClassPair(class: *mut Class) { register(class) }
    fn objc_disposeClassPair(_class: *mut Class) {}
    fn objc_getClassList(_into: *mut *const Class, _count: c_int) -> c_int {
        CLASSES.read().unwrap_or_else(PoisonError::into_inner).len() as c_int
    }

    fn class_addMethod(class: *mut Class, sel: Sel, code: Imp, types: *const c_char) -> u8 {
        Class::at(class).is_some_and(|class| class.add(sel, code, text(types), false)).into()
    }
    fn class_replaceMethod(class: *mut Class, sel: Sel, code: Imp, types: *const c_char) -> Imp {
        let Some(class) = Class::at(class) else { return null() };
        let old = class.code(sel).unwrap_or(null());
        class.add(sel, code, text(types), true);
        old
    }
    fn class_addIvar(
        class: *mut Class,
        name: *const c_char,
        size: usize,
        alignment_log2: u8,
        types: *const c_char,
    ) -> u8 {
        let Some(class) = Class::at(class) else { return 0 };
        let offset = class.instance_size().next_multiple_of(1 << alignment_log2);
        class.instance_size.store(offset + size, Ordering::Relaxed);
        let (name, types) = (text(name).to_owned(), text(types).to_owned());
        let ivar = Box::leak(Box::new(Ivar { name, types, offset: offset as isize }));
        class.ivars.lock().unwrap_or_else(PoisonError::into_inner).push(ivar);
        1
    }
    fn class_getInstanceVariable(class: *const Class, name: *const c_char) -> *const c_void {
        let ivar = Class::at(class).and_then(|class| class.ivar(text(name)));
        ivar.map_or(null(), |ivar| std::ptr::from_ref(ivar).cast())
    }
    fn ivar_getOffset(ivar: *const c_void) -> isize { (*ivar.cast::<Ivar>()).offset }
    fn ivar_getName(ivar: *const c_void) -> *const c_char { (*ivar.cast::<Ivar>()).name.as_ptr() }
    fn ivar_getTypeEncoding(ivar: *const c_void) -> *const c_char { (*ivar.cast::<Ivar>()).types.as_ptr() }
    fn object_getIvar(object: *const Object, ivar: *const c_void) -> Id {
        *object.byte_offset((*ivar.cast::<Ivar>()).offset).cast::<Id>()
    }
}
