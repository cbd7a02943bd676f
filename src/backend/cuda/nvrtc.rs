//! NVIDIA's runtime compiler, NVRTC: where it is found, and its calls. It is loaded at run time and needs no GPU.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::Library;

use super::error::failed;
use crate::Result;
use crate::error::DeviceFault;

type Program = *mut c_void;

/// The compiler.
pub(super) struct Nvrtc {
    library: Library,
    path: PathBuf,
    version: (u32, u32),
    /// Architectures that it generates code for, in ascending order, such as 90.
    architectures: Vec<u32>,
}

/// File names of the library, the newest first.
const NAMES: &[&str] = if cfg!(windows) {
    &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"]
} else {
    &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]
};

/// What to do where the library is missing.
pub(super) const ADVICE: &str = "the CUDA compiler NVRTC was not found; run `pip install nvidia-cuda-nvrtc` (driver 580 or later) or \
     `pip install nvidia-cuda-nvrtc-cu12`, or install the CUDA toolkit";

/// Returns the folders that may contain the library, after those that the system's loader searches.
fn folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let libraries = |folder: PathBuf| [folder.join("lib64"), folder.join("bin"), folder.join("lib")];
    for name in ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"] {
        if let Some(folder) = std::env::var_os(name) {
            folders.extend(libraries(folder.into()));
        }
    }
    if cfg!(unix) {
        folders.extend(libraries("/usr/local/cuda".into()));
        let mut versions = children(Path::new("/usr/local"), "cuda-");
        versions.reverse();
        folders.extend(versions.into_iter().flat_map(libraries));
        folders.extend(libraries("/opt/cuda".into()));
    }
    for packages in site_packages() {
        let nvidia = packages.join("nvidia");
        for version in ["cu13", "cuda_nvrtc"] {
            folders.extend(["lib", "bin"].map(|sub| nvidia.join(version).join(sub)));
        }
    }
    folders
}

/// The folders in a folder whose names begin with `prefix`, sorted.
fn children(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

/// Returns the package folders of the active virtual environment, of `python3` in PATH, of the user and of the system.
fn site_packages() -> Vec<PathBuf> {
    let mut prefixes: Vec<PathBuf> =
        ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(std::env::var_os).map(PathBuf::from).collect();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let names: &[&str] = if cfg!(windows) { &["python.exe"] } else { &["python3", "python"] };
    for folder in std::env::split_paths(&path) {
        for python in names.iter().map(|name| folder.join(name)).filter(|python| python.exists()) {
            // A link leads to the installation that it belongs to; a virtual environment is where the link is.
            let real = python.canonicalize().unwrap_or_else(|_| python.clone());
            for python in [&python, &real] {
                prefixes.extend(python.parent().and_then(Path::parent).map(Path::to_owned));
                if cfg!(windows) {
                    prefixes.extend(python.parent().map(Path::to_owned));
                }
            }
        }
    }
    if let Some(home) = std::env::var_os("HOME") {
        prefixes.push(PathBuf::from(home).join(".local"));
    }
    if cfg!(unix) {
        prefixes.extend(["/usr/local", "/usr"].map(PathBuf::from));
    }
    let mut found = Vec::new();
    for prefix in prefixes {
        for library in [prefix.join("lib"), prefix.join("lib64")] {
            for version in children(&library, "python3") {
                found.extend(["site-packages", "dist-packages"].map(|name| version.join(name)));
            }
        }
        found.push(prefix.join("Lib").join("site-packages"));
    }
    found.dedup();
    found
}

/// Returns the library's file and version, or what to install.
pub(super) fn describe() -> std::result::Result<(PathBuf, (u32, u32)), String> {
    let found = Nvrtc::get().map_err(|error| error.to_string())?;
    Ok((found.path.clone(), found.version))
}

impl Nvrtc {
    /// Loads the library once for the process.
    ///
    /// # Errors
    /// The library is not found; the message says what to install.
    pub(super) fn get() -> Result<&'static Self> {
        static LOADED: OnceLock<std::result::Result<Nvrtc, String>> = OnceLock::new();
        let loaded = LOADED.get_or_init(Self::open);
        loaded.as_ref().map_err(|message| failed("the kernel compiler", DeviceFault::Unavailable, message))
    }

    fn open() -> std::result::Result<Self, String> {
        let named = NAMES.iter().map(PathBuf::from);
        let placed = folders().into_iter().flat_map(|folder| NAMES.iter().map(move |name| folder.join(name)));
        let mut refused = String::new();
        for path in named.chain(placed.filter(|path| path.exists())) {
            // SAFETY: the library's initializers do nothing but set up the compiler.
            let opened = match unsafe { Library::new(&path) } {
                Ok(library) => Self::of(library, path.clone()).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match opened {
                Ok(nvrtc) => return Ok(nvrtc),
                Err(error) if path.is_absolute() => {
                    refused = format!("; {} cannot be loaded: {error}", path.display());
                }
                Err(_) => {}
            }
        }
        Err(format!("{ADVICE}{refused}"))
    }

    fn of(library: Library, path: PathBuf) -> Result<Self> {
        let mut nvrtc = Self { library, path, version: (0, 0), architectures: Vec::new() };
        let (mut major, mut minor): (c_int, c_int) = (0, 0);
        let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int = nvrtc.symbol(c"nvrtcVersion")?;
        // SAFETY: both places are valid for a write.
        nvrtc.check("nvrtcVersion", unsafe { version(&mut major, &mut minor) })?;
        nvrtc.version = (major as u32, minor as u32);
        let mut count: c_int = 0;
        let counted: unsafe extern "C" fn(*mut c_int) -> c_int =
            nvrtc.symbol(c"nvrtcGetNumSupportedArchs")?;
        // SAFETY: the place is valid for a write.
        nvrtc.check("nvrtcGetNumSupportedArchs", unsafe { counted(&mut count) })?;
        let mut architectures = vec![0 as c_int; count as usize];
        let list: unsafe extern "C" fn(*mut c_int) -> c_int = nvrtc.symbol(c"nvrtcGetSupportedArchs")?;
        // SAFETY: the list has as many elements as the library has reported.
        nvrtc.check("nvrtcGetSupportedArchs", unsafe { list(architectures.as_mut_ptr()) })?;
        nvrtc.architectures = architectures.into_iter().map(|architecture| architecture as u32).collect();
        nvrtc.architectures.sort_unstable();
        Ok(nvrtc)
    }

    /// File that the library was loaded from.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Version of the library.
    pub(super) fn version(&self) -> (u32, u32) {
        self.version
    }

    /// Returns the compiler's option for an architecture such as 90: machine code where the compiler knows it, otherwise the
    /// newest intermediate code, which the driver compiles.
    ///
    /// # Errors
    /// The compiler supports newer architectures only.
    pub(super) fn architecture(&self, wanted: u32) -> Result<String> {
        let older = self.architectures.iter().rev().find(|&&known| known <= wanted);
        match older {
            Some(&known) if known == wanted => Ok(format!("sm_{known}")),
            Some(&known) => Ok(format!("compute_{known}")),
            None => {
                let (major, minor) = self.version;
                let message = format!("NVRTC {major}.{minor} does not support GPUs of architecture {wanted}");
                Err(failed("the kernel compiler", DeviceFault::Unavailable, message))
            }
        }
    }

    fn symbol<F: Copy>(&self, name: &CStr) -> Result<F> {
        // SAFETY: the callers name the types of nvrtc.h.
        let found = unsafe { self.library.get::<F>(name.to_bytes_with_nul()) };
        found.map(|symbol| *symbol).map_err(|error| {
            let message = format!("{} is not NVRTC: {error}", self.path.display());
            failed("the kernel compiler", DeviceFault::Unavailable, message)
        })
    }

    fn check(&self, call: &str, code: c_int) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        let text: unsafe extern "C" fn(c_int) -> *const c_char = self.symbol(c"nvrtcGetErrorString")?;
        // SAFETY: the library returns a constant string for every code.
        let text = unsafe { CStr::from_ptr(text(code)) }.to_string_lossy().into_owned();
        Err(failed(call, DeviceFault::Kernel, text))
    }

    /// Compiles a text and returns machine code, or intermediate code for an architecture `compute_…`.
    ///
    /// # Errors
    /// The compiler rejects the text: the error contains the compiler's messages.
    pub(super) fn compile(&self, what: &str, text: &str, options: &[String]) -> Result<Vec<u8>> {
        let strings = |text: &str| {
            CString::new(text).map_err(|error| failed(what, DeviceFault::Kernel, error.to_string()))
        };
        let (source, name) = (strings(text)?, strings(what)?);
        let create: unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int = self.symbol(c"nvrtcCreateProgram")?;
        let destroy: unsafe extern "C" fn(*mut Program) -> c_int = self.symbol(c"nvrtcDestroyProgram")?;
        let mut program: Program = std::ptr::null_mut();
        let none = std::ptr::null();
        // SAFETY: the strings end with zero and outlive the call.
        let code = unsafe { create(&mut program, source.as_ptr(), name.as_ptr(), 0, none, none) };
        self.check("nvrtcCreateProgram", code)?;
        let compiled = self.compile_program(program, what, options);
        // SAFETY: the program was created above and is not used again.
        unsafe { destroy(&mut program) };
        compiled
    }

    fn compile_program(&self, program: Program, what: &str, options: &[String]) -> Result<Vec<u8>> {
        let owned: Vec<CString> = options
            .iter()
            .map(|option| CString::new(option.as_str()))
            .collect::<std::result::Result<_, _>>()
            .map_err(|error| failed(what, DeviceFault::Kernel, error.to_string()))?;
        let pointers: Vec<*const c_char> = owned.iter().map(|option| option.as_ptr()).collect();
        let compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int =
            self.symbol(c"nvrtcCompileProgram")?;
        // SAFETY: the program exists, and the options end with zero and outlive the call.
        let code = unsafe { compile(program, pointers.len() as c_int, pointers.as_ptr()) };
        if code != 0 {
            let log = self.bytes(program, c"nvrtcGetProgramLogSize", c"nvrtcGetProgramLog")?;
            let log = String::from_utf8_lossy(&log).trim_end_matches('\0').trim().to_owned();
            return Err(failed(what, DeviceFault::Kernel, log));
        }
        let machine = options.iter().any(|option| option.contains("=sm_"));
        if machine {
            self.bytes(program, c"nvrtcGetCUBINSize", c"nvrtcGetCUBIN")
        } else {
            self.bytes(program, c"nvrtcGetPTXSize", c"nvrtcGetPTX")
        }
    }

    /// Calls a pair of functions that return a size and then as many bytes.
    fn bytes(&self, program: Program, size: &CStr, content: &CStr) -> Result<Vec<u8>> {
        let sized: unsafe extern "C" fn(Program, *mut usize) -> c_int = self.symbol(size)?;
        let filled: unsafe extern "C" fn(Program, *mut c_char) -> c_int = self.symbol(content)?;
        let mut length = 0;
        // SAFETY: the program exists, and the place is valid for a write.
        self.check("the size of a compiled kernel", unsafe { sized(program, &mut length) })?;
        let mut bytes = vec![0_u8; length];
        // SAFETY: the program exists, and the buffer has the size that the library has reported.
        self.check("a compiled kernel", unsafe { filled(program, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }
}
