//! `NSProcessInfo`: the version of macOS that the device is part of.

use std::sync::OnceLock;

use objc2::rc::Retained;
use objc2::{ClassType, define_class, msg_send};
use objc2_foundation::{NSObject, NSOperatingSystemVersion, NSString};

use crate::clock::seconds;
use crate::device::Shared;
use crate::system::mac;

define_class!(
    /// The process, and the system that it runs on.
    #[unsafe(super(NSObject))]
    #[name = "NSProcessInfo"]
    pub(crate) struct ProcessInfo;

    impl ProcessInfo {
        #[unsafe(method_id(processInfo))]
        fn one() -> Retained<Self> {
            shared()
        }

        #[unsafe(method(operatingSystemVersion))]
        fn version(&self) -> NSOperatingSystemVersion {
            let [major, minor, patch] = version();
            NSOperatingSystemVersion { majorVersion: major, minorVersion: minor, patchVersion: patch }
        }

        #[unsafe(method(isOperatingSystemAtLeastVersion:))]
        fn is_at_least(&self, of: NSOperatingSystemVersion) -> bool {
            version() >= [of.majorVersion, of.minorVersion, of.patchVersion]
        }

        #[unsafe(method_id(operatingSystemVersionString))]
        fn version_text(&self) -> Retained<NSString> {
            let [major, minor, patch] = version();
            NSString::from_str(&format!("Version {major}.{minor}.{patch} (softmetal)"))
        }

        #[unsafe(method_id(processName))]
        fn name(&self) -> Retained<NSString> {
            let path = std::env::args().next().unwrap_or_default();
            NSString::from_str(path.rsplit('/').next().unwrap_or(&path))
        }

        #[unsafe(method(processIdentifier))]
        fn identifier(&self) -> i32 {
            std::process::id() as i32
        }

        #[unsafe(method(processorCount))]
        fn processors(&self) -> usize {
            processors()
        }

        #[unsafe(method(activeProcessorCount))]
        fn active_processors(&self) -> usize {
            processors()
        }

        #[unsafe(method(physicalMemory))]
        fn memory(&self) -> u64 {
            // SAFETY: both ask for numbers of the system, and answer below zero if they do not know.
            let (pages, size) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
            (pages.max(0) as u64) * (size.max(0) as u64)
        }

        #[unsafe(method(systemUptime))]
        fn uptime(&self) -> f64 {
            seconds()
        }
    }
);

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn version() -> [isize; 3] {
    mac().version
}

/// Made when the program starts, so that it is nobody's leak.
fn shared() -> Retained<ProcessInfo> {
    static ONE: OnceLock<Shared<ProcessInfo>> = OnceLock::new();
    // SAFETY: `new` of a class without state.
    ONE.get_or_init(|| Shared(unsafe { msg_send![ProcessInfo::class(), new] })).0.clone()
}

pub(crate) fn load() {
    let _ = shared();
}
