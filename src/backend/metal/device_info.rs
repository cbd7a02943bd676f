//! Properties of a Mac's GPU and system.

use crate::backend::gpu::chip::Chip;
use crate::{Error, Result};

/// Properties of a GPU, and what this library derives from them.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceInfo {
    /// `MTLDevice.name`.
    pub name: String,
    /// The chip that estimates of time are based on.
    pub chip: Chip,
    /// True if the table of chips contains the name. If not, `chip` is the nearest one of its generation and class.
    pub chip_is_known: bool,
    /// The GPU families that the device supports, such as `Apple8` and `Metal3`.
    pub families: Vec<&'static str>,
    /// True if the processor and the GPU share memory, which buffers without copies need.
    pub unified_memory: bool,
    /// Bytes that a process can use without slowing down.
    pub working_set: u64,
    /// Bytes of the largest buffer.
    pub largest_buffer: u64,
    /// Bytes of memory that the threads of a threadgroup share.
    pub threadgroup_memory: u64,
    /// Version of macOS: major, minor, patch.
    pub system: (usize, usize, usize),
    /// True if this build contains Metal Performance Shaders.
    pub mps: bool,
}

impl DeviceInfo {
    /// Returns the reason why the Metal backend does not support this GPU, if it does not; see [`unsupported`].
    pub fn unsupported(&self) -> Option<&'static str> {
        let number =
            |family: &str| family.strip_prefix("Apple").and_then(|number| number.parse::<u32>().ok());
        let apple7 = self.families.iter().any(|family| number(family).is_some_and(|number| number >= 7));
        unsupported(&self.name, apple7)
    }

    /// Returns the features that depend on the version of the system: name, minimum version, and availability.
    pub fn feature_availability(&self) -> [(&'static str, usize, bool); 1] {
        [("Metal kernels and Metal Performance Shaders", 15)]
            .map(|(what, major)| (what, major, self.system.0 >= major))
    }
}

/// Returns the reason why the Metal backend does not support a GPU of this `MTLDevice.name`, if it does not. `apple7`:
/// the GPU belongs to the family Apple7 or a later one. The name counts as well, since the GPU of a virtual machine
/// computes wrongly whatever family it reports.
pub fn unsupported(name: &str, apple7: bool) -> Option<&'static str> {
    if name.contains("Paravirtual") {
        return Some("is virtual");
    }
    (!apple7).then_some("is below GPU family Apple7 (M1)")
}

/// Returns what the system's GPU reports about itself.
///
/// # Errors
/// There is no GPU, or this build does not contain the Metal backend.
pub fn read() -> Result<DeviceInfo> {
    #[cfg(metal)]
    return metal();
    #[cfg(not(metal))]
    Err(Error::invalid(
        "metal",
        "this build has no Metal backend; on a Mac, build with the feature custom-metal",
    ))
}

#[cfg(metal)]
fn metal() -> Result<DeviceInfo> {
    use objc2_metal::{MTLDevice, MTLGPUFamily};

    use super::system;

    objc2::rc::autoreleasepool(|_| {
        let device = system::device().ok_or_else(|| Error::invalid("metal", "the system lists no GPU"))?;
        let name = device.name().to_string();
        let chip = Chip::of_device(&name, &system::architecture(&device));
        let families = [
            ("Apple7", MTLGPUFamily::Apple7),
            ("Apple8", MTLGPUFamily::Apple8),
            ("Apple9", MTLGPUFamily::Apple9),
            ("Apple10", MTLGPUFamily(1010)),
            ("Metal3", MTLGPUFamily::Metal3),
        ];
        let families = families.into_iter().filter(|(_, family)| device.supportsFamily(*family));
        Ok(DeviceInfo {
            chip_is_known: Chip::known(&name).is_some(),
            chip,
            families: families.map(|(name, _)| name).collect(),
            unified_memory: device.hasUnifiedMemory(),
            working_set: device.recommendedMaxWorkingSetSize(),
            largest_buffer: device.maxBufferLength() as u64,
            threadgroup_memory: device.maxThreadgroupMemoryLength() as u64,
            system: system::version(),
            mps: cfg!(mps),
            name,
        })
    })
}
