//! The GPU: device, queue, and capabilities.

use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::ProtocolObject;
use objc2_metal::{MTLCommandQueue, MTLDevice, MTLSharedEvent};

use super::archive::Archive;
use super::error::failed;
use super::pipeline::Pipelines;
use super::system;
use crate::Result;
use crate::backend::gpu::chip::Chip;
use crate::backend::select::{Choices, Preference};
use crate::error::DeviceFault;

/// A GPU with one queue.
pub(in crate::backend) struct Gpu {
    pub(in crate::backend) device: Retained<ProtocolObject<dyn MTLDevice>>,
    pub(super) queue: Retained<ProtocolObject<dyn MTLCommandQueue>>,
    /// An event whose value is the number of the last run that has ended.
    pub(super) event: Retained<ProtocolObject<dyn MTLSharedEvent>>,
    pub(super) pipelines: Pipelines,
    pub(in crate::backend) chip: Chip,
    pub(super) choices: Choices,
    /// Major version of macOS.
    #[cfg(mps)]
    pub(in crate::backend) system: usize,
    /// True if Metal Performance Shaders support this GPU. Without support their initializers return nil.
    #[cfg(mps)]
    pub(in crate::backend) mps: bool,
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
    /// Opens the system's GPU.
    pub(in crate::backend) fn new(choices: impl Into<Choices>) -> Result<Self> {
        Self::on(system::device().ok_or_else(|| missing("a GPU"))?, choices)
    }

    /// Opens this GPU, if the kernels can run on it; see [`system::check`].
    pub(in crate::backend) fn on(
        device: Retained<ProtocolObject<dyn MTLDevice>>,
        choices: impl Into<Choices>,
    ) -> Result<Self> {
        let choices = choices.into();
        autoreleasepool(|_| {
            system::check(&device)?;
            let queue = device.newCommandQueue().ok_or_else(|| missing("a command queue"))?;
            let event = device.newSharedEvent().ok_or_else(|| missing("a shared event"))?;
            let (major, minor, _) = system::version();
            let archive = choices
                .kernels
                .as_deref()
                .and_then(|folder| Archive::open(&device, folder, &format!("{major}.{minor}")));
            let pipelines = Pipelines::new(&device, archive);
            let name = device.name().to_string();
            #[cfg(mps)]
            let mps = crate::backend::mps::support::supports(&device);
            let choices = choices.on(&name);
            #[cfg(mps)]
            let choices = if mps {
                choices
            } else {
                tracing::debug!(gpu = name, "Metal Performance Shaders do not support this GPU");
                Choices { preference: Preference::Metal, table: None, ..choices }
            };
            Ok(Self {
                chip: Chip::of_device(&name, &system::architecture(&device)),
                choices,
                #[cfg(mps)]
                system: major,
                #[cfg(mps)]
                mps,
                device,
                queue,
                event,
                pipelines,
            })
        })
    }
}
