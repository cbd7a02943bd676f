//! What a kernel did that a GPU would not forgive, or that only seems to work there.

use std::fmt;

/// Why a dispatch was abandoned.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// An access outside every argument, threadgroup memory, constants and the thread's own memory.
    Access {
        /// Name of the kernel.
        kernel: String,
        /// Position of the thread in the grid.
        thread: [u32; 3],
        /// The first byte accessed.
        address: usize,
        /// Bytes accessed; 0 where the processor reported it, after all checks were passed.
        size: usize,
        /// Position of the argument nearest to it.
        argument: Option<u32>,
        /// Name of that argument; empty where there is none.
        name: String,
        /// Bytes beyond the argument's end; negative: bytes before its start; 0: a write to a read-only one.
        distance: isize,
        /// Whether it was a write, where that is known.
        write: Option<bool>,
    },
    /// Threads wait at different barriers.
    Barrier {
        /// Name of the kernel.
        kernel: String,
        /// Position of the threadgroup.
        threadgroup: [u32; 3],
        /// A line at which threads wait.
        line: u32,
        /// How many threads wait there.
        waiting: u32,
        /// Another line at which threads wait; `None`: the others have returned.
        other: Option<u32>,
        /// How many threads wait at another barrier or have returned.
        others: u32,
    },
    /// An argument was used that the host did not bind.
    UnsetArgument {
        /// Name of the kernel.
        kernel: String,
        /// Position of the argument.
        argument: u32,
        /// Name of the argument.
        name: String,
        /// Position of the thread in the grid.
        thread: [u32; 3],
    },
    /// An integer division by zero, or one that overflows; Metal leaves the result undefined.
    Arithmetic {
        /// Name of the kernel.
        kernel: String,
        /// Position of the thread in the grid.
        thread: [u32; 3],
    },
    /// A dispatch that cannot be made: its shape, or too few arguments.
    Dispatch {
        /// Name of the kernel.
        kernel: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Access { kernel, thread, address, size, argument, name, distance, write } => {
                let what = match write {
                    Some(true) => "write",
                    Some(false) => "read",
                    None => "access",
                };
                write!(f, "kernel `{kernel}`, thread {thread:?}: {what} of {size} bytes at {address:#x}: ")?;
                match (argument, distance) {
                    (Some(n), 0) => write!(f, "argument {n} `{name}` is read-only"),
                    (Some(n), 1..) => write!(f, "{distance} bytes beyond the end of argument {n} `{name}`"),
                    (Some(n), _) => {
                        write!(f, "{} bytes before the start of argument {n} `{name}`", -distance)
                    }
                    (None, _) => write!(f, "not near any argument"),
                }
            }
            Fault::Barrier { kernel, threadgroup, line, waiting, other, others } => {
                write!(
                    f,
                    "kernel `{kernel}`, threadgroup {threadgroup:?}: {waiting} threads wait at the barrier of line {line}, "
                )?;
                match other {
                    Some(other) => write!(f, "{others} at another one (line {other})"),
                    None => write!(f, "{others} have returned"),
                }
            }
            Fault::UnsetArgument { kernel, argument, name, thread } => {
                write!(
                    f,
                    "kernel `{kernel}`, thread {thread:?}: argument {argument} `{name}` is used but nothing is bound to it"
                )
            }
            Fault::Arithmetic { kernel, thread } => {
                write!(f, "kernel `{kernel}`, thread {thread:?}: integer division by zero or overflow")
            }
            Fault::Dispatch { kernel, reason } => write!(f, "kernel `{kernel}`: {reason}"),
        }
    }
}

impl std::error::Error for Fault {}
