//! A driver without a device: plans are lowered and compiled as for a GPU, and the commands can be inspected, but nothing runs.
//!
//! Tests use it to count dispatches, barriers and bound bytes on systems without a GPU.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

use super::address::Address;
use super::chip::{Chip, UNKNOWN};
use super::command::{Argument, Work};
use super::driver::{Driver, Location};
use super::kernel::{Kernel, Source};
use super::library::LibraryCall;
use super::lower::{Lowered, lower};
use crate::backend::select::{Choices, Preference};
use crate::backend::{Backend, Device, Executable, Io};
use crate::graph::{Graph, LazyTensor, Plan};
use crate::tensor::Buffer;
use crate::{Error, Result};

/// Maximum number of threads of a threadgroup, as on Apple's GPUs.
const MAX_THREADS: usize = 1024;

/// A recorded dispatch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedDispatch {
    /// Name of the operation.
    pub op: &'static str,
    /// Name of the kernel, or of the library's call.
    pub kernel: String,
    /// Number of threadgroups along each axis.
    pub groups: [usize; 3],
    /// Number of threads of a threadgroup along each axis.
    pub threads: [usize; 3],
    /// True if an earlier dispatch must finish first.
    pub barrier: bool,
    /// Number of arguments.
    pub arguments: usize,
    /// Number of arguments that are bound to the arena.
    pub arena_arguments: usize,
}

/// A GPU without a device.
#[derive(Debug)]
pub(super) struct Recorder {
    pub(super) chip: Chip,
    choices: Choices,
}

/// Memory of the host that stands for GPU memory.
struct HostBuffer(Mutex<Vec<u8>>);

impl HostBuffer {
    fn with<T>(&self, offset: usize, len: usize, f: impl FnOnce(&mut [u8]) -> T) -> Result<T> {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let size = bytes.len();
        let range = offset.checked_add(len).and_then(|end| bytes.get_mut(offset..end));
        let missing = || Error::invalid("buffer", format!("bytes {offset}+{len} of {size} do not exist"));
        Ok(f(range.ok_or_else(missing)?))
    }
}

impl Buffer for HostBuffer {
    fn bytes(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn read(&self, offset: usize, into: &mut [u8]) -> Result<()> {
        self.with(offset, into.len(), |bytes| into.copy_from_slice(bytes))
    }

    fn write(&self, offset: usize, from: &[u8]) -> Result<()> {
        self.with(offset, from.len(), |bytes| bytes.copy_from_slice(from))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Driver for Recorder {
    fn name(&self) -> &'static str {
        "recording"
    }

    fn chip(&self) -> Chip {
        self.chip
    }

    fn choices(&self) -> &Choices {
        &self.choices
    }

    fn max_threads(&self, _: &Kernel) -> Result<usize> {
        Ok(MAX_THREADS)
    }

    fn mlx_gemm(&self) -> Option<Source> {
        Some(Source::third_party("mlx_gemm", ""))
    }

    fn allocate(&self, bytes: usize, _: &'static str) -> Result<Arc<dyn Buffer>> {
        Ok(Arc::new(HostBuffer(Mutex::new(vec![0; bytes]))))
    }

    fn location(&self, buffer: &dyn Buffer) -> Option<Location> {
        let buffer = buffer.as_any().downcast_ref::<HostBuffer>()?;
        let (allocation, allocation_bytes) = (std::ptr::from_ref(buffer) as usize, buffer.bytes());
        Some(Location { allocation, allocation_bytes, offset: 0, writable: true })
    }

    fn accepts(&self, _: &LibraryCall) -> std::result::Result<(), String> {
        Err("there is no library".to_owned())
    }
}

impl Backend for Recorder {
    fn name(&self) -> String {
        Driver::name(self).to_owned()
    }

    fn allocate(&self, bytes: usize) -> Result<Arc<dyn Buffer>> {
        Driver::allocate(self, bytes, "parameters")
    }

    fn compile(&self, plan: &Plan) -> Result<Box<dyn Executable>> {
        Ok(Box::new(Recorded(lower(self, plan)?)))
    }
}

/// A lowered plan that does not run.
struct Recorded(Lowered);

impl Executable for Recorded {
    fn run(&self, _: &mut dyn Io) -> Result<()> {
        Err(Error::invalid("recording", "this device records what would be launched and cannot run it"))
    }

    fn launches(&self) -> usize {
        self.0.commands.len()
    }
}

/// Returns a device that compiles programs as for a GPU and cannot run them.
pub fn device() -> Device {
    Device::new(Box::new(recorder()))
}

pub(super) fn recorder() -> Recorder {
    Recorder { chip: UNKNOWN, choices: Choices::from(Preference::Metal) }
}

/// Returns the dispatches of a computation on [`device`], on which its parameters must have been made.
///
/// # Errors
/// The computation cannot be planned, or an operation has no kernel.
pub fn dispatches(
    device: &Device,
    graph: &Graph,
    outputs: &[LazyTensor],
    updates: &[LazyTensor],
) -> Result<Vec<RecordedDispatch>> {
    let lowered = lower(&recorder(), &device.plan(graph, outputs, updates)?)?;
    let record = |command: &super::command::Command| match &command.work {
        Work::Dispatch(dispatch) => {
            let arena = |argument: &&Argument| matches!(argument, Argument::Buffer(Address::Arena(_)));
            RecordedDispatch {
                op: command.op,
                kernel: dispatch.kernel.function.clone(),
                groups: dispatch.groups,
                threads: dispatch.threads,
                barrier: command.barrier,
                arguments: dispatch.arguments.len(),
                arena_arguments: dispatch.arguments.iter().filter(arena).count(),
            }
        }
        Work::Library(_) => unreachable!("the recorder accepts no library calls"),
    };
    Ok(lowered.commands.iter().map(record).collect())
}
