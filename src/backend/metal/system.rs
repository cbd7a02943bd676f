//! Version of the system, and the GPU that it offers to this process.

use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::ProtocolObject;
use objc2_metal::{MTLCopyAllDevices, MTLCreateSystemDefaultDevice, MTLDevice, MTLGPUFamily};

use super::fault::failed;
use crate::Result;
use crate::error::DeviceFault;

/// Oldest supported major version of macOS: candle's Metal device needs the class MTLResidencySetDescriptor, and Metal
/// Performance Shaders before 14.4 compute some strided operands incorrectly.
pub(super) const MINIMUM: usize = 15;

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
    // SAFETY: all-zero bytes are a valid `utsname`: every field is an array of characters.
    let mut name: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a whole `utsname`.
    if unsafe { libc::uname(&mut name) } != 0 {
        return String::new();
    }
    let bytes = name.release.iter().take_while(|&&byte| byte != 0).map(|&byte| byte as u8);
    String::from_utf8_lossy(&bytes.collect::<Vec<_>>()).into_owned()
}

/// Returns major and minor version of macOS. `NSProcessInfo` reports a compatibility version (16.0) to programs that
/// were linked against an older SDK; the kernel's release does not depend on that.
pub(in crate::backend) fn version() -> (usize, usize) {
    macos(&kernel_release())
}

/// Version of macOS that a Darwin release belongs to: 24 is macOS 15, 25 is macOS 26, and so on.
fn macos(release: &str) -> (usize, usize) {
    let mut parts = release.split('.').map(|part| part.parse::<usize>().unwrap_or(0));
    let (kernel, minor) = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    let major = if kernel >= 25 { kernel + 1 } else { kernel.saturating_sub(9) };
    (major, minor)
}

/// Returns the system's GPU: the default device, or the first of all devices where there is no default one, as in
/// daemons, CI jobs and ssh sessions.
pub(super) fn device() -> Option<Retained<ProtocolObject<dyn MTLDevice>>> {
    autoreleasepool(|_| MTLCreateSystemDefaultDevice().or_else(|| MTLCopyAllDevices().firstObject()))
}

/// Refuses a system or a GPU on which the kernels would compute wrongly or not at all.
///
/// # Errors
/// macOS is older than 15, or the GPU does not belong to the family Apple7: an AMD GPU of an Intel Mac has SIMD groups
/// of 64 threads, the GPU of a virtual machine has no SIMD-group reductions.
pub(super) fn check(device: &ProtocolObject<dyn MTLDevice>) -> Result<()> {
    let refuse = |message: String| Err(failed("the GPU", DeviceFault::Unavailable, message));
    let (major, minor) = version();
    if major < MINIMUM {
        return refuse(format!(
            "macOS {major}.{minor} is too old; the Metal backend needs macOS {MINIMUM} or later"
        ));
    }
    if !device.supportsFamily(MTLGPUFamily::Apple7) {
        let name = device.name();
        return refuse(format!(
            "{name} does not belong to GPU family Apple7 or later; the Metal backend needs Apple silicon (M1 or later), \
             not an AMD or virtual GPU"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::macos;

    #[test]
    fn darwin_releases_have_their_macos() {
        for (release, expected) in [
            ("22.6.0", (13, 6)),
            ("23.4.0", (14, 4)),
            ("24.6.0", (15, 6)),
            ("25.0.0", (26, 0)),
            ("26.1.0", (27, 1)),
            ("", (0, 0)),
            ("x.y", (0, 0)),
        ] {
            assert_eq!(macos(release), expected, "{release}");
        }
    }
}
