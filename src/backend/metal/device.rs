//! The GPU: device, queue, and what it can do.

use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::ProtocolObject;
use objc2_metal::{MTLCommandQueue, MTLCreateSystemDefaultDevice, MTLDevice, MTLSharedEvent};

use super::archive::Archive;
use super::fault::failed;
use super::pipeline::Pipelines;
use crate::Result;
use crate::backend::metal_chip::Chip;
use crate::backend::select::{Choices, Preference};
use crate::error::DeviceFault;

/// A GPU with one queue.
pub(in crate::backend) struct Gpu {
    pub(in crate::backend) device: Retained<ProtocolObject<dyn MTLDevice>>,
    pub(super) queue: Retained<ProtocolObject<dyn MTLCommandQueue>>,
    /// Its value is the number of the last run that is over.
    pub(super) event: Retained<ProtocolObject<dyn MTLSharedEvent>>,
    pub(super) pipelines: Pipelines,
    pub(in crate::backend) chip: Chip,
    pub(super) choices: Choices,
    /// Major version of the system.
    #[cfg(mps)]
    pub(in crate::backend) system: usize,
}

// SAFETY: devices, queues and shared events may be used from any thread; command buffers are made and encoded under
// the arena's lock.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

fn missing(what: &str) -> crate::Error {
    failed(what, DeviceFault::Unavailable, "the system gives none")
}

impl Gpu {
    /// The system's default GPU.
    pub(in crate::backend) fn new(choices: impl Into<Choices>) -> Result<Self> {
        let device = autoreleasepool(|_| MTLCreateSystemDefaultDevice());
        Self::on(device.ok_or_else(|| missing("a GPU"))?, choices)
    }

    /// This GPU.
    pub(in crate::backend) fn on(
        device: Retained<ProtocolObject<dyn MTLDevice>>,
        choices: impl Into<Choices>,
    ) -> Result<Self> {
        let choices = choices.into();
        autoreleasepool(|_| {
            let queue = device.newCommandQueue().ok_or_else(|| missing("a command queue"))?;
            let event = device.newSharedEvent().ok_or_else(|| missing("a shared event"))?;
            let version = objc2_foundation::NSProcessInfo::processInfo().operatingSystemVersion();
            let archive = choices.kernels.as_deref().and_then(|folder| {
                let system = format!("{}.{}", version.majorVersion, version.minorVersion);
                Archive::open(&device, folder, &system)
            });
            let pipelines = Pipelines::new(&device, archive);
            let name = device.name().to_string();
            Ok(Self {
                chip: Chip::of(&name),
                choices: choices.on(&name),
                #[cfg(mps)]
                system: usize::try_from(version.majorVersion).unwrap_or(0),
                device,
                queue,
                event,
                pipelines,
            })
        })
    }

    pub(super) fn preference(&self) -> Preference {
        self.choices.preference
    }
}
