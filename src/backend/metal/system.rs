//! Version of the system, and the GPU that it offers to this process.

use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::ProtocolObject;
use objc2_metal::{MTLCopyAllDevices, MTLCreateSystemDefaultDevice, MTLDevice, MTLGPUFamily};

use super::device_info::unsupported;
use super::error::failed;
use crate::Result;
use crate::error::DeviceFault;

/// Oldest supported major version of macOS: candle's Metal device needs the class MTLResidencySetDescriptor, and Metal
/// Performance Shaders before 14.4 compute some strided operands incorrectly.
const MINIMUM: usize = 15;

// `MTLCreateSystemDefaultDevice` works only in programs that link this framework.
#[cfg(target_vendor = "apple")]
#[link(name = "CoreGraphics", kind = "framework")]
unsafe extern "C" {}

/// Returns the release of the Darwin kernel, such as `24.6.0`.
#[cfg(softmetal)]
fn kernel_release() -> String {
    softmetal::system::kernel_release()
}

/// Returns the release of the Darwin kernel, such as `24.6.0`; empty if the system does not report it.
#[cfg(not(softmetal))]
fn kernel_release() -> String {
    // Asked at every operation on candle's tensors.
    static RELEASE: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
        // SAFETY: all-zero bytes are a valid `utsname`: every field is an array of characters.
        let mut name: libc::utsname = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is to a whole `utsname`.
        if unsafe { libc::uname(&mut name) } != 0 {
            return String::new();
        }
        let bytes = name.release.iter().take_while(|&&byte| byte != 0).map(|&byte| byte as u8);
        String::from_utf8_lossy(&bytes.collect::<Vec<_>>()).into_owned()
    });
    RELEASE.clone()
}

/// Returns the version of macOS: major, minor, patch. `NSProcessInfo` reports a compatibility version (16.0) to programs
/// that were linked against an older SDK; the kernel's release does not depend on that, so where the two disagree the
/// kernel's counts.
pub(in crate::backend) fn version() -> (usize, usize, usize) {
    let reported = objc2_foundation::NSProcessInfo::processInfo().operatingSystemVersion();
    let part = |number: isize| usize::try_from(number).unwrap_or(0);
    let reported = (part(reported.majorVersion), part(reported.minorVersion), part(reported.patchVersion));
    match macos(&kernel_release()) {
        Some((major, minor)) if major != reported.0 => (major, minor, 0),
        _ => reported,
    }
}

/// Version of macOS that a Darwin release belongs to: 24 is macOS 15, 25 is macOS 26, and so on.
fn macos(release: &str) -> Option<(usize, usize)> {
    let mut parts = release.split('.').map(|part| part.parse::<usize>().ok());
    let (kernel, minor) = (parts.next()??, parts.next().flatten().unwrap_or(0));
    // The systems' numbers jumped from 15 to 26, the kernel's did not.
    let major = if kernel >= 25 { kernel + 1 } else { kernel.checked_sub(9)? };
    Some((major, minor))
}

/// Returns the system's GPU: the default device, or the first of all devices where there is no default one, as in
/// daemons, CI jobs and ssh sessions.
pub(in crate::backend) fn device() -> Option<Retained<ProtocolObject<dyn MTLDevice>>> {
    autoreleasepool(|_| MTLCreateSystemDefaultDevice().or_else(|| MTLCopyAllDevices().firstObject()))
}

/// Returns the name of a GPU's architecture, such as `applegpu_g13g`; empty before macOS 14, which does not report it.
pub(in crate::backend) fn architecture(device: &ProtocolObject<dyn MTLDevice>) -> String {
    if version().0 < 14 { String::new() } else { device.architecture().name().to_string() }
}

/// Refuses a system or a GPU on which the kernels would compute wrongly or not at all.
///
/// # Errors
/// macOS is older than 15, or the GPU is unsupported by name or family: an AMD GPU of an Intel Mac has SIMD groups of 64
/// threads, the GPU of a virtual machine has no SIMD-group reductions.
pub(in crate::backend) fn check(device: &ProtocolObject<dyn MTLDevice>) -> Result<()> {
    let refuse = |message: String| Err(failed("the GPU", DeviceFault::Unavailable, message));
    // By the kernel alone where it answers: this is asked at every operation on candle's tensors.
    let (major, minor) = macos(&kernel_release()).unwrap_or_else(|| {
        let (major, minor, _) = version();
        (major, minor)
    });
    if major < MINIMUM {
        return refuse(format!(
            "macOS {major}.{minor} is too old; the Metal backend needs macOS {MINIMUM} or later"
        ));
    }
    let apple7 = device.supportsFamily(MTLGPUFamily::Apple7);
    let name = autoreleasepool(|_| device.name().to_string());
    match unsupported(&name, apple7) {
        Some(reason) => refuse(format!(
            "{name} {reason}; the Metal backend needs Apple silicon (M1 or later, GPU family Apple7), not an AMD or virtual \
             GPU"
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::macos;

    #[test]
    fn darwin_releases_have_their_macos() {
        for (release, expected) in [
            ("22.6.0", Some((13, 6))),
            ("23.4.0", Some((14, 4))),
            ("24.6.0", Some((15, 6))),
            ("25.0.0", Some((26, 0))),
            ("26.1.0", Some((27, 1))),
            ("24", Some((15, 0))),
            ("", None),
            ("x.y", None),
            ("8.1", None),
        ] {
            assert_eq!(macos(release), expected, "{release}");
        }
    }
}
