//! A compiled kernel in this process.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString, c_void};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};

use crate::engine::{Context, HOOKS, Hooks};
use crate::error::CompileError;

/// Mirrors `softmetal_constant` of `prelude/abi.h`.
#[repr(C)]
struct Constant {
    index: u32,
    size: u32,
    value: *mut u8,
    defined: *mut u8,
}

/// A loaded shared object. It is never unloaded.
pub(crate) struct Object {
    pub(crate) kernel: unsafe extern "C" fn(*const Context),
    enabled: unsafe extern "C" fn(u32) -> bool,
    derive: unsafe extern "C" fn(),
    constants: *const Constant,
    /// The most threads of a threadgroup that the kernel's source allows; 0: it does not say.
    pub(crate) limit: u32,
    /// Threadgroup variables.
    pub(crate) shared: Range<usize>,
    /// Everything that is mapped from the file.
    pub(crate) image: Vec<Range<usize>>,
    /// Function constants and threadgroup variables are globals: one dispatch at a time.
    pub(crate) busy: Mutex<()>,
}

// SAFETY: the pointers lead into the loaded object, which stays loaded; what they lead to is written only
// while `busy` is held.
unsafe impl Send for Object {}
// SAFETY: as above.
unsafe impl Sync for Object {}

impl Object {
    /// The object of file `path`; the same one for everybody who asks.
    pub(crate) fn load(path: &Path) -> Result<Arc<Object>, CompileError> {
        static LOADED: LazyLock<Mutex<HashMap<PathBuf, Arc<Object>>>> = LazyLock::new(Mutex::default);
        let mut loaded = LOADED.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(object) = loaded.get(path) {
            return Ok(object.clone());
        }
        let object = Arc::new(Object::open(path).map_err(|m| CompileError::new("compiled kernel", m))?);
        loaded.insert(path.to_path_buf(), object.clone());
        Ok(object)
    }

    fn open(path: &Path) -> Result<Object, String> {
        let name = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|e| e.to_string())?;
        // SAFETY: the object has no initialisers but those of its constants.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            // SAFETY: after a failure, `dlerror` returns a string that lives until the next call.
            return Err(unsafe { CStr::from_ptr(libc::dlerror()) }.to_string_lossy().into_owned());
        }
        let symbol = |name: &CStr| {
            // SAFETY: the handle is valid and the name ends with a zero.
            let found = unsafe { libc::dlsym(handle, name.as_ptr()) };
            if found.is_null() { Err(format!("{}: no symbol {name:?}", path.display())) } else { Ok(found) }
        };
        type Pointer = unsafe extern "C" fn() -> *mut u8;
        // SAFETY: the prelude declares these symbols with these types; the key of the cache covers its text.
        unsafe {
            symbol(c"softmetal_hooks")?.cast::<Hooks>().write(HOOKS);
            let pointer = |name| Ok::<_, String>(std::mem::transmute::<*mut c_void, Pointer>(symbol(name)?));
            let shared =
                pointer(c"softmetal_shared_start")?() as usize..pointer(c"softmetal_shared_stop")?() as usize;
            let kernel = symbol(c"softmetal_kernel")?;
            Ok(Object {
                kernel: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*const Context)>(kernel),
                enabled: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(u32) -> bool>(symbol(
                    c"softmetal_enabled",
                )?),
                derive: std::mem::transmute::<*mut c_void, unsafe extern "C" fn()>(symbol(
                    c"softmetal_derive",
                )?),
                constants: symbol(c"softmetal_constants")?.cast(),
                limit: std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> u32>(symbol(
                    c"softmetal_limit",
                )?)(),
                shared,
                image: image(kernel as usize),
                busy: Mutex::new(()),
            })
        }
    }

    fn constants(&self) -> impl Iterator<Item = &Constant> {
        // SAFETY: the table ends with an entry whose value is null.
        (0..).map(|i| unsafe { &*self.constants.add(i) }).take_while(|c| !c.value.is_null())
    }

    /// Whether `values` fit the constants that the library declares.
    pub(crate) fn check_constants(&self, values: &BTreeMap<u32, Vec<u8>>) -> Result<(), String> {
        for c in self.constants() {
            match values.get(&c.index) {
                Some(v) if v.len() != c.size as usize => {
                    return Err(format!(
                        "function constant {} has {} bytes, not {}",
                        c.index,
                        c.size,
                        v.len()
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Sets the function constants. The caller holds `busy`.
    pub(crate) fn set_constants(&self, values: &BTreeMap<u32, Vec<u8>>) {
        for c in self.constants() {
            let value = values.get(&c.index);
            // SAFETY: `value` has `size` bytes, as `check_constants` found; `busy` is held.
            unsafe {
                c.value.write_bytes(0, c.size as usize);
                c.defined.write(u8::from(value.is_some()));
                if let Some(value) = value {
                    c.value.copy_from_nonoverlapping(value.as_ptr(), value.len());
                }
            }
        }
        // SAFETY: it computes constants from constants.
        unsafe { (self.derive)() };
    }

    /// Whether the argument at position `argument` exists, with the constants last set.
    pub(crate) fn enabled(&self, argument: usize) -> bool {
        // SAFETY: it reads constants.
        unsafe { (self.enabled)(argument as u32) }
    }
}

/// The mapped ranges of the object that holds `address`.
fn image(address: usize) -> Vec<Range<usize>> {
    struct Search {
        address: usize,
        found: Vec<Range<usize>>,
    }
    unsafe extern "C" fn visit(info: *mut libc::dl_phdr_info, _: usize, data: *mut c_void) -> i32 {
        // SAFETY: `data` is the `Search` below, and the loader hands in a valid description.
        let (search, info) = unsafe { (&mut *data.cast::<Search>(), &*info) };
        // SAFETY: the loader keeps `dlpi_phnum` headers at `dlpi_phdr`.
        let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum as usize) };
        let loaded = headers.iter().filter(|h| h.p_type == libc::PT_LOAD);
        let ranges: Vec<Range<usize>> = loaded
            .map(|h| {
                let start = info.dlpi_addr as usize + h.p_vaddr as usize;
                start..start + h.p_memsz as usize
            })
            .collect();
        if ranges.iter().any(|r| r.contains(&search.address)) {
            search.found = ranges;
            return 1;
        }
        0
    }
    let mut search = Search { address, found: Vec::new() };
    // SAFETY: the callback gets `search`, which outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut search).cast()) };
    search.found
}
