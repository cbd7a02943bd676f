//! The Mac that the device is part of. A test replaces it by a less friendly one.
//!
//! ```ignore
//! let _mac = Mac { devices: Devices::ListOnly, ..Mac::default() }.install();
//! ```
//!
//! The replacement holds for the whole process until the guard is dropped, so tests that install one run one at a time.
//! What a program has read before (a pipeline's limit, a device's name) stays as it was read.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, PoisonError, RwLock, RwLockWriteGuard};

/// A Mac, as far as Metal code can see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Mac {
    /// Ways in which the system returns its GPU.
    pub devices: Devices,
    /// The GPU.
    pub gpu: Gpu,
    /// Version that `NSProcessInfo` reports: major, minor, patch. `SOFTMETAL_OS_VERSION` sets the default.
    pub version: [isize; 3],
    /// Release of the Darwin kernel, which [`kernel_release`] returns. `SOFTMETAL_KERNEL_RELEASE` sets the default.
    pub kernel_release: String,
    /// Whether the program was linked against an SDK before that of macOS 14, so that a library whose options name no
    /// language version is compiled as Metal 3.0, which has no `bfloat`.
    pub old_sdk: bool,
    /// Limits of threads in a threadgroup, below those that kernels and descriptors ask for.
    pub threads: Threads,
    /// What becomes of a dispatch whose threadgroups are larger than its pipeline allows.
    pub oversized: Oversized,
    /// Whether `MPSMatrix` counts the last row with its gap, so that columns at the end of a buffer do not fit.
    pub whole_rows: bool,
}

/// Ways in which the system returns its GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Devices {
    /// `MTLCreateSystemDefaultDevice` returns it and `MTLCopyAllDevices` lists it.
    Default,
    /// Only `MTLCopyAllDevices` lists it, as in daemons, in CI and over ssh.
    ListOnly,
    /// There is none: the list is empty.
    None,
}

/// A GPU by what it reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// `MTLDevice.name`.
    pub name: String,
    /// `MTLArchitecture.name`. `SOFTMETAL_ARCHITECTURE` sets the default.
    pub architecture: String,
    /// Highest Apple family that it supports; none for other vendors' GPUs.
    pub family: Option<u8>,
    /// Threads of a SIMD group. Kernels run with 32; with another width every dispatch fails.
    pub simd_width: usize,
    /// Whether the processor and the GPU share memory.
    pub unified_memory: bool,
    /// Whether Metal Performance Shaders support it. Without support their initializers return nil.
    pub mps: bool,
}

/// Limits of threads in a threadgroup. The lowest that applies to a kernel counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Threads {
    /// For kernels where neither the source (`max_total_threads_per_threadgroup`) nor the pipeline's descriptor declares
    /// a number: the compiler fits registers to a declared number, and to no other.
    pub undeclared: Option<usize>,
    /// For every kernel, declared or not.
    pub every: Option<usize>,
    /// For kernels by name.
    pub kernels: Vec<(String, usize)>,
}

/// What becomes of a dispatch whose threadgroups are larger than its pipeline allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oversized {
    /// It breaks the rule `threads-per-threadgroup`, as under Metal's API validation.
    Reported,
    /// It does nothing, without an error, as in a program without validation. [`crate::counters`] counts it.
    Dropped,
}

/// Puts the former Mac back when it is dropped.
#[must_use = "the Mac is removed when the guard is dropped"]
#[derive(Debug)]
pub struct Installed(Option<(Arc<Mac>, u64)>);

/// The Mac that a test installed, with the number of its GPU.
static CURRENT: RwLock<Option<(Arc<Mac>, u64)>> = RwLock::new(None);

/// Version of macOS, the first with everything that is modelled here.
const VERSION: [isize; 3] = [15, 6, 0];
/// Release of that version's kernel.
const KERNEL: &str = "24.6.0";
/// Registry ID of the GPU that every program meets first.
const FIRST: u64 = 1;
/// The class that macOS 14 lacks.
const RESIDENCY: &std::ffi::CStr = c"MTLResidencySetDescriptor";

impl Default for Gpu {
    /// An M1 by its family.
    fn default() -> Self {
        Self {
            name: "softmetal".to_owned(),
            architecture: std::env::var("SOFTMETAL_ARCHITECTURE")
                .unwrap_or_else(|_| "applegpu_g13g".to_owned()),
            family: Some(7),
            simd_width: 32,
            unified_memory: true,
            mps: true,
        }
    }
}

impl Gpu {
    /// The GPU of a virtual Mac, as GitHub's runners have it: family Apple5, without SIMD-scoped reductions and without
    /// Metal Performance Shaders. What it reports as its architecture is not known; here it is empty.
    pub fn paravirtual() -> Self {
        Self {
            name: "Apple Paravirtual device".to_owned(),
            architecture: String::new(),
            family: Some(5),
            mps: false,
            ..Self::default()
        }
    }

    /// The GPU of an Intel Mac: no Apple family, SIMD groups of 64 threads, memory of its own.
    pub fn amd() -> Self {
        Self {
            name: "AMD Radeon Pro Vega 56".to_owned(),
            architecture: String::new(),
            family: None,
            simd_width: 64,
            unified_memory: false,
            mps: true,
        }
    }

    /// Whether `simd_sum` and its like exist (Metal Feature Set Tables: Apple7 and Mac2).
    pub(crate) fn has_simd_reductions(&self) -> bool {
        self.family.is_none_or(|family| family >= 7)
    }
}

impl Default for Mac {
    /// The one that every program meets until a test installs another.
    fn default() -> Self {
        let version = std::env::var("SOFTMETAL_OS_VERSION").ok().and_then(|text| parsed(&text));
        Self {
            devices: Devices::Default,
            gpu: Gpu::default(),
            version: version.unwrap_or(VERSION),
            kernel_release: std::env::var("SOFTMETAL_KERNEL_RELEASE").unwrap_or_else(|_| {
                version.map_or_else(|| KERNEL.to_owned(), |[major, minor, _]| kernel_of(major, minor))
            }),
            old_sdk: false,
            threads: Threads::default(),
            oversized: Oversized::Reported,
            whole_rows: false,
        }
    }
}

impl Mac {
    /// A Mac with this GPU.
    pub fn with(gpu: Gpu) -> Self {
        Self { gpu, ..Self::default() }
    }

    /// A Mac with macOS 14, which has no residency sets: the class `MTLResidencySetDescriptor` is not found.
    pub fn sonoma() -> Self {
        Self { version: [14, 4, 1], kernel_release: "23.4.0".to_owned(), ..Self::default() }
    }

    /// A Mac whose kernel is that of macOS 27, in a program linked against an SDK before that of macOS 26, to which
    /// `NSProcessInfo` reports the compatibility version 16.0.
    pub fn compatibility_version() -> Self {
        Self { version: [16, 0, 0], kernel_release: "26.0.0".to_owned(), ..Self::default() }
    }

    /// Makes this the process's Mac until the guard is dropped.
    pub fn install(self) -> Installed {
        static INSTALLED: AtomicU64 = AtomicU64::new(FIRST);
        crate::load();
        let number = INSTALLED.fetch_add(1, Ordering::Relaxed) + 1;
        let before = current().replace((Arc::new(self), number));
        hide_classes();
        Installed(before)
    }

    /// The first number of the kernel's release.
    fn kernel(&self) -> u32 {
        self.kernel_release.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0)
    }

    /// The newest version of the Metal Shading Language that the system compiles: major, minor.
    pub(crate) fn newest_language(&self) -> (usize, usize) {
        match self.kernel() {
            0..=22 => (3, 0),
            23 => (3, 1),
            24 => (3, 2),
            _ => (4, 0),
        }
    }

    /// The version for a library whose options name none.
    pub(crate) fn default_language(&self) -> (usize, usize) {
        if self.old_sdk { (3, 0) } else { self.newest_language() }
    }

    /// The limit of threads for a pipeline of a kernel that asks for so many, by its source or its descriptor if
    /// `declared`.
    pub(crate) fn limit(&self, kernel: &str, asked: usize, declared: bool) -> usize {
        let Threads { undeclared, every, kernels } = &self.threads;
        let named = kernels.iter().filter(|(name, _)| name == kernel).map(|(_, limit)| *limit);
        let undeclared = undeclared.filter(|_| !declared);
        named.chain(undeclared).chain(*every).fold(asked, usize::min)
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        *current() = self.0.take();
        hide_classes();
    }
}

fn current() -> RwLockWriteGuard<'static, Option<(Arc<Mac>, u64)>> {
    CURRENT.write().unwrap_or_else(PoisonError::into_inner)
}

/// The process's Mac.
pub(crate) fn mac() -> Arc<Mac> {
    let installed =
        CURRENT.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(mac, _)| Arc::clone(mac));
    static DEFAULT: LazyLock<Arc<Mac>> = LazyLock::new(Arc::default);
    installed.unwrap_or_else(|| Arc::clone(&DEFAULT))
}

/// Registry ID of the process's GPU. Every Mac that is installed has another, so that nothing which a program keeps by
/// that number is used for two GPUs.
pub(crate) fn registry_id() -> u64 {
    CURRENT.read().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(FIRST, |(_, number)| *number)
}

/// Returns the release of the kernel, as `uname` does on a Mac: 24.6.0 for macOS 15.6.
pub fn kernel_release() -> String {
    mac().kernel_release.clone()
}

/// Hides the classes that the process's Mac does not have.
pub(crate) fn hide_classes() {
    softmetal_objc::hide((mac().kernel() < 24).then_some(RESIDENCY));
}

/// Release of the kernel of a version of macOS.
fn kernel_of(major: isize, minor: isize) -> String {
    let kernel = if major >= 26 { major - 1 } else { major + 9 };
    format!("{kernel}.{minor}.0")
}

/// Up to three numbers with points between them.
fn parsed(text: &str) -> Option<[isize; 3]> {
    let mut version = [0; 3];
    let mut parts = text.split('.');
    for (place, part) in version.iter_mut().zip(&mut parts) {
        *place = part.parse().ok()?;
    }
    parts.next().is_none().then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_have_up_to_three_numbers() {
        assert_eq!(parsed("14.4.1"), Some([14, 4, 1]));
        assert_eq!(parsed("26"), Some([26, 0, 0]));
        assert_eq!(parsed("1.2.3.4"), None);
        assert_eq!(parsed("15.x"), None);
        assert_eq!(parsed(""), None);
    }

    #[test]
    fn a_version_of_macos_has_its_kernel() {
        for (version, kernel) in
            [((14, 4), "23.4.0"), ((15, 6), "24.6.0"), ((26, 0), "25.0.0"), ((27, 1), "26.1.0")]
        {
            assert_eq!(kernel_of(version.0, version.1), kernel);
        }
    }

    #[test]
    fn the_lowest_limit_of_threads_counts() {
        let mut mac = Mac::default();
        assert_eq!(mac.limit("a", 1024, false), 1024);
        mac.threads.undeclared = Some(768);
        assert_eq!((mac.limit("a", 1024, false), mac.limit("a", 1024, true)), (768, 1024));
        mac.threads.kernels.push(("a".to_owned(), 512));
        assert_eq!((mac.limit("a", 1024, true), mac.limit("b", 1024, true)), (512, 1024));
        mac.threads.every = Some(896);
        assert_eq!((mac.limit("a", 1024, true), mac.limit("b", 1024, true)), (512, 896));
        assert_eq!(mac.limit("b", 256, false), 256, "a limit is never raised");
    }

    #[test]
    fn a_system_compiles_its_own_language_and_older_ones() {
        let of = |release: &str, old_sdk| {
            let mac = Mac { kernel_release: release.to_owned(), old_sdk, ..Mac::default() };
            (mac.newest_language(), mac.default_language())
        };
        assert_eq!(of("22.6.0", false), ((3, 0), (3, 0)));
        assert_eq!(of("23.1.0", false), ((3, 1), (3, 1)));
        assert_eq!(of("24.6.0", false), ((3, 2), (3, 2)));
        assert_eq!(of("25.0.0", false), ((4, 0), (4, 0)));
        assert_eq!(of("25.0.0", true), ((4, 0), (3, 0)));
    }
}
