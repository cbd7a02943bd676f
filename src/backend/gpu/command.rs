//! Commands of a lowered plan: dispatches of kernels and calls of the vendor's library.

use super::address::{Accesses, Address};
use super::kernel::Kernel;
use super::library::LibraryCall;

/// The value of a kernel's argument.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::backend) enum Argument {
    /// Memory from this address on.
    Buffer(Address),
    /// A struct of sizes and factors.
    Bytes(Vec<u8>),
    /// Not bound: the kernel's function constants disable the argument.
    Unbound,
}

/// A launch of a kernel.
#[derive(Debug, Clone)]
pub(in crate::backend) struct Dispatch {
    /// Name of the operation that it computes.
    pub(in crate::backend) op: &'static str,
    pub(in crate::backend) kernel: Kernel,
    /// Arguments in the order of their indices.
    pub(in crate::backend) arguments: Vec<Argument>,
    /// Number of threadgroups along each axis.
    pub(in crate::backend) groups: [usize; 3],
    /// Number of threads of a threadgroup along each axis.
    pub(in crate::backend) threads: [usize; 3],
}

/// The work of a command.
#[derive(Debug, Clone)]
pub(in crate::backend) enum Work {
    Dispatch(Dispatch),
    Library(LibraryCall),
}

/// Estimated cost of a command.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::backend) struct Load {
    /// Milliseconds on the GPU.
    pub(in crate::backend) milliseconds: f64,
    /// Bytes read and written.
    pub(in crate::backend) bytes: u64,
}

/// One command of a lowered plan.
#[derive(Debug, Clone)]
pub(in crate::backend) struct Command {
    pub(in crate::backend) op: &'static str,
    pub(in crate::backend) work: Work,
    pub(in crate::backend) accesses: Accesses,
    pub(in crate::backend) load: Load,
    /// True if an earlier command must finish first. Library calls order everything by themselves.
    pub(in crate::backend) barrier: bool,
    /// True if running the command twice gives another result than running it once.
    pub(in crate::backend) accumulates: bool,
}

impl Command {
    pub(super) fn dispatch(dispatch: Dispatch, accesses: Accesses) -> Self {
        Self::new(dispatch.op, Work::Dispatch(dispatch), accesses)
    }

    pub(in crate::backend) fn library(op: &'static str, call: LibraryCall) -> Self {
        let accesses = call.accesses();
        Self::new(op, Work::Library(call), accesses)
    }

    fn new(op: &'static str, work: Work, accesses: Accesses) -> Self {
        Self { op, work, accesses, load: Load::default(), barrier: false, accumulates: false }
    }
}

/// Marks each dispatch that reads or overwrites bytes which a dispatch since the last barrier writes or reads.
pub(super) fn place_barriers(commands: &mut [Command]) {
    let mut since = Accesses::default();
    for command in commands {
        match command.work {
            Work::Dispatch(_) => {
                command.barrier = since.conflicts(&command.accesses);
                if command.barrier {
                    since = Accesses::default();
                }
                since.extend(&command.accesses);
            }
            Work::Library(_) => since = Accesses::default(),
        }
    }
}
